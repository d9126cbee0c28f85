"""Parameters and arithmetic of a spec, part by part: what plans and `inspect` are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moectl.arch.spec import LatentAttention, Layer, ModelSpec, MoE

_ATTENTION_SLOTS = re.compile(r"(q|k|v|o|q_a|kv_a)(_bias|_norm)?|q_b|kv_b")


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
    part["norms"] += spec.tensors["norm"].numel
    embedding = spec.tensors["embed"].numel
    head = 0 if spec.tied else spec.tensors["head"].numel
    total = embedding + head + sum(part.values())
    return Parameters(total=total, active=total - inactive - (0 if spec.tied else embedding), embedding=embedding, head=head, **part)


def expert_parameters(layer: Layer) -> int:
    """Parameters of one routed expert of `layer`; 0 in a dense layer."""
    return sum(ref.numel for ref in layer.ffn.experts.refs(0)) if isinstance(layer.ffn, MoE) else 0


def layer_parameters(layer: Layer) -> int:
    """Parameters of `layer` without its routed experts."""
    return sum(ref.numel for ref in layer.tensors.values())


def attention_width(layer: Layer) -> int:
    """Values a token's queries, keys and values take in this layer, all heads together, as the layer computes them."""
    spec = layer.attention
    if isinstance(spec, LatentAttention):
        return spec.n_heads * (2 * (spec.nope_dim + spec.rope.dim) + spec.value_dim)
    return (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim


def routing_flops_per_token(spec: ModelSpec, context: int) -> float:
    """FLOPs to push a token at mean position `context / 2` through all layers up to the last router, head not included.

    2 per multiply-add: matrices of every layer, K routed experts (none in the last MoE layer), and causal scores and values.
    """
    last = spec.moe_layers[-1].index if spec.moe_layers else len(spec.layers) - 1
    return sum(_layer_flops(layer, context, experts=layer.index != last) for layer in spec.layers[: last + 1])


def forward_flops_per_token(spec: ModelSpec, context: int) -> float:
    """The same for all layers and the head."""
    return sum(_layer_flops(layer, context, experts=True) for layer in spec.layers) + 2.0 * spec.tensors["head"].numel


def _layer_flops(layer: Layer, context: int, *, experts: bool) -> float:
    flops = 2.0 * layer_parameters(layer)
    if isinstance(layer.ffn, MoE) and experts:
        flops += 2.0 * layer.ffn.router.top_k * expert_parameters(layer)
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        per_key = attention.n_heads * (attention.nope_dim + attention.rope.dim + attention.value_dim)
    else:
        per_key = 2 * attention.n_heads * attention.head_dim
    return flops + 2.0 * per_key * context / 2


def _part_of(slot: str) -> str:
    if _ATTENTION_SLOTS.fullmatch(slot):
        return "attention"
    if slot.startswith("shared_"):
        return "shared_experts"
    if slot in ("router", "correction_bias"):
        return "router"
    return "norms" if slot.endswith("_norm") else "dense_ffn"
