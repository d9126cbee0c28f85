"""A model with another number of experts per token than its configuration says.

with_active_experts(spec, 1).moe_layers[0].ffn.router.top_k  # 1

Nothing else changes: the weights of the selected are normalised, or not, and scaled as the family's rule says.
"""

from __future__ import annotations

from dataclasses import replace

from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec
from moectl.errors import UsageError


def with_active_experts(spec: ModelSpec, top_k: int) -> ModelSpec:
    """`spec` with `top_k` experts per token in every MoE layer. Raises UsageError, naming the layer, where there are not so many."""
    return replace(
        spec,
        layers=tuple(_with_top_k(layer, top_k) for layer in spec.layers),
        mtp=tuple(replace(mtp, layer=_with_top_k(mtp.layer, top_k)) for mtp in spec.mtp),
    )


def _with_top_k(layer: Layer, top_k: int) -> Layer:
    if not isinstance(layer.ffn, MoE):
        return layer
    router = layer.ffn.router
    group_size = router.n_experts // router.n_group
    most = group_size * router.topk_group
    if not 1 <= top_k <= most:
        where = "" if most == router.n_experts else f" in the {router.topk_group} groups of {group_size} open to a token"
        raise UsageError(
            f"`{top_k}` active experts are too {'few' if top_k < 1 else 'many'} for layer {layer.index}: it has {most}{where}",
            hint=f"choose 1 to {most}; the configuration says {router.top_k}",
        )
    return replace(layer, ffn=replace(layer.ffn, router=replace(router, top_k=top_k)))
