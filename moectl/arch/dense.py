"""Layers of a dense decoder with the tensor names of llama, which most dense families took over."""

from __future__ import annotations

from collections.abc import Sequence

from moectl.arch import blocks
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, Norm
from moectl.arch.spec import Layer
from moectl.arch.tensors import TensorRef


def dense_layers(
    attentions: Sequence[GroupedQueryAttention],
    *,
    hidden: int,
    ffn: DenseFFN,
    norm: Norm,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    sandwich: bool = False,
) -> list[Layer]:
    """One layer for each of `attentions`; `sandwich` norms what attention and feed-forward add once more (gemma)."""
    layers = []
    for i, attention in enumerate(attentions):
        prefix = f"model.layers.{i}"
        tensors = {
            **(_sandwich_norms(prefix, hidden) if sandwich else blocks.layer_norms(prefix, hidden)),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=qkv_bias, o_bias=o_bias),
            **blocks.ffn_tensors(f"{prefix}.mlp", hidden, ffn.width, bias=mlp_bias),
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors, out_norms=sandwich))
    return layers


def _sandwich_norms(prefix: str, hidden: int) -> dict[str, TensorRef]:
    """`post_attention_layernorm` norms what attention adds here, where in other families it is the norm before the feed-forward."""
    return {
        **blocks.norm_tensors("attention_norm", f"{prefix}.input_layernorm", hidden),
        **blocks.norm_tensors("attention_out_norm", f"{prefix}.post_attention_layernorm", hidden),
        **blocks.norm_tensors("ffn_norm", f"{prefix}.pre_feedforward_layernorm", hidden),
        **blocks.norm_tensors("ffn_out_norm", f"{prefix}.post_feedforward_layernorm", hidden),
    }
