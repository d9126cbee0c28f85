"""qwen2_moe: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B (arXiv 2407.10671). Beside the routed experts a shared one behind a sigmoid gate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, Norm
from moectl.arch.qwen_ffn import qwen_ffn, qwen_router, routes
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Qwen2-MoE checkpoint. Raises ModelError."""
    hidden, n_layers = config.integer("hidden_size", default=2048), config.integer("num_hidden_layers", default=24)
    dense_width = config.integer("intermediate_size", default=5632)
    expert_width = config.integer("moe_intermediate_size", default=1408)
    shared_width = config.integer("shared_expert_intermediate_size", default=5632)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=16, kv_heads=16)
    max_positions = config.integer("max_position_embeddings", default=32768)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
    )
    router = qwen_router(config, n_experts=60, top_k=4)
    layers = []
    for i, (window, has_experts) in enumerate(zip(_windows(config, n_layers), routes(config, n_layers), strict=True)):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = qwen_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if has_experts else None,
            dense_width=dense_width,
            expert_width=expert_width,
            shared_width=shared_width,
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=config.boolean("qkv_bias", default=True)),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=replace(attention, window=window), ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=151936)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _windows(config: Config, n_layers: int) -> list[int | None]:
    """With the switch on, `layer_types` says which layers slide, or else the even ones below `max_window_layers` do."""
    slides = config.boolean("use_sliding_window", default=False)
    first_full = config.integer("max_window_layers", default=28, minimum=0)
    rule = ["sliding_attention" if slides and i % 2 == 0 and i < first_full else "full_attention" for i in range(n_layers)]
    types = blocks.layer_types(config, n_layers, kinds=("full_attention", "sliding_attention"), default=rule)
    if not slides and "sliding_attention" in types:
        raise config.mismatch("use_sliding_window", "false", "true, as some of layer_types are sliding_attention")
    window = config.optional_integer("sliding_window", default=4096) if slides else None
    return [window if kind == "sliding_attention" else None for kind in types]
