"""A model in memory back into a folder in Hub layout: the Hub's tensor names, config.json beside them.

    save_model(model, config, Path("out"), dtype=torch.bfloat16)

Multi-token-prediction layers are written if the model was loaded with them, with the copies of embedding and head that the Hub's
checkpoints carry. The text model of a multimodal one is written under the names it has there, with that model's config.json as it was, so
that the files can take the place of those they came from; what lies outside the text model was not loaded and is not written. Given the
`text_config` alone (with its `model_type`), a text model is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from moectl.arch.parts import MoE
from moectl.arch.registry import build_spec
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.arch.text_tower import with_dtype
from moectl.checkpoint.dtypes import dtype_name
from moectl.checkpoint.locate import CONFIG_NAME
from moectl.checkpoint.quantised import plain_config
from moectl.checkpoint.writer import DEFAULT_SHARD_SIZE, CheckpointWriter, PlannedTensor
from moectl.errors import ModelError, from_os_error
from moectl.model.decoder import Model
from moectl.model.mtp import ResidentMTP
from moectl.model.weights import ResidentLayer


def named_weights(model: Model, spec: ModelSpec | None = None) -> list[tuple[TensorRef, nn.Parameter]]:
    """Every parameter once, with where it lies in a checkpoint, in the checkpoint's order.

    `spec`: another layout of the same model. A tensor may hold many parameters; their `part_name` tells them apart.
    Raises ModelError if `spec` is that of another model.
    """
    spec = spec or model.spec
    _check_same(spec, model)
    named = [(ref, getattr(model, slot)) for slot, ref in spec.tensors.items() if not (spec.tied and slot == "head")]
    for layer, resident in zip(spec.layers, model.layers, strict=True):
        named += _layer(layer, cast(ResidentLayer, resident))
    for ahead, resident in zip(spec.mtp, model.mtp, strict=False):
        resident = cast(ResidentMTP, resident)
        named += [(ref, resident.weights[slot]) for slot, ref in ahead.own_tensors.items()]
        named += _layer(ahead.layer, resident.block)
    for ref, parameter in named:
        if ref.part_shape != tuple(parameter.shape):
            raise ModelError(f"the configuration asks for `{ref.name}` {list(ref.part_shape)}, the model has {list(parameter.shape)}")
    return named


def save_model(
    model: Model, config: Mapping[str, Any], folder: Path, *, dtype: torch.dtype | None = None, shard_size: int = DEFAULT_SHARD_SIZE
) -> None:
    """Write weights and config.json into `folder`, which should be a staged one. `dtype`: None keeps that of each parameter.

    Weights the family keeps in float32 stay float32. What was quantised is written decoded, as config.json then says. Raises ModelError if
    `config` describes another model, ResourceError.
    """
    spec = build_spec(config)
    parts: dict[str, list[tuple[TensorRef, nn.Parameter]]] = {}
    for ref, parameter in named_weights(model, spec):
        parts.setdefault(ref.name, []).append((ref, parameter))
    for ahead in spec.mtp[: len(model.mtp)]:
        copies = [slot for slot in ("embed", "head") if slot in ahead.tensors]
        parts |= {ahead.tensors[slot].name: parts[spec.tensors[slot].name] for slot in copies}
    plan = [PlannedTensor(name, dtype_name(_stored_dtype(some, dtype)), some[0][0].shape) for name, some in parts.items()]
    with CheckpointWriter(folder, plan, shard_size=shard_size) as writer:
        for name, some in parts.items():
            writer.write(name, _assembled(some, _stored_dtype(some, dtype)))
    main = _stored_dtype(parts[spec.tensors["embed"].name], dtype)
    try:
        text = json.dumps(with_dtype(plain_config(config), str(main).removeprefix("torch.")), indent=2) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"write `{folder / CONFIG_NAME}`") from error


def _stored_dtype(parts: Sequence[tuple[TensorRef, nn.Parameter]], dtype: torch.dtype | None) -> torch.dtype:
    ref, parameter = parts[0]
    return parameter.dtype if ref.keep_float32 or dtype is None else dtype


def _assembled(parts: Sequence[tuple[TensorRef, nn.Parameter]], dtype: torch.dtype) -> Tensor:
    """The tensor on disk from the weights that lie in it."""
    ref, parameter = parts[0]
    if ref.part_shape == ref.shape and not ref.transposed:
        return parameter.detach().to(dtype)
    whole = torch.empty(ref.shape, dtype=dtype)
    for ref, parameter in parts:
        part = whole if ref.index is None else whole[ref.index]
        part = part.t() if ref.transposed else part
        part[slice(*ref.rows, ref.row_step) if ref.rows else slice(None)] = parameter.detach().to(dtype)
    return whole


def _check_same(spec: ModelSpec, model: Model) -> None:
    """Shapes alone do not tell: rotary base, number of experts per token and much else leave no trace in them."""
    n_mtp = len(model.mtp)
    if n_mtp > len(spec.mtp):
        raise ModelError(f"the configuration announces {len(spec.mtp)} multi-token-prediction layers, the model has {n_mtp}")
    if spec.tied and not model.spec.tied:
        raise ModelError("the configuration ties the head to the embedding, the model has one of its own")
    wanted, found = ([*s.layers, *(ahead.layer for ahead in s.mtp[:n_mtp])] for s in (spec, model.spec))
    if len(wanted) != len(found):
        raise ModelError(f"the configuration describes {len(spec.layers)} layers, the model has {len(model.spec.layers)}")
    for a, b in zip(wanted, found, strict=True):
        if _arithmetic(a) != _arithmetic(b):
            raise ModelError(f"the configuration describes another model: layer {b.index} differs")
    ends, own = ((s.norm, s.embedding, s.head, sorted(s.tensors)) for s in (spec, model.spec))
    if ends != own:
        raise ModelError("the configuration describes another model: embedding, final norm or head differ")


def _arithmetic(layer: Layer) -> tuple[object, ...]:
    """What a layer does, without where its weights lie."""
    ffn = layer.ffn
    block = (ffn.router, ffn.expert_width, ffn.act, ffn.shared_width, ffn.gated_shared) if isinstance(ffn, MoE) else ffn
    return layer.index, layer.attention, layer.norm, layer.out_norms, layer.residual_scale, sorted(layer.tensors), block


def _layer(layer: Layer, resident: ResidentLayer) -> Iterator[tuple[TensorRef, nn.Parameter]]:
    yield from ((ref, resident.weights[slot]) for slot, ref in layer.tensors.items())
    if isinstance(layer.ffn, MoE):
        assert resident.experts is not None
        for expert in range(layer.ffn.router.n_experts):
            weights = [weight for weight in resident.experts.get(layer.index, expert) if weight is not None]
            yield from zip(layer.ffn.experts.refs(expert), cast(list[nn.Parameter], weights), strict=True)
