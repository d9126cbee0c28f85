"""What gpt-oss, Llama 4 and Phi-MoE have of their own: against transformers, and against a reference where transformers is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle_cases import CASES
from oracle_cases_singular import LONGROPE, SINGULAR_CASES
from oracle_models import make_oracle, run_oracle, save, save_in_memory_layout
from oracle_sizes import LLAMA3, YARN
from reference_phimoe import logits as phimoe_logits
from reference_phimoe import sparsemixer
from tiny_checkpoints import all_tensors
from transformers import AutoModelForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.phimoe.modeling_phimoe import sparsemixer as their_sparsemixer

from moectl.api import load_model
from moectl.arch.parts import MoE, Router
from moectl.arch.registry import build_spec
from moectl.data.batching import MicroBatch
from moectl.model.events import RoutingEvent
from moectl.model.load import open_checkpoint
from moectl.model.router import route
from moectl.model.save import _assembled, named_weights, save_model
from moectl.model.schedules import run_layer_major, run_token_major

IDS = torch.randint(0, 103, (3, 33), generator=torch.Generator().manual_seed(5))
LONG_IDS = torch.randint(0, 103, (2, 90), generator=torch.Generator().manual_seed(6))
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0},
    {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 3.0},
    LLAMA3,
    YARN,
    {**YARN, "truncate": False, "attention_factor": 1.4},
    {key: value for key, value in LONGROPE.items() if "mscale" not in key},
]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("rope", ROPES, ids=[f"{i}-{rope['rope_type']}" for i, rope in enumerate(ROPES)])
@pytest.mark.parametrize("case", ["gpt_oss-windows-yarn", "llama4_text-dense-between-llama3"])
def test_every_rope_within_and_beyond_the_original_length(case: str, rope: dict[str, Any], tmp_path: Path) -> None:
    family, keys = CASES[case]
    oracle = make_oracle(family, {**keys, "num_hidden_layers": 2, "max_position_embeddings": 64, "rope_parameters": dict(rope)})
    model = load_model(save(oracle, tmp_path, hub_style=False))
    with torch.no_grad():
        for ids in (IDS, LONG_IDS, IDS[:, :1]):
            assert relative_error(model(ids), run_oracle(oracle, ids).logits_BSV) <= 1e-5


@pytest.mark.parametrize("case", ["phimoe-longrope-biases-window", "phimoe-plain-tied"])
def test_phimoe_beyond_the_original_length(case: str, tmp_path: Path) -> None:
    """Against the reference at any length; transformers agrees with it up to the original one, 64."""
    oracle = make_oracle(*CASES[case])
    folder = save(oracle, tmp_path, hub_style=True)
    config, tensors, model = json.loads((folder / "config.json").read_text()), all_tensors(folder), load_model(folder)
    with torch.no_grad():
        for ids in (IDS, LONG_IDS[:, :64], LONG_IDS[:, :65], LONG_IDS):
            expected = phimoe_logits(config, tensors, ids)
            assert relative_error(model(ids), expected) <= 1e-5
            theirs = relative_error(run_oracle(oracle, ids).logits_BSV, expected)
            assert theirs <= 1e-5 if ids.shape[1] <= 64 or not config["rope_scaling"] else theirs > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.2, 3.0])
def test_sparsemixer_has_the_bits_of_transformers(jitter: float, dtype: torch.dtype) -> None:
    logits_TE = torch.randn(400, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits_TE[:9] -= 4.0  # all below zero
    weights, ids = their_sparsemixer(logits_TE, jitter_eps=jitter, training=False)
    spec = Router(
        n_experts=7, top_k=2, score="sparsemixer", score_dtype="model", logits_dtype="model", weight_dtype="model", renormalize=False,
        jitter=jitter,
    )  # fmt: skip
    got = route(spec, logits_TE, {"router": torch.eye(7, dtype=dtype)})
    assert torch.equal(got.expert_ids_TK, ids)
    assert torch.equal(got.weights_TK, weights)
    assert dtype == torch.bfloat16 or [sparsemixer(z, jitter) for z in logits_TE.tolist()] == [
        pytest.approx(dict(zip(i, w, strict=True)), rel=1e-5) for i, w in zip(ids.tolist(), weights.tolist(), strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama4_selects_where_the_sigmoid_saturates(dtype: torch.dtype) -> None:
    """Scores of 1.0 tie, the logits behind them do not; transformers selects by logits."""
    config = CASES["llama4_text-lists-plain-tied"][1]
    ffn = build_spec({"model_type": "llama4_text", **config}).moe_layers[0].ffn
    assert isinstance(ffn, MoE)
    g = torch.Generator().manual_seed(0)
    weight_EH, x_TH = 8 * torch.randn(6, 48, generator=g).to(dtype), torch.randn(200, 48, generator=g).to(dtype)
    router = Llama4Router(make_oracle("llama4_text", config).config).to(dtype)
    with torch.no_grad():
        router.weight.copy_(weight_EH)
        scores_TE, logits_TE = router(x_TH)
    got = route(ffn.router, x_TH, {"router": weight_EH})
    saturated_T = (logits_TE.float().sigmoid() == 1).sum(-1) > 3
    assert saturated_T.sum() > 10
    assert torch.equal(got.logits_TE, logits_TE)
    assert torch.equal(torch.zeros_like(scores_TE).scatter_(1, got.expert_ids_TK, got.weights_TK), scores_TE)
    assert got.choice_TE is None


@pytest.mark.parametrize("case", SINGULAR_CASES)
def test_every_gradient_is_that_of_transformers(case: str, tmp_path: Path) -> None:
    oracle = make_oracle(*CASES[case]).requires_grad_(True)
    model = load_model(save_in_memory_layout(oracle, tmp_path)).requires_grad_(True)
    for logits in (oracle(IDS, use_cache=False).logits, model(IDS)):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    named: dict[str, list[Any]] = {}
    for ref, parameter in named_weights(model):
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        named.setdefault(ref.name, []).append((ref, torch.nn.Parameter(grad)))
    theirs = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    assert named.keys() == theirs.keys()
    for name, grads in named.items():
        got, expected = _assembled(grads, torch.float32), theirs[name]
        # Without positions a bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
        assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


@pytest.mark.parametrize("case", SINGULAR_CASES)
def test_what_came_in_the_layout_of_memory_is_written_in_the_hubs(case: str, tmp_path: Path) -> None:
    oracle, out = make_oracle(*CASES[case]), tmp_path / "out"
    hub = save(oracle, tmp_path / "hub", hub_style=True)
    model = load_model(save_in_memory_layout(oracle, tmp_path / "memory"))
    out.mkdir()
    save_model(model, json.loads((hub / "config.json").read_text()), out)
    expected, got = all_tensors(hub), all_tensors(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", SINGULAR_CASES)
def test_bfloat16_rounds_where_transformers_does(case: str, tmp_path: Path) -> None:
    """Nearly the bits of its default back-end, and weights of its dtype. What one rounding elsewhere would change is ten times more."""
    family, keys = CASES[case]
    # Grouped GEMM wants rows of whole 16 bytes; the attention kernel packs keys by 16.
    keys = {**keys, "intermediate_size": 56} | ({"attention_chunk_size": 16} if family == "llama4_text" else {})
    folder = save(make_oracle(family, keys), tmp_path, hub_style=False)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    expected = run_oracle(oracle, IDS, implementation="grouped_mm")
    dtypes: dict[int, torch.dtype] = {}
    with torch.no_grad():
        got = load_model(folder, dtype="bfloat16")(
            IDS, on_routing=lambda _, layer, routing: dtypes.update({layer: routing.weights_TK.dtype})
        )
    assert dtypes == {layer: weights.dtype for layer, weights in expected.weights.items()}
    assert relative_error(got.float(), expected.logits_BSV.float()) <= 2e-3


class Events:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[RoutingEvent] = []

    def record(self, event: RoutingEvent) -> None:
        self.events.append(event)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SINGULAR_CASES)
def test_streamed_is_resident_and_reads_every_byte_once(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save(make_oracle(*CASES[case]), tmp_path, hub_style=True)
    parts = [IDS[:2].numpy(), IDS[2:].numpy()]
    batches = [MicroBatch(i, 0, 2 * i, ids_BS, np.ones_like(ids_BS, np.bool_)) for i, ids_BS in enumerate(parts)]
    losses: dict[str, list[torch.Tensor]] = {"resident": [], "streamed": []}
    resident, streamed = Events(), Events()
    with open_checkpoint(str(folder)) as checkpoint:
        model = load_model(folder, dtype=str(dtype).removeprefix("torch."))
        run_token_major(model, batches, resident, advance=lambda _: None, on_prediction=lambda _, p: losses["resident"].append(p.loss_T))
        before = checkpoint.reader.bytes_read
        weights = checkpoint.weights(dtype=dtype, device=torch.device("cpu"))
        run_layer_major(weights, batches, streamed, advance=lambda _: None, on_prediction=lambda _, p: losses["streamed"].append(p.loss_T))
        read = checkpoint.reader.bytes_read - before
        tensors, spec = checkpoint.index.tensors, checkpoint.spec
    used = {(event.layer, e) for event in streamed.events for e in event.expert_ids_TK.unique().tolist()}
    expected = {ref.name: tensors[ref.name].nbytes for layer in spec.layers for ref in layer.tensors.values()}
    expected |= {ref.name: tensors[ref.name].nbytes for ref in spec.tensors.values()}
    for layer in spec.moe_layers:
        assert isinstance(layer.ffn, MoE)
        for e in range(layer.ffn.router.n_experts):
            for ref in layer.ffn.experts.refs(e):
                share = ref.shape[0] if ref.index is not None else 1
                if (layer.index, e) in used:
                    expected[f"{ref.name}[{ref.index}]"] = tensors[ref.name].nbytes // share
    assert read == sum(expected.values()) + (expected[spec.tensors["head"].name] if spec.tied else 0)
    assert all(torch.equal(a, b) for a, b in zip(losses["resident"], losses["streamed"], strict=True))
    key = {(event.layer, event.batch.index): event for event in resident.events}
    assert len(key) == len(streamed.events) == 2 * len(spec.moe_layers)
    for event in streamed.events:
        other = key[event.layer, event.batch.index]
        assert torch.equal(event.expert_ids_TK, other.expert_ids_TK)
        assert torch.equal(event.weights_TK, other.weights_TK)
        assert torch.equal(event.logits_TE, other.logits_TE)
