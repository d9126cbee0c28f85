"""A checkpoint on disk, opened: its configuration, tensors and spec, checked against each other.

with open_checkpoint("path/to/model") as checkpoint:
    model = Model(checkpoint.spec, checkpoint.weights(dtype=torch.float32, device=torch.device("cpu")))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from moectl.arch.check import check_mtp_tensors
from moectl.arch.registry import build_spec, find_family
from moectl.arch.spec import ModelSpec
from moectl.arch.text_tower import find_tower
from moectl.checkpoint.header import TensorInfo
from moectl.checkpoint.index import CheckpointIndex, open_index
from moectl.checkpoint.locate import Location, locate, read_config, require_weights
from moectl.checkpoint.quantised import QuantisedInfo, read_quantisation, with_weights
from moectl.checkpoint.reader import TensorReader
from moectl.model.weights import WeightReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An open checkpoint."""

    location: Location
    config: dict[str, Any]
    index: CheckpointIndex
    """Of weights: codes and scales of a quantised one are one tensor."""
    spec: ModelSpec
    reader: TensorReader
    outside: tuple[str, ...] = ()
    """Names of tensors outside the text model of a multimodal one: there, but not loaded."""

    @property
    def stored(self) -> list[TensorInfo | QuantisedInfo]:
        """Each tensor that is not outside, quantised weights as one with their scales."""
        outside = frozenset(self.outside)
        return [info for name, info in self.index.tensors.items() if name not in outside]

    @property
    def stored_dtypes(self) -> list[str]:
        """The dtype of each of them, by safetensors name, or MXFP4."""
        return [info.dtype for info in self.stored]

    def weights(self, *, dtype: torch.dtype, device: torch.device) -> WeightReader:
        """A reader of this checkpoint's weights in `dtype` on `device`."""
        return WeightReader(self.spec, self.reader, dtype=dtype, device=device)


@contextlib.contextmanager
def open_checkpoint(model: str, *, mtp: bool = False) -> Iterator[Checkpoint]:
    """Open MODEL: headers and configuration only. Raises ModelError for what cannot be read or does not fit together.

    `mtp`: the multi-token-prediction layers must be there, complete; without it they are not looked at.
    """
    # A family this version does not know should fail before a Hub id downloads gigabytes.
    find_family(read_config(locate(model, weights=False)))
    location = locate(model)
    config = read_config(location)
    index = with_weights(open_index(require_weights(location)), read_quantisation(config, where=location.name))
    shapes = {name: info.shape for name, info in index.tensors.items()}
    spec = build_spec(config, shapes=shapes)
    if mtp:
        check_mtp_tensors(spec, shapes)
    tower = find_tower(config, names=shapes)
    outside = () if tower is None else tower.outside(shapes)
    with TensorReader(index) as reader:
        yield Checkpoint(location=location, config=config, index=index, spec=spec, reader=reader, outside=outside)
