"""granitemoe and granitemoeshared: PowerMoE-3B and Granite 3 A400M/A800M (arXiv 2408.13359), the latter kind with a shared expert.

Four multipliers: of embeddings, of attention scores (in place of 1 / sqrt(head_dim)), of what a block adds, and a divisor of logits.
Experts lie stacked in one tensor on disk; weights are a softmax over the selected.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, Router
from moectl.arch.rope import parse_rope, whole_head
from moectl.arch.spec import Embedding, Head, Layer, ModelSpec
from moectl.arch.tensors import ExpertTensors


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a GraniteMoE checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=4096), config.integer("intermediate_size", default=11008)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden)
    max_positions = config.integer("max_position_embeddings", default=2048)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    bias = config.boolean("attention_bias", default=False)
    attention = GroupedQueryAttention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        scale=config.positive("attention_multiplier", default=1.0),
        rope=parse_rope(config, dim=whole_head(config, head_dim), default_theta=10_000.0, max_positions=max_positions),
    )
    router = Router(
        n_experts=config.integer(config.first("num_local_experts", "num_experts"), default=8),
        top_k=config.integer("num_experts_per_tok", default=2),
        score="softmax_of_selected",
        logits_dtype="model",
        weight_dtype="model",
        renormalize=False,
    )
    has_shared = config.string("model_type") == "granitemoeshared"
    shared_width = config.integer("shared_intermediate_size", default=0, minimum=0) if has_shared else 0
    act = blocks.activation(config)
    layers = []
    for i in range(config.integer("num_hidden_layers", default=32)):
        prefix = f"model.layers.{i}"
        experts, router_name = _routed(f"{prefix}.block_sparse_moe", router.n_experts, hidden, width, present)
        ffn = MoE(
            router=router,
            expert_width=width,
            act=act,
            experts=experts,
            shared_width=shared_width,
            n_shared_experts=int(shared_width > 0),
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **blocks.linear("router", router_name, router.n_experts, hidden),
        }
        if shared_width:
            shared = f"{prefix}.shared_mlp"
            tensors |= blocks.fused_linear(f"{shared}.input_linear", hidden, {"shared_gate": shared_width, "shared_up": shared_width})
            tensors |= blocks.linear("shared_down", f"{shared}.output_linear", hidden, shared_width)
        residual_scale = config.positive("residual_multiplier", default=1.0)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors, residual_scale=residual_scale))
    return blocks.decoder(
        config,
        vocab=config.integer("vocab_size", default=32000),
        hidden=hidden,
        layers=layers,
        norm=norm,
        max_positions=max_positions,
        embedding=Embedding(scale=config.positive("embedding_multiplier", default=1.0)),
        head=Head(divisor=config.positive("logits_scaling", default=1.0)),
    )


def _routed(prefix: str, n_experts: int, hidden: int, width: int, present: Collection[str]) -> tuple[ExpertTensors, str]:
    """Experts and the router's name, as on the Hub or as newer transformers has them in memory: stacked in both."""
    in_memory = f"{prefix}.experts.gate_up_proj" in present
    gate_up, down = ("experts.gate_up_proj", "experts.down_proj") if in_memory else ("input_linear.weight", "output_linear.weight")
    experts = blocks.stacked_experts(f"{prefix}.{gate_up}", f"{prefix}.{down}", n_experts=n_experts, hidden=hidden, width=width)
    return experts, f"{prefix}.router" if in_memory else f"{prefix}.router.layer"
