"""llama4_text: the text model of Llama 4 Scout and Maverick (Meta, 2025).

Most layers rotate and attend within chunks; every fourth has no positions at all, sees everything and sharpens its queries with their
position (arXiv 2501.19399). The sigmoid of the router weighs what enters an expert; a shared expert runs beside.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, MoE, Norm, QKNorm, Router, Temperature
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef

_CHUNKED, _FULL = "chunked_attention", "full_attention"


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Llama 4 text checkpoint. Raises ModelError."""
    hidden = config.integer("hidden_size", default=5120)
    n_layers = config.integer("num_hidden_layers", default=48)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    max_positions = config.integer("max_position_embeddings", default=4096 * 32)
    bias = config.boolean("attention_bias", default=False)
    attentions = _attentions(config, n_layers, hidden, norm, max_positions)
    moe_layers = _moe_layers(config, n_layers)
    layers = []
    for i, attention in enumerate(attentions):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = _ffn(config, f"{prefix}.feed_forward", hidden, dense=i not in moe_layers)
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=202048)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _attentions(config: Config, n_layers: int, hidden: int, norm: Norm, max_positions: int) -> list[GroupedQueryAttention]:
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=40, kv_heads=8, head_dim=128)
    rope = parse_rope(
        config,
        dim=whole_head(config, head_dim),
        default_theta=500_000.0,
        max_positions=max_positions,
        layout="interleaved",
        float32=True,
    )
    rotates = _rotating_layers(config, n_layers)
    types = blocks.layer_types(config, n_layers, kinds=(_CHUNKED, _FULL), default=[_CHUNKED if yes else _FULL for yes in rotates])
    chunk = config.optional_integer("attention_chunk_size", default=8192)
    if _CHUNKED in types and chunk is None:
        raise config.mismatch("attention_chunk_size", "null", f"a number, as some layers have `{_CHUNKED}`")
    qk_norm = QKNorm(norm=norm, after_rope=True, weighted=False) if config.boolean("use_qk_norm", default=True) else None
    temperature = _temperature(config)
    return [
        GroupedQueryAttention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rope if yes else None,
            chunk=chunk if kind == _CHUNKED else None,
            qk_norm=qk_norm if yes else None,
            temperature=None if yes else temperature,
        )
        for yes, kind in zip(rotates, types, strict=True)
    ]


def _rotating_layers(config: Config, n_layers: int) -> tuple[bool, ...]:
    """Which layers rotate: those with a 1 in `no_rope_layers`, despite its name; an empty list counts as missing."""
    flags = config.integers("no_rope_layers")
    if not flags:
        interval = config.integer("no_rope_layer_interval", default=4)
        return tuple((i + 1) % interval != 0 for i in range(n_layers))
    if len(flags) < n_layers:
        raise config.mismatch("no_rope_layers", f"a list of {len(flags)}", f"one of num_hidden_layers = {n_layers}")
    return tuple(bool(flag) for flag in flags[:n_layers])


def _moe_layers(config: Config, n_layers: int) -> frozenset[int]:
    if config.has("moe_layers"):
        return frozenset(config.integers("moe_layers"))
    step = config.integer("interleave_moe_layer_step", default=1)
    return frozenset(range(step - 1, n_layers, step))


def _temperature(config: Config) -> Temperature | None:
    # The first releases say 4, which was only ever asked for its truth.
    value: Any = config.values.get("attn_temperature_tuning")
    if not (value if isinstance(value, int) else config.boolean("attn_temperature_tuning", default=True)):
        return None
    return Temperature(scale=config.number("attn_scale", default=0.1), floor_scale=config.positive("floor_scale", default=8192))


def _ffn(config: Config, prefix: str, hidden: int, *, dense: bool) -> tuple[DenseFFN | MoE, dict[str, TensorRef]]:
    act = blocks.activation(config)
    if dense:
        width = config.integer("intermediate_size_mlp", default=16384)
        return DenseFFN(width=width, act=act), blocks.ffn_tensors(prefix, hidden, width)
    width = config.integer("intermediate_size", default=8192)
    router = Router(
        n_experts=config.integer("num_local_experts", default=16),
        top_k=config.integer("num_experts_per_tok", default=1),
        score="sigmoid",
        selects_by="logits",
        logits_dtype="model",
        weight_dtype="model",
        renormalize=False,
        weighs_input=True,
    )
    moe = MoE(
        router=router,
        expert_width=width,
        act=act,
        experts=blocks.transposed_expert_tensors(f"{prefix}.experts", n_experts=router.n_experts, hidden=hidden, width=width),
        shared_width=width,
        n_shared_experts=1,
    )
    return moe, {
        **blocks.linear("router", f"{prefix}.router", router.n_experts, hidden),
        **blocks.ffn_tensors(f"{prefix}.shared_expert", hidden, width, slot_prefix="shared_"),
    }
