"""deepseek: DeepSeekMoE-16B (arXiv 2401.06066). A llama whose layers have fine-grained experts beside shared ones, the first layers dense.

transformers does not know this family; names, rules and defaults are those of the code that DeepSeek publishes beside the weights. Its
router stays in the model's dtype throughout. Without `n_routed_experts` every layer is dense.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import RENORMALIZE_EPS, deepseek_ffn, routes
from moectl.arch.parts import GroupedQueryAttention, Norm, Router
from moectl.arch.rope import parse_rope, rope_kind, rope_settings, whole_head
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a DeepSeekMoE checkpoint. Raises ModelError."""
    hidden, n_layers = config.integer("hidden_size", default=4096), config.integer("num_hidden_layers", default=30)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden)
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=parse_rope(
            config,
            dim=whole_head(config, head_dim),
            default_theta=10_000.0,
            max_positions=max_positions,
            kind=rope_kind(rope_settings(config), allowed=("default", "linear", "dynamic")),
        ),
    )
    router = _router(config) if config.has("n_routed_experts") else None
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
            n_shared=config.integer("n_shared_experts", default=0, minimum=0),
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **ffn_tensors,
        }
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=102400)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _router(config: Config) -> Router:
    config.choice("scoring_func", "softmax", default="softmax")
    return Router(
        n_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        score="softmax",
        logits_dtype="model",
        score_dtype="model",
        weight_dtype="model",
        renormalize=config.boolean("norm_topk_prob", default=False),
        renormalize_from=2,
        renormalize_eps=RENORMALIZE_EPS,
    )
