"""minimax_m2: MiniMax-M2 and M2.1. Softmax attention in every layer, norms of q and k over all heads, every layer routed.

The router is DeepSeek-V3's without groups, scale or guard against a zero sum, and multiplies in the model's dtype. Names are Mixtral's.
Configurations announce prediction layers (`num_mtp_modules`); what a file may hold of them is skipped.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, QKNorm, Router
from moectl.arch.rope import parse_rope, rotary_dim
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a MiniMax-M2 checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=3072), config.integer("intermediate_size", default=1536)
    n_layers = config.integer("num_hidden_layers", default=62)
    _check(config)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=48, kv_heads=8, head_dim=128)
    max_positions = config.integer("max_position_embeddings", default=196608)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=rotary_dim(config, head_dim), default_theta=5_000_000.0, max_positions=max_positions),
        qk_norm=QKNorm(norm=norm, over="all_heads"),
    )
    router = Router(
        n_experts=config.integer(config.first("num_local_experts", "num_experts"), default=256),
        top_k=config.integer("num_experts_per_tok", default=8),
        score="sigmoid",
        logits_dtype="model",
        weight_dtype="float32",
        renormalize=True,
        correction_bias=True,
    )
    act = blocks.activation(config)
    layers = []
    for i in range(n_layers):
        prefix = f"model.layers.{i}"
        # Hub files say `block_sparse_moe`; the in-memory layout of newer transformers says `mlp`.
        block = f"{prefix}.mlp" if f"{prefix}.mlp.gate.weight" in present else f"{prefix}.block_sparse_moe"
        experts = blocks.expert_tensors(
            f"{block}.experts", n_experts=router.n_experts, hidden=hidden, width=width, names=("w1", "w3", "w2"), present=present
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention),
            **blocks.linear("router", f"{block}.gate", router.n_experts, hidden),
            "correction_bias": TensorRef(name=f"{block}.e_score_correction_bias", shape=(router.n_experts,), keep_float32=True),
        }
        ffn = MoE(router=router, expert_width=width, act=act, experts=experts)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab, n_mtp = config.integer("vocab_size", default=200064), config.integer("num_mtp_modules", default=0, minimum=0)
    return blocks.decoder(
        config,
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        norm=norm,
        max_positions=max_positions,
        ignored=tuple(rf"model\.layers\.{i}\..*" for i in range(n_layers, n_layers + n_mtp)),
    )


def _check(config: Config) -> None:
    """Refuse what the keys that MiniMax's files carry could switch, but no published model does."""
    config.choice("scoring_func", "sigmoid", default="sigmoid")
    config.choice("qk_norm_type", "per_layer", default="per_layer")
    config.require_on("use_qk_norm", "use_routing_bias")
    config.require_off("attention_bias", "shared_intermediate_size", "sliding_window")
    if set(config.integers("attn_type_list")) - {1}:
        raise config.mismatch("attn_type_list", "not all 1", "1 (softmax attention) for each layer")
