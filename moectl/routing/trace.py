"""Every token's experts in one compact file: written while the model runs, in constant memory, and read back.

    with TraceRecorder(folder / "trace.safetensors", layers, batches, domain_names=names, provenance=stable) as trace:
        run(..., recorders=[trace])
    read_trace(folder / "trace.safetensors").expert_ids_TLK[0]

All shapes are known before the run, so the file gets its full size first and each event fills its own block: the two schedules give the
same bytes. The trace holds all tokens, those that statistics leave out too. It counts nothing (see `counters.py`).
"""

# Shapes: T tokens of the run, L MoE layers (by position), K slots of the layer with most, Q sequences, D domains;
# B x S = t tokens of one micro-batch, k slots of one layer.

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from moectl.checkpoint.header import Header, read_header
from moectl.checkpoint.layout import lay_out
from moectl.errors import DataError, ModelError, UsageError, from_os_error

if TYPE_CHECKING:
    from torch import Tensor

    from moectl.data.batching import MicroBatch
    from moectl.model.events import MoELayerInfo, RoutingEvent

_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8, "U16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64,
}  # fmt: skip
_ALLOWED = {
    "expert_ids": ("U8", "U16"), "weights": ("F16", "F32"), "token_ids": ("I32",), "sequence_offsets": ("I64",), "domain_ids": ("U8",),
}  # fmt: skip
_OPTIONAL = {"counted": ("U8",)}
_LISTS = ("layers", "domains", "n_experts", "top_k")
_MAX_DOMAINS = 256
_CHUNK_BYTES = 8 << 20
_CHUNK_TOKENS = 65_536


class TraceRecorder:
    """A recorder that writes `trace.safetensors`.

    `expert_ids` [T, L, K] in descending weight, ties by ascending id; uint8 if the ids fit, else uint16. Slots that ran no expert, and
    slots that a layer with a smaller top-k lacks, come last with the largest id of the dtype (255 or 65535) and weight 0.
    `weights` as applied, [T, L, K] in `weights_dtype`; `token_ids` int32 [T]; `sequence_offsets` int64 [Q + 1]; `domain_ids` uint8 [Q].
    `counted` uint8 [T], 0 for tokens that statistics leave out, is there if there are any. Metadata: `layers`, `domains`, `n_experts` and
    `top_k` (per layer), `pad_id` (null if every id is an expert), `provenance`, and `summary`, the objects `model` and `data` of
    summary.json, each JSON.

    `path` should lie in a staged folder: an aborted run leaves a file of the right size with holes.
    Raises UsageError for more than 256 domains, ResourceError if the disk cannot hold the file, before the run.
    """

    def __init__(
        self,
        path: Path,
        layers: Sequence[MoELayerInfo],
        batches: Sequence[MicroBatch],
        *,
        domain_names: Sequence[str],
        provenance: Mapping[str, Any],
        summary: Mapping[str, Any] | None = None,
        weights_dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        if len(domain_names) > _MAX_DOMAINS:
            raise UsageError(
                f"a trace holds at most {_MAX_DOMAINS} domains, not {len(domain_names)}", hint="join some, or run without `--trace`"
            )
        self.path = path
        self._layers = tuple(layers)
        self._position = {info.layer: position for position, info in enumerate(layers)}
        self._start_N = np.cumsum([0, *(batch.ids_BS.size for batch in batches)]).tolist()
        E, K = max(info.n_experts for info in layers), max(info.top_k for info in layers)
        padded = any(info.top_k < K for info in layers)
        self._ids_dtype = "U8" if E + padded <= 256 else "U16"
        self._pad = 255 if self._ids_dtype == "U8" else 65_535
        self._can_pad = self._pad >= E
        self._weights_dtype = torch.float16 if weights_dtype == "float16" else torch.float32

        T, L = self._start_N[-1], len(layers)
        lengths_Q = [batch.ids_BS.shape[1] for batch in batches for _ in range(batch.ids_BS.shape[0])]
        metadata = {
            "format": "moectl.trace.v1",
            "layers": json.dumps([info.layer for info in layers]),
            "domains": json.dumps(list(domain_names), ensure_ascii=False),
            "n_experts": json.dumps([info.n_experts for info in layers]),
            "top_k": json.dumps([info.top_k for info in layers]),
            "pad_id": json.dumps(self._pad if self._can_pad else None),
            "provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
            "summary": json.dumps(summary or {}, ensure_ascii=False),
        }
        all_count = all(bool(batch.counted_BS.all()) for batch in batches)
        tensors = [
            ("expert_ids", self._ids_dtype, (T, L, K)),
            ("weights", "F16" if weights_dtype == "float16" else "F32", (T, L, K)),
            ("token_ids", "I32", (T,)),
            ("sequence_offsets", "I64", (len(lengths_Q) + 1,)),
            ("domain_ids", "U8", (len(lengths_Q),)),
            *(() if all_count else (("counted", "U8", (T,)),)),
        ]
        header, self._places = lay_out(path, tensors, metadata=metadata)
        self._map = _allocate(path, header, max(place.end for place in self._places.values()))
        self._left = {(info.layer, batch.index) for info in layers for batch in batches}

        self._view("sequence_offsets")[:] = np.cumsum([0, *lengths_Q])
        self._view("domain_ids")[:] = [batch.domain for batch in batches for _ in range(batch.ids_BS.shape[0])]
        token_ids_T = self._view("token_ids")
        for batch in batches:
            token_ids_T[self._rows(batch)] = batch.ids_BS.reshape(-1)
            if not all_count:
                self._view("counted")[self._rows(batch)] = batch.counted_BS.reshape(-1)
        self._views = (self._view("expert_ids"), self._view("weights"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def record(self, event: RoutingEvent) -> None:
        """Fill the block of one event. Raises ModelError for a weight or an empty slot that the file cannot hold."""
        position = self._position[event.layer]
        ids_tk, weights_tk = _sorted_slots(event.expert_ids_TK, event.weights_TK.float())
        empty_tk = ids_tk < 0
        if not self._can_pad and bool(empty_tk.any()):
            n_experts = self._layers[position].n_experts
            raise ModelError(f"layer `{event.layer}` left slots empty, which a trace of {n_experts} experts has no id for")
        stored_tk = weights_tk.masked_fill(empty_tk, 0.0).to(self._weights_dtype)
        if not bool(torch.isfinite(stored_tk).all()):
            what = "float16" if self._weights_dtype == torch.float16 else "float32"
            raise ModelError(f"the router of layer `{event.layer}` gave a combine weight that is not a finite {what} number")

        rows, slots = self._rows(event.batch), ids_tk.shape[1]
        ids_TLK, weights_TLK = self._views
        ids_TLK[rows, position, slots:] = self._pad
        ids_TLK[rows, position, :slots] = ids_tk.masked_fill(empty_tk, self._pad).int().cpu().numpy()
        weights_TLK[rows, position, :slots] = stored_tk.cpu().numpy()
        self._forget(rows)
        self._left.discard((event.layer, event.batch.index))

    def close(self) -> None:
        """Check that every event came, and let the file go. Raises RuntimeError otherwise."""
        if self._left:
            raise RuntimeError(f"the trace misses {len(self._left)} events, the first is (layer, micro-batch) {min(self._left)}")
        del self._views, self._map

    def _rows(self, batch: MicroBatch) -> slice:
        return slice(self._start_N[batch.index], self._start_N[batch.index + 1])

    def _view(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        count = int(np.prod(place.shape))
        return np.frombuffer(self._map, _DTYPES[place.dtype], count=count, offset=place.start).reshape(place.shape)

    def _forget(self, rows: slice) -> None:
        """Take the written pages out of this process' memory; the system writes them to disk in its own time."""
        for name, view in zip(("expert_ids", "weights"), self._views, strict=True):
            start = (self._places[name].start + rows.start * view.strides[0]) // mmap.PAGESIZE * mmap.PAGESIZE
            end = self._places[name].start + rows.stop * view.strides[0]
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _allocate(path: Path, header: bytes, size: int) -> mmap.mmap:
    """Map a new file of `size` bytes. Real zeros are written: filling a hole of a full disk through a map kills the process."""
    try:
        with path.open("w+b") as file:
            file.write(header)
            for start in range(len(header), size, _CHUNK_BYTES):
                file.write(bytes(min(_CHUNK_BYTES, size - start)))
            file.flush()
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise from_os_error(error, f"write `{path}`") from error


def _sorted_slots(ids_tk: Tensor, weights_tk: Tensor) -> tuple[Tensor, Tensor]:
    """Slots by descending weight, ties by ascending id, empty ones last."""
    ids_tk, by_id_tk = ids_tk.sort(dim=1)
    keys_tk = weights_tk.gather(1, by_id_tk).masked_fill(ids_tk < 0, float("-inf"))
    weights_tk, order_tk = keys_tk.sort(dim=1, descending=True, stable=True)
    return ids_tk.gather(1, order_tk), weights_tk


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace file, its arrays mapped read-only. Slots with id `pad_id` ran no expert; None: there are no such slots."""

    expert_ids_TLK: NDArray[Any]
    weights_TLK: NDArray[Any]
    token_ids_T: NDArray[np.int32]
    sequence_offsets_Q: NDArray[np.int64]
    domain_ids_Q: NDArray[np.uint8]
    counted_T: NDArray[np.bool_]
    layers: tuple[int, ...]
    domains: tuple[str, ...]
    n_experts: tuple[int, ...]
    top_k: tuple[int, ...]
    pad_id: int | None
    provenance: dict[str, Any]
    summary: dict[str, Any]


def read_trace(path: Path) -> Trace:
    """Open and check a trace. Raises DataError if it is not one or contradicts itself, ResourceError if it cannot be read."""
    try:
        header = read_header(path)
    except ModelError as error:
        raise DataError(error.message, hint=error.hint) from error
    arrays = _map_arrays(path, header)
    trace = Trace(
        expert_ids_TLK=arrays["expert_ids"],
        weights_TLK=arrays["weights"],
        token_ids_T=arrays["token_ids"],
        sequence_offsets_Q=arrays["sequence_offsets"],
        domain_ids_Q=arrays["domain_ids"],
        counted_T=arrays["counted"].astype(np.bool_) if "counted" in arrays else np.ones(arrays["token_ids"].size, np.bool_),
        layers=tuple(_metadata(path, header, "layers", list)),
        domains=tuple(_metadata(path, header, "domains", list)),
        n_experts=tuple(_metadata(path, header, "n_experts", list)),
        top_k=tuple(_metadata(path, header, "top_k", list)),
        pad_id=_metadata(path, header, "pad_id", int, type(None)),
        provenance=_metadata(path, header, "provenance", dict),
        summary=_metadata(path, header, "summary", dict),
    )
    _check_shapes(path, trace)
    _check_values(path, trace)
    return trace


def _map_arrays(path: Path, header: Header) -> dict[str, NDArray[Any]]:
    for name, dtypes in (_ALLOWED | _OPTIONAL).items():
        if name not in header.tensors:
            if name in _OPTIONAL:
                continue
            raise _refuse(path, f"it holds no tensor `{name}`")
        if header.tensors[name].dtype not in dtypes:
            raise _refuse(path, f"`{name}` is `{header.tensors[name].dtype}`, not {' or '.join(f'`{dtype}`' for dtype in dtypes)}")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    return {
        name: np.frombuffer(mapped, _DTYPES[info.dtype], count=int(np.prod(info.shape)), offset=info.start).reshape(info.shape)
        for name, info in header.tensors.items()
        if name in _ALLOWED or name in _OPTIONAL
    }


def _metadata(path: Path, header: Header, key: str, *kinds: type[Any]) -> Any:
    text = header.metadata.get(key)
    if text is None:
        raise _refuse(path, f"its metadata has no `{key}`")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"its metadata `{key}` is not JSON") from error
    if type(value) not in kinds:
        raise _refuse(path, f"its metadata `{key}` is not a JSON {kinds[0].__name__}")
    if key in _LISTS and any(type(item) is not (str if key == "domains" else int) for item in value):
        raise _refuse(path, f"its metadata `{key}` has an item of the wrong type")
    return value


def _check_shapes(path: Path, trace: Trace) -> None:
    T, Q, L = trace.token_ids_T.size, trace.domain_ids_Q.size, len(trace.layers)
    K = max(trace.top_k, default=0)
    if not (len(trace.n_experts) == len(trace.top_k) == L > 0) or any(
        not 0 < k <= n for k, n in zip(trace.top_k, trace.n_experts, strict=True)
    ):
        raise _refuse(path, "its metadata `layers`, `n_experts` and `top_k` do not fit together")
    expected = {
        "token_ids": (T,),
        "counted": (T,),
        "domain_ids": (Q,),
        "sequence_offsets": (Q + 1,),
        "expert_ids": (T, L, K),
        "weights": (T, L, K),
    }
    found = {
        "token_ids": trace.token_ids_T.shape,
        "counted": trace.counted_T.shape,
        "domain_ids": trace.domain_ids_Q.shape,
        "sequence_offsets": trace.sequence_offsets_Q.shape,
        "expert_ids": trace.expert_ids_TLK.shape,
        "weights": trace.weights_TLK.shape,
    }
    for name, shape in found.items():
        if shape != expected[name]:
            raise _refuse(path, f"`{name}` has the shape {list(shape)}, not {list(expected[name])}")


def _check_values(path: Path, trace: Trace) -> None:
    offsets_Q = trace.sequence_offsets_Q
    if offsets_Q[0] != 0 or offsets_Q[-1] != trace.token_ids_T.size or bool((np.diff(offsets_Q) <= 0).any()):
        raise _refuse(path, "`sequence_offsets` does not rise from 0 to the number of tokens")
    if trace.domain_ids_Q.size and int(trace.domain_ids_Q.max()) >= len(trace.domains):
        raise _refuse(path, f"`domain_ids` names domain `{trace.domain_ids_Q.max()}` of {len(trace.domains)}")
    n_experts_L1 = np.array(trace.n_experts)[:, None]
    for start in range(0, trace.token_ids_T.size, _CHUNK_TOKENS):
        ids_TLK = trace.expert_ids_TLK[start : start + _CHUNK_TOKENS]
        if bool(((ids_TLK >= n_experts_L1) & (ids_TLK != (-1 if trace.pad_id is None else trace.pad_id))).any()):
            raise _refuse(path, "`expert_ids` names an expert its layer does not have")
        if not bool(np.isfinite(trace.weights_TLK[start : start + _CHUNK_TOKENS]).all()):
            raise _refuse(path, "`weights` holds a number that is not finite")


def _refuse(path: Path, reason: str) -> DataError:
    return DataError(
        f"`{path}` is not a routing trace: {reason}", hint="name a `trace.safetensors` that `moectl route-stats --trace` wrote"
    )
