"""bailing_moe: Ling-lite, Ling-plus and Ling-Coder-lite, the first generation (arXiv 2503.05139).

Softmax router, shared experts without a gate, and a head whose columns are divided by their norms (`norm_head`). transformers does not
know this family; names, rules and defaults are those of the code that its authors publish beside the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import bailing_moe_v2, blocks
from moectl.arch.bailing import EMBED_NAME, bailing_attention_tensors
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn
from moectl.arch.parts import GroupedQueryAttention, Norm, Rope, Router
from moectl.arch.rope import parse_rope, rope_kind, rope_settings, whole_head, yarn_mscale
from moectl.arch.spec import Head, Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a Ling checkpoint. Raises ModelError."""
    if bailing_moe_v2.says_bailing_moe(config):
        return bailing_moe_v2.spec(config, present)
    hidden = config.integer("hidden_size", default=1024)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=16)
    max_positions = config.integer("max_position_embeddings", default=16384)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5))
    qkv_bias, o_bias = config.boolean("use_qkv_bias", default=False), config.boolean("use_bias", default=True)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=_rope(config, whole_head(config, head_dim), max_positions),
    )
    router = Router(
        n_experts=config.integer("num_experts", default=16),
        top_k=config.integer("num_experts_per_tok", default=2),
        score="softmax",
        logits_dtype="model",
        weight_dtype="float32",
        renormalize=config.boolean("norm_topk_prob", default=True),
        renormalize_from=2,
    )
    n_dense = config.integer("first_k_dense_replace", default=0, minimum=0)
    layers = []
    for i in range(config.integer("num_hidden_layers", default=24)):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if i >= n_dense else None,
            dense_width=config.integer("intermediate_size") if n_dense else 0,
            expert_width=config.integer("moe_intermediate_size"),
            n_shared=config.integer("num_shared_experts", default=0, minimum=0),
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **bailing_attention_tensors(f"{prefix}.attention", hidden, attention, qkv_bias=qkv_bias, o_bias=o_bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    norm_head = config.boolean("norm_head", default=False)
    if norm_head and config.boolean("tie_word_embeddings", default=False):
        raise config.mismatch("norm_head", "true", "false where tie_word_embeddings makes head and embedding one tensor")
    return blocks.decoder(
        config,
        vocab=config.integer("vocab_size", default=30592),
        hidden=hidden,
        layers=layers,
        norm=norm,
        max_positions=max_positions,
        head=Head(unit_columns=norm_head),
        embed_name=EMBED_NAME,
    )


def _rope(config: Config, head_dim: int, max_positions: int) -> Rope:
    """As everywhere, but YaRN starts from 4096 positions where the file does not say, and `mscale` works without `mscale_all_dim`."""
    settings = rope_settings(config)
    kind = rope_kind(settings, allowed=("default", "linear", "dynamic", "yarn"))
    if kind != "yarn":
        return parse_rope(config, dim=head_dim, default_theta=10_000.0, max_positions=max_positions, kind=kind)
    rope = parse_rope(config, dim=head_dim, default_theta=10_000.0, max_positions=4096, kind=kind)
    mscale, mscale_all_dim = settings.number("mscale", default=1.0), settings.number("mscale_all_dim", default=0.0)
    return replace(rope, attention_factor=yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all_dim))
