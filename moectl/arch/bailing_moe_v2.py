"""bailing_moe_v2: Ling 2.0 (mini, flash, 1T) and Ring 2.0 (arXiv 2510.22115). Files of these models say `bailing_moe`, like their elders.

Names of the first generation, norms of q and k, a rotation of half a head, and DeepSeek-V3's router. transformers does not know this
family; names, rules and defaults are those of the code that its authors publish beside the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.bailing import EMBED_NAME, bailing_attention_tensors
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn, noaux_router, routes
from moectl.arch.mtp import mtp_layers
from moectl.arch.parts import GroupedQueryAttention, Norm, QKNorm
from moectl.arch.rope import parse_rope, rotary_dim
from moectl.arch.spec import Layer, ModelSpec


def says_bailing_moe(config: Config) -> bool:
    """Whether a configuration that says `bailing_moe` is one of this generation, as those of the published models do."""
    return "BailingMoeV2ForCausalLM" in config.strings("architectures") or config.values.get("score_function") == "sigmoid"


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Ling 2.0 checkpoint. Raises ModelError."""
    config.choice("score_function", "sigmoid", default="sigmoid")
    config.choice("router_dtype", "fp32", "float32", default="fp32")
    config.require_off("norm_head", "use_sliding_window")
    hidden, vocab = config.integer("hidden_size", default=2048), config.integer("vocab_size", default=157184)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=16, kv_heads=4, head_dim=128)
    max_positions = config.integer("max_position_embeddings", default=32768)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    qkv_bias, o_bias = config.boolean("use_qkv_bias", default=False), config.boolean("use_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(config, dim=rotary_dim(config, head_dim), default_theta=600_000.0, max_positions=max_positions),
        qk_norm=QKNorm(norm=norm) if config.boolean("use_qk_norm", default=True) else None,
    )
    router = noaux_router(config, n_experts=256, top_k=8, n_group=8, topk_group=4, renormalize=True, scale=1.0)
    # Weights are normalised whatever norm_topk_prob says.
    has_bias = config.boolean("moe_router_enable_expert_bias", default=True)
    router = replace(router, renormalize=True, renormalize_from=2, correction_bias=has_bias)
    n_shared = config.integer("num_shared_experts", default=0 if "num_shared_experts" in config.values else 1, minimum=0)

    def layer(index: int, *, dense: bool = False) -> Layer:
        prefix = f"model.layers.{index}"
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=None if dense else router,
            dense_width=config.integer("intermediate_size", default=5120),
            expert_width=config.integer("moe_intermediate_size", default=512),
            n_shared=n_shared,
            present=present,
            correction_bias="gate.expert_bias",
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **bailing_attention_tensors(f"{prefix}.attention", hidden, attention, qkv_bias=qkv_bias, o_bias=o_bias),
            **ffn_tensors,
        }
        return Layer(index=index, attention=attention, ffn=ffn, norm=norm, tensors=tensors)

    n_layers = config.integer("num_hidden_layers", default=20)
    return blocks.decoder(
        config,
        vocab=vocab,
        hidden=hidden,
        layers=[layer(i, dense=not routed) for i, routed in enumerate(routes(config, n_layers, n_dense=1))],
        norm=norm,
        max_positions=max_positions,
        embed_name=EMBED_NAME,
        mtp=mtp_layers(config, first=n_layers, vocab=vocab, hidden=hidden, layer=layer, norm="final_layernorm", copies=False),
    )
