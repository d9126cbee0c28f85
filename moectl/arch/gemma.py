"""What Gemma 2 and 3 share: sizes, sandwich norms with weights around zero, scaled embeddings, a tied head."""

from __future__ import annotations

from collections.abc import Sequence

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.dense import dense_layers
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, Norm
from moectl.arch.spec import Embedding, Head, ModelSpec


def gemma_norm(config: Config) -> Norm:
    """The norm of all places."""
    return Norm(eps=config.positive("rms_norm_eps", default=1e-6), kind="rms_zero_centred")


def gemma_attention(config: Config) -> GroupedQueryAttention:
    """Attention without what differs between layers and generations: positions, windows, caps. Raises ModelError."""
    # Embedding models made of a Gemma see the whole text.
    config.require_off("use_bidirectional_attention")
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=_hidden(config), heads=8, kv_heads=4, head_dim=256)
    scalar = config.positive("query_pre_attn_scalar", default=256)
    return GroupedQueryAttention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, scale=scalar**-0.5, rope=None)


def gemma_windows(config: Config, *, pattern: int) -> tuple[int | None, ...]:
    """The window of each layer; all but every `pattern`-th have one. Raises ModelError."""
    n_layers = config.integer("num_hidden_layers", default=26)
    window = config.optional_integer("sliding_window", default=4096)
    return blocks.layer_windows(config, window=window, slides=[(i + 1) % pattern != 0 for i in range(n_layers)])


def gemma_decoder(
    config: Config, attentions: Sequence[GroupedQueryAttention], *, vocab: int, max_positions: int, softcap: float | None
) -> ModelSpec:
    """The model around `attentions`; `vocab` is what the absent key means, `softcap` that of the logits. Raises ModelError."""
    hidden, norm = _hidden(config), gemma_norm(config)
    bias = config.boolean("attention_bias", default=False)
    act = blocks.activation(config, key="hidden_activation", default="gelu_pytorch_tanh")
    layers = dense_layers(
        attentions,
        hidden=hidden,
        ffn=DenseFFN(width=config.integer("intermediate_size", default=9216), act=act),
        norm=norm,
        qkv_bias=bias,
        o_bias=bias,
        sandwich=True,
    )
    return blocks.decoder(
        config,
        vocab=config.integer("vocab_size", default=vocab),
        hidden=hidden,
        layers=layers,
        norm=norm,
        max_positions=max_positions,
        tied=True,
        embedding=Embedding(scale=hidden**0.5, rounded_scale=True),
        head=Head(softcap=softcap),
    )


def _hidden(config: Config) -> int:
    return config.integer("hidden_size", default=2304)
