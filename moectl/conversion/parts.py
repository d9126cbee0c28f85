"""The bytes of one new tensor, some megabytes at a time: copied, cast or decoded from the old checkpoint into the new one.

    for nbytes, work in parts_of(target, index, reader, writer):
        work()

Parts are independent of each other, so several threads may do them. What keeps its dtype and lies in one piece on both sides never passes
through this process's memory, and needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from moectl.arch.tensors import TensorRef
from moectl.checkpoint.header import TensorInfo, tensor_bytes
from moectl.checkpoint.index import CheckpointIndex
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.quantised import QuantisedInfo
from moectl.checkpoint.writer import CheckpointWriter
from moectl.conversion.pool import Part
from moectl.conversion.targets import Piece, Target
from moectl.errors import ModelError

if TYPE_CHECKING:
    import torch

    from moectl.checkpoint.reader import TensorReader

_COPIED_AT_ONCE = 1 << 26
_VALUES_AT_ONCE = 1 << 20
BUFFER_BYTES = 24 * _VALUES_AT_ONCE
"""What a part takes at most, but for matrices that are turned round: values read, decoded and cast, with the memory to decode them."""


def needs_reader(target: Target, index: CheckpointIndex) -> bool:
    """Whether values of `target` have to be computed, or turned round, rather than copied."""
    pieces = target.pieces or (_whole(target),)
    return any(not _is_copy(piece, target, index) for piece in pieces)


def assembled_bytes(target: Target) -> int:
    """Memory one part takes beyond a few megabytes: of matrices that are turned round, the old one and the new one."""
    turned = [piece for piece in target.pieces if not _is_straight(piece)]
    itemsize = tensor_bytes(target.dtype, (1,)) or 0
    return 2 * max((math.prod(piece.target.shape[1:]) * itemsize for piece in turned), default=0)


def parts_of(target: Target, index: CheckpointIndex, reader: TensorReader | None, writer: CheckpointWriter) -> Iterator[Part]:
    """The parts of one tensor. `reader` may be None where `needs_reader` says no. Their work raises ModelError, ResourceError."""
    if math.prod(target.shape) == 0:
        yield 0, partial(writer.write_bytes, target.name, b"")
        return
    turned: dict[int | None, list[Piece]] = {}
    for piece in target.pieces or (_whole(target),):
        if not _is_straight(piece):
            turned.setdefault(piece.target.index, []).append(piece)
        elif _is_copy(piece, target, index):
            yield from _copied(piece, target, index, writer)
        else:
            assert reader is not None
            yield from _computed(piece, target, index, reader, writer)
    for entry, pieces in turned.items():
        assert reader is not None
        yield _nbytes(target, target.shape if entry is None else target.shape[1:]), partial(_turn, target, entry, pieces, reader, writer)


def _copied(piece: Piece, target: Target, index: CheckpointIndex, writer: CheckpointWriter) -> Iterator[Part]:
    info = index.tensors[piece.source.name]
    assert isinstance(info, TensorInfo)
    total = _nbytes(target, piece.target.part_shape)
    source_start, target_start = (_nbytes(target, (_first_value(ref),)) for ref in (piece.source, piece.target))
    for done in range(0, total, _COPIED_AT_ONCE):
        count = min(_COPIED_AT_ONCE, total - done)
        yield count, partial(writer.copy_part, target.name, target_start + done, info.file, info.start + source_start + done, count)


def _computed(piece: Piece, target: Target, index: CheckpointIndex, reader: TensorReader, writer: CheckpointWriter) -> Iterator[Part]:
    """Cast from value to value, or decoded some rows at a time."""
    source, first = piece.source, _first_value(piece.target)
    if isinstance(index.tensors[source.name], TensorInfo):
        total = piece.target.numel
        for done in range(0, total, _VALUES_AT_ONCE):
            start, stop = _first_value(source) + done, _first_value(source) + min(total, done + _VALUES_AT_ONCE)
            read = partial(reader.read_values, source.name, start, stop)
            yield _nbytes(target, (stop - start,)), partial(_write, read, source.name, target, first + done, writer)
        return
    entries = [source.index] if len(source.shape) == 2 or source.index is not None else list(range(source.shape[0]))
    n_rows, row = source.part_shape[-2:]
    offset = source.rows[0] if source.rows else 0
    at_once = max(1, _VALUES_AT_ONCE // row)
    for number, entry in enumerate(entries):
        for done in range(0, n_rows, at_once):
            rows = (offset + done, offset + min(n_rows, done + at_once))
            read = partial(reader.read_slice, source.name, index=entry, rows=rows, decode=_decoded(target))
            start = first + (number * n_rows + done) * row
            yield _nbytes(target, (rows[1] - rows[0], row)), partial(_write, read, source.name, target, start, writer)


def _turn(target: Target, entry: int | None, pieces: list[Piece], reader: TensorReader, writer: CheckpointWriter) -> None:
    """One matrix of the new tensor (all of it without `entry`) out of weights that lie another way round."""
    import torch

    from moectl.checkpoint.dtypes import torch_dtype

    shape = target.shape if entry is None else target.shape[1:]
    whole = torch.empty(shape, dtype=torch_dtype(target.dtype))
    read: dict[tuple[str, int | None], torch.Tensor] = {}
    for piece in pieces:
        key = piece.source.name, piece.source.index
        if key not in read:
            read.clear()
            index = piece.source.index
            read[key] = _cast(reader.read_slice(key[0], index=index, decode=_decoded(target)), key[0], target)
        _rows(whole, piece.target).copy_(_rows(read[key], piece.source))
    writer.write_part(target.name, (entry or 0) * math.prod(shape), whole)


def _rows(matrix: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    """The weight inside the matrix that `ref.index` picks."""
    turned = matrix.t() if ref.transposed else matrix
    return turned if ref.rows is None else turned[ref.rows[0] : ref.rows[1] : ref.row_step]


def _write(read: Callable[[], torch.Tensor], name: str, target: Target, start: int, writer: CheckpointWriter) -> None:
    writer.write_part(target.name, start, _cast(read(), name, target))


def _cast(values: torch.Tensor, name: str, target: Target) -> torch.Tensor:
    """`values` of tensor `name` in the target's dtype. Raises ModelError if one is not finite there."""
    import torch

    from moectl.checkpoint.dtypes import torch_dtype
    from moectl.checkpoint.reader import require_finite

    dtype = torch_dtype(target.dtype)
    if values.dtype == dtype:
        return values
    cast = values.to(dtype)
    # One pass clears a good part: a sum is not finite as soon as one of its terms is not.
    if not bool(torch.isfinite(cast.sum(dtype=torch.float32))) and not bool(torch.isfinite(cast).all()):
        require_finite(name, values)
        most = float(values.abs().max())
        raise ModelError(f"tensor {quote(name)} holds {most:.3g}, which `{target.dtype}` has no number for", hint="take another `--dtype`")
    return cast


def _decoded(target: Target) -> torch.dtype:
    """What quantised weights are decoded to on the way."""
    import torch

    return torch.bfloat16 if target.dtype == "BF16" else torch.float32


def _whole(target: Target) -> Piece:
    ref = TensorRef(name=target.source or target.name, shape=target.shape)
    return Piece(ref, ref)


def _is_straight(piece: Piece) -> bool:
    """Whether the values follow each other in the same order on both sides."""
    return all(ref.row_step == 1 and not ref.transposed for ref in (piece.source, piece.target))


def _is_copy(piece: Piece, target: Target, index: CheckpointIndex) -> bool:
    info = index.tensors[piece.source.name]
    return _is_straight(piece) and not isinstance(info, QuantisedInfo) and info.dtype == target.dtype


def _first_value(ref: TensorRef) -> int:
    """Where a weight that lies in one piece begins in its tensor, in values."""
    entry = 0 if ref.index is None else ref.index * math.prod(ref.shape[1:])
    row = math.prod(ref.shape[1:] if ref.index is None else ref.shape[2:])
    return entry + (ref.rows[0] * row if ref.rows else 0)


def _nbytes(target: Target, shape: tuple[int, ...]) -> int:
    nbytes = tensor_bytes(target.dtype, shape)
    assert nbytes is not None
    return nbytes
