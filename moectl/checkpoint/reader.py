"""Tensors out of a checkpoint, one at a time, into their own memory. Quantised weights are decoded; else no value is converted or checked.

    with TensorReader(open_index(folder)) as reader:
        w_VH = reader.read("model.embed_tokens.weight")

Bytes go by `pread` straight into memory that torch allocated: memory follows what is held, not the file; tensors
are aligned as torch's own (memory maps are not); other threads run meanwhile. `safetensors.safe_open` with
`backend="pread"` (0.8) reads the whole tensor for every slice and keeps the interpreter lock, hence not used here.

Shape suffixes: L = all elements, flattened.
"""

from __future__ import annotations

import difflib
import math
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from moectl.checkpoint.dtypes import torch_dtype
from moectl.checkpoint.fp8 import decode_fp8, require_numbers
from moectl.checkpoint.header import TensorInfo
from moectl.checkpoint.index import CheckpointIndex
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.mxfp4 import decode_mxfp4
from moectl.checkpoint.quantised import QuantisedInfo
from moectl.errors import ModelError, from_os_error

# Linux moves at most 2 GiB less one page per call.
_MAX_READ = 1 << 30
_EXACT_CHUNK = 1 << 22
_DECODED_AT_ONCE = 1 << 20
# Below these no code, 6 at most in MXFP4 and 448 in FP8, gives a value that bfloat16 does not hold.
_MAX_EXPONENT = 127 + 125
_MAX_SCALE = 2.0**118


class TensorReader:
    """Reads tensors of one checkpoint; each shard is opened once, when first needed. Safe to use from several threads.

    `bytes_read` counts the bytes taken from the files so far.
    """

    def __init__(self, index: CheckpointIndex) -> None:
        self.index = index
        self.bytes_read = 0
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._buffers = _Buffers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards. Tensors already read stay valid; a later read opens its shard again."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def read(self, name: str, *, decode: torch.dtype = torch.bfloat16) -> Tensor:
        """The whole tensor, on the CPU, in the checkpoint's dtype; a quantised one decoded to `decode` (float32 or bfloat16).

        Raises ModelError if it is unknown, its file changed, or a quantised one holds a value that is not finite.
        """
        info = self._info(name)
        return self._read(info, info.start, info.shape) if isinstance(info, TensorInfo) else self._decoded(info, decode)

    def read_slice(
        self, name: str, *, index: int | None = None, rows: tuple[int, int] | None = None, decode: torch.dtype = torch.bfloat16
    ) -> Tensor:
        """Part of a tensor, reading only the bytes of that part.

        `index` picks one entry along dimension 0 and drops the dimension; `rows = (start, stop)` then keeps that range
        of the first remaining dimension. For an [E, I, H] tensor, `index=3, rows=(0, 8)` gives [8, H].
        Raises ModelError if the part lies outside the tensor, and as `read`.
        """
        info = self._info(name)
        if isinstance(info, TensorInfo):
            return self._part(info, index, rows)
        return self._decoded(info, decode, index=index, rows=rows)

    def read_values(self, name: str, start: int, stop: int) -> Tensor:
        """Values `start` to `stop` of a plain tensor's row-major order, in one dimension. Raises ModelError as `read_slice`."""
        info = self._info(name)
        if not isinstance(info, TensorInfo) or not 0 <= start <= stop <= math.prod(info.shape):
            raise ModelError(f"tensor {quote(name)} of shape {list(info.shape)} has no values {start} to {stop} to read as they are")
        itemsize = torch_dtype(info.dtype).itemsize
        return self._read(info, info.start + start * itemsize, (stop - start,))

    def _decoded(self, info: QuantisedInfo, dtype: torch.dtype, *, index: int | None = None, rows: tuple[int, int] | None = None) -> Tensor:
        """A quantised weight or a part of it in `dtype`."""
        _require_part(info, index, rows)
        shape = info.shape if index is None else info.shape[1:]
        first, stop = rows or (0, shape[0])
        out = torch.empty(stop - first, *shape[1:], dtype=dtype)
        if len(shape) == 2:
            self._decode(info, index, first, out)
            return out
        for entry in range(first, stop):
            self._decode(info, entry, 0, out[entry - first])
        return out

    def _decode(self, info: QuantisedInfo, index: int | None, first_row: int, out: Tensor) -> None:
        """Fill `out` [R, C] with the rows from `first_row` on.

        Some rows at a time, with memory that is used again: a plan counts what is held, and buffers that come and go between weights that
        stay would leave holes in the heap as large as these.
        """
        R, C = out.shape
        high = info.block[0]
        blocks = first_row // high, -(-(first_row + R) // high)
        scales = self._part(info.scales, index, blocks)
        require_finite(info.scales.name, scales, first_row=blocks[0])
        n_rows = max(1, _DECODED_AT_ONCE // max(C, 1))
        bytes_, scratch = self._buffers.of(max(_DECODED_AT_ONCE, C))
        for start in range(0, R, n_rows):
            stop = min(R, start + n_rows)
            here = first_row + start, first_row + stop
            codes = self._part(info.codes, index, here, into=bytes_)
            if info.dtype == "MXFP4":
                decode_mxfp4(codes, scales[start:stop], out=out[start:stop], scratch=scratch)
            else:
                require_numbers(info.name, codes, first_row=here[0])
                decode_fp8(codes, scales, block=info.block, first_row=here[0] - blocks[0] * high, out=out[start:stop], scratch=scratch)
        largest = float(scales.float().abs().amax()) if scales.numel() else 0.0
        if largest > (_MAX_EXPONENT if info.dtype == "MXFP4" else _MAX_SCALE):
            require_finite(info.name, out, first_row=first_row)

    def _part(self, info: TensorInfo, index: int | None, rows: tuple[int, int] | None, *, into: Tensor | None = None) -> Tensor:
        _require_part(info, index, rows)
        start, shape, nbytes = info.start, info.shape, info.nbytes
        if index is not None:
            nbytes //= shape[0]
            start, shape = start + index * nbytes, shape[1:]
        if rows is not None:
            first, stop = rows
            row_bytes = nbytes // shape[0] if shape[0] else 0
            start, shape = start + first * row_bytes, (stop - first, *shape[1:])
        return self._read(info, start, shape, into=into)

    def _info(self, name: str) -> TensorInfo | QuantisedInfo:
        info = self.index.tensors.get(name)
        if info is None:
            near = difflib.get_close_matches(name, list(self.index.tensors)[:5000], n=3)
            raise ModelError(
                f"the checkpoint `{self.index.shards[0].parent}` has no tensor {quote(name)}",
                hint="similar names: " + ", ".join(quote(n) for n in near) if near else None,
            )
        return info

    def _read(self, info: TensorInfo, start: int, shape: tuple[int, ...], *, into: Tensor | None = None) -> Tensor:
        """`into`: bytes to use instead of memory of its own; those of 8-bit values."""
        dtype = torch_dtype(info.dtype)
        tensor = torch.empty(shape, dtype=dtype) if into is None else into[: math.prod(shape)].view(dtype).view(shape)
        view = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            descriptor = self._descriptor(info.file)
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done : done + _MAX_READ]], start + done)
                if count == 0:
                    missing = len(view) - done
                    raise ModelError(f"`{info.file}` lost {missing:,} bytes of tensor {quote(info.name)} since its header was read")
                done += count
        except FileNotFoundError as error:
            raise ModelError(f"`{info.file}` is gone since its header was read") from error
        except OSError as error:
            raise from_os_error(error, f"read `{info.file}`") from error
        with self._lock:
            self.bytes_read += len(view)
        return tensor

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]


def _require_part(info: TensorInfo | QuantisedInfo, index: int | None, rows: tuple[int, int] | None) -> None:
    shape = info.shape
    if index is not None:
        if not shape or not 0 <= index < shape[0]:
            raise ModelError(f"tensor {quote(info.name)} of shape {list(shape)} has no entry {index}")
        shape = shape[1:]
    if rows is not None and (not shape or not 0 <= rows[0] <= rows[1] <= shape[0]):
        raise ModelError(f"tensor {quote(info.name)} of shape {list(info.shape)} has no rows {rows[0]} to {rows[1]}")


class _Buffers(threading.local):
    """Memory for codes and for decoding them, of each thread its own."""

    def __init__(self) -> None:
        self._values = 0

    def of(self, values: int) -> tuple[Tensor, Tensor]:
        """uint8 and int32, as many as `values` at least."""
        if self._values < values:
            # Made while only evaluating, they could not be written to while training.
            with torch.inference_mode(False):
                self._bytes, self._scratch = torch.empty(values, dtype=torch.uint8), torch.empty(values, dtype=torch.int32)
            self._values = values
        return self._bytes, self._scratch


def require_finite(name: str, tensor: Tensor, *, first_row: int = 0) -> None:
    """Raise ModelError if a floating-point tensor holds NaN or infinity, saying how many and where the first one is.

    A sum is NaN or infinite whenever one of its terms is, so one fused pass clears a good tensor. Large legal values
    can overflow the sum as well: then, and only then, every value is looked at. `first_row` is where a slice of rows begins.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # torch sums float16 and bfloat16 in float32 inside; for the 8-bit formats it has no sum.
    total = tensor.sum() if tensor.element_size() > 1 else tensor.float().sum()
    if bool(torch.isfinite(total)):
        return
    nan, infinite, first = 0, 0, -1
    for start, chunk_L in enumerate(torch.split(tensor.reshape(-1), _EXACT_CHUNK)):
        values_L = chunk_L if chunk_L.element_size() > 1 else chunk_L.float()
        bad_L = ~torch.isfinite(values_L)
        n_bad = int(bad_L.sum())
        if n_bad:
            n_nan = int(torch.isnan(values_L).sum())
            nan, infinite = nan + n_nan, infinite + n_bad - n_nan
            if first < 0:
                first = start * _EXACT_CHUNK + int(bad_L.int().argmax())
    if first >= 0:
        position = [int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)]
        if first_row:
            position[0] += first_row
        raise ModelError(
            f"tensor {quote(name)} holds {nan:,} NaN and {infinite:,} infinite values among {tensor.numel():,}, the first at {position}",
            hint="the checkpoint is damaged: download it again or use another copy",
        )
