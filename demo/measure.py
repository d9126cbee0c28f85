"""What there is to know about the trained demo model, measured: losses with their baselines, routing on held-out text.

    account = measure(PACKAGE_FOLDER, Path("runs"))
    account.trigram[ALL] - account.model[ALL]  # nats a token below the trigram

The model is the shipped bfloat16 file, in float32 arithmetic. Held-out text is the same for everything here.
Shape letters: T tokens, K slots, E experts, Q sequences, D domains, S tokens of a sequence.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ngram import NgramModel, loss, train_trigram, train_unigram
from recipe import SEQ_LEN, WEIGHTS
from train import HELDOUT_TOKENS

import moectl
from moectl.arch.registry import build_spec
from moectl.arch.spec import ModelSpec
from moectl.data.batching import micro_batches
from moectl.data.packing import Domain, load_domains
from moectl.routing.metrics.domains import Floor, domain_information_bits, domain_information_floor, domain_jsd_bits
from moectl.routing.metrics.load import max_vio, max_vio_noise_floor
from moectl.routing.trace import read_trace
from moectl.training.evaluate import evaluate, mean_loss
from moectl.training.order import DataOrder

DISCOUNT = 0.75
PERMUTATIONS = 1000
ALL = "all"

Losses = dict[str, float]
"""Nats a token by domain, and `all` over all tokens."""


@dataclass(frozen=True)
class LayerRouting:
    """One MoE layer on held-out text. `max_vio_as_trained`: the domains weighted as in training, not equally."""

    layer: int
    max_vio: float
    max_vio_as_trained: float
    noise_floor: float
    information: float
    floor: Floor
    jsd: float


@dataclass(frozen=True)
class Account:
    """`same_text`: the text read here is what the model was trained on. `dense_log` is empty where no dense twin was trained."""

    folder: Path
    spec: ModelSpec
    options: dict[str, Any]
    python_version: str
    same_text: bool
    log: list[dict[str, Any]]
    dense_log: list[dict[str, Any]]
    train: list[Domain]
    heldout: list[Domain]
    unigram: Losses
    trigram: Losses
    model: Losses
    routing: list[LayerRouting]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of the log about optimiser steps."""
        return [line for line in self.log if "loss" in line]

    @property
    def seconds(self) -> float:
        """Spent on optimiser steps, by the logged rates."""
        tokens = np.diff([0, *(line["tokens"] for line in self.steps)])
        return float(sum(n / line["tokens_per_s"] for n, line in zip(tokens, self.steps, strict=True)))


def measure(folder: Path, runs: Path) -> Account:
    """Everything, of the model in `folder` and its logs in `runs`; takes a minute or two."""
    provenance = json.loads((folder / "moectl.json").read_text(encoding="utf-8"))["provenance"]
    spec = build_spec(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    log, dense = read_log(runs / "demo-moe" / "metrics.jsonl"), runs / "demo-dense" / "metrics.jsonl"
    if log[-1]["step"] != provenance["options"]["steps"]:
        print(f"warning: the log ends at step {log[-1]['step']}, the model is of step {provenance['options']['steps']}", file=sys.stderr)

    train = load_domains(["demo:train"], folder=folder, vocab_size=spec.vocab_size, seq_len=SEQ_LEN)
    heldout = load_domains(["demo:heldout"], folder=folder, vocab_size=spec.vocab_size, seq_len=SEQ_LEN, tokens=HELDOUT_TOKENS)
    sequences = [ids_S for domain in train for ids_S in _sequences(domain)]
    losses = evaluate(moectl.load_model(folder, dtype="float32"), micro_batches(heldout, 4096), [domain.name for domain in heldout])
    return Account(
        folder=folder,
        spec=spec,
        options=provenance["options"],
        python_version=provenance["python_version"],
        same_text=DataOrder(train, seq_len=SEQ_LEN, seed=0, weights=WEIGHTS).sha256 == provenance["data_sha256"],
        log=log,
        dense_log=read_log(dense) if dense.is_file() else [],
        train=train,
        heldout=heldout,
        unigram=_ngram_losses(train_unigram(sequences, spec.vocab_size), heldout),
        trigram=_ngram_losses(train_trigram(sequences, spec.vocab_size, DISCOUNT), heldout),
        model={ALL: mean_loss(losses), **{name: item.loss for name, item in losses.items()}},
        routing=_measure_routing(folder),
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, which may be growing."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def last_heldout(log: Sequence[dict[str, Any]]) -> tuple[int, Losses] | None:
    """Step and losses of the last evaluation in a log, None if there is none."""
    for line in reversed(log):
        if "heldout" in line:
            return line["step"], {ALL if name == "mean" else name: value for name, value in line["heldout"].items()}
    return None


def _ngram_losses(model: NgramModel, domains: Sequence[Domain]) -> Losses:
    losses = {domain.name: loss(model, _sequences(domain)) for domain in domains}
    return {ALL: loss(model, (ids_S for domain in domains for ids_S in _sequences(domain))), **losses}


def _sequences(domain: Domain) -> list[np.ndarray]:
    return np.split(domain.token_ids, domain.offsets[1:-1])


def _measure_routing(folder: Path) -> list[LayerRouting]:
    """Every MoE layer of the main stack."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "stats"
        moectl.route_stats(folder, data=["demo"], tokens=HELDOUT_TOKENS, seq_len=SEQ_LEN, dtype="float32", output=output, trace=True)
        trace = read_trace(output / "trace.safetensors")
        lengths_Q, domain_Q = np.diff(trace.sequence_offsets_Q), trace.domain_ids_Q.astype(np.int64)
        sequence_T = np.repeat(np.arange(len(lengths_Q)), lengths_Q)
        weight_D = np.array([WEIGHTS[name] for name in trace.domains])
        rows = []
        for place, (layer, E, K) in enumerate(zip(trace.layers, trace.n_experts, trace.top_k, strict=True)):
            ids_TK = trace.expert_ids_TLK[:, place, :K].astype(np.int64)
            cells = (sequence_T[:, None] * E + ids_TK)[ids_TK < E]  # ids beyond are empty slots
            counts_QE = np.bincount(cells, minlength=len(lengths_Q) * E).reshape(-1, E)
            counts_DE = np.stack([counts_QE[domain_Q == d].sum(0) for d in range(len(trace.domains))])
            as_trained_E = weight_D @ (counts_DE / counts_DE.sum(1, keepdims=True))
            rows.append(
                LayerRouting(
                    layer=layer,
                    max_vio=float(max_vio(counts_DE.sum(0))),
                    max_vio_as_trained=float(as_trained_E.max() / as_trained_E.mean() - 1),
                    noise_floor=float(max_vio_noise_floor(counts_DE.sum(0), K)),
                    information=float(domain_information_bits(counts_DE)),
                    floor=domain_information_floor(counts_QE, domain_Q, permutations=PERMUTATIONS),
                    jsd=float(domain_jsd_bits(counts_DE)),
                )
            )
        return rows
