"""Every code of the quantised formats against its definition, computed with Python's own numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.checkpoint.fp8 import decode_fp8, require_numbers
from moectl.checkpoint.mxfp4 import decode_mxfp4
from moectl.errors import ModelError

FINITE = [code for code in range(256) if code & 0x7F != 0x7F]


def e4m3(code: int) -> Fraction:
    """Sign, four bits of exponent (bias 7), three of mantissa; exponent 0 is subnormal."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7) if exponent else Fraction(mantissa, 8) * Fraction(2) ** -6
    return -value if code & 0x80 else value


def to_bfloat16(x: float) -> float:
    """A float32 rounded to 8 significant bits, ties to even, as exact arithmetic does it."""
    if x == 0 or not math.isfinite(x):
        return x
    unit = Fraction(2) ** max(math.frexp(x)[1] - 8, -133)
    return float(round(Fraction(x) / unit) * unit)


def test_every_code_times_one() -> None:
    codes = torch.tensor(FINITE, dtype=torch.uint8)[None]
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(codes.shape, dtype=dtype)
        decode_fp8(codes, torch.ones(1, 1), block=(1, len(FINITE)), out=out)
        assert [Fraction(x) for x in out[0].double().tolist()] == [e4m3(code) for code in FINITE]
    assert math.copysign(1, float(out[0][FINITE.index(0x80)])) == -1
    assert torch.equal(out.float(), codes.view(torch.float8_e4m3fn).float())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 11),
    columns=st.integers(1, 11),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    first_row=st.integers(0, 7),
    seed=st.integers(0, 10**6),
)
def test_ragged_blocks_round_once(rows: int, columns: int, block: tuple[int, int], first_row: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = torch.tensor(FINITE, dtype=torch.uint8)[torch.randint(0, len(FINITE), (rows, columns), generator=g)]
    scales = torch.randn(-(-(first_row + rows) // block[0]), -(-columns // block[1]), generator=g) * 10.0 ** torch.randint(
        -12, 13, (1,), generator=g
    )
    wide, narrow = torch.empty(rows, columns), torch.empty(rows, columns, dtype=torch.bfloat16)
    for out in (wide, narrow):
        decode_fp8(codes.view(torch.float8_e4m3fn), scales, block=block, first_row=first_row, out=out)
    for r in range(rows):
        for c in range(columns):
            scale = scales[(first_row + r) // block[0], c // block[1]]
            product = torch.tensor(float(e4m3(int(codes[r, c])))) * scale  # one float32 product
            assert wide[r, c] == product
            assert float(narrow[r, c]) == to_bfloat16(float(product))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 255.9, 256.0, 300.0, 1e10, 3.4e35])
def test_scales_of_every_size(scale: float) -> None:
    codes = torch.tensor(FINITE, dtype=torch.uint8)[None]
    out, scales = torch.empty(codes.shape), torch.tensor([[scale, 1.0]])
    decode_fp8(codes, scales, block=(1, 127), out=out)
    expected = codes.view(torch.float8_e4m3fn).float() * torch.where(torch.arange(len(FINITE)) < 127, scales[0, 0], scales[0, 1])
    assert torch.equal(out, expected)


def test_a_code_that_is_no_number_is_named() -> None:
    codes = torch.zeros(3, 5, dtype=torch.uint8)
    require_numbers("x", codes)
    codes[1, 2], codes[2, 0] = 0xFF, 0x7F
    with pytest.raises(ModelError, match=r"tensor `x` holds 2 codes that are NaN among 15, the first at \[8, 2\]"):
        require_numbers("x", codes, first_row=7)


def test_every_pair_of_codes_and_every_scale() -> None:
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    signed = [*table, *(-x for x in table)]
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for dtype in (torch.float32, torch.bfloat16):
        for scale in range(1, 253):
            out = torch.empty(1, 512, dtype=dtype)
            decode_mxfp4(blocks, torch.full((1, 16), scale, dtype=torch.uint8), out=out)
            expected = [x * 2.0 ** (scale - 127) for code in range(256) for x in (signed[code & 15], signed[code >> 4])]
            assert out[0].double().tolist() == expected
    out = torch.empty(1, 512)
    decode_mxfp4(blocks, torch.full((1, 16), 255, dtype=torch.uint8), out=out)
    assert out.isnan().all()


def test_rows_that_do_not_fit_the_scratch_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    codes = torch.tensor(FINITE, dtype=torch.uint8)[torch.randint(0, len(FINITE), (1100, 1056), generator=g)]
    scales = torch.rand(22, 2, generator=g)
    expected = codes.view(torch.float8_e4m3fn).float() * scales.repeat_interleave(50, 0).repeat_interleave(600, 1)[:, :1056]
    blocks, exponents = codes.view(1100, 66, 16), torch.randint(100, 130, (1100, 66), generator=g, dtype=torch.uint8)
    parts = [torch.empty(1, 66 * 32) for _ in blocks]
    for part, row, exponent in zip(parts, blocks, exponents, strict=True):
        decode_mxfp4(row[None], exponent[None], out=part)
    for scratch in (None, torch.empty(2**20, dtype=torch.int32)):
        out = torch.empty(1100, 1056)
        decode_fp8(codes, scales, block=(50, 600), out=out, scratch=scratch)
        assert torch.equal(out, expected)
        out = torch.empty(1100, 66 * 32)
        decode_mxfp4(blocks, exponents, out=out, scratch=scratch)
        assert torch.equal(out, torch.cat(parts))


def test_groups_have_scales_of_their_own() -> None:
    blocks = torch.full((2, 3, 16), 0x42, dtype=torch.uint8)  # 1, then 2
    scales = torch.tensor([[127, 128, 126], [130, 127, 127]], dtype=torch.uint8)
    out = torch.empty(2, 96, dtype=torch.bfloat16)
    decode_mxfp4(blocks, scales, out=out)
    expected = [[s * x for s in row for _ in range(16) for x in (1, 2)] for row in ((1, 2, 0.5), (8, 1, 1))]
    assert out.tolist() == expected
