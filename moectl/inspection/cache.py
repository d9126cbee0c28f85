"""The key-value cache: what a token adds to it, how windows bound it, and what latent or grouped attention saves.

    kv_cache(spec, context=4096, bits=16).bytes_per_token

Multi-head latent attention keeps the latent of `kv_lora_rank` values and one rotated key per token and layer (DeepSeek-V2, arXiv
2405.04434); every other attention keeps a key and a value of each of its kv heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moectl.arch.parts import LatentAttention
from moectl.arch.spec import Layer, ModelSpec
from moectl.inspection.layers import attention_window

_GROUPED_HEADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """Sizes of one sequence's cache, `bits` per value.

    The two ratios compare what a token adds with multi-head attention of the same heads and head sizes, and with grouped attention of 8 kv
    heads (fewer where the model has fewer heads). A latent layer's key is `nope_dim + rope.dim` wide there, its value `value_dim`.
    """

    kind: str
    """`latent`, `grouped`, or `mixed`."""
    bits: int
    values_per_token: int
    bytes_per_token: int
    """While every layer still keeps every token."""
    bytes_per_token_beyond_windows: int
    """Once the layers with windows are full; equal to `bytes_per_token` without such layers."""
    window_layers: int
    window_bytes: int
    """The most that the layers with windows ever hold."""
    context_tokens: int
    bytes_at_context: int
    ratio_to_multi_head: float
    ratio_to_grouped_8: float
    equivalent_kv_heads: float
    """Of grouped attention with the model's head sizes without rotated part: the number that would take as much, per layer."""


def kv_cache(spec: ModelSpec, *, context: int, bits: int) -> KVCache:
    """The cache of a sequence of `context` tokens at `bits` per value."""
    values = [layer_values(layer) for layer in spec.layers]
    windows = [attention_window(layer)[0] for layer in spec.layers]
    pairs = list(zip(values, windows, strict=True))
    kinds = {"latent" if isinstance(layer.attention, LatentAttention) else "grouped" for layer in spec.layers}
    return KVCache(
        kind=kinds.pop() if len(kinds) == 1 else "mixed",
        bits=bits,
        values_per_token=sum(values),
        bytes_per_token=_bytes(sum(values), bits),
        bytes_per_token_beyond_windows=_bytes(sum(value for value, window in pairs if window is None), bits),
        window_layers=sum(window is not None for window in windows),
        window_bytes=_bytes(sum(value * window for value, window in pairs if window is not None), bits),
        context_tokens=context,
        bytes_at_context=_bytes(sum(value * min(window or context, context) for value, window in pairs), bits),
        ratio_to_multi_head=sum(values) / sum(_head_values(layer) * layer.attention.n_heads for layer in spec.layers),
        ratio_to_grouped_8=sum(values) / sum(_head_values(layer) * min(_GROUPED_HEADS, layer.attention.n_heads) for layer in spec.layers),
        equivalent_kv_heads=sum(value / _plain_head_values(layer) for value, layer in zip(values, spec.layers, strict=True))
        / len(spec.layers),
    )


def layer_values(layer: Layer) -> int:
    """Values a token adds to the cache of this layer."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return attention.kv_lora_rank + attention.rope.dim
    return 2 * attention.n_kv_heads * attention.head_dim


def _head_values(layer: Layer) -> int:
    """A key and a value of one head, as wide as they are multiplied."""
    attention = layer.attention
    if isinstance(attention, LatentAttention):
        return attention.nope_dim + attention.rope.dim + attention.value_dim
    return 2 * attention.head_dim


def _plain_head_values(layer: Layer) -> int:
    attention = layer.attention
    return attention.nope_dim + attention.value_dim if isinstance(attention, LatentAttention) else 2 * attention.head_dim


def _bytes(values: int, bits: int) -> int:
    return math.ceil(values * bits / 8)
