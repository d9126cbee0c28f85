"""Rotary settings of a `config.json`, in the Hub's style and in the style newer transformers saves, as a Rope.

Hub files carry `rope_theta` and `rope_scaling`; newer ones one dict `rope_parameters`. `type` is an alias of `rope_type`.
Formulas: llama3 as in Meta's Llama 3.1 release; YaRN arXiv 2309.00071, with DeepSeek's `mscale` keys;
longrope arXiv 2402.13753 as in Phi-3; dynamic is NTK-aware scaling by the length of the sequence.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from moectl.arch.config import Config
from moectl.arch.parts import Rope

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rope_settings(config: Config) -> Config:
    """The dict that holds the rotary keys, whichever style the file is written in."""
    return config.section("rope_parameters") if config.has("rope_parameters") else config.section("rope_scaling")


def rope_kind(settings: Config, *, allowed: tuple[str, ...] = KINDS) -> str:
    """`rope_type`, checked; `su` is an old name of `longrope`. Raises ModelError for one that is not `allowed`."""
    key = settings.first("rope_type", "type")
    return "longrope" if settings.values.get(key) == "su" and "longrope" in allowed else settings.choice(key, *allowed, default="default")


def parse_rope(
    config: Config,
    *,
    dim: int,
    default_theta: float,
    max_positions: int,
    layout: Literal["half", "interleaved"] = "half",
    float32: bool = False,
    settings: Config | None = None,
    kind: str | None = None,
) -> Rope:
    """The Rope of heads whose first `dim` values rotate; `settings` and `kind` where they are not the file's only ones.

    Raises ModelError.
    """
    settings = rope_settings(config) if settings is None else settings
    kind = kind or rope_kind(settings)
    theta = settings.positive("rope_theta", default=config.positive("rope_theta", default=default_theta))
    plain = Rope(dim=dim, theta=theta, layout=layout, float32=float32)
    if kind == "default":
        return plain
    if kind == "linear":
        return replace(plain, kind="linear", factor=settings.positive("factor"))
    if kind == "dynamic":
        if dim < 4:
            raise settings.mismatch("rope_type", kind, f"another one: it stretches nothing in the {dim} dimensions that rotate")
        return replace(plain, kind="dynamic", factor=settings.positive("factor"), original_max_positions=max_positions)

    original = settings.integer("original_max_position_embeddings", default=max_positions)
    original = config.integer("original_max_position_embeddings", default=original)
    if kind == "llama3":
        return replace(
            plain,
            kind="llama3",
            factor=settings.positive("factor"),
            low=settings.positive("low_freq_factor"),
            high=settings.positive("high_freq_factor"),
            original_max_positions=original,
        )
    factor = settings.positive("factor", default=max_positions / original)
    if kind == "longrope":
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return replace(
            plain,
            kind="longrope",
            factor=factor,
            original_max_positions=original,
            attention_factor=settings.positive("attention_factor", default=attention_factor),
            short_factors=_longrope_factors(settings, "short_factor", dim),
            long_factors=_longrope_factors(settings, "long_factor", dim),
        )
    low, high = _yarn_ramp(settings, dim, theta, original)
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        low=low,
        high=high,
        original_max_positions=original,
        attention_factor=_yarn_attention_factor(settings, factor),
    )


def partial_dim(config: Config, head_dim: int, *, default: float = 1.0) -> int:
    """How many values of a head rotate: `partial_rotary_factor` of them, rounded down. Raises ModelError if that is odd or nothing."""
    settings = rope_settings(config)
    share = settings.positive("partial_rotary_factor", default=config.positive("partial_rotary_factor", default=default))
    dim = int(head_dim * share)
    if dim < 2 or dim % 2 or dim > head_dim:
        raise config.mismatch(
            "partial_rotary_factor", share, f"a share that makes an even number of the {head_dim} values of a head rotate"
        )
    return dim


def rotary_dim(config: Config, head_dim: int) -> int:
    """How many values of a head rotate, in families that may say so by `rotary_dim` in place of the share. Raises ModelError."""
    if not config.has("rotary_dim"):
        return partial_dim(config, head_dim)
    dim, key = config.integer("rotary_dim"), "partial_rotary_factor"
    if dim % 2 or dim > head_dim:
        raise config.mismatch("rotary_dim", dim, f"even and at most head_dim = {head_dim}")
    if (config.has(key) or rope_settings(config).has(key)) and partial_dim(config, head_dim) != dim:
        raise config.mismatch("rotary_dim", dim, f"the {partial_dim(config, head_dim)} values of a head that {key} means")
    return dim


def whole_head(config: Config, head_dim: int) -> int:
    """`head_dim`, for families in which all of a head rotates. Raises ModelError if `partial_rotary_factor` says otherwise."""
    if partial_dim(config, head_dim) != head_dim:
        raise config.mismatch("partial_rotary_factor", "less than 1", "absent or 1 in this family")
    return head_dim


def _longrope_factors(settings: Config, key: str, dim: int) -> tuple[float, ...]:
    factors = settings.numbers(key)
    if len(factors) != dim // 2 or min(factors, default=1.0) <= 0:
        raise settings.mismatch(
            key, f"{len(factors)} numbers", f"{dim // 2} numbers above zero, one for each pair of dimensions that rotates"
        )
    return factors


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
