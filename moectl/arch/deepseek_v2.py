"""deepseek_v2: DeepSeek-V2, V2-Lite, Coder-V2 (arXiv 2405.04434).

Latent attention with a rotation in float32, dense first layers, shared experts, softmax scores, with `group_limited_greedy` of the best
groups only. `norm_topk_prob`, off in every published file, is followed as in DeepSeek's later code: divide by the sum, then scale.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import RENORMALIZE_EPS, deepseek_ffn, groups, routes
from moectl.arch.latent import latent_attention, latent_attention_tensors
from moectl.arch.parts import Norm, Router
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a DeepSeek-V2 checkpoint. Raises ModelError."""
    config.require_on("use_mla")
    hidden, n_layers = config.integer("hidden_size", default=4096), config.integer("num_hidden_layers", default=32)
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    attention = latent_attention(config, heads=32, max_positions=max_positions, float32_rope=True)
    bias = config.boolean("attention_bias", default=False)
    router = _router(config)
    layers = []
    for i, has_experts in enumerate(routes(config, n_layers, n_dense=0)):
        prefix = f"model.layers.{i}"
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=router if has_experts else None,
            dense_width=config.integer("intermediate_size", default=11008),
            expert_width=config.integer("moe_intermediate_size", default=1407),
            n_shared=config.integer("n_shared_experts", default=2, minimum=0),
            present=present,
            bias=config.boolean("mlp_bias", default=False),
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **latent_attention_tensors(f"{prefix}.self_attn", hidden, attention, bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=102400)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _router(config: Config) -> Router:
    config.choice("scoring_func", "softmax", default="softmax")
    # The misspelt name is the default of DeepSeek's own configuration class.
    method = config.choice("topk_method", "greedy", "gready", "group_limited_greedy", default="greedy")
    n_experts, n_group, topk_group = config.integer(config.first("n_routed_experts", "num_experts"), default=64), 1, 1
    if method == "group_limited_greedy":
        n_group, topk_group = groups(config, n_experts, n_group=config.integer("n_group"), topk_group=config.integer("topk_group"))
    return Router(
        n_experts=n_experts,
        top_k=config.integer("num_experts_per_tok"),
        score="softmax",
        logits_dtype="float32",
        weight_dtype="float32",
        renormalize=config.boolean("norm_topk_prob", default=False),
        renormalize_from=2,
        renormalize_eps=RENORMALIZE_EPS,
        scale=config.positive("routed_scaling_factor", default=1.0),
        n_group=n_group,
        topk_group=topk_group,
        group_score="max",
        group_fill=0.0,
    )
