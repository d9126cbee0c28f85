"""How fast FP8 blocks and MXFP4 are decoded, beside the plain formula written with casts. The last line is JSON.

python bench/decode.py --rounds 5

Every round decodes the same weight in each way in turn, so that a busy spell of the machine falls on all; shown is the median, in weights
per second and in bytes of codes and scales per second. Both ways give the same bits, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from moectl.checkpoint.fp8 import decode_fp8, require_numbers
from moectl.checkpoint.mxfp4 import GROUP, decode_mxfp4

# Shapes: R rows, C columns; Y, X blocks of rows and columns; G groups of 32 values, B 16 bytes of a group.

ROWS, COLUMNS, BLOCK = 4096, 7168, 128
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def cast_fp8(codes_RC: Tensor, scales_YX: Tensor, out: Tensor) -> None:
    """Cast, multiply by the scales of every block, cast."""
    blocks = codes_RC.float().view(ROWS // BLOCK, BLOCK, COLUMNS // BLOCK, BLOCK)
    out.copy_(blocks.mul_(scales_YX[:, None, :, None]).view(ROWS, COLUMNS))


def cast_mxfp4(blocks_RGB: Tensor, scales_RG: Tensor, out: Tensor) -> None:
    """Look both halves of every byte up, put them side by side, multiply."""
    table = _E2M1.to(out.dtype)
    values_RG32 = torch.stack([table[(blocks_RGB & 15).long()], table[(blocks_RGB >> 4).long()]], dim=-1).flatten(-2)
    torch.mul(values_RG32, torch.exp2(scales_RG.float() - 127).to(out.dtype)[..., None], out=out.view(ROWS, COLUMNS // GROUP, GROUP))


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each way, in turn; one round more comes first, for kernels and pages."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if at:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in taken.items()}


def main() -> None:
    """Measure every format into every dtype and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = psutil.getloadavg()[0]
    print(f"{args.threads} threads of {os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, load {load:.2f}")
    generator = torch.Generator().manual_seed(0)
    codes_RC = (torch.randn(ROWS, COLUMNS, generator=generator) * 60).clamp_(-448, 448).to(torch.float8_e4m3fn)
    scales_YX = torch.rand(ROWS // BLOCK, COLUMNS // BLOCK, generator=generator) * 1e-4
    blocks_RGB = torch.randint(0, 256, (ROWS, COLUMNS // GROUP, GROUP // 2), generator=generator, dtype=torch.uint8)
    scales_RG = torch.randint(110, 125, (ROWS, COLUMNS // GROUP), generator=generator, dtype=torch.uint8)
    weights = ROWS * COLUMNS
    results: dict[str, dict[str, float]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        out, other = (torch.empty(ROWS, COLUMNS, dtype=dtype) for _ in range(2))
        ways: dict[str, dict[str, Callable[[], object]]] = {
            "fp8": {
                "bits": lambda out=out: decode_fp8(codes_RC, scales_YX, block=(BLOCK, BLOCK), out=out),
                "cast": lambda other=other: cast_fp8(codes_RC, scales_YX, other),
                "check": lambda: require_numbers("codes", codes_RC),
            },
            "mxfp4": {
                "pairs": lambda out=out: decode_mxfp4(blocks_RGB, scales_RG, out=out),
                "cast": lambda other=other: cast_mxfp4(blocks_RGB, scales_RG, other),
            },
        }
        stored = {"fp8": weights + 4 * scales_YX.numel(), "mxfp4": blocks_RGB.numel() + scales_RG.numel()}
        for format_name, of_format in ways.items():
            found = seconds(of_format, args.rounds)
            assert torch.equal(out, other), format_name
            rates = {name: weights / s / 1e9 for name, s in found.items()}
            ours = next(iter(rates))
            name = f"{format_name} to {str(dtype).removeprefix('torch.')}"
            results[name] = rates
            print(
                f"{name}: {rates[ours]:.2f} G weights/s ({stored[format_name] / found[ours] / 1e9:.2f} GB/s of codes and scales), "
                f"by casts {rates['cast']:.2f}, ratio {rates[ours] / rates['cast']:.1f}"
                + (f"; looking for NaN codes {rates['check']:.0f}" if "check" in rates else "")
                + f"; median of {args.rounds}"
            )
    print(json.dumps({"bench": "decode", "load": load, "threads": args.threads, "g_weights_per_s": results}))


if __name__ == "__main__":
    main()
