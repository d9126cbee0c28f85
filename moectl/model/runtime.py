"""Where and in which precision a model runs: dtype, device, threads, and how fast this machine multiplies.

Every automatic choice comes with its reason, so that it can be said aloud.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from moectl.errors import ResourceError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Quantised formats, by the name of a tensor's dtype: weights that were bfloat16 before they were quantised.
_QUANTISED = {"F8_E4M3": "FP8", "MXFP4": "MXFP4"}
# Instructions that multiply bfloat16: AVX-512 BF16 or AMX on x86, BF16 on Arm.
_CPU_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


def choose_device(device: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises ResourceError if it is not there, UsageError if it is none of these."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return torch.device("cpu")
    name, _, number = device.partition(":")
    if name != "cuda" or (":" in device and not number.isdecimal()):
        raise UsageError(f"`{device}` is not a device", hint="write `auto`, `cpu`, `cuda` or `cuda:1`")
    if not torch.cuda.is_available():
        raise ResourceError(f"the device `{device}` is not there: torch {torch.__version__} sees no CUDA", hint="use `--device cpu`")
    if int(number or 0) >= torch.cuda.device_count():
        raise ResourceError(f"the device `{device}` is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(device)


def choose_dtype(dtype: str, *, stored: Iterable[str], device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in and why. `stored`: the checkpoint's dtypes, by safetensors name or MXFP4, one per tensor.

    `auto` is the checkpoint's, quantised weights counting as bfloat16, or float32 on a CPU without bfloat16 instructions. Raises UsageError
    for an unknown name.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"`{dtype}` is not a dtype to compute in", hint="write `auto`, `float32` or `bfloat16`")
        return DTYPES[dtype], "as asked"
    stored = list(stored)
    ((main, _),) = Counter("BF16" if name in _QUANTISED else name for name in stored).most_common(1) or [("F32", 0)]
    if main != "BF16":
        return torch.float32, "the checkpoint's" if main == "F32" else f"the checkpoint holds {main}, which is computed in float32"
    if device.type == "cpu" and not cpu_has_bfloat16():
        return torch.float32, "this CPU has no bfloat16 instructions"
    decoded = "".join(f", {_QUANTISED[name]} decoded" for name in _QUANTISED if name in stored)
    return torch.bfloat16, "the checkpoint's" + decoded


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16`: the name flags and files use."""
    return str(dtype).removeprefix("torch.")


def cpu_has_bfloat16() -> bool:
    """Whether the CPU says it multiplies bfloat16; unknown counts as no."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _CPU_BF16_FLAGS.isdisjoint(flags.split())


def gemm_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """What one large GEMM reaches here and now, the best of a few: the ceiling a plan divides by."""
    size = 1024
    a, b = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        out = torch.mm(a, b)
        if out.is_cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def set_threads(threads: int | None) -> None:
    """Limit torch's threads. Raises UsageError for fewer than one."""
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"`{threads}` threads are too few", hint="pass `--threads 1` or more")
    torch.set_num_threads(threads)
