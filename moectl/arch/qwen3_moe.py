"""qwen3_moe: Qwen3-30B-A3B, 235B-A22B and kin (arXiv 2505.09388). Per-head norms of q and k; no shared expert."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, Norm, QKNorm
from moectl.arch.qwen_ffn import qwen_ffn, qwen_router, routes
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Qwen3-MoE checkpoint. Raises ModelError."""
    hidden = config.integer("hidden_size", default=2048)
    dense_width = config.integer("intermediate_size", default=6144)
    expert_width = config.integer("moe_intermediate_size", default=768)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=4)
    max_positions = config.integer("max_position_embeddings", default=32768)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    bias = config.boolean("attention_bias", default=False)
    # With the switch on, every layer slides (families differ in this; max_window_layers plays no part here).
    slides = config.boolean("use_sliding_window", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
        window=config.optional_integer("sliding_window", default=4096) if slides else None,
        qk_norm=QKNorm(norm=norm),
    )
    router = qwen_router(config, n_experts=128, top_k=8)
    layers = []
    for i, has_experts in enumerate(routes(config, config.integer("num_hidden_layers", default=24))):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = qwen_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if has_experts else None,
            dense_width=dense_width,
            expert_width=expert_width,
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=151936)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)
