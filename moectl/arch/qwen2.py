"""qwen2: Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115), QwQ, R1-distill. Dense; q, k and v have biases whatever the file says."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch.config import Config
from moectl.arch.qwen_dense import qwen_dense
from moectl.arch.spec import ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Qwen2 checkpoint. Raises ModelError."""
    return qwen_dense(config, head_dim=None, qk_norm=False, qkv_bias=True, o_bias=False)
