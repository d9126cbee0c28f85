"""MODEL as `inspect` sees it: configuration, spec, and the headers of its files where there are any. Reads no weights.

source = open_headers("DeepSeek-V3")
source.spec, source.index
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moectl.arch.counts import count_parameters
from moectl.arch.registry import build_spec, find_family
from moectl.arch.spec import ModelSpec
from moectl.arch.text_tower import find_tower
from moectl.checkpoint.index import CheckpointIndex, open_index, weight_names
from moectl.checkpoint.locate import Location, locate, read_config
from moectl.checkpoint.quantised import Quantisation, QuantisedInfo, read_quantisation, with_weights
from moectl.errors import ModelError

_MXFP4_CODES = "_blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was found. `index` is as the headers say, codes and scales apart; None where there is only a `config.json`."""

    location: Location
    config: Mapping[str, Any]
    spec: ModelSpec
    quantisation: Quantisation | None
    index: CheckpointIndex | None
    weight_shapes: Mapping[str, tuple[int, ...]]
    """Of each weight, by the name the spec gives it: a quantised one counts once, with the shape it has when it is read."""
    notes: tuple[str, ...] = ()

    @property
    def mtp_parameters(self) -> int:
        """Of the multi-token-prediction layers: those the files hold, of a bare configuration those it announces."""
        return sum(ref.numel for ref in self.spec.mtp_refs() if self.index is None or ref.name in self.weight_shapes)

    @property
    def other_parameters(self) -> int:
        """Values of tensors that belong neither to the main model nor to its MTP layers: vision towers, copies of the head, buffers."""
        if self.index is None:
            return 0
        # The spec was checked against the tensors, so what is left over is what it has no use for.
        values = sum(math.prod(shape) for shape in self.weight_shapes.values())
        return values - count_parameters(self.spec).total - self.mtp_parameters


def open_headers(model: str) -> Source:
    """Find MODEL and read its headers; of a Hub id only those in the cache. Raises ModelError as `locate`, `open_index` and `build_spec`.

    FP8 blocks and MXFP4 are welcome.
    """
    location = locate(model, weights=False)
    config = read_config(location)
    find_family(config)
    quantisation = read_quantisation(config, where=location.name)
    with _no_collector():
        return _opened(location, config, quantisation)


def _opened(location: Location, config: Mapping[str, Any], quantisation: Quantisation | None) -> Source:
    index, notes = _index(location)
    if index is None:
        spec = build_spec(config)
        return Source(location=location, config=config, spec=spec, quantisation=quantisation, index=None, weight_shapes={}, notes=notes)
    shapes = _weight_shapes(with_weights(index, quantisation))
    spec = build_spec(config, shapes=shapes)
    tower = find_tower(config, names=shapes)
    if tower is not None and (outside := tower.outside(shapes)):
        notes += (f"{len(outside):,} tensors outside the text model are counted as `other` only",)
    return Source(location=location, config=config, spec=spec, quantisation=quantisation, index=index, weight_shapes=shapes, notes=notes)


def _index(location: Location) -> tuple[CheckpointIndex | None, tuple[str, ...]]:
    if location.weights is not None:
        return open_index(location.weights), ()
    if location.revision is None:
        return None, ()
    # A Hub id: nothing large is fetched, but what is in the cache already can be looked at.
    if not weight_names(os.listdir(location.folder)):
        return None, ("the weights are not in the Hub cache: everything is computed from config.json",)
    try:
        return open_index(location.folder), ()
    except ModelError as error:
        return None, (f"the weights in the Hub cache are not complete ({error.message}): everything is computed from config.json",)


def _weight_shapes(index: CheckpointIndex) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, info in index.tensors.items():
        if isinstance(info, QuantisedInfo) and info.dtype == "MXFP4":
            # Codes are rows of outputs; the weight they stand for goes by the plain name and has its inputs first.
            experts, rows, columns = info.shape
            shapes[name.removesuffix(_MXFP4_CODES)] = (experts, columns, rows)
        else:
            shapes[name] = info.shape
    return shapes


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Python's cycle collector looks at every object again and again while 100,000 tensors are listed, all of which stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
