"""glm4_moe: GLM-4.5, 4.5-Air, 4.6, 4.7 (arXiv 2508.06471). DeepSeek-V3's experts and prediction layers behind grouped-query attention.

Half of a head rotates. Queries, keys and values may have biases, the output has none; norms of q and k are optional too.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn, noaux_router, routes
from moectl.arch.mtp import mtp_layers
from moectl.arch.parts import GroupedQueryAttention, Norm, QKNorm
from moectl.arch.rope import parse_rope, partial_dim
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a GLM-4.5 checkpoint. Raises ModelError."""
    hidden, vocab = config.integer("hidden_size", default=4096), config.integer("vocab_size", default=151552)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=96, kv_heads=8)
    max_positions = config.integer("max_position_embeddings", default=131072)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    dim = partial_dim(config, head_dim, default=0.5)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=dim, default_theta=10_000.0, max_positions=max_positions),
        qk_norm=QKNorm(norm=norm) if config.boolean("use_qk_norm", default=False) else None,
    )
    bias = config.boolean("attention_bias", default=False)
    router = noaux_router(config, n_experts=128, top_k=8, n_group=1, topk_group=1, renormalize=True, scale=1.0)

    def layer(index: int, *, dense: bool = False) -> Layer:
        prefix = f"model.layers.{index}"
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=None if dense else router,
            dense_width=config.integer("intermediate_size", default=10944),
            expert_width=config.integer("moe_intermediate_size", default=1408),
            n_shared=config.integer("n_shared_experts", default=1, minimum=0),
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias),
            **ffn_tensors,
        }
        return Layer(index=index, attention=attention, ffn=ffn, norm=norm, tensors=tensors)

    n_layers = config.integer("num_hidden_layers", default=46)
    return blocks.decoder(
        config,
        vocab=vocab,
        hidden=hidden,
        layers=[layer(i, dense=not routed) for i, routed in enumerate(routes(config, n_layers, n_dense=1))],
        norm=norm,
        max_positions=max_positions,
        mtp=mtp_layers(config, first=n_layers, vocab=vocab, hidden=hidden, layer=layer),
    )
