"""dots1: dots.llm1 (arXiv 2506.05767). Qwen3's attention and DeepSeek-V3's experts; layers from `max_window_layers` on may slide."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn, noaux_router, routes
from moectl.arch.parts import GroupedQueryAttention, Norm, QKNorm
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a dots.llm1 checkpoint. Raises ModelError."""
    hidden, n_layers = config.integer("hidden_size", default=4608), config.integer("num_hidden_layers", default=62)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=32)
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    bias = config.boolean("attention_bias", default=False)
    rope = parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions)
    first_sliding = config.integer("max_window_layers", default=62, minimum=0)
    windows = blocks.layer_windows(
        config, window=config.optional_integer("sliding_window", default=4096), slides=[i >= first_sliding for i in range(n_layers)]
    )
    # The family's class has no defaults for these.
    n_experts, top_k = config.integer(config.first("n_routed_experts", "num_local_experts")), config.integer("num_experts_per_tok")
    router = noaux_router(config, n_experts=n_experts, top_k=top_k, n_group=1, topk_group=1, renormalize=False, scale=1.0)
    layers = []
    for i, (window, has_experts) in enumerate(zip(windows, routes(config, n_layers, n_dense=0), strict=True)):
        prefix = f"model.layers.{i}"
        attention = GroupedQueryAttention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rope,
            window=window,
            qk_norm=QKNorm(norm=norm),
        )
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if has_experts else None,
            dense_width=config.integer("intermediate_size", default=10944),
            expert_width=config.integer("moe_intermediate_size", default=1408),
            n_shared=config.integer("n_shared_experts", minimum=0),
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=152064)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)
