"""Configurations of gpt-oss, Llama 4 and Phi-MoE: published sizes, defaults, and what contradicts itself or is not supported."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from moectl.arch import counts
from moectl.arch.parts import Activation, DenseFFN, GroupedQueryAttention, MoE, Temperature
from moectl.arch.registry import build_spec
from moectl.arch.spec import Layer, ModelSpec
from moectl.errors import ModelError

# openai/gpt-oss-120b, meta-llama/Llama-4-Scout-17B-16E (its text_config), microsoft/Phi-3.5-MoE-instruct.
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128, "num_experts_per_tok": 4,
    "experts_per_token": 4, "attention_bias": True, "sliding_window": 128, "swiglu_limit": 7.0, "initial_context_length": 4096,
    "layer_types": ["sliding_attention", "full_attention"] * 18, "max_position_embeddings": 131072, "rope_theta": 150000,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                     "original_max_position_embeddings": 4096},
}  # fmt: skip
SCOUT: dict[str, Any] = {
    "model_type": "llama4_text", "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16,
    "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "no_rope_layers": [], "attention_chunk_size": 8192, "use_qk_norm": True,
    "attn_temperature_tuning": 4, "floor_scale": 8192, "attn_scale": 0.1, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 10485760,
    "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
PHIMOE: dict[str, Any] = {
    "model_type": "phimoe", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2, "attention_bias": True,
    "lm_head_bias": True, "router_jitter_noise": 0.01, "input_jitter_noise": 0.01, "sliding_window": 131072, "rope_theta": 10000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "short_mscale": 1.25,
                     "long_mscale": 1.5, "original_max_position_embeddings": 4096},
}  # fmt: skip


def attention_of(layer: Layer) -> GroupedQueryAttention:
    assert isinstance(layer.attention, GroupedQueryAttention)
    return layer.attention


def moe_of(spec: ModelSpec) -> MoE:
    ffn = spec.moe_layers[0].ffn
    assert isinstance(ffn, MoE)
    return ffn


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (GPT_OSS, 116.83e9, 5.13e9),
        ({**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32, "layer_types": None}, 20.91e9, 3.61e9),
        (SCOUT, 107.8e9, 16.1e9),
        ({**SCOUT, "num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False}, 400.7e9, 16.2e9),
        (PHIMOE, 41.87e9, 6.51e9),
    ],
    ids=["gpt-oss-120b", "gpt-oss-20b", "Scout", "Maverick", "Phi-3.5-MoE"],
)
def test_published_totals(config: dict[str, Any], total: float, active: float) -> None:
    """gpt-oss 116.8 B / 5.1 B and 20.9 B / 3.6 B (arXiv 2508.10925, table 1); Llama 4 109 B / 17 B and 400 B / 17 B with the vision
    tower; Phi-3.5-MoE 41.9 B / 6.6 B. Our active count leaves out the embedding table."""
    parameters = counts.count_parameters(build_spec(config))
    assert parameters.total == pytest.approx(total, rel=1e-3)
    assert parameters.active == pytest.approx(active, rel=5e-3)


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "phimoe"])
def test_a_bare_model_type_is_the_configuration_class_of_the_oracle(family: str) -> None:
    oracle, spec = AutoConfig.for_model(family), build_spec({"model_type": family})
    moe, router, attention = moe_of(spec), moe_of(spec).router, attention_of(spec.layers[0])
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (oracle.vocab_size, oracle.hidden_size, oracle.num_hidden_layers)
    assert (spec.max_positions, spec.norm.eps, spec.tied) == (
        oracle.max_position_embeddings,
        oracle.rms_norm_eps,
        oracle.tie_word_embeddings,
    )
    assert (attention.n_heads, attention.n_kv_heads) == (oracle.num_attention_heads, oracle.num_key_value_heads)
    assert attention.head_dim == getattr(oracle, "head_dim", oracle.hidden_size // oracle.num_attention_heads)
    assert attention.rope is not None
    assert attention.rope.theta == oracle.rope_parameters["rope_theta"]
    assert attention.rope.kind == oracle.rope_parameters["rope_type"]
    assert ("q_bias" in spec.layers[0].tensors, "o_bias" in spec.layers[0].tensors) == (oracle.attention_bias, oracle.attention_bias)
    assert (router.n_experts, router.top_k, moe.expert_width) == (
        oracle.num_local_experts,
        oracle.num_experts_per_tok,
        oracle.intermediate_size,
    )


def test_gpt_oss_defaults() -> None:
    oracle, spec = AutoConfig.for_model("gpt_oss"), build_spec({"model_type": "gpt_oss"})
    assert moe_of(spec).act == Activation(name="clamped_swiglu", alpha=oracle.swiglu_alpha, limit=oracle.swiglu_limit)
    windows = [attention_of(layer).window for layer in spec.layers]
    assert windows == [oracle.sliding_window if kind == "sliding_attention" else None for kind in oracle.layer_types]
    published = build_spec(GPT_OSS)
    assert spec.layers == published.layers
    rope = attention_of(spec.layers[1]).rope
    assert rope is not None
    assert rope.attention_factor == pytest.approx(1.34657, abs=1e-5)
    # Settings without a type are no yarn, and neither is an explicit default.
    for settings in ({"rope_type": "default"}, {"rope_theta": 5e5}):
        rope = attention_of(build_spec({"model_type": "gpt_oss", "rope_parameters": settings}).layers[0]).rope
        assert rope is not None
        assert rope.kind == "default"


def test_llama4_layers() -> None:
    oracle, spec = AutoConfig.for_model("llama4_text"), build_spec({"model_type": "llama4_text"})
    rotates = [attention_of(layer).rope is not None for layer in spec.layers]
    assert rotates == [bool(flag) for flag in oracle.no_rope_layers]
    assert [attention_of(layer).chunk for layer in spec.layers] == [oracle.attention_chunk_size if yes else None for yes in rotates]
    assert [attention_of(layer).qk_norm is not None for layer in spec.layers] == rotates
    temperature = Temperature(scale=oracle.attn_scale, floor_scale=oracle.floor_scale)
    assert [attention_of(layer).temperature for layer in spec.layers] == [None if yes else temperature for yes in rotates]
    assert [layer.index for layer in spec.moe_layers] == oracle.moe_layers
    assert (moe_of(spec).shared_width, moe_of(spec).n_shared_experts) == (oracle.intermediate_size, 1)
    maverick = build_spec({**SCOUT, "interleave_moe_layer_step": 2, "attn_temperature_tuning": 0})
    assert [layer.index for layer in maverick.moe_layers] == list(range(1, 48, 2))
    dense = maverick.layers[0].ffn
    assert isinstance(dense, DenseFFN)
    assert dense.width == oracle.intermediate_size_mlp
    assert {attention_of(layer).temperature for layer in maverick.layers} == {None}
    assert build_spec({**SCOUT, "moe_layers": []}).moe_layers == ()


def test_phimoe_defaults() -> None:
    oracle, spec = AutoConfig.for_model("phimoe"), build_spec({"model_type": "phimoe"})
    assert moe_of(spec).router.jitter == oracle.router_jitter_noise
    assert attention_of(spec.layers[0]).window == oracle.sliding_window
    assert ("head_bias" in spec.tensors) == oracle.lm_head_bias
    rope = attention_of(build_spec(PHIMOE).layers[0]).rope
    assert rope is not None
    assert (rope.attention_factor, rope.long_attention_factor, rope.original_max_positions) == (1.25, 1.5, 4096)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (GPT_OSS, {"sliding_window": None}, "`sliding_window` is null, but must be a number"),
        (GPT_OSS, {"layer_types": ["full_attention"]}, "`layer_types` is a list of 1, but must be one of num_hidden_layers = 36"),
        (GPT_OSS, {"layer_types": ["chunked_attention"] * 36}, "`layer_types` is `chunked_attention` for a layer, but must be one of"),
        (GPT_OSS, {"layer_types": "sliding"}, "`layer_types` is 'sliding', not a list of strings"),
        (GPT_OSS, {"swiglu_limit": 0.0}, "`swiglu_limit` is 0.0, not a number above zero"),
        (GPT_OSS, {"swiglu_alpha": "1.7"}, "`swiglu_alpha` is '1.7', not a number"),
        (GPT_OSS, {"hidden_act": "gelu"}, "`hidden_act` is `gelu`, which this version does not support"),
        (GPT_OSS, {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is less than 1, but must be absent or 1"),
        (GPT_OSS, {"num_experts_per_tok": 129}, "selects 129 of 128 experts"),
        (SCOUT, {"attention_chunk_size": None}, "`attention_chunk_size` is null, but must be a number"),
        (SCOUT, {"no_rope_layers": [1, 0]}, "`no_rope_layers` is a list of 2, but must be one of num_hidden_layers = 48"),
        (SCOUT, {"no_rope_layers": 4}, "`no_rope_layers` is 4, not a list of integers"),
        (SCOUT, {"moe_layers": [True]}, "`moe_layers` is [True], not a list of integers"),
        (SCOUT, {"layer_types": ["sliding_attention"] * 48}, "`layer_types` is `sliding_attention` for a layer"),
        (SCOUT, {"attn_temperature_tuning": "yes"}, "`attn_temperature_tuning` is 'yes', not true or false"),
        (SCOUT, {"floor_scale": 0}, "`floor_scale` is 0.0, not a number above zero"),
        (SCOUT, {"interleave_moe_layer_step": 0}, "`interleave_moe_layer_step` is 0, not an integer of at least 1"),
        (PHIMOE, {"num_experts_per_tok": 3}, "`num_experts_per_tok` is 3, but must be 2"),
        (PHIMOE, {"rope_scaling": {**PHIMOE["rope_scaling"], "long_mscale": None}}, "`long_mscale` is missing"),
        (PHIMOE, {"rope_scaling": {**PHIMOE["rope_scaling"], "short_factor": [1.0]}}, "`short_factor` is 1 numbers, but must be 64"),
        (PHIMOE, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "`type` is `linear`, which this version does not support"),
        (PHIMOE, {"router_jitter_noise": -0.1}, "`router_jitter_noise` is -0.1, but must be at least 0"),
        (PHIMOE, {"lm_head_bias": 1}, "`lm_head_bias` is 1, not true or false"),
    ],
)
def test_damaged_configurations_are_named(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_spec({**config, **change})
    assert message in caught.value.message
    assert caught.value.hint
