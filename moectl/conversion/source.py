"""The checkpoint to convert, and what each of its tensors becomes. Reads headers and configuration, no weights, and no torch.

source = open_source(options)
source.targets, source.config          # the new checkpoint's tensors and config.json
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moectl.arch.registry import build_spec, find_family, spec_in_layout
from moectl.arch.spec import ModelSpec
from moectl.arch.text_tower import with_dtype
from moectl.checkpoint.index import CheckpointIndex, open_index
from moectl.checkpoint.json_object import read_object
from moectl.checkpoint.locate import Location, locate, read_config, require_weights
from moectl.checkpoint.quantised import QuantisedInfo, plain_config, read_quantisation, with_weights
from moectl.conversion.options import ConvertOptions
from moectl.conversion.targets import FLOATS, Piece, Target, moves, plan_targets
from moectl.errors import ModelError, UsageError

_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TORCH = {name: torch for torch, name in _SAFETENSORS.items()} | {"F64": "float64"}
_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was found and what it becomes. `original` is its config.json, `config` the new one, None where the old one
    holds as it is."""

    location: Location
    index: CheckpointIndex
    spec: ModelSpec | None
    """None for a family that is not known: then tensors are converted one by one."""
    targets: list[Target]
    original: Mapping[str, Any]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]


def open_source(options: ConvertOptions) -> Source:
    """Open MODEL and plan every tensor. Raises ModelError, UsageError."""
    location = locate(options.model)
    config = read_config(location)
    keep = options.dtype == "keep"
    quantisation = read_quantisation(config, where=location.name)
    index = open_index(require_weights(location))
    weights = with_weights(index, quantisation)
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    # Decoded MXFP4 lies elsewhere than its codes did.
    placed = options.layout is not None or (quantisation is not None and quantisation.method == "mxfp4")
    spec = _spec(config, shapes, options, needed=placed)
    notes = []
    if spec is None:
        notes.append(f"model_type `{config.get('model_type')}` is not known: every tensor is converted by itself")
    if keep and quantisation is not None:
        if options.layout is not None:
            raise UsageError("`--dtype keep` leaves quantised weights where they are, so `--layout` cannot move them", hint="leave out one")
        moved: dict[str, list[Piece]] = {}
    else:
        index = weights
        moved = _moved(config, spec, options, index)
    if options.layout is not None and not moved:
        notes.append(f"the tensors lie in the layout `{options.layout}` already")
    dtype = _SAFETENSORS.get(options.dtype)
    targets = plan_targets(index, moved, dtype=dtype, kept=_kept(spec, index.tensors))
    decoded = quantisation is not None and not keep
    # As it was written, `{"__float__": ...}` included; of a key that is there twice the last one counts, as for everybody.
    raw = read_object(location.config_path, hook=dict)
    new_config = with_dtype(plain_config(raw), _main_dtype(targets)) if decoded or dtype is not None else None
    return Source(location=location, index=index, spec=spec, targets=targets, original=config, config=new_config, notes=tuple(notes))


def _spec(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], options: ConvertOptions, *, needed: bool) -> ModelSpec | None:
    try:
        find_family(config)
    except ModelError:
        if needed and options.dtype != "keep":
            raise
        return None
    return build_spec(config, shapes=shapes)


def _moved(config: Mapping[str, Any], spec: ModelSpec | None, options: ConvertOptions, index: CheckpointIndex) -> dict[str, list[Piece]]:
    """What lies elsewhere afterwards: all experts in another layout; without one asked for, only what is in codes whose names go."""
    if spec is None:
        return {}
    codes_go = any(isinstance(info, QuantisedInfo) and info.dtype == "MXFP4" for info in index.tensors.values())
    if options.layout is None and not codes_go:
        return {}
    return moves(spec, spec_in_layout(config, options.layout or "hub", names=index.tensors), index.tensors)


def _kept(spec: ModelSpec | None, names: Collection[str]) -> frozenset[str]:
    """Tensors whose dtype stays: weights that the family keeps in float32, and buffers."""
    buffers = {name for name in names if _BUFFERS.fullmatch(name)}
    if spec is None:
        return frozenset(buffers)
    kept = {ref.name for refs in (spec.refs(), spec.mtp_refs()) for ref in refs if ref.keep_float32}
    ignored = {name for name in names if any(re.fullmatch(pattern, name) for pattern in spec.ignored)}
    return frozenset(buffers | kept | ignored)


def _main_dtype(targets: list[Target]) -> str:
    """The floating-point dtype of most values, as config.json calls it."""
    values = dict.fromkeys(FLOATS, 0)
    for target in targets:
        if target.dtype in values:
            values[target.dtype] += math.prod(target.shape)
    return _TORCH[max(values, key=lambda dtype: values[dtype])]
