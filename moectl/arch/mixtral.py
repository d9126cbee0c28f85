"""mixtral: Mixtral 8x7B and 8x22B (arXiv 2401.04088). Every layer routes; weights are normalised over the selected experts."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, Router
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Mixtral checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=14336)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=8)
    max_positions = config.integer("max_position_embeddings", default=4096 * 32)
    eps = config.positive("rms_norm_eps", default=1e-5)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=1_000_000.0, max_positions=max_positions),
        window=config.optional_integer("sliding_window"),
    )
    router = Router(
        n_experts=config.integer(config.first("num_local_experts", "num_experts"), default=8),
        top_k=config.integer("num_experts_per_tok", default=2),
        score="softmax",
        logits_dtype="model",
        weight_dtype="float32",
        renormalize=True,
    )
    act = blocks.activation(config)
    layers = []
    for i in range(config.integer("num_hidden_layers", default=32)):
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
        }
        ffn = MoE(router=router, expert_width=width, act=act, experts=experts)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=Norm(eps=eps), tensors=tensors))
    vocab = config.integer("vocab_size", default=32000)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=Norm(eps=eps), max_positions=max_positions)
