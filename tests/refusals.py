"""What a refused command said, and what it left on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

# Tensors of the tiny qwen3_moe.
ROUTER = "model.layers.0.mlp.gate.weight"
EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


class Refusal(NamedTuple):
    message: str
    hint: str


def snapshot(root: Path) -> dict[str, bytes | str | None]:
    """Every path under `root`: content of files, target of links, None for folders."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def assert_says(refusal: Refusal, message: tuple[str, ...], hint: str) -> None:
    for part in message:
        assert part in refusal.message
    assert hint in refusal.hint
    assert bool(hint) == bool(refusal.hint)
