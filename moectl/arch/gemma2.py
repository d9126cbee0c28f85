"""gemma2: Gemma 2 (arXiv 2408.00118). Dense; capped scores and logits, norms before and after each block, a window in every other layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch.config import Config
from moectl.arch.gemma import gemma_attention, gemma_decoder, gemma_windows
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Gemma 2 checkpoint. Raises ModelError."""
    max_positions = config.integer("max_position_embeddings", default=8192)
    attention = gemma_attention(config)
    attention = replace(
        attention,
        rope=parse_rope(config, dim=whole_head(config, attention.head_dim), default_theta=10_000.0, max_positions=max_positions),
        softcap=config.optional_positive("attn_logit_softcapping", default=50.0),
    )
    return gemma_decoder(
        config,
        [replace(attention, window=window) for window in gemma_windows(config, pattern=2)],
        vocab=256_000,
        max_positions=max_positions,
        softcap=config.optional_positive("final_logit_softcapping", default=30.0),
    )
