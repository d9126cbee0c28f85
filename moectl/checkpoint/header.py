"""The header of one safetensors file: which tensors it holds and where their bytes are. Reads no tensor.

    header = read_header(Path("model.safetensors"))
    header.tensors["lm_head.weight"].shape

A file is trusted only after every check here has passed: the reader then moves bytes without looking back.
Format: https://github.com/huggingface/safetensors#format. The checks are at least as strict as that library's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moectl.checkpoint.json_object import MAX_JSON_BYTES, file_size, parse_object, quote
from moectl.errors import ModelError, from_os_error

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_ELEMENTS = 2**63 - 1
_DOWNLOAD_AGAIN = "download the file again"
# What people hand over by mistake; the first eight bytes of a real file are the header's length.
_OTHER_FILES = (
    (b"version ", "a Git LFS pointer, not the file itself", "fetch the real file with `git lfs pull`"),
    (b"GGUF", "a GGUF file", "use the safetensors repository of this model"),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch pickle", "use the safetensors files of this model"),
    (b"<!DOCTYPE", "a web page", _DOWNLOAD_AGAIN),
    (b"<html", "a web page", _DOWNLOAD_AGAIN),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor on disk. `start` and `end` are byte offsets in `file`; `dtype` is the safetensors name, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file, in the order of their bytes, and its free text metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def dtype_bits(dtype: str) -> int:
    """Bits of one element of a safetensors dtype. Raises ModelError for a dtype the format does not know."""
    if dtype not in _BITS:
        raise ModelError(f"unknown dtype {quote(dtype)}", hint=f"the format knows {', '.join(_BITS)}")
    return _BITS[dtype]


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor, or None where they are not whole (odd counts of 4 and 6 bit elements). Raises ModelError as dtype_bits."""
    bits = dtype_bits(dtype) * _elements(shape)
    return bits // 8 if bits % 8 == 0 else None


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises ModelError naming file, tensor and value if the file is missing, truncated, not safetensors or
    contradicts itself; ResourceError if the system does not let it be read.
    """
    text, data_start, file_bytes = _read_text(path)
    entries = parse_object(text, f"the header of `{path}`")
    metadata = _metadata(entries.pop("__metadata__", None), path)
    infos = [_tensor(name, entry, path, data_start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))
    _check_cover(infos, path, data_start, file_bytes)
    return Header({info.name: info for info in infos}, metadata)


def _read_text(path: Path) -> tuple[bytes, int, int]:
    file_bytes = file_size(path)
    if file_bytes < 8:
        raise ModelError(f"`{path}` has {file_bytes} bytes, too few for a safetensors file", hint=_DOWNLOAD_AGAIN)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if length > MAX_JSON_BYTES or length < 2:
                _refuse_length(path, start + file.read(8), length)
            if length > file_bytes - 8:
                raise _truncated(path, length - (file_bytes - 8), "of its header ")
            return file.read(length), 8 + length, file_bytes
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error


def _refuse_length(path: Path, start: bytes, length: int) -> None:
    for magic, kind, hint in _OTHER_FILES:
        if start.startswith(magic):
            raise ModelError(f"`{path}` is {kind}", hint=hint)
    raise ModelError(
        f"`{path}` is not a safetensors file: its first 8 bytes claim a header of {length:,} bytes (2 to {MAX_JSON_BYTES:,} are legal)",
        hint=_DOWNLOAD_AGAIN,
    )


def _truncated(path: Path, missing: int, part: str = "") -> ModelError:
    return ModelError(f"`{path}` is truncated: {missing:,} bytes {part}are missing", hint=_DOWNLOAD_AGAIN)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelError(f"the header of `{path}` has a `__metadata__` of {quote(value)}, not an object of strings")
    for key, text in value.items():
        if not isinstance(text, str):
            raise ModelError(f"the header of `{path}` has `__metadata__` key {quote(key)} of {quote(text)}, not a string")
        if not _is_utf8(key) or not _is_utf8(text):
            raise ModelError(f"the header of `{path}` has `__metadata__` key {quote(key)} that is not Unicode text")
    return value


def _tensor(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    def refuse(reason: str) -> ModelError:
        return ModelError(f"the header of `{path}` is corrupt: tensor {quote(name)} {reason}", hint=_DOWNLOAD_AGAIN)

    # Names go to terminals, tables and file names; control characters and lone surrogates break all three.
    if not name.isprintable():
        raise refuse("has a name with unprintable characters")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise refuse(f"must have exactly `dtype`, `shape` and `data_offsets`, not {quote(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise refuse(f"has the unknown dtype {quote(dtype)}")
    if not _are_counts(shape) or _elements(shape, zero_as=1) > _MAX_ELEMENTS:
        raise refuse(f"has the impossible shape {quote(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has the impossible `data_offsets` {quote(offsets)}")
    begin, end = offsets
    if (end - begin) * 8 != _BITS[dtype] * _elements(shape):
        raise refuse(f"has {end - begin:,} bytes, which does not match dtype `{dtype}` and shape {quote(shape)}")
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, data_start + end)


def _check_cover(infos: list[TensorInfo], path: Path, data_start: int, file_bytes: int) -> None:
    """The format wants the tensors to tile the data: no overlap, no hole, nothing after the last."""
    position = data_start
    before: str | None = None
    for info in infos:
        if info.start != position:
            previous = "the header" if before is None else f"tensor {quote(before)}"
        if info.start < position:
            raise ModelError(f"the header of `{path}` is corrupt: tensor {quote(info.name)} overlaps {previous}", hint=_DOWNLOAD_AGAIN)
        if info.start > position:
            hole = info.start - position
            raise ModelError(
                f"the header of `{path}` is corrupt: {hole:,} bytes between {previous} and tensor {quote(info.name)} belong to no tensor",
                hint=_DOWNLOAD_AGAIN,
            )
        position, before = info.end, info.name
    if position > file_bytes:
        raise _truncated(path, position - file_bytes)
    if position < file_bytes:
        raise ModelError(f"`{path}` has {file_bytes - position:,} bytes after the last tensor", hint=_DOWNLOAD_AGAIN)


def _are_counts(value: Any) -> bool:
    # `type(n) is int`: JSON `true` arrives as bool, which is an int to isinstance.
    # A plain loop, as a large checkpoint has 200,000 of these lists.
    if not isinstance(value, list):
        return False
    for n in value:  # noqa: SIM110
        if type(n) is not int or not 0 <= n <= _MAX_ELEMENTS:
            return False
    return True


def _elements(shape: tuple[int, ...] | list[int], *, zero_as: int = 0) -> int:
    count = 1
    for n in shape:
        count *= n or zero_as
    return count


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
