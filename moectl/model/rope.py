"""Rotary position embeddings: frequencies, tables of cos and sin, and the rotation.

Shapes: P positions, D rotated values of a head, last dims `[..., P, D]` of queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moectl.arch.spec import Rope


def inverse_frequencies(rope: Rope) -> Tensor:
    """float32 `[D/2]`: theta^(-2j/D), scaled as the rope's kind says. Formulas: see moectl.arch.rope."""
    freq = rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    inverse = 1.0 / freq
    match rope.kind:
        case "default":
            return inverse
        case "linear":
            return inverse / rope.factor
        case "llama3":
            wavelength = 2 * math.pi / inverse
            smooth = (rope.original_max_positions / wavelength - rope.low) / (rope.high - rope.low)
            blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
            # `where` discards the blend (infinite if low equals high) outside the middle band.
            scaled = torch.where(wavelength > rope.original_max_positions / rope.low, inverse / rope.factor, blended)
            return torch.where(wavelength < rope.original_max_positions / rope.high, inverse, scaled)
        case "yarn":
            span = rope.high - rope.low if rope.high != rope.low else 0.001
            ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - rope.low) / span).clamp(0, 1)
            return inverse / rope.factor * ramp + inverse * (1 - ramp)


def rope_tables(rope: Rope, n_positions: int, *, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each `[P, D/2]` in `dtype`; angles are computed in float32."""
    angles = torch.arange(n_positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope)
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    return cos.to(device=device, dtype=dtype), sin.to(device=device, dtype=dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, layout: str) -> Tensor:
    """Rotate `[..., P, D]` by tables `[P, D/2]`. The result is in half layout for either input layout, so q.k is the same."""
    a, b = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
