"""Does a spec make sense, and do the tensors of a checkpoint match it? Every mismatch is counted and the first ones are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec
from moectl.errors import ModelError

# Buffers that old checkpoints carry and that the configuration determines.
_IGNORED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")
_SHOWN = 5


def check_router(layer: Layer) -> None:
    """Raise ModelError if the router of an MoE layer cannot select what it is asked to."""
    assert isinstance(layer.ffn, MoE)
    router = layer.ffn.router
    group = router.n_experts // router.n_group
    problem = None
    if router.top_k > router.n_experts:
        problem = f"selects {router.top_k} of {router.n_experts} experts"
    elif router.topk_group > router.n_group:
        problem = f"keeps {router.topk_group} of {router.n_group} groups"
    elif router.n_group > 1 and router.group_score == "top2_sum" and group < 2:
        problem = f"scores groups by their best two experts, but a group has {group}"
    elif router.n_group > 1 and router.top_k > router.topk_group * group:
        problem = f"selects {router.top_k} experts out of {router.topk_group} groups of {group}"
    if problem:
        raise ModelError(f"config.json: the router of layer {layer.index} {problem}", hint="the configuration contradicts itself")


def check_tensors(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]], *, on_disk: Callable[[str], str] = str) -> None:
    """Raise ModelError unless the checkpoint holds every tensor of the spec in its shape and none that the spec would skip.

    Allowed beside the spec's: multi-token-prediction layers after the main stack, rotary buffers, a copy of a tied head. `on_disk`: what
    messages should call a tensor.
    """
    wanted = {ref.name: ref.shape for ref in spec.refs()}
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing)} of {len(wanted)} tensors that its config.json asks for: {_some(missing, on_disk)}",
            hint="the download is incomplete, or config.json belongs to another model",
        )
    _check_shapes(wanted, shapes, on_disk)
    _check_surplus(spec, [on_disk(name) for name in shapes if name not in wanted and not _may_be_skipped(spec, name)])


def check_mtp_tensors(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError unless the checkpoint holds every multi-token-prediction layer that `spec` announces, complete and in shape.

    To be called where they are asked for: many checkpoints are saved without them. The copies of embedding and head may be absent.
    """
    if not spec.mtp:
        raise ModelError(
            "config.json announces no multi-token-prediction layers that this version knows",
            hint="load the model without them (mtp=False)",
        )
    wanted = {ref.name: ref.shape for ref in spec.mtp_refs()}
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise ModelError(
            f"the checkpoint lacks {len(missing)} of {len(wanted)} tensors of its multi-token-prediction layers: {_some(missing)}",
            hint="some programs drop these layers when they save a model; load it without them (mtp=False), or take the original files",
        )
    known = wanted | {ref.name: ref.shape for mtp in spec.mtp for ref in mtp.tensors.values() if ref.name in shapes}
    _check_shapes(known, shapes)
    _check_surplus(spec, [name for name in shapes if name not in known and _in_mtp(spec, name) and not _IGNORED.fullmatch(name)])


def _check_shapes(
    wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], on_disk: Callable[[str], str] = str
) -> None:
    differing = [name for name, shape in wanted.items() if tuple(shapes[name]) != shape]
    wrong = [f"{on_disk(name)} is {list(shapes[name])} instead of {list(wanted[name])}" for name in differing]
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors have another shape than config.json says: {_some(wrong)}",
            hint="config.json belongs to another model, or the tensors are padded or quantised",
        )


def _check_surplus(spec: ModelSpec, surplus: Sequence[str]) -> None:
    if surplus:
        raise ModelError(
            f"the checkpoint holds {len(surplus)} tensors that model_type `{spec.model_type}` has no place for: {_some(surplus)}",
            hint="ignoring them would compute another function; config.json may belong to another model",
        )


def _in_mtp(spec: ModelSpec, name: str) -> bool:
    return any(name.startswith(mtp.prefixes) for mtp in spec.mtp)


def _may_be_skipped(spec: ModelSpec, name: str) -> bool:
    ignored = _IGNORED.fullmatch(name) or any(re.fullmatch(pattern, name) for pattern in spec.ignored)
    return _in_mtp(spec, name) or bool(ignored) or (spec.tied and name == "lm_head.weight")


def _some(items: Sequence[str], on_disk: Callable[[str], str] = str) -> str:
    shown = ", ".join(on_disk(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
