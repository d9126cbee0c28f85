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
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode_mxfp4(blocks_RGB: Tensor, scales_RG: Tensor, *, out: Tensor) -> None:
    """Write the values of `blocks_RGB` uint8 [R, G, 16] and `scales_RG` uint8 [R, G] into `out` [R, 32 G] float32 or bfloat16.

    Exact in both. A scale of 255, which stands for no number, gives NaN.
    """
    R, G, _ = blocks_RGB.shape
    pairs_RGB = _pairs().index_select(0, blocks_RGB.reshape(-1).to(torch.int32))
    values_RG32 = pairs_RGB.view(torch.bfloat16).view(R, G, GROUP)
    factors_RG1 = scales_RG.view(torch.float8_e8m0fnu).to(torch.float32)[..., None]
    torch.mul(values_RG32, factors_RG1.to(out.dtype), out=out.view(R, G, GROUP))


@lru_cache(maxsize=1)
def _pairs() -> Tensor:
    """int32 [256]: what each byte stands for, two bfloat16 side by side."""
    signed = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.bfloat16)
    with torch.inference_mode(False):
        codes = torch.arange(256)
        return torch.stack([signed[codes & 15], signed[codes >> 4]], dim=1).view(torch.int32).reshape(-1)
