"""Parameters and arithmetic of a spec, part by part: what plans and `inspect` are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from moectl.arch.parts import LatentAttention, MoE
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef

_ATTENTION_SLOTS = re.compile(r"(q|k|v|o|q_a|kv_a)(_bias|_norm)?|q_b|kv_b|sinks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameter counts. `active` is what one token uses, the head included and the embedding table not; MTP layers are in neither."""

    total: int
    active: int
    embedding: int
    head: int
    attention: int
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int


def count_parameters(spec: ModelSpec) -> Parameters:
    """Count every weight of `spec` once; a tied head counts as embedding, and is active."""
    part = dict.fromkeys(("attention", "dense_ffn", "routed_experts", "shared_experts", "router", "norms"), 0)
    inactive = 0
    for layer in spec.layers:
        for slot, ref in layer.tensors.items():
            part[_part_of(slot)] += ref.numel
        if isinstance(layer.ffn, MoE):
            expert = expert_parameters(layer)
            part["routed_experts"] += expert * layer.ffn.router.n_experts
            inactive += expert * (layer.ffn.router.n_experts - layer.ffn.router.top_k)
    part["norms"] += sum(spec.tensors[slot].numel for slot in ("norm", "norm_bias") if slot in spec.tensors)
    embedding = spec.tensors["embed"].numel
    head = sum(spec.tensors[slot].numel for slot in ("head", "head_bias") if slot in spec.tensors and not (spec.tied and slot == "head"))
    total = embedding + head + sum(part.values())
    return Parameters(total=total, active=total - inactive - (0 if spec.tied else embedding), embedding=embedding, head=head, **part)


def expert_parameters(layer: Layer) -> int:
    """Parameters of one routed expert of `layer`; 0 in a dense layer."""
    return sum(ref.numel for ref in layer.ffn.experts.refs(0)) if isinstance(layer.ffn, MoE) else 0


def layer_parameters(layer: Layer) -> int:
    """Parameters of `layer` without its routed experts."""
    return sum(ref.numel for ref in layer.tensors.values())


def read_values(ref: TensorRef) -> int:
    """Values of the stored dtype held while `ref` is read, beside the weight itself.

    A part that is no run of rows is cut from the slice around it, once that is cast, to float32 at the most.
    """
    if not ref.transposed and ref.row_step == 1:
        return ref.numel
    return 3 * replace(ref, transposed=False, rows=None, row_step=1).numel


def attention_width(layer: Layer) -> int:
    """Values a token's queries, keys and values take in this layer, all heads together, as the layer computes them."""
    spec = layer.attention
    if isinstance(spec, LatentAttention):
        return spec.n_heads * (2 * (spec.nope_dim + spec.rope.dim) + spec.value_dim)
    return (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim


def query_width(layer: Layer) -> int:
    """Values a token's queries take in this layer, all heads together."""
    spec = layer.attention
    if isinstance(spec, LatentAttention):
        return spec.n_heads * (spec.nope_dim + spec.rope.dim)
    return spec.n_heads * spec.head_dim


def ffn_values(layer: Layer) -> int:
    """Values a token's widest feed-forward block holds at once, routed, shared or dense.

    Gate and up, the activated gate and the product; the clamped activation has one more.
    """
    ffn = layer.ffn
    width = max(ffn.expert_width, ffn.shared_width) if isinstance(ffn, MoE) else ffn.width
    return width * (5 if ffn.act.name == "clamped_swiglu" else 4)


def mean_keys(layer: Layer, context: int) -> float:
    """Keys that a token of a sequence of `context` sees in this layer, on average; its own counts half."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return context / 2
    if attention.chunk is not None:
        whole, rest = divmod(context, attention.chunk)
        return (whole * attention.chunk**2 + rest**2) / (2 * context)
    reach = min(attention.window or context, context)
    return reach - reach**2 / (2 * context)


def routing_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs to push a token of a sequence of `context` through all layers up to the last router, head not included.

    2 per multiply-add: matrices of every layer, K routed experts (none in the last MoE layer), and scores and values of `mean_keys`.
    """
    last = spec.moe_layers[-1].index if spec.moe_layers else len(spec.layers) - 1
    return sum(_layer_flops(layer, context, experts=layer.index != last) for layer in spec.layers[: last + 1])


def forward_flops_per_token(spec: ModelSpec, context: int) -> float:
    """The same for all layers and the head."""
    return sum(_layer_flops(layer, context, experts=True) for layer in spec.layers) + 2.0 * spec.tensors["head"].numel


def attention_flops(layer: Layer, context: int) -> float:
    """The part of it that scores and values of one layer take, which grows with `context`."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        per_key = attention.n_heads * (attention.nope_dim + attention.rope.dim + attention.value_dim)
    else:
        per_key = 2 * attention.n_heads * attention.head_dim
    return 2.0 * per_key * mean_keys(layer, context)


def _layer_flops(layer: Layer, context: int, *, experts: bool) -> float:
    flops = 2.0 * layer_parameters(layer)
    if isinstance(layer.ffn, MoE) and experts:
        flops += 2.0 * layer.ffn.router.top_k * expert_parameters(layer)
    return flops + attention_flops(layer, context)


def _part_of(slot: str) -> str:
    if _ATTENTION_SLOTS.fullmatch(slot):
        return "attention"
    if slot.startswith("shared_"):
        return "shared_experts"
    if slot in ("router", "router_bias", "correction_bias"):
        return "router"
    return "norms" if slot.endswith(("_norm", "_norm_bias")) else "dense_ffn"
