"""What the statistics of `route-stats` cost beside the forward pass they watch. The last line is JSON.

python bench/statistics_cost.py --rounds 5

Every model runs the same micro-batches with a recorder that drops each event and with the one that counts, in turn, so that a busy spell
of the machine falls on both. Tables, intervals and domains are made once after the pass, from counts whose size does not follow the
tokens: shown in seconds. The models are random, with the widths of small MoE models, and the demo model, which does the least work per
routed token that anyone would run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import psutil
import torch

from moectl.arch.registry import build_spec
from moectl.data.batching import MicroBatch
from moectl.model.decoder import Model
from moectl.model.events import Recorder, RoutingEvent
from moectl.model.load import open_checkpoint
from moectl.model.schedules import moe_layer_infos, run_token_major
from moectl.routing.counters import Counters
from moectl.routing.frames import expert_frame, layer_frame
from moectl.routing.token_classes import CLASSES
from moectl.routing.token_frames import class_frame, vocabulary_frame
from moectl.training.initialize import RandomWeights

_SIZES = {"vocab_size": 32000, "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16}
MODELS: dict[str, dict[str, Any]] = {
    "softmax, 64 experts, top-8": {
        **_SIZES, "model_type": "qwen3_moe", "num_key_value_heads": 4, "head_dim": 64, "moe_intermediate_size": 256, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "intermediate_size": 2048,
    },
    "sigmoid and groups, 64 experts, top-8": {
        **_SIZES, "model_type": "deepseek_v3", "q_lora_rank": 384, "kv_lora_rank": 256, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "qk_nope_head_dim": 64, "moe_intermediate_size": 256, "n_routed_experts": 64, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 2816,
    },
}  # fmt: skip
N_DOMAINS, SEQ_LEN = 3, 512


class Dropped:
    """A recorder that counts nothing."""

    def record(self, event: RoutingEvent) -> None:
        """Drop the event."""


def micro_batches(n_sequences: int, batch_sequences: int, vocab_size: int) -> list[MicroBatch]:
    """Random text whose ids are as uneven as words are, in domains of one size."""
    rng = np.random.default_rng(0)
    ids_NS = np.minimum(rng.zipf(1.2, (n_sequences, SEQ_LEN)) - 1, vocab_size - 1).astype(np.int64)
    batches = []
    for start in range(0, n_sequences, batch_sequences):
        ids_BS = ids_NS[start : start + batch_sequences]
        domain = start * N_DOMAINS // n_sequences
        batches.append(MicroBatch(len(batches), domain, start, ids_BS, np.ones_like(ids_BS, dtype=bool)))
    return batches


def measure(model: Model, batches: list[MicroBatch], rounds: int) -> dict[str, float]:
    """Medians over the rounds: the pass alone, what counting adds to it (a share), and the tables."""
    layers = moe_layer_infos(model.spec)
    classes_V = (np.arange(model.spec.vocab_size) % len(CLASSES)).astype(np.int8)

    def seconds(recorder: Recorder) -> float:
        start = time.perf_counter()
        run_token_major(model, batches, recorder, advance=lambda _tokens: None)
        return time.perf_counter() - start

    def counters() -> Counters:
        return Counters(layers, N_DOMAINS, batches, class_of_id_V=classes_V)

    seconds(Dropped()), seconds(counters())  # kernels and caches
    alone, added, tables = [], [], []
    for _ in range(rounds):
        alone.append(seconds(Dropped()))
        counting = counters()
        added.append(seconds(counting) / alone[-1] - 1)
        start = time.perf_counter()
        names = [f"domain {d}" for d in range(N_DOMAINS)]
        expert_frame(counting, names), layer_frame(counting, names), vocabulary_frame(counting, names, None), class_frame(counting)
        tables.append(time.perf_counter() - start)
    return {"alone_s": statistics.median(alone), "added": statistics.median(added), "tables_s": statistics.median(tables)}


def main() -> None:
    """Measure every model and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=48, help=f"sequences of {SEQ_LEN} tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    load = psutil.getloadavg()[0]
    print(
        f"{args.threads} threads of {os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, {args.dtype}, load {load:.2f}"
    )
    results: dict[str, dict[str, float]] = {}
    for name in (*MODELS, "demo"):
        if name == "demo":
            with open_checkpoint("demo") as checkpoint:
                model = Model(checkpoint.spec, checkpoint.weights(dtype=dtype, device=torch.device("cpu")))
        else:
            spec = build_spec(MODELS[name])
            model = Model(spec, RandomWeights(spec, std=0.02, seed=0, dtype=dtype))
        batches = micro_batches(args.sequences, 8, model.spec.vocab_size)
        found = results[name] = measure(model, batches, args.rounds)
        rate = args.sequences * SEQ_LEN / found["alone_s"]
        print(
            f"{name}: forward pass {found['alone_s']:.2f} s ({rate:,.0f} tokens/s), counting adds {100 * found['added']:.1f} %, "
            f"tables {found['tables_s']:.2f} s; median of {args.rounds}"
        )
    print(json.dumps({"bench": "statistics_cost", "load": load, "threads": args.threads, "dtype": args.dtype, "models": results}))


if __name__ == "__main__":
    main()
