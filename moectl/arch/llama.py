"""llama: Llama 1 to 3, DeepSeek LLM, R1-distill and everything else that calls itself `llama`. Dense."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.rope import parse_rope
from moectl.arch.spec import DenseFFN, GroupedQueryAttention, Layer, ModelSpec, Norm


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a llama checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=11008)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden)
    max_positions = config.integer("max_position_embeddings", default=2048)
    eps = config.positive("rms_norm_eps", default=1e-6)
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=head_dim, default_theta=10_000.0, max_positions=max_positions),
    )
    ffn = DenseFFN(width=width, act=config.choice("hidden_act", *blocks.ACTIVATIONS, default="silu"))
    layers = []
    for i in range(config.integer("num_hidden_layers", default=32)):
        prefix = f"model.layers.{i}"
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **blocks.ffn_tensors(f"{prefix}.mlp", hidden, width, bias=config.boolean("mlp_bias", default=False)),
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=Norm(eps=eps), tensors=tensors))
    vocab = config.integer("vocab_size", default=32000)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, eps=eps, max_positions=max_positions)
