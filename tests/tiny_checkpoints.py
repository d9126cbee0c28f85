"""Tiny checkpoints on disk with a tokenizer beside them, texts to route through them, and tools to damage a copy.

Only tests import this module. The models come from `oracle_models`; experts, dense layers, groups and sliding windows are all in them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle_cases import CASES
from oracle_models import make_oracle, save
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FAMILIES = {
    "qwen3_moe": "qwen3_moe-normed-mixed-layers",
    "mixtral": "mixtral-window",
    "deepseek_v3": "deepseek_v3-groups-yarn-biases",
}
VOCAB_SIZE = 307
TOKENIZER_SIZE = 290
INDEX = "model.safetensors.index.json"
_SENTENCES = {
    "prose": "the river runs slowly past an old mill where nobody has lived since winter, and its wheel turns all night.",
    "code": "def main(self): return x + 1 if y == None else [n for n in range(10)] import os, sys class Node: pass # end",
}


@dataclass(frozen=True)
class TinyCheckpoint:
    """A sharded checkpoint and the transformers model it was written from. `moe_layers`: (layer, experts, top_k) of each."""

    folder: Path
    oracle: Any
    moe_layers: tuple[tuple[int, int, int], ...]


def build_checkpoints(root: Path) -> dict[str, TinyCheckpoint]:
    """One checkpoint of each family under `root`."""
    built = {}
    for family, case in FAMILIES.items():
        keys = {**CASES[case][1], "vocab_size": VOCAB_SIZE}
        oracle = make_oracle(family, keys)
        folder = save(oracle, root / family, hub_style=True)
        # Two ways of the Hub: some families put BOS in front of a document, some have an EOS only.
        write_tokenizer(folder, add_bos=family != "qwen3_moe")
        n_experts = keys.get("num_experts") or keys.get("num_local_experts") or keys["n_routed_experts"]
        dense = {1} if family == "qwen3_moe" else {0} if family == "deepseek_v3" else set()
        built[family] = TinyCheckpoint(
            folder, oracle, tuple((layer, n_experts, keys["num_experts_per_tok"]) for layer in range(3) if layer not in dense)
        )
    return built


def write_tokenizer(folder: Path, *, add_bos: bool, extra: tuple[str, ...] = ()) -> None:
    """A byte-level BPE of TOKENIZER_SIZE ids and `extra` ones; it knows fewer ids than the model, as is usual."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text(kind, 4000) for kind in _SENTENCES], trainer)
    tokenizer.add_tokens(list(extra))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>" if add_bos else None, "eos_token": "</s>", "add_bos_token": add_bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def text(kind: str, n_chars: int, *, seed: int = 0) -> str:
    """`n_chars` characters of "prose" or "code", always the same."""
    words, draw = _SENTENCES[kind].split(), random.Random(seed)
    return " ".join(draw.choice(words) for _ in range(n_chars))[:n_chars]


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], *, name: str) -> None:
    """Change the tensors of the shard that holds `name`, and the index with it."""
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"][name]
    tensors = load_file(folder / shard)
    change(tensors)
    save_file(tensors, folder / shard, metadata={"format": "pt"})
    kept = {key: file for key, file in index["weight_map"].items() if file != shard}
    index["weight_map"] = kept | dict.fromkeys(tensors, shard)
    (folder / INDEX).write_text(json.dumps(index))


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a sharded checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors


def set_config(folder: Path, **keys: Any) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
