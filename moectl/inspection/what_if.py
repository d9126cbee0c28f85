"""The textbook question: what would this model be with N experts, K per token, of 1/G of the FFN's width, and S shared ones?

    answer(spec, parse_what_if("64,8,granularity=8,shared=1"), context=4096)

The dense model is the model with one FFN in each of those layers. A dense model is that itself; in an MoE model the routed layers get the
width of its own dense layers or, without any, the width a token runs through, K experts and the shared ones. Granularity is that of
Krajewski et al. (arXiv 2402.07871); fine-grained and shared experts are DeepSeekMoE's (arXiv 2401.06066).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from moectl.arch.counts import count_parameters, forward_flops_per_token
from moectl.arch.parts import Activation, DenseFFN, MoE, Router
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import ExpertTensors, TensorRef
from moectl.errors import UsageError

_FORM = "EXPERTS,TOP_K[,granularity=G][,shared=S]"
_HINT = f"write `{_FORM}`, such as `64,8,granularity=8,shared=1`"
_FFN_SLOT = re.compile(r"(gate|up|down|router|shared_gate|shared_up|shared_down)(_bias)?|correction_bias|shared_expert_gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """An MoE to imagine: `experts` of FFN width / `granularity`, `top_k` per token, and `shared` experts of the same width."""

    experts: int
    top_k: int
    granularity: int = 1
    shared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Parameters and arithmetic of one model; `active_parameters` as in `Parameters.active`."""

    parameters: int
    active_parameters: int
    flops_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model as it is, with one FFN per layer, and as the MoE that was asked for. `dense_width_from` says where the width comes from."""

    experts: int
    top_k: int
    granularity: int
    shared: int
    layers: int
    dense_width: int
    dense_width_from: str
    expert_width: int
    now: Size
    dense: Size
    moe: Size


def parse_what_if(text: str) -> WhatIf:
    """`EXPERTS,TOP_K[,granularity=G][,shared=S]`. Raises UsageError."""
    first, *rest = [part.strip() for part in text.split(",")]
    counts = {"experts": first}
    if rest and "=" not in rest[0]:
        counts["top_k"] = rest.pop(0)
    for part in rest:
        key, _, value = part.partition("=")
        if key not in ("granularity", "shared") or key in counts:
            raise UsageError(f"`--what-if`: `{part}` in `{text}` is not understood", hint=_HINT)
        counts[key] = value
    if "top_k" not in counts:
        raise UsageError(f"`--what-if`: `{text}` does not say how many experts a token runs", hint=_HINT)
    for key, value in counts.items():
        if re.fullmatch("[0-9]{1,6}", value) is None or (int(value) == 0 and key != "shared"):
            raise UsageError(f"`--what-if`: `{value}` is not a number of {key.replace('_', '-')}", hint=_HINT)
    wanted = WhatIf(**{key: int(value) for key, value in counts.items()})
    if wanted.top_k > wanted.experts:
        raise UsageError(f"`--what-if`: a token cannot run {wanted.top_k} of {wanted.experts} experts", hint=_HINT)
    return wanted


def answer(spec: ModelSpec, wanted: WhatIf, *, context: int) -> Answer:
    """Parameters and FLOPs per token before and after. Raises UsageError where G does not divide the width of the FFN."""
    converted = [layer.index for layer in spec.moe_layers] or [layer.index for layer in spec.layers]
    width, reason = _dense_width(spec)
    if width % wanted.granularity:
        raise UsageError(
            f"`--what-if`: a granularity of {wanted.granularity} does not divide the width of the FFN, {width:,}",
            hint="choose a divisor, such as 2, 4 or 8",
        )
    dense = _with_ffn(spec, converted, DenseFFN(width=width, act=Activation()))
    moe = _with_ffn(spec, converted, _moe(spec.hidden_size, width // wanted.granularity, wanted))
    return Answer(
        experts=wanted.experts,
        top_k=wanted.top_k,
        granularity=wanted.granularity,
        shared=wanted.shared,
        layers=len(converted),
        dense_width=width,
        dense_width_from=reason,
        expert_width=width // wanted.granularity,
        now=_size(spec, context),
        dense=_size(dense, context),
        moe=_size(moe, context),
    )


def _dense_width(spec: ModelSpec) -> tuple[int, str]:
    widths = [layer.ffn.width for layer in spec.layers if isinstance(layer.ffn, DenseFFN)]
    if not spec.moe_layers:
        if len(set(widths)) > 1:
            raise UsageError("`--what-if`: the FFNs of this model are not all of one width", hint="ask about another model")
        return widths[0], "the FFN of the model"
    if widths:
        return max(widths), "its dense layers"
    moe = spec.moe_layers[0].ffn
    assert isinstance(moe, MoE)
    return moe.router.top_k * moe.expert_width + moe.shared_width, "what a token runs through now"


def _moe(hidden: int, width: int, wanted: WhatIf) -> MoE:
    router = Router(
        n_experts=wanted.experts,
        top_k=wanted.top_k,
        score="softmax",
        logits_dtype="model",
        weight_dtype="model",
        renormalize=True,
    )
    up, down = _matrix(width, hidden), _matrix(hidden, width)
    shared = wanted.shared * width
    experts = ExpertTensors(gate=up, up=up, down=down)
    return MoE(router=router, expert_width=width, act=Activation(), experts=experts, shared_width=shared, n_shared_experts=wanted.shared)


def _with_ffn(spec: ModelSpec, indices: list[int], ffn: DenseFFN | MoE) -> ModelSpec:
    chosen = set(indices)
    layers = tuple(_replaced(layer, ffn, spec.hidden_size) if layer.index in chosen else layer for layer in spec.layers)
    return replace(spec, layers=layers)


def _replaced(layer: Layer, ffn: DenseFFN | MoE, hidden: int) -> Layer:
    kept = {slot: ref for slot, ref in layer.tensors.items() if not _FFN_SLOT.fullmatch(slot)}
    if isinstance(ffn, MoE):
        kept["router"] = _matrix(ffn.router.n_experts, hidden)
        if ffn.shared_width:
            kept |= _block("shared_", ffn.shared_width, hidden)
    else:
        kept |= _block("", ffn.width, hidden)
    return replace(layer, ffn=ffn, tensors=kept)


def _block(prefix: str, width: int, hidden: int) -> dict[str, TensorRef]:
    sizes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return {prefix + slot: _matrix(*size) for slot, size in sizes.items()}


def _matrix(rows: int, columns: int) -> TensorRef:
    return TensorRef(name="imagined", shape=(rows, columns))


def _size(spec: ModelSpec, context: int) -> Size:
    parameters = count_parameters(spec)
    return Size(parameters=parameters.total, active_parameters=parameters.active, flops_per_token=forward_flops_per_token(spec, context))
