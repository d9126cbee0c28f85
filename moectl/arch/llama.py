"""llama: Llama 1 to 3 (arXiv 2302.13971, 2407.21783), DeepSeek LLM and Coder, R1-distill, and all else that calls itself `llama`. Dense."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.dense import dense_layers
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, Norm
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a llama checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=11008)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden)
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
    )
    layers = dense_layers(
        [attention] * config.integer("num_hidden_layers", default=32),
        hidden=hidden,
        ffn=DenseFFN(width=width, act=blocks.activation(config)),
        norm=norm,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=config.boolean("mlp_bias", default=False),
    )
    vocab = config.integer("vocab_size", default=32000)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)
