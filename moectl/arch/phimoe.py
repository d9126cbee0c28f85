"""phimoe: Phi-3.5-MoE and its smaller kin (arXiv 2404.14219).

LayerNorm with biases, two experts picked by sparsemixer (arXiv 2409.12136), longrope whose cos and sin are scaled by mscale factors of
their own, of which the long one is taken beyond the original length.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, Rope, Router
from moectl.arch.rope import parse_rope, rope_kind, rope_settings, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Phi-MoE checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=6400)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=8)
    max_positions = config.integer("max_position_embeddings", default=4096 * 32)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5), kind="layer")
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(config, head_dim, max_positions),
        window=config.optional_integer("sliding_window"),
    )
    top_k = config.integer("num_experts_per_tok", default=2)
    if top_k != 2:
        raise config.mismatch("num_experts_per_tok", top_k, "2, the number of picks of this router")
    jitter = config.number("router_jitter_noise", default=0.01)
    if jitter < 0:
        raise config.mismatch("router_jitter_noise", jitter, "at least 0")
    router = Router(
        n_experts=config.integer("num_local_experts", default=16),
        top_k=top_k,
        score="sparsemixer",
        logits_dtype="model",
        score_dtype="model",
        weight_dtype="model",
        renormalize=False,
        jitter=jitter,
    )
    act = blocks.activation(config)
    layers = []
    for i in range(config.integer("num_hidden_layers", default=32)):
        prefix = f"model.layers.{i}"
        # Hub files say `block_sparse_moe` and `gate`; the in-memory layout of newer transformers says `mlp` and `router`.
        memory = f"{prefix}.mlp.router.weight" in present
        block = f"{prefix}.mlp" if memory else f"{prefix}.block_sparse_moe"
        experts = blocks.expert_tensors(
            f"{block}.experts", n_experts=router.n_experts, hidden=hidden, width=width, names=("w1", "w3", "w2"), present=present
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden, bias=True),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **blocks.linear("router", f"{block}.router" if memory else f"{block}.gate", router.n_experts, hidden),
        }
        ffn = MoE(router=router, expert_width=width, act=act, experts=experts)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    return blocks.decoder(
        config,
        vocab=config.integer("vocab_size", default=32064),
        hidden=hidden,
        layers=layers,
        norm=norm,
        max_positions=max_positions,
        head_bias=config.boolean("lm_head_bias", default=False),
    )


def _rope(config: Config, head_dim: int, max_positions: int) -> Rope:
    settings = rope_settings(config)
    kind = rope_kind(settings, allowed=("default", "longrope"))
    rope = parse_rope(config, dim=whole_head(config, head_dim), default_theta=1_000_000.0, max_positions=max_positions, kind=kind)
    if kind == "default":
        return rope
    return replace(rope, attention_factor=settings.positive("short_mscale"), long_attention_factor=settings.positive("long_mscale"))
