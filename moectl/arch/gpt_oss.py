"""gpt_oss: gpt-oss-20b and 120b (arXiv 2508.10925), with experts in MXFP4, as published, or in bf16.

Attention sinks, alternating windows, a clamped SwiGLU, biases everywhere, the experts' included; weights are a softmax over the selected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import Activation, GroupedQueryAttention, MoE, Norm, Rope, Router
from moectl.arch.rope import parse_rope, rope_settings, whole_head
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import EVERY_EXPERT, ExpertTensors, TensorRef

# What a configuration without rotary settings means.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_GROUP = 32
_SLIDING, _FULL = "sliding_attention", "full_attention"


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a gpt-oss checkpoint. Raises ModelError."""
    hidden, width = config.integer("hidden_size", default=2880), config.integer("intermediate_size", default=2880)
    n_heads, n_kv_heads, head_dim = blocks.grouped_query_attention_sizes(config, hidden=hidden, heads=64, kv_heads=8, head_dim=64)
    max_positions = config.integer("max_position_embeddings", default=131072)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-5), kind="rms_float32")
    bias = config.boolean("attention_bias", default=True)
    rope = _rope(config, head_dim, max_positions)
    n_layers = config.integer("num_hidden_layers", default=36)
    alternating = [_FULL if i % 2 else _SLIDING for i in range(n_layers)]
    types = blocks.layer_types(config, n_layers, kinds=(_SLIDING, _FULL), default=alternating)
    window = config.optional_integer("sliding_window", default=128)
    if _SLIDING in types and window is None:
        raise config.mismatch("sliding_window", "null", f"a number, as some layers have `{_SLIDING}`")
    router = Router(
        n_experts=config.integer(config.first("num_local_experts", "num_experts"), default=128),
        top_k=config.integer(config.first("num_experts_per_tok", "experts_per_token"), default=4),
        score="softmax_of_selected",
        logits_dtype="model",
        score_dtype="model",
        weight_dtype="model",
        renormalize=False,
        bias=True,
    )
    config.choice("hidden_act", "silu", default="silu")
    act = Activation(
        name="clamped_swiglu",
        alpha=config.positive("swiglu_alpha", default=1.702),
        limit=config.positive("swiglu_limit", default=7.0),
    )
    layers = []
    for i, kind in enumerate(types):
        prefix = f"model.layers.{i}"
        attention = GroupedQueryAttention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=rope,
            window=window if kind == _SLIDING else None,
            sinks=True,
            softmax_dtype="model",
        )
        experts = _experts(config, f"{prefix}.mlp.experts", router.n_experts, hidden, width, present)
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **blocks.attention_tensors(f"{prefix}.self_attn", hidden, attention, qkv_bias=bias, o_bias=bias),
            **blocks.linear("router", f"{prefix}.mlp.router", router.n_experts, hidden, bias=True),
        }
        ffn = MoE(router=router, expert_width=width, act=act, experts=experts)
        layers.append(Layer(index=i, attention=attention, ffn=ffn, norm=norm, tensors=tensors))
    vocab = config.integer("vocab_size", default=201088)
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, norm=norm, max_positions=max_positions)


def _experts(config: Config, prefix: str, n_experts: int, hidden: int, width: int, present: Collection[str]) -> ExpertTensors:
    """Rows of gate and up in turns. In bf16 matrices lie transposed; in MXFP4, which goes by the name of its codes, as they multiply."""
    experts = blocks.transposed_expert_tensors(prefix, n_experts=n_experts, hidden=hidden, width=width, interleaved=True, bias=True)
    gate_up, down = f"{prefix}.gate_up_proj_blocks", f"{prefix}.down_proj_blocks"
    if gate_up not in present:
        return experts
    for key, size in (("hidden_size", hidden), ("intermediate_size", width)):
        if size % _GROUP:
            raise config.mismatch(key, size, f"a multiple of {_GROUP}, the size of MXFP4's groups")
    shape = (n_experts, 2 * width, hidden)
    return replace(
        experts,
        gate=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(0, 2 * width), row_step=2),
        up=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(1, 2 * width), row_step=2),
        down=TensorRef(name=down, shape=(n_experts, hidden, width), index=EVERY_EXPERT),
    )


def _rope(config: Config, head_dim: int, max_positions: int) -> Rope:
    settings = rope_settings(config)
    if not settings.values and not config.has("rope_parameters"):
        settings = Config(_YARN, where=settings.where)
    return parse_rope(config, dim=whole_head(config, head_dim), default_theta=150_000.0, max_positions=max_positions, settings=settings)
