"""Tiny training runs: a DeepSeek-V3 of every part, domains out of thin air, and what a run left on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from moectl.arch.registry import build_spec
from moectl.data.packing import Domain
from moectl.model.decoder import Model
from moectl.training.balance import BalanceOptions
from moectl.training.initialize import RandomWeights
from moectl.training.loop import TrainJob
from moectl.training.options import TrainOptions

VOCAB_SIZE, SEQ_LEN, END = 97, 16, 0
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def make_model(*, dtype: torch.dtype = torch.float32, mtp: bool = True, seed: int = 0, std: float = 0.1, **keys: Any) -> Model:
    """A model of random weights, frozen; `keys` change the configuration."""
    spec = build_spec({**CONFIG, **keys})
    return Model(spec, RandomWeights(spec, std=std, seed=seed, dtype=dtype), mtp=mtp)


def make_domain(name: str, token_ids: ArrayLike, *, seq_len: int = SEQ_LEN) -> Domain:
    """Token ids as one domain, cut at `seq_len`, its tail a shorter sequence."""
    ids_T = np.asarray(token_ids, np.int32)
    offsets = np.array([*range(0, len(ids_T), seq_len), len(ids_T)], np.int64)
    sha256 = hashlib.sha256(ids_T.tobytes() + offsets.tobytes()).hexdigest()
    return Domain(name, ids_T, offsets, 1, np.zeros(len(ids_T), np.bool_), sha256)


def random_domain(name: str, n_tokens: int, *, seed: int, seq_len: int = SEQ_LEN) -> Domain:
    """Random ids, about every ninth the END of a document."""
    generator = np.random.default_rng(seed)
    ids_T = generator.integers(VOCAB_SIZE, size=n_tokens)
    ids_T[generator.random(n_tokens) < 1 / 9] = END
    return make_domain(name, ids_T, seq_len=seq_len)


def make_options(**changes: Any) -> TrainOptions:
    """Two micro-batches of two sequences a step, everything that moves switched on."""
    keys: dict[str, Any] = {
        "steps": 5,
        "seq_len": SEQ_LEN,
        "batch_tokens": 2 * SEQ_LEN,
        "accumulation": 2,
        "lr": 3e-3,
        "min_lr": 1e-4,
        "warmup_steps": min(2, changes.get("steps", 5)),
        "balance": BalanceOptions(sequence_alpha=1e-3, bias_gamma=1e-2, bias_freeze_fraction=0.1),
        "save_every": 1,
        "keep_last": 2,
        "eval_every": 3,
        "log_every": 1,
    }
    return TrainOptions(**{**keys, **changes})


def make_job(folder: Path, options: TrainOptions | None = None, *, dtype: torch.dtype = torch.float32, **changes: Any) -> TrainJob:
    """A run from scratch on two small domains; every call makes its data anew."""
    keys: dict[str, Any] = {
        "folder": folder,
        "config": CONFIG,
        "initial": lambda: make_model(dtype=dtype),
        "domains": [random_domain("a", 9 * SEQ_LEN + 5, seed=1), random_domain("b", 4 * SEQ_LEN, seed=2)],
        "heldout": [random_domain("a", 3 * SEQ_LEN + 2, seed=3)],
        "options": options or make_options(),
        "boundary_ids": frozenset({END}),
    }
    return TrainJob(**{**keys, **changes})


def stack_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts of each layer in the memory layout of transformers: `gate_up_proj` `[E, 2I, H]` and `down_proj` `[E, H, I]`."""
    by_layer: dict[str, dict[tuple[int, str], torch.Tensor]] = defaultdict(dict)
    stacked = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:
            by_layer[match[1]][int(match[2]), match[3]] = tensor
        else:
            stacked[name] = tensor
    for prefix, experts in by_layer.items():
        ids = sorted({e for e, _ in experts})
        stacked[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat([experts[e, "gate_proj"], experts[e, "up_proj"]]) for e in ids])
        stacked[f"{prefix}.down_proj"] = torch.stack([experts[e, "down_proj"] for e in ids])
    return stacked


def files_of(checkpoint: Path) -> dict[str, bytes]:
    """What equal runs share, byte for byte: everything but the provenance of the process that wrote it."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "moectl.json")
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in paths}


def log_of(folder: Path, *, without: Sequence[str] = ("tokens_per_s",)) -> list[dict[str, Any]]:
    """The lines of the log but for what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]
