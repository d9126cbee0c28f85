"""ernie4_5_moe: ERNIE 4.5 21B-A3B and 300B-A47B, text (Baidu's ERNIE 4.5 technical report, 2025).

Rotation of neighbouring pairs in float32; a softmax router in float32 whose correction bias only selects; embedding and head are one
matrix unless the file says otherwise. The correction bias is `[1, E]` and has another parent on disk than in transformers' memory layout.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn
from moectl.arch.mtp import ernie_mtp_layers
from moectl.arch.parts import GroupedQueryAttention, Norm, Router
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of an ERNIE 4.5 checkpoint. Raises ModelError."""
    hidden, n_layers = config.integer("hidden_size", default=2560), config.integer("num_hidden_layers", default=28)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=20, kv_heads=4)
    max_positions = config.integer("max_position_embeddings", default=131072)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    bias = config.boolean("use_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(
            config,
            dim=whole_head(config, head_dim),
            default_theta=500_000.0,
            max_positions=max_positions,
            layout="interleaved",
            float32=True,
        ),
    )
    router, has_experts = _router(config), _routes(config, n_layers)

    def layer(index: int, prefix: str, *, routed: bool) -> Layer:
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if routed else None,
            dense_width=config.integer("intermediate_size", default=12288),
            expert_width=config.integer("moe_intermediate_size", default=1536),
            n_shared=config.integer("moe_num_shared_experts", default=2, minimum=0),
            present=present,
            bias=bias,
        )
        if routed:
            ffn_tensors["router"] = replace(ffn_tensors["router"], keep_float32=True)
            ffn_tensors["correction_bias"] = _correction_bias(f"{prefix}.mlp", router.n_experts, present)
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        return Layer(index=index, attention=attention, ffn=ffn, norm=norm, tensors=tensors)

    return blocks.decoder(
        config,
        vocab=config.integer("vocab_size", default=103424),
        hidden=hidden,
        layers=[layer(i, f"model.layers.{i}", routed=routed) for i, routed in enumerate(has_experts)],
        norm=norm,
        max_positions=max_positions,
        tied=True,
        head_bias=bias,
        # The prediction layer is counted as layer 0 by the rule that says which have experts.
        mtp=ernie_mtp_layers(config, hidden=hidden, layer=lambda prefix: layer(n_layers, prefix, routed=has_experts[0]), bias=bias),
    )


def _router(config: Config) -> Router:
    config.choice("moe_gate_act", "softmax", default="softmax")
    return Router(
        n_experts=config.integer(config.first("moe_num_experts", "num_experts"), default=64),
        top_k=config.integer(config.first("moe_k", "num_experts_per_tok"), default=6),
        score="softmax",
        logits_dtype="float32",
        weight_dtype="model",
        renormalize=True,
        renormalize_floor=config.positive("moe_norm_min", default=1e-12),
        correction_bias=True,
    )


def _routes(config: Config, n_layers: int) -> list[bool]:
    """Each `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`, which is the last one if -1."""
    start, every = config.integer("moe_layer_start_index", default=1, minimum=0), config.integer("moe_layer_interval", default=1)
    end = config.integer("moe_layer_end_index", default=-1, minimum=-1)
    end = n_layers - 1 if end == -1 else end
    return [start <= i <= end and (i + 1) % every == 0 for i in range(n_layers)]


def _correction_bias(prefix: str, n_experts: int, present: Collection[str]) -> TensorRef:
    in_memory, on_disk = (f"{prefix}.{parent}.e_score_correction_bias" for parent in ("gate.moe_statics", "moe_statics"))
    name = in_memory if in_memory in present else on_disk
    return TensorRef(name=name, shape=(1, n_experts), index=0, keep_float32=True)
