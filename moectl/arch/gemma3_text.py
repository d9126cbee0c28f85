"""gemma3_text: the text model of Gemma 3 (arXiv 2503.19786) and MedGemma. Dense; norms of q and k, norms before and after each block.

Most layers have a window and rotate by a small theta; every sixth sees everything and rotates by a large one, which alone is scaled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch.config import Config
from moectl.arch.gemma import gemma_attention, gemma_decoder, gemma_norm, gemma_windows
from moectl.arch.parts import QKNorm, Rope
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import ModelSpec

_FULL, _SLIDING = "full_attention", "sliding_attention"


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Gemma 3 text checkpoint. Raises ModelError."""
    # Every implementation leaves the cap of the scores out, whatever its value; no published model has one.
    config.require_off("attn_logit_softcapping")
    max_positions = config.integer("max_position_embeddings", default=131_072)
    attention = replace(gemma_attention(config), qk_norm=QKNorm(norm=gemma_norm(config)))
    local, everywhere = _ropes(config, attention.head_dim, max_positions)
    windows = gemma_windows(config, pattern=config.integer("sliding_window_pattern", default=6))
    return gemma_decoder(
        config,
        [replace(attention, rope=everywhere if window is None else local, window=window) for window in windows],
        vocab=262_208,
        max_positions=max_positions,
        softcap=config.optional_positive("final_logit_softcapping"),
    )


def _ropes(config: Config, head_dim: int, max_positions: int) -> tuple[Rope, Rope]:
    """Of layers with a window, and of those without: two dicts by layer type, or the Hub's keys side by side. Raises ModelError."""
    by_type = config.section("rope_parameters")
    stray = next((key for key in by_type.values if key not in (_FULL, _SLIDING)), None)
    if stray is not None:
        raise config.mismatch("rope_parameters", f"an object with `{stray}`", f"one with `{_FULL}` and `{_SLIDING}`")
    full, sliding = by_type.section(_FULL), by_type.section(_SLIDING)
    full = Config({**full.values, **config.section("rope_scaling").values}, where=full.where if by_type.values else config.where)
    ropes = []
    for settings, key, theta in ((sliding, "rope_local_base_freq", 10_000.0), (full, "rope_theta", 1_000_000.0)):
        theta = settings.positive("rope_theta", default=config.positive(key, default=theta))
        settings = Config({**settings.values, "rope_theta": theta}, where=settings.where)
        dim = whole_head(config, whole_head(settings, head_dim))
        ropes.append(parse_rope(config, dim=dim, default_theta=theta, max_positions=max_positions, settings=settings))
    return ropes[0], ropes[1]
