"""olmoe: OLMoE-1B-7B (arXiv 2409.02060). Norms of q and k over all heads together, then a clamp of q, k and v; every layer routes."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, Norm, QKNorm
from moectl.arch.qwen_ffn import qwen_ffn, qwen_router
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of an OLMoE checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=2048), config.integer("intermediate_size", default=2048)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=16)
    max_positions = config.integer("max_position_embeddings", default=4096)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
        qk_norm=QKNorm(norm=norm, over="all_heads"),
        clip=config.positive("clip_qkv") if config.has("clip_qkv") else None,
    )
    router = qwen_router(config, n_experts=64, top_k=8)
    layers = []
    for i in range(config.integer("num_hidden_layers", default=16)):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = qwen_ffn(config, f"{prefix}.mlp", hidden, router=router, dense_width=width, expert_width=width, present=present)
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=50304)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)
