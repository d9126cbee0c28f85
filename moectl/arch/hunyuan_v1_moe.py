"""hunyuan_v1_moe: Hunyuan-A13B. Per-head norms of q and k after the rotation, a shared block in every layer, a router in float32.

Numbers of experts, of experts per token and of shared experts may differ between layers. Absent keys mean what transformers computes,
which knows none of `use_qk_norm`, `use_mixed_mlp_moe`, `num_shared_expert` and `moe_intermediate_size`; files on the Hub carry them all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, QKNorm, Rope, Router
from moectl.arch.rope import parse_rope, rope_kind, rope_settings, whole_head
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Hunyuan-A13B checkpoint. Raises ModelError."""
    config.require_off("use_cla", "use_mla", "mlp_bias", "moe_layer_num_skipped", "group_limited_greedy", "position_embedding_xdrope")
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=11008)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(
        config, hidden=hidden, head_dim=config.optional_integer("attention_head_dim")
    )
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(config, whole_head(config, head_dim), max_positions),
        qk_norm=QKNorm(norm=norm, after_rope=True) if config.boolean("use_qk_norm", default=True) else None,
    )
    n_layers = config.integer("num_hidden_layers", default=32)
    n_experts = config.integer_per_layer(config.first("num_experts", "num_local_experts"), n_layers, default=1)
    top_k = config.integer_per_layer(config.first("moe_topk", "num_experts_per_tok"), n_layers, default=1)
    expert_width = config.integer_per_layer("moe_intermediate_size", n_layers, default=width)
    n_shared = config.integer_per_layer("num_shared_expert", n_layers, default=1, minimum=0)
    has_shared = config.boolean("use_mixed_mlp_moe", default=True)
    act = blocks.activation(config)
    layers = []
    for i in range(n_layers):
        prefix = f"model.layers.{i}"
        shared = n_shared[i] if has_shared else 0
        ffn = MoE(
            router=Router(
                n_experts=n_experts[i],
                top_k=top_k[i],
                score="softmax",
                logits_dtype="float32",
                weight_dtype="float32",
                renormalize=True,
            ),
            expert_width=expert_width[i],
            act=act,
            experts=blocks.expert_tensors(
                f"{prefix}.mlp.experts", n_experts=n_experts[i], hidden=hidden, width=expert_width[i], present=present
            ),
            shared_width=shared * width,
            n_shared_experts=shared,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(
                f"{prefix}.self_attn",
                hidden,
                attention,
                qkv_bias=bias,
                o_bias=bias,
                norm_names=("query_layernorm", "key_layernorm"),
            ),
            "router": TensorRef(name=f"{prefix}.mlp.gate.wg.weight", shape=(n_experts[i], hidden), keep_float32=True),
        }
        if shared:
            tensors |= blocks.ffn_tensors(f"{prefix}.mlp.shared_mlp", hidden, ffn.shared_width, slot_prefix="shared_")
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=290943)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _rope(config: Config, head_dim: int, max_positions: int) -> Rope:
    """ "dynamic" with an `alpha` stretches theta once and for all, whatever the length (NTK-aware scaling); else as everywhere."""
    settings = rope_settings(config)
    kind = rope_kind(settings)
    alpha = settings.number("alpha", default=0.0) if kind == "dynamic" else 0.0
    rope = parse_rope(config, dim=head_dim, default_theta=10_000.0, max_positions=max_positions, kind="default" if alpha else kind)
    if not alpha:
        return rope
    if head_dim < 4:
        raise config.mismatch("head_dim", head_dim, "at least 4, as alpha stretches nothing in fewer dimensions")
    return replace(rope, theta=rope.theta * settings.positive("alpha") ** (head_dim / (head_dim - 2)))
