"""qwen3_moe: Qwen3-30B-A3B, 235B-A22B and kin (arXiv 2505.09388). Per-head norms of q and k; no shared expert."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.rope import parse_rope
from moectl.arch.spec import DenseFFN, GroupedQueryAttention, Layer, ModelSpec, MoE, Norm, Router


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Qwen3-MoE checkpoint. Raises ModelError."""
    hidden = config.integer("hidden_size", default=2048)
    dense_width = config.integer("intermediate_size", default=6144)
    expert_width = config.integer("moe_intermediate_size", default=768)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=4)
    max_positions = config.integer("max_position_embeddings", default=32768)
    eps = config.positive("rms_norm_eps", default=1e-6)
    bias = config.boolean("attention_bias", default=False)
    # With the switch on, every layer slides (families differ in this; max_window_layers plays no part here).
    slides = config.boolean("use_sliding_window", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=head_dim, default_theta=10_000.0, max_positions=max_positions),
        window=config.optional_integer("sliding_window", default=4096) if slides else None,
        qk_norm=Norm(eps=eps),
    )
    router = Router(
        n_experts=config.integer(config.first("num_experts", "num_local_experts"), default=128),
        top_k=config.integer("num_experts_per_tok", default=8),
        score="softmax",
        logits_dtype="model",
        weight_dtype="model",
        renormalize=config.boolean("norm_topk_prob", default=False),
    )
    act = config.choice("hidden_act", *blocks.ACTIVATIONS, default="silu")
    step, dense_layers = config.integer("decoder_sparse_step", default=1), set(config.integers("mlp_only_layers"))
    layers = []
    for i in range(config.integer("num_hidden_layers", default=24)):
        prefix = f"model.layers.{i}"
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
        }
        ffn: DenseFFN | MoE
        if i in dense_layers or (i + 1) % step:
            ffn = DenseFFN(width=dense_width, act=act)
            tensors |= blocks.ffn_tensors(f"{prefix}.mlp", hidden, dense_width)
        else:
            experts = blocks.expert_tensors(
                f"{prefix}.mlp.experts", n_experts=router.n_experts, hidden=hidden, width=expert_width, present=present
            )
            ffn = MoE(router=router, expert_width=expert_width, act=act, experts=experts)
            tensors |= blocks.linear("router", f"{prefix}.mlp.gate", router.n_experts, hidden)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=Norm(eps=eps), tensors=tensors))
    vocab = config.integer("vocab_size", default=151936)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, eps=eps, max_positions=max_positions)
