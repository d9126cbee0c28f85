"""Rotary position embeddings: frequencies, tables of cos and sin, and the rotation.

Shapes: P positions, D rotated values of a head, last dims `[..., P, D]` of queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moectl.arch.parts import Rope


def inverse_frequencies(rope: Rope, n_positions: int) -> Tensor:
    """float32 `[D/2]`: theta^(-2j/D), scaled as the rope's kind says, for a sequence of `n_positions`. Formulas: see moectl.arch.rope."""
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    if rope.kind == "dynamic":
        stretch = rope.factor * max(n_positions, rope.original_max_positions) / rope.original_max_positions - (rope.factor - 1)
        theta = rope.theta * stretch ** (rope.dim / (rope.dim - 2))
        return torch.reciprocal(theta**exponent)
    frequency = rope.theta**exponent
    if rope.kind == "longrope":
        factors = rope.long_factors if n_positions > rope.original_max_positions else rope.short_factors
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * frequency)
    inverse = 1.0 / frequency
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
    """cos and sin for a sequence of P positions, each `[P, D/2]` in `dtype`, or float32 if the rope says so; angles are float32."""
    angles = torch.arange(n_positions, dtype=torch.float32)[:, None] * inverse_frequencies(rope, n_positions)
    factor = rope.attention_factor
    if rope.long_attention_factor is not None and n_positions > rope.original_max_positions:
        factor = rope.long_attention_factor
    cos, sin = angles.cos() * factor, angles.sin() * factor
    dtype = torch.float32 if rope.float32 else dtype
    return cos.to(device=device, dtype=dtype), sin.to(device=device, dtype=dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, layout: str) -> Tensor:
    """Rotate the first D of the last dim of `[..., P, X]` by tables `[P, D/2]`, in the tables' dtype if that is wider, cast back.

    The rotated part is in half layout for either input layout, so q.k is the same.
    """
    rotary = 2 * cos.shape[-1]
    x_rotary = x[..., :rotary]
    a, b = (x_rotary[..., 0::2], x_rotary[..., 1::2]) if layout == "interleaved" else x_rotary.chunk(2, dim=-1)
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
    return rotated if rotary == x.shape[-1] else torch.cat((rotated, x[..., rotary:]), dim=-1)
