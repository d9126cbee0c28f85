"""phi3: Phi-3, Phi-3.5-mini and Phi-4 (arXiv 2404.14219, 2412.08905, 2503.01743). Dense; q, k and v lie in one matrix, so do gate and up.

Long contexts stretch the rotation by longrope: one set of factors up to the original length, another for the whole of a longer sequence.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, Norm, Rope
from moectl.arch.rope import parse_rope, partial_dim, rope_kind, rope_settings
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Phi-3 checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=3072), config.integer("intermediate_size", default=8192)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden)
    max_positions = config.integer("max_position_embeddings", default=4096)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(config, dim=partial_dim(config, head_dim), max_positions=max_positions),
        window=config.optional_integer("sliding_window"),
    )
    ffn = DenseFFN(width=width, act=blocks.activation(config))
    q, kv = n_heads * head_dim, n_kv_heads * head_dim
    layers = []
    for i in range(config.integer("num_hidden_layers", default=32)):
        prefix = f"model.layers.{i}"
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.fused_linear(f"{prefix}.self_attn.qkv_proj", hidden, {"q": q, "k": kv, "v": kv}),
            **blocks.linear("o", f"{prefix}.self_attn.o_proj", hidden, q),
            **blocks.fused_linear(f"{prefix}.mlp.gate_up_proj", hidden, {"gate": width, "up": width}),
            **blocks.linear("down", f"{prefix}.mlp.down_proj", hidden, width),
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=32064)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _rope(config: Config, *, dim: int, max_positions: int) -> Rope:
    """Early files call longrope `su`, or `yarn`, which it is not. The original length stands beside the rotary settings, not in them."""
    kind = rope_kind(rope_settings(config), allowed=("default", "longrope", "yarn"))
    with_length = Config({"original_max_position_embeddings": 4096, **config.values}, where=config.where)
    return parse_rope(
        with_length,
        dim=dim,
        default_theta=10_000.0,
        max_positions=max_positions,
        kind="longrope" if kind == "yarn" else kind,
    )
