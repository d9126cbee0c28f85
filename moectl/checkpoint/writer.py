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
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moectl.checkpoint.copying import copy_range, reserve
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

    Shards take the tensors in plan order, `shard_size` bytes of tensors at most; a larger tensor has a shard of its own. `done`: shards
    that an earlier writer with the same plan completed in this folder. Parts of tensors may come from several threads.
    Raises UsageError for an impossible shard size, ModelError for an impossible plan, ResourceError if the disk is too small.
    """

    def __init__(
        self, folder: Path, plan: Sequence[PlannedTensor], *, shard_size: int = DEFAULT_SHARD_SIZE, done: Collection[str] = ()
    ) -> None:
        if shard_size <= 0:
            raise UsageError(f"the shard size `{shard_size}` must be above zero")
        self.folder = folder
        _check_plan(plan)
        self.total_bytes = sum(_planned_bytes(planned) for planned in plan)
        self._places, headers = _lay_out(plan, shard_size)
        self.shards: dict[str, list[str]] = {file: [] for file in headers}
        """The names of the tensors in each file, in plan order."""
        for name, place in self._places.items():
            self.shards[place.file].append(name)
        self._lock = threading.Lock()
        self._taken = {name: place.nbytes for name, place in self._places.items() if place.file in done}
        self._check_space(self.total_bytes + sum(len(header) for header, _ in headers.values()))
        for file, (header, file_bytes) in headers.items():
            if file not in done:
                self._pwrite(file, memoryview(header), 0, create_bytes=file_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, from any device. Raises ModelError if it is not the planned one, ResourceError if the disk is full."""
        import torch

        place = self._whole(name)
        found, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
        if (found, shape) != (place.planned.dtype, place.planned.shape):
            planned = place.planned
            raise ModelError(f"tensor {quote(name)} is `{found}` {list(shape)}, but `{planned.dtype}` {list(planned.shape)} was planned")
        flat_L = tensor.detach().cpu().contiguous().reshape(-1)
        self._put(place, 0, flat_L.view(torch.uint8).numpy().data)

    def write_bytes(self, name: str, buffer: bytes | bytearray | memoryview) -> None:
        """Write one tensor from its raw little-endian bytes, row-major. Raises as `write`."""
        place, view = self._whole(name), memoryview(buffer).cast("B")
        if len(view) != place.nbytes:
            raise ModelError(f"tensor {quote(name)} has {len(view):,} bytes, but {place.nbytes:,} were planned")
        self._put(place, 0, view)

    def write_part(self, name: str, start: int, part: Tensor) -> None:
        """Write a contiguous part of one tensor, on the CPU, from value `start` of its row-major order on.

        All parts together must cover the tensor once, which `close` checks by their sizes. Raises as `write`.
        """
        import torch

        place = self._place(name)
        if dtype_name(part.dtype) != place.planned.dtype:
            raise ModelError(f"a part of tensor {quote(name)} is `{dtype_name(part.dtype)}`, but `{place.planned.dtype}` was planned")
        self._put(place, start * part.element_size(), part.reshape(-1).view(torch.uint8).numpy().data)

    def copy_part(self, name: str, start: int, source: Path, source_start: int, nbytes: int) -> None:
        """The same with bytes of another file, `start` and `source_start` counted in bytes; they need not pass through this process."""
        place = self._place(name)
        self._take(place, start, nbytes)
        target = self.folder / place.file
        try:
            with open(source, "rb", buffering=0) as reading, open(target, "r+b", buffering=0) as writing:
                copy_range(reading.fileno(), source_start, writing.fileno(), place.start + start, nbytes)
        except EOFError as error:
            raise ModelError(f"`{source}` ends before tensor {quote(name)} does; it changed since its header was read") from error
        except FileNotFoundError as error:
            raise ModelError(f"`{source}` is gone since its header was read") from error
        except OSError as error:
            raise from_os_error(error, f"copy from `{source}` to `{target}`") from error

    def close(self) -> None:
        """Write the index, last. Raises ModelError naming the planned tensors that were not written."""
        missing = [name for name, place in self._places.items() if self._taken.get(name) != place.nbytes]
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
        return self._places[name]

    def _whole(self, name: str) -> _Place:
        place = self._place(name)
        if name in self._taken:
            raise ModelError(f"tensor {quote(name)} is written twice")
        return place

    def _put(self, place: _Place, start: int, view: memoryview) -> None:
        self._take(place, start, len(view))
        self._pwrite(place.file, view, place.start + start)

    def _take(self, place: _Place, start: int, nbytes: int) -> None:
        """Count bytes of a tensor. Raises ModelError beyond its end, or where more come than it has."""
        name = place.planned.name
        with self._lock:
            taken = self._taken.get(name, 0) + nbytes
            if not 0 <= start <= place.nbytes - nbytes or taken > place.nbytes:
                raise ModelError(f"tensor {quote(name)} is written twice, or beyond its {place.nbytes:,} bytes")
            self._taken[name] = taken

    def _pwrite(self, file: str, view: memoryview, start: int, *, create_bytes: int | None = None) -> None:
        path = self.folder / file
        try:
            # Opened per tensor: a thousand small shards must not need a thousand descriptors.
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT if create_bytes is not None else 0), 0o666)
            try:
                if create_bytes is not None:
                    reserve(descriptor, create_bytes)
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
        # What an earlier attempt left here is written over.
        available += sum(512 * path.stat().st_blocks for path in self.folder.glob("*.safetensors"))
        if needed > available:
            raise ResourceError(
                f"the checkpoint needs {format_bytes(needed)} in `{self.folder.parent}`, but only {format_bytes(available)} are free",
                hint="free some space or choose another folder",
            )


def shard_sizes(tensors: Sequence[int], shard_size: int) -> list[int]:
    """How many tensors of these bytes each shard takes, in order: `shard_size` bytes at most, or one tensor."""
    counts, filled = [0], 0
    for nbytes in tensors:
        if counts[-1] and filled + nbytes > shard_size:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += nbytes
    return counts


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
    counts = shard_sizes([_planned_bytes(planned) for planned in plan], shard_size)
    left = iter(plan)
    places: dict[str, _Place] = {}
    headers: dict[str, tuple[bytes, int]] = {}
    for number, count in enumerate(counts, start=1):
        shard = list(islice(left, count))
        file = SINGLE_NAME if len(counts) == 1 else f"model-{number:05d}-of-{len(counts):05d}.safetensors"
        entries = [(planned.name, planned.dtype, planned.shape) for planned in shard]
        header, infos = lay_out(Path(file), entries, metadata={"format": "pt"})
        places |= {planned.name: _Place(planned, file, infos[planned.name].start, infos[planned.name].nbytes) for planned in shard}
        headers[file] = (header, max(info.end for info in infos.values()))
    return places, headers
