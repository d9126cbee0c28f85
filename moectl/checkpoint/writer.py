"""A checkpoint onto disk in the Hub's layout, tensor by tensor, in constant memory and in any order.

    with staged_directory(out, overwrite=False) as folder, CheckpointWriter(folder, plan) as writer:
        writer.write("model.norm.weight", w_H)

The plan is known before the first byte: shards, headers and every tensor's place follow from it. The writer stages
nothing itself; whoever calls it writes into a staged folder, so a failure leaves nothing under the final name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moectl.checkpoint.dtypes import dtype_name
from moectl.checkpoint.header import tensor_bytes
from moectl.checkpoint.index import INDEX_NAME, SINGLE_NAME
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.layout import lay_out
from moectl.errors import ModelError, ResourceError, UsageError, from_os_error
from moectl.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_SHARD_SIZE = 5_000_000_000
# Linux moves at most 2 GiB less one page per call.
_MAX_WRITE = 1 << 30


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written. `dtype` is the safetensors name, such as `BF16`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    planned: PlannedTensor
    file: str
    start: int
    nbytes: int


class CheckpointWriter:
    """Writes the planned tensors; leaving the `with` block without an error closes it.

    Shards take the tensors in plan order, `shard_size` bytes of tensors at most; a larger tensor has a shard of its own.
    Raises UsageError for an impossible shard size, ModelError for an impossible plan, ResourceError if the disk is too small.
    """

    def __init__(self, folder: Path, plan: Sequence[PlannedTensor], *, shard_size: int = DEFAULT_SHARD_SIZE) -> None:
        if shard_size <= 0:
            raise UsageError(f"the shard size `{shard_size}` must be above zero")
        self.folder = folder
        _check_plan(plan)
        self.total_bytes = sum(_planned_bytes(planned) for planned in plan)
        self._written: set[str] = set()
        self._places, headers = _lay_out(plan, shard_size)
        self._check_space(self.total_bytes + sum(len(header) for header, _ in headers.values()))
        for file, (header, file_bytes) in headers.items():
            self._pwrite(file, memoryview(header), 0, create_bytes=file_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, from any device. Raises ModelError if it is not the planned one, ResourceError if the disk is full."""
        import torch

        place = self._place(name)
        found, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
        if (found, shape) != (place.planned.dtype, place.planned.shape):
            planned = place.planned
            raise ModelError(f"tensor {quote(name)} is `{found}` {list(shape)}, but `{planned.dtype}` {list(planned.shape)} was planned")
        flat_L = tensor.detach().cpu().contiguous().reshape(-1)
        self._put(place, flat_L.view(torch.uint8).numpy().data)

    def write_bytes(self, name: str, buffer: bytes | bytearray | memoryview) -> None:
        """Write one tensor from its raw little-endian bytes, row-major. Raises as `write`."""
        place, view = self._place(name), memoryview(buffer).cast("B")
        if len(view) != place.nbytes:
            raise ModelError(f"tensor {quote(name)} has {len(view):,} bytes, but {place.nbytes:,} were planned")
        self._put(place, view)

    def close(self) -> None:
        """Write the index, last. Raises ModelError naming the planned tensors that were not written."""
        missing = [name for name in self._places if name not in self._written]
        if missing:
            raise ModelError(f"{len(missing)} of {len(self._places)} planned tensors were not written, the first is {quote(missing[0])}")
        weight_map = {name: place.file for name, place in self._places.items()}
        if set(weight_map.values()) == {SINGLE_NAME}:
            return
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        try:
            (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise from_os_error(error, f"write `{self.folder / INDEX_NAME}`") from error

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise ModelError(f"tensor {quote(name)} was not planned")
        if name in self._written:
            raise ModelError(f"tensor {quote(name)} is written twice")
        return self._places[name]

    def _put(self, place: _Place, view: memoryview) -> None:
        self._pwrite(place.file, view, place.start)
        self._written.add(place.planned.name)

    def _pwrite(self, file: str, view: memoryview, start: int, *, create_bytes: int | None = None) -> None:
        path = self.folder / file
        try:
            # Opened per tensor: a thousand small shards must not need a thousand descriptors.
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT if create_bytes is not None else 0), 0o666)
            try:
                if create_bytes is not None:
                    os.ftruncate(descriptor, create_bytes)
                done = 0
                while done < len(view):
                    done += os.pwrite(descriptor, view[done : done + _MAX_WRITE], start + done)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise from_os_error(error, f"write `{path}`") from error

    def _check_space(self, needed: int) -> None:
        try:
            available = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise from_os_error(error, f"write to `{self.folder}`") from error
        if needed > available:
            raise ResourceError(
                f"the checkpoint needs {format_bytes(needed)} in `{self.folder.parent}`, but only {format_bytes(available)} are free",
                hint="free some space or choose another folder",
            )


def _check_plan(plan: Sequence[PlannedTensor]) -> None:
    if not plan:
        raise ModelError("a checkpoint without tensors cannot be written")
    names: set[str] = set()
    for planned in plan:
        if planned.name in names:
            raise ModelError(f"tensor {quote(planned.name)} is planned twice")
        if planned.name == "__metadata__" or not planned.name.isprintable():
            raise ModelError(f"a tensor cannot have the name {quote(planned.name)}")
        names.add(planned.name)


def _planned_bytes(planned: PlannedTensor) -> int:
    nbytes = tensor_bytes(planned.dtype, planned.shape)
    if nbytes is None or min(planned.shape, default=0) < 0:
        raise ModelError(f"tensor {quote(planned.name)} cannot be written as `{planned.dtype}` {list(planned.shape)}")
    return nbytes


def _lay_out(plan: Sequence[PlannedTensor], shard_size: int) -> tuple[dict[str, _Place], dict[str, tuple[bytes, int]]]:
    """The place of every tensor, and per file its header and its size in bytes."""
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for planned in plan:
        nbytes = _planned_bytes(planned)
        if shards[-1] and filled + nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(planned)
        filled += nbytes
    places: dict[str, _Place] = {}
    headers: dict[str, tuple[bytes, int]] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries = [(planned.name, planned.dtype, planned.shape) for planned in shard]
        header, infos = lay_out(Path(file), entries, metadata={"format": "pt"})
        places |= {planned.name: _Place(planned, file, infos[planned.name].start, infos[planned.name].nbytes) for planned in shard}
        headers[file] = (header, max(info.end for info in infos.values()))
    return places, headers
