"""qwen3: the dense Qwen3 (arXiv 2505.09388). Norms of q and k, head by head, before they rotate."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch.config import Config
from moectl.arch.qwen_dense import qwen_dense
from moectl.arch.spec import ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Qwen3 checkpoint. Raises ModelError."""
    bias = config.boolean("attention_bias", default=False)
    return qwen_dense(config, head_dim=128, qk_norm=True, qkv_bias=bias, o_bias=bias)
