"""Training throughput of moectl beside transformers: same model, weights, tokens, optimiser. The last line is JSON.

python bench/training.py --steps 3 --rounds 5

One optimiser step is forward, backward, clipping and AdamW in float32 on random ids: no data loading, no evaluation. Each side has a
process of its own, so that peak memory is its own, and the sides take turns, so that a busy spell of the machine falls on all.
transformers runs eagerly (no torch.compile), at the fastest of its attention and expert implementations. It leaves out multi-token
prediction (MTP): moectl is compared without, and shown with it as well, as the demo model trains. The updates of correction biases are
part of moectl's step.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
from recipe import MOE_CONFIG, SEQ_LEN, VOCAB_SIZE

from moectl.arch.registry import build_spec
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.save import named_weights, save_model
from moectl.training.balance import BalanceOptions
from moectl.training.bias import LoadCounts, update_bias
from moectl.training.forward import batch_losses, count_targets
from moectl.training.initialize import RandomWeights
from moectl.training.optimizer import MasterAdamW
from moectl.training.options import TrainOptions

SEQUENCES = 8
OPTIONS = TrainOptions(steps=1, lr=3e-4, weight_decay=0.1, clip=1.0, balance=BalanceOptions(bias_gamma=1e-3))
ATTENTION, EXPERTS = ("sdpa", "eager"), ("grouped_mm", "eager", "batched_mm")
# Both sides compute the same function: first losses (nats a token) and gradient norms (relative) differ by rounding only.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3
# A backend whose first step takes so many times the best one's later steps is not tried further.
HOPELESS = 5.0
QUIET_LOAD = 0.5


class Trainer(Protocol):
    """One side, in its process."""

    def step(self, ids_BS: Tensor) -> tuple[float, float]:
        """One optimiser step: the next-token loss and the gradient's norm before clipping."""
        ...


class MoectlTrainer:
    """The step of `moectl.training.loop`."""

    def __init__(self, folder: Path, *, mtp: bool) -> None:
        with open_checkpoint(str(folder), mtp=mtp) as checkpoint:
            weights = checkpoint.weights(dtype=torch.float32, device=torch.device("cpu"))
            self.model = Model(checkpoint.spec, weights, mtp=mtp)
        spec = self.model.spec
        layers = (*spec.moe_layers, *(ahead.layer for ahead in spec.mtp[: len(self.model.mtp)]))
        named = {ref.name: parameter for ref, parameter in named_weights(self.model)}
        self.biases = {layer.index: named.pop(layer.tensors["correction_bias"].name) for layer in layers}
        for parameter in named.values():
            parameter.requires_grad_()
        self.optimizer = MasterAdamW(named, OPTIONS)
        self.loads = LoadCounts({index: bias_E.numel() for index, bias_E in self.biases.items()})

    def step(self, ids_BS: Tensor) -> tuple[float, float]:
        self.optimizer.zero_grad()
        self.loads.reset()
        per_step = count_targets(ids_BS, len(self.model.mtp), ())
        losses = batch_losses(self.model, ids_BS, per_step, balance=OPTIONS.balance, mtp_weight=OPTIONS.mtp_weight)
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.collect()
        for layer, routing in losses.routings:
            self.loads.add(layer, routing.expert_ids_TK)
        norm = self.optimizer.clip()
        self.optimizer.step(OPTIONS.lr)
        for layer, bias_E in self.biases.items():
            update_bias(bias_E, self.loads.load(layer), OPTIONS.balance.bias_gamma)
        return float(losses.main), norm


class TransformersTrainer:
    """The same in transformers, with torch's own AdamW."""

    def __init__(self, folder: Path, *, attention: str, experts: str) -> None:
        from transformers import DeepseekV3ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.model: Any = DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
        )
        self.model.train()
        parameters = list(self.model.parameters())
        decay, plain = ([p for p in parameters if (p.ndim >= 2) == matrix] for matrix in (True, False))
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": OPTIONS.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=OPTIONS.lr,
            betas=(OPTIONS.beta1, OPTIONS.beta2),
            eps=OPTIONS.eps,
            foreach=True,
        )

    def step(self, ids_BS: Tensor) -> tuple[float, float]:
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), OPTIONS.clip, foreach=True)
        self.optimizer.step()
        return float(loss.detach()), float(norm)


# What a worker process keeps between calls.
_trainer: Trainer
_generator: torch.Generator


def _start(kind: type[Trainer], arguments: dict[str, Any], threads: int | None) -> tuple[float, float, float]:
    """Load, and make the first step; its loss, its gradient norm, its seconds."""
    global _trainer, _generator
    if threads is not None:
        torch.set_num_threads(threads)
    _trainer, _generator = kind(**arguments), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    loss, norm = _trainer.step(_random_ids())
    return loss, norm, time.perf_counter() - start


def _seconds(steps: int) -> float:
    """Of one step, on average."""
    batches = [_random_ids() for _ in range(steps)]
    start = time.perf_counter()
    for ids_BS in batches:
        _trainer.step(ids_BS)
    return (time.perf_counter() - start) / steps


def _random_ids() -> Tensor:
    return torch.randint(VOCAB_SIZE, (SEQUENCES, SEQ_LEN), generator=_generator)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Side:
    """One of those compared, from outside its process."""

    def __init__(self, kind: type[Trainer], arguments: dict[str, Any], threads: int | None) -> None:
        """Raises whatever loading or the first step raises there, and BrokenProcessPool if the process dies."""
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            self.loss, self.norm, self.first_seconds = self._process.submit(_start, kind, arguments, threads).result()
        except Exception:
            self.close()
            raise

    def seconds(self, steps: int) -> float:
        """Of one step, over `steps` of them."""
        return self._process.submit(_seconds, steps).result()

    def close(self) -> int:
        """End the process; its peak resident memory in bytes."""
        try:
            return self._process.submit(_peak_bytes).result()
        except BrokenProcessPool:
            return 0
        finally:
            self._process.shutdown()

    def does_work_of(self, other: Side) -> bool:
        """Whether both made the same first step."""
        return abs(self.loss - other.loss) <= LOSS_TOLERANCE and abs(self.norm / other.norm - 1) <= NORM_TOLERANCE


class LeftOutError(Exception):
    """A backend that is not measured, and why."""


def try_backend(folder: Path, attention: str, experts: str, reference: Side, *, limit: float, threads: int | None) -> tuple[Side, float]:
    """A process that runs this backend, and the fastest of three steps after the first.

    Raises LeftOutError, also if the first step alone takes longer than `limit` seconds.
    """
    needed = batched_bytes() if experts == "batched_mm" else 0
    if needed > psutil.virtual_memory().available * 0.75:
        raise LeftOutError(f"its copies of the experts need about {needed / 1e9:.0f} GB")
    try:
        side = Side(TransformersTrainer, {"folder": folder, "attention": attention, "experts": experts}, threads)
    # What a backend that this CPU or this transformers lacks raises; it is named in the output, and any other error ends the bench.
    except (BrokenProcessPool, ImportError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise LeftOutError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if not side.does_work_of(reference):
        reason = f"loss {side.loss:.6f} and gradient norm {side.norm:.6f} are not those of moectl"
    elif side.first_seconds > limit:
        reason = f"{side.first_seconds:.1f} s for the first step"
    else:
        return side, min(side.seconds(1) for _ in range(3))
    side.close()
    raise LeftOutError(reason)


def fastest_transformers(folder: Path, reference: Side, threads: int | None) -> tuple[str, Side]:
    """The backend with the fastest step, and the process that runs it. Exits if there is none."""
    best: tuple[float, str, Side] | None = None
    for experts, attention in itertools.product(EXPERTS, ATTENTION):
        backend = f"attention {attention}, experts {experts}"
        limit = HOPELESS * best[0] if best else float("inf")
        try:
            side, seconds = try_backend(folder, attention, experts, reference, limit=limit, threads=threads)
        except LeftOutError as reason:
            print(f"  {backend}: left out: {reason}", flush=True)
            continue
        print(f"  {backend}: {seconds:.3f} s a step", flush=True)
        if best is None or seconds < best[0]:
            best, side = (seconds, backend, side), best[2] if best else None
        if side is not None:
            side.close()
    if best is None:
        sys.exit("no backend of transformers does the work of moectl")
    return best[1], best[2]


def batched_bytes() -> int:
    """What `batched_mm` keeps for the backward pass: the matrices of its expert for every slot of every MoE layer; and gradients of one."""
    slots = SEQUENCES * SEQ_LEN * MOE_CONFIG["num_experts_per_tok"]
    n_layers = MOE_CONFIG["num_hidden_layers"] - MOE_CONFIG["first_k_dense_replace"]
    return int(4 * slots * 3 * MOE_CONFIG["hidden_size"] * MOE_CONFIG["moe_intermediate_size"] * (n_layers + 2))


def main() -> None:
    """Take turns, and compare within each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
    parser.add_argument("--threads", type=int, help="threads of each side; by default torch decides")
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed, so there is nothing to compare with: pip install 'moectl[test]'")
        print(json.dumps({"bench": "training", "skipped": "transformers is not installed"}))
        return
    load = os.getloadavg()[0]
    clean = load <= QUIET_LOAD
    print(f"load average before the start: {load:.2f}")
    if not clean:
        print(f"WARNING: above {QUIET_LOAD}, something else is running: these figures are not clean. Ratios may still be of use.")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = build_spec(MOE_CONFIG)
        save_model(Model(spec, RandomWeights(spec, std=MOE_CONFIG["initializer_range"], seed=0), mtp=True), MOE_CONFIG, folder)
        sides = {"moectl": Side(MoectlTrainer, {"folder": folder, "mtp": False}, arguments.threads)}
        print(f"first step of moectl: loss {sides['moectl'].loss:.6f}, gradient norm {sides['moectl'].norm:.6f}")
        print("transformers, each backend tried:", flush=True)
        backend, sides["transformers"] = fastest_transformers(folder, sides["moectl"], arguments.threads)
        sides["moectl, with MTP"] = Side(MoectlTrainer, {"folder": folder, "mtp": True}, arguments.threads)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side.seconds(1)
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            times[name].append(side.seconds(arguments.steps))
    peaks = {name: side.close() for name, side in sides.items()}

    tokens = SEQUENCES * SEQ_LEN
    rates = {name: tokens / statistics.median(values) for name, values in times.items()}
    ratios = [theirs / ours for ours, theirs in zip(times["moectl"], times["transformers"], strict=True)]
    ratio = statistics.median(ratios)
    threads = arguments.threads or torch.get_num_threads()
    print(f"fastest backend of transformers: {backend}")
    print(f"\n{'':18}{'tokens/s':>10}{'s/step':>9}{'fastest':>9}{'slowest':>9}{'peak MB':>9}")
    for name, values in times.items():
        print(f"{name:18}{rates[name]:10,.0f}{statistics.median(values):9.3f}{min(values):9.3f}{max(values):9.3f}{peaks[name] / 1e6:9,.0f}")
    print(
        f"\nmoectl trains {ratio:.2f} times as fast as transformers (median of {arguments.rounds} rounds, {min(ratios):.2f} to "
        f"{max(ratios):.2f}) in {peaks['moectl'] / peaks['transformers']:.2f} of its memory"
    )
    version = importlib.metadata.version("transformers")
    where = f"torch {torch.__version__}, transformers {version}, {threads} threads, {os.cpu_count()} CPUs, {platform.machine()}"
    print(f"{SEQUENCES} x {SEQ_LEN} tokens a step, float32, {where}" + ("" if clean else "; NOT CLEAN, the machine was busy"))
    record = {
        "bench": "training",
        "clean": clean,
        "load_average": round(load, 2),
        "threads": threads,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "transformers": version,
        "backend": backend,
        "ratio": round(ratio, 3),
        **{f"{key}_tokens_per_s": round(rates[name]) for key, name in zip(("moectl", "transformers", "moectl_mtp"), sides, strict=True)},
        **{f"{key}_peak_bytes": peaks[name] for key, name in zip(("moectl", "transformers", "moectl_mtp"), sides, strict=True)},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
