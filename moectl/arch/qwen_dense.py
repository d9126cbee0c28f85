"""What the dense Qwen families share: sizes, and a window in the upper layers if `use_sliding_window` asks for it."""

from __future__ import annotations

from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.dense import dense_layers
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, Norm, QKNorm
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import ModelSpec


def qwen_dense(config: Config, *, head_dim: int | None, qk_norm: bool, qkv_bias: bool, o_bias: bool) -> ModelSpec:
    """ModelSpec of a dense Qwen; `head_dim` is what the absent key means. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=22016)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, kv_heads=32, head_dim=head_dim)
    max_positions = config.integer("max_position_embeddings", default=32768)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
        qk_norm=QKNorm(norm=norm) if qk_norm else None,
    )
    slides = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window", default=4096) if slides else None
    first = config.integer("max_window_layers", default=28, minimum=0)
    windows = blocks.layer_windows(
        config, window=window, slides=[i >= first for i in range(config.integer("num_hidden_layers", default=32))]
    )
    layers = dense_layers(
        [replace(attention, window=each) for each in windows],
        hidden=hidden,
        ffn=DenseFFN(width=width, act=blocks.activation(config)),
        norm=norm,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
    )
    vocab = config.integer("vocab_size", default=151936)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)
