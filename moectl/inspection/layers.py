"""The layers of a model in words, equal ones together: `0-2  dense`, `3-60  MoE`.

for group in layer_groups(spec):
    print(group.layers, group.ffn, group.attention)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from moectl.arch.parts import LatentAttention, MoE, Router
from moectl.arch.spec import Layer, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One decoder layer. `window`: tokens it can look back on, itself included; `window_kind` "chunk" if they come in fixed chunks."""

    layer: int
    kind: str
    ffn_width: int | None
    experts: int | None
    top_k: int | None
    expert_width: int | None
    shared_width: int | None
    attention: str
    window: int | None
    window_kind: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that are alike: which, how many, and what they are in words."""

    layers: str
    count: int
    ffn: str
    attention: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """One way of routing, and the layers that route so. Widths are those of the experts."""

    layers: str
    count: int
    experts: int
    top_k: int
    shared_experts: int
    expert_width: int
    shared_width: int
    score: str
    groups: int
    top_groups: int
    correction_bias: bool
    formula: str


def layer_infos(spec: ModelSpec) -> tuple[LayerInfo, ...]:
    """Every layer of the main stack."""
    return tuple(_info(layer) for layer in spec.layers)


def layer_groups(spec: ModelSpec) -> tuple[LayerGroup, ...]:
    """The layers of the main stack, alike ones in one group, in the order of their first layers."""
    found: dict[tuple[str, str], list[int]] = {}
    for layer in spec.layers:
        found.setdefault((_ffn(layer), _attention(layer)), []).append(layer.index)
    return tuple(
        LayerGroup(layers=ranges(indices), count=len(indices), ffn=ffn, attention=attention) for (ffn, attention), indices in found.items()
    )


def routing_rules(spec: ModelSpec) -> tuple[RoutingRule, ...]:
    """The routers of the main stack, alike ones once."""
    found: dict[tuple[Router, int, int, int], list[int]] = {}
    for layer in spec.layers:
        if isinstance(moe := layer.ffn, MoE):
            found.setdefault((moe.router, moe.expert_width, moe.shared_width, moe.n_shared_experts), []).append(layer.index)
    return tuple(
        RoutingRule(
            layers=ranges(indices),
            count=len(indices),
            experts=router.n_experts,
            top_k=router.top_k,
            shared_experts=n_shared,
            expert_width=width,
            shared_width=shared_width,
            score=router.score,
            groups=router.n_group,
            top_groups=router.topk_group,
            correction_bias=router.correction_bias,
            formula=router.formula(),
        )
        for (router, width, shared_width, n_shared), indices in found.items()
    )


def ranges(indices: Sequence[int]) -> str:
    """Ascending `indices` as `0-2, 5`; a pattern that repeats is cut short, `0, 2, ... 34`, and only then."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    if len(runs) > 3 and _repeats(runs):
        return f"{texts[0]}, {texts[1]}, ... {texts[-1]}"
    return ", ".join(texts)


def _repeats(runs: Sequence[tuple[int, int]]) -> bool:
    """Whether runs follow each other evenly and are equally long; the model may end inside the last."""
    steps = {second[0] - first[0] for first, second in pairwise(runs)}
    lengths = [last - first for first, last in runs]
    return len(steps) == 1 and len(set(lengths[:-1])) == 1 and lengths[-1] <= lengths[0]


def _info(layer: Layer) -> LayerInfo:
    moe = layer.ffn if isinstance(layer.ffn, MoE) else None
    window, window_kind = attention_window(layer)
    return LayerInfo(
        layer=layer.index,
        kind="dense" if moe is None else "moe",
        ffn_width=None if isinstance(layer.ffn, MoE) else layer.ffn.width,
        experts=None if moe is None else moe.router.n_experts,
        top_k=None if moe is None else moe.router.top_k,
        expert_width=None if moe is None else moe.expert_width,
        shared_width=None if moe is None else moe.shared_width,
        attention="latent" if isinstance(layer.attention, LatentAttention) else "grouped",
        window=window,
        window_kind=window_kind,
    )


def attention_window(layer: Layer) -> tuple[int | None, str | None]:
    """How many tokens a layer can look back on, itself included, and whether they slide with it or come in chunks; None: all."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return None, None
    if attention.chunk is not None:
        return attention.chunk, "chunk"
    return attention.window, None if attention.window is None else "sliding"


def _ffn(layer: Layer) -> str:
    if not isinstance(moe := layer.ffn, MoE):
        return f"dense, width {moe.width:,}"
    shared = ""
    if moe.shared_width:
        count = moe.n_shared_experts or 1
        each = moe.shared_width // count
        width = "" if each == moe.expert_width else f" of {each:,}"
        shared = f" + {count} shared{width}{', gated' if moe.gated_shared else ''}"
    return f"MoE, {moe.router.top_k} of {moe.router.n_experts:,} experts of width {moe.expert_width:,}{shared}"


def _attention(layer: Layer) -> str:
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return f"latent attention (MLA), {attention.n_heads} heads, cache of {attention.kv_lora_rank} + {attention.rope.dim} values"
    if attention.n_kv_heads == attention.n_heads:
        heads = f"{attention.n_heads} heads"
    else:
        heads = f"{attention.n_heads} heads over {attention.n_kv_heads} of keys and values"
    window, kind = attention_window(layer)
    reach = "" if window is None else f", chunks of {window:,}" if kind == "chunk" else f", window {window:,}"
    return f"attention, {heads} of size {attention.head_dim}{reach}{'' if attention.rope else ', no positions'}"
