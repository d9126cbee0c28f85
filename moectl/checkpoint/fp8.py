"""FP8 weights with a scale for each block, as DeepSeek-V3 publishes them: 8-bit codes `X.weight` beside float32 `X.weight_scale_inv`.

    decode_fp8(codes_RC, scales_YX, block=(128, 128), first_row=0, out=torch.empty(codes_RC.shape, dtype=torch.bfloat16))

A weight is its e4m3 code times the scale of its block; `_inv` in the name notwithstanding, scales multiply. Blocks at the right and lower
edge may be cut off. Format: https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md
"""

# Shapes: R rows, C columns; Y, X blocks of rows and columns.

from __future__ import annotations

import torch
from torch import Tensor

from moectl.checkpoint.json_object import quote
from moectl.errors import ModelError

_SIGN_EXPONENT_MANTISSA = 0x87F00000 - 2**32
_REBIAS = 2.0**120  # exponents of e4m3 start at -7, those of float32 at -127
_LARGE_SCALE = 2.0**7
_NAN = 0x7F  # either sign; the only codes that are no number
_SCRATCH_VALUES = 2**20


def decode_fp8(
    codes_RC: Tensor, scales_YX: Tensor, *, block: tuple[int, int], first_row: int = 0, out: Tensor, scratch: Tensor | None = None
) -> None:
    """Write codes times scales into `out` [R, C] float32 or bfloat16: multiplied in float32, rounded once to nearest, ties to even.

    `codes_RC` float8_e4m3fn (or its bytes), rows `first_row` on of a weight whose scales are `scales_YX`.
    `scratch` int32, at least 2^20 values and C, else made here. Codes that are no number are not noticed; see `require_numbers`.

    A code's 7 lower bits, shifted to the top of a float32's mantissa and exponent, are its value times 2^-120, subnormal codes included:
    no table and no cast, which in torch take three to six times as long.
    """
    bytes_RC = codes_RC.view(torch.int8)
    R, C = bytes_RC.shape
    high, wide = block
    whole = C - C % wide
    rows = min(R, high, max(1, _SCRATCH_VALUES // max(C, 1)))
    scratch = torch.empty(rows * C, dtype=torch.int32) if scratch is None else scratch
    # Above that a scale times 2^120 is more than float32 holds.
    large = scales_YX.numel() > 0 and float(scales_YX.float().abs().amax()) >= _LARGE_SCALE
    row = 0
    while row < R:
        y = (first_row + row) // high
        n = min(rows, R - row, (y + 1) * high - first_row - row)
        bits_nC = scratch[: n * C].view(n, C)
        torch.bitwise_left_shift(bits_nC.copy_(bytes_RC[row : row + n]), 20, out=bits_nC)
        bits_nC.bitwise_and_(_SIGN_EXPONENT_MANTISSA)
        values_nC = bits_nC.view(torch.float32)
        factors_X = scales_YX[y].float()
        if large:
            values_nC.mul_(_REBIAS)
        else:
            factors_X = factors_X * _REBIAS
        if whole:
            values_nC[:, :whole].view(n, -1, wide).mul_(factors_X[: whole // wide, None])
        if whole < C:
            values_nC[:, whole:].mul_(factors_X[whole // wide])
        out[row : row + n].copy_(values_nC)
        row += n


def require_numbers(name: str, codes_RC: Tensor, *, first_row: int = 0) -> None:
    """Raise ModelError if an e4m3 code is not a number, saying how many and where the first one is."""
    bytes_RC = codes_RC.view(torch.uint8)
    if not bytes_RC.numel():
        return
    # As signed bytes 0x7F is the largest, as unsigned ones 0xFF: two maxima clear a good tensor, at the speed of memory.
    if int(bytes_RC.view(torch.int8).amax()) < _NAN and int(bytes_RC.amax()) < _NAN + 128:
        return
    bad_RC = (bytes_RC & _NAN) == _NAN
    row, column = divmod(int(bad_RC.reshape(-1).int().argmax()), bytes_RC.shape[1])
    raise ModelError(
        f"tensor {quote(name)} holds {int(bad_RC.sum()):,} codes that are NaN among {bytes_RC.numel():,}, "
        f"the first at [{first_row + row}, {column}]",
        hint="the checkpoint is damaged: download it again or use another copy",
    )
