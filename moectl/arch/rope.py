"""Rotary settings of a `config.json`, in the Hub's style and in the style newer transformers saves, as a Rope.

Hub files carry `rope_theta` and `rope_scaling`; newer ones one dict `rope_parameters`. `type` is an alias of `rope_type`.
Formulas: llama3 as in Meta's Llama 3.1 release; YaRN arXiv 2309.00071, with DeepSeek's `mscale` keys.
"""

from __future__ import annotations

import math
from typing import Literal

from moectl.arch.config import Config
from moectl.arch.spec import Rope

KINDS = ("default", "linear", "llama3", "yarn")


def rope_settings(config: Config) -> Config:
    """The dict that holds the rotary keys, whichever style the file is written in."""
    return config.section("rope_parameters") if config.has("rope_parameters") else config.section("rope_scaling")


def rope_kind(config: Config) -> str:
    """`rope_type`, checked. Raises ModelError if this version does not know it."""
    settings = rope_settings(config)
    key = settings.first("rope_type", "type")
    return settings.choice(key, *KINDS, default="default")


def parse_rope(
    config: Config, *, dim: int, default_theta: float, max_positions: int, layout: Literal["half", "interleaved"] = "half"
) -> Rope:
    """The Rope of heads whose first `dim` values rotate. Raises ModelError."""
    settings = rope_settings(config)
    theta = settings.positive("rope_theta", default=config.positive("rope_theta", default=default_theta))
    kind = rope_kind(config)
    if kind == "default":
        return Rope(dim=dim, theta=theta, layout=layout)
    if kind == "linear":
        return Rope(dim=dim, theta=theta, layout=layout, kind="linear", factor=settings.positive("factor"))

    original = settings.integer("original_max_position_embeddings", default=max_positions)
    original = config.integer("original_max_position_embeddings", default=original)
    if kind == "llama3":
        return Rope(
            dim=dim,
            theta=theta,
            layout=layout,
            kind="llama3",
            factor=settings.positive("factor"),
            low=settings.positive("low_freq_factor"),
            high=settings.positive("high_freq_factor"),
            original_max_positions=original,
        )
    factor = settings.positive("factor", default=max_positions / original)
    low, high = _yarn_ramp(settings, dim, theta, original)
    return Rope(
        dim=dim,
        theta=theta,
        layout=layout,
        kind="yarn",
        factor=factor,
        low=low,
        high=high,
        original_max_positions=original,
        attention_factor=_yarn_attention_factor(settings, factor),
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """m(s, c) = 0.1 c ln(s) + 1 for s > 1, else 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_softmax_factor(config: Config, rope: Rope) -> float:
    """What DeepSeek multiplies the softmax scale with: m(factor, mscale_all_dim)^2, or 1 where that key is absent or zero."""
    mscale_all_dim = rope_settings(config).number("mscale_all_dim", default=0.0)
    if rope.kind == "default" or not mscale_all_dim:
        return 1.0
    return yarn_mscale(rope.factor, mscale_all_dim) ** 2


def _yarn_attention_factor(settings: Config, factor: float) -> float:
    if settings.has("attention_factor"):
        return settings.number("attention_factor")
    mscale, all_dim = settings.number("mscale", default=0.0), settings.number("mscale_all_dim", default=0.0)
    if mscale and all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor)


def _yarn_ramp(settings: Config, dim: int, theta: float, original: int) -> tuple[float, float]:
    """Ends of the ramp from extrapolated to interpolated frequencies, in pairs of dimensions."""

    def pair(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    # A zero counts as missing, as in the oracle.
    low = pair(settings.number("beta_fast", default=32.0) or 32.0)
    high = pair(settings.number("beta_slow", default=1.0) or 1.0)
    if settings.boolean("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, dim - 1)
