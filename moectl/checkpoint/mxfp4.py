"""MXFP4 weights as gpt-oss publishes them: `X_blocks`, two 4-bit codes in each byte, beside `X_scales`, an exponent for each 32 values.

    decode_mxfp4(blocks_RGB, scales_RG, out=torch.empty(rows, columns, dtype=torch.bfloat16))

A weight is its e2m1 code times 2^(scale - 127); the lower half of a byte comes first. Format: OCP Microscaling Formats (MX)
Specification 1.0, 2023.
"""

# Shapes: R rows, G groups of 32 values, B 16 bytes of a group.

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

GROUP = 32
_SCRATCH_VALUES = 2**20
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode_mxfp4(blocks_RGB: Tensor, scales_RG: Tensor, *, out: Tensor, scratch: Tensor | None = None) -> None:
    """Write the values of `blocks_RGB` uint8 [R, G, 16] and `scales_RG` uint8 [R, G] into `out` [R, 32 G] float32 or bfloat16.

    Exact in both. A scale of 255, which stands for no number, gives NaN. `scratch` int32, at least 2^20 values and 32 G, else made here.

    Some rows at a time: all at once is five times slower, for want of cache.
    """
    R, G, B = blocks_RGB.shape
    rows = max(1, min(R, _SCRATCH_VALUES // max(GROUP * G, 1)))
    scratch = torch.empty(2 * rows * G * B, dtype=torch.int32) if scratch is None else scratch
    for start in range(0, R, rows):
        blocks_rGB, scales_rG = blocks_RGB[start : start + rows], scales_RG[start : start + rows]
        n = blocks_rGB.numel()
        pairs_rGB = torch.index_select(_pairs(), 0, scratch[:n].copy_(blocks_rGB.reshape(-1)), out=scratch[n : 2 * n])
        values_rG32 = pairs_rGB.view(torch.bfloat16).view(-1, G, GROUP)
        factors_rG1 = scales_rG.view(torch.float8_e8m0fnu).to(torch.float32)[..., None]
        torch.mul(values_rG32, factors_rG1.to(out.dtype), out=out[start : start + rows].view(-1, G, GROUP))


@lru_cache(maxsize=1)
def _pairs() -> Tensor:
    """int32 [256]: what each byte stands for, two bfloat16 side by side."""
    signed = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.bfloat16)
    with torch.inference_mode(False):
        codes = torch.arange(256)
        return torch.stack([signed[codes & 15], signed[codes >> 4]], dim=1).view(torch.int32).reshape(-1)
