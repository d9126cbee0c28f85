"""Configurations of DeepSeek's families and those that took over their keys: sizes, defaults, aliases and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import reference_bailing_v2  # noqa: F401, makes transformers know the family
import reference_deepseek  # noqa: F401, so does this
from published_configs import DEEPSEEK_MOE_16B, DEEPSEEK_V2
from transformers import AutoConfig

from moectl.arch import counts
from moectl.arch.active_experts import with_active_experts
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, LatentAttention, MoE
from moectl.arch.registry import build_spec
from moectl.arch.spec import ModelSpec
from moectl.errors import ModelError

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 20, "moe_intermediate_size": 12, "num_experts_per_tok": 2,
}  # fmt: skip
LATENT = {"q_lora_rank": 6, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4}
DEEPSEEK = {**SMALL, "model_type": "deepseek", "n_routed_experts": 8}
V2 = {**SMALL, **LATENT, "model_type": "deepseek_v2", "n_routed_experts": 8}
V2_GROUPS = {**V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
V3 = {**SMALL, **LATENT, "model_type": "deepseek_v3", "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
GLM = {**SMALL, "model_type": "glm4_moe", "n_routed_experts": 8, "head_dim": 8}
DOTS = {**SMALL, "model_type": "dots1", "n_routed_experts": 8, "n_shared_experts": 1}
ERNIE = {**{key: value for key, value in SMALL.items() if key != "num_experts_per_tok"}, "model_type": "ernie4_5_moe", "moe_num_experts": 8}
MINIMAX = {**SMALL, "model_type": "minimax_m2", "num_local_experts": 8, "head_dim": 8}
LING = {**SMALL, "model_type": "bailing_moe_v2", "num_experts": 8, "n_group": 2, "topk_group": 1, "head_dim": 8}
# Sizes of models on huggingface.co and the parameters, total and active, that their cards or papers state.
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    "DeepSeekMoE-16B": (DEEPSEEK_MOE_16B, 16.4e9, 2.8e9),
    "DeepSeek-V2-Lite": (
        {"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "num_hidden_layers": 27, "num_attention_heads": 16, "q_lora_rank": None, "n_routed_experts": 64, "num_experts_per_tok": 6,
         "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
        15.7e9, 2.4e9,
    ),
    "DeepSeek-V2": (DEEPSEEK_V2, 236e9, 21e9),
    "Kimi-K2": (
        {"model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        1.03e12, 32e9,
    ),
    "GLM-4.5-Air": ({"model_type": "glm4_moe", "head_dim": 128, "attention_bias": True, "num_nextn_predict_layers": 1}, 106e9, 12e9),
    "GLM-4.5": (
        {"model_type": "glm4_moe", "head_dim": 128, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "num_hidden_layers": 92, "n_routed_experts": 160, "first_k_dense_replace": 3, "attention_bias": True, "use_qk_norm": True},
        355e9, 32e9,
    ),
    "dots.llm1": (
        {"model_type": "dots1", "hidden_size": 4096, "n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6,
         "first_k_dense_replace": 1, "n_group": None, "topk_group": None, "scoring_func": "noaux_tc"},
        142e9, 14e9,
    ),
    "ERNIE-4.5-21B-A3B": ({"model_type": "ernie4_5_moe"}, 21.8e9, 3e9),
    "MiniMax-M2": ({"model_type": "minimax_m2", "rotary_dim": 64, "num_mtp_modules": 3}, 229e9, 10e9),
    "Ling-mini-2.0": (
        {"model_type": "bailing_moe", "architectures": ["BailingMoeV2ForCausalLM"], "partial_rotary_factor": 0.5, "rotary_dim": 64},
        16.3e9, 1.4e9,
    ),
    "Ling-flash-2.0": (
        {"model_type": "bailing_moe", "score_function": "sigmoid", "hidden_size": 4096, "intermediate_size": 9216,
         "moe_intermediate_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 32, "routed_scaling_factor": 2.5},
        103e9, 6.1e9,
    ),
}  # fmt: skip


def attention_of(spec: ModelSpec, layer: int = 0) -> GroupedQueryAttention:
    attention = spec.layers[layer].attention
    assert isinstance(attention, GroupedQueryAttention)
    return attention


def moe_of(spec: ModelSpec) -> MoE:
    ffn = spec.layers[-1].ffn
    assert isinstance(ffn, MoE)
    return ffn


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    """Cards count what is active with the embedding table or without it, and round."""
    config, total, active = PUBLISHED[name]
    spec = build_spec(config)
    parameters = counts.count_parameters(spec)
    assert parameters.total == pytest.approx(total, rel=1e-2)
    assert 0.88 * parameters.active < active < 1.02 * (parameters.active + (0 if spec.tied else parameters.embedding))
    parts = ("embedding", "head", "attention", "dense_ffn", "routed_experts", "shared_experts", "router", "norms")
    assert parameters.total == sum(getattr(parameters, part) for part in parts) == sum(ref.numel for ref in spec.refs())


@pytest.mark.parametrize(
    ("family", "required"),
    [
        ("deepseek", {"n_routed_experts": 64, "num_experts_per_tok": 6}),
        ("deepseek_v2", {"num_experts_per_tok": 6}),
        ("deepseek_v3", {}),
        ("glm4_moe", {"head_dim": 128}),
        ("dots1", {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}),
        ("ernie4_5_moe", {}),
        ("minimax_m2", {}),
        ("bailing_moe_v2", {}),
    ],
)
def test_absent_keys_mean_what_the_family_s_own_class_declares(family: str, required: dict[str, Any]) -> None:
    oracle, spec = AutoConfig.for_model(family, **required), build_spec({"model_type": family, **required})
    ours, first, last = moe_of(spec), spec.layers[0], spec.layers[-1]
    router = ours.router
    of = lambda *names: next(getattr(oracle, name) for name in names if hasattr(oracle, name))  # noqa: E731
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (oracle.vocab_size, oracle.hidden_size, oracle.num_hidden_layers)
    assert (spec.norm.eps, spec.tied, spec.max_positions) == (
        oracle.rms_norm_eps,
        oracle.tie_word_embeddings,
        oracle.max_position_embeddings,
    )
    assert router.n_experts == of("n_routed_experts", "moe_num_experts", "num_local_experts", "num_experts")
    assert router.top_k == of("num_experts_per_tok", "moe_k")
    assert ours.expert_width == (oracle.intermediate_size if family == "minimax_m2" else oracle.moe_intermediate_size)
    shared = getattr(oracle, "n_shared_experts", getattr(oracle, "moe_num_shared_experts", getattr(oracle, "num_shared_experts", 0)))
    assert ours.n_shared_experts == (shared or 0)
    assert router.scale == getattr(oracle, "routed_scaling_factor", 1.0)
    assert router.renormalize == getattr(oracle, "norm_topk_prob", True)
    assert (router.n_group, router.topk_group) == (getattr(oracle, "n_group", None) or 1, getattr(oracle, "topk_group", None) or 1)
    assert router.renormalize_floor == getattr(oracle, "moe_norm_min", 0.0)
    n_dense = getattr(oracle, "first_k_dense_replace", getattr(oracle, "moe_layer_start_index", 0))
    assert [isinstance(layer.ffn, DenseFFN) for layer in spec.layers] == [i < n_dense for i in range(len(spec.layers))]
    if isinstance(first.ffn, DenseFFN):
        assert first.ffn.width == oracle.intermediate_size
    attention = last.attention
    assert attention.n_heads == oracle.num_attention_heads
    assert attention.rope.theta == oracle.rope_parameters["rope_theta"]
    assert not any("bias" in slot.removeprefix("correction_bias") for slot in last.tensors)
    if isinstance(attention, LatentAttention):
        ranks = (attention.q_lora_rank, attention.kv_lora_rank, attention.nope_dim, attention.rope.dim, attention.value_dim)
        names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        assert ranks == tuple(getattr(oracle, name) for name in names)
    else:
        head_dim = getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads
        assert (attention.n_kv_heads, attention.head_dim, attention.window) == (oracle.num_key_value_heads, head_dim, None)
        assert attention.rope.dim == head_dim * oracle.rope_parameters.get("partial_rotary_factor", 1.0)
        assert (attention.qk_norm is not None) == getattr(oracle, "use_qk_norm", family in ("dots1", "minimax_m2"))


def test_null_is_not_absence_where_the_authors_tell_them_apart() -> None:
    assert moe_of(build_spec({**LING, "num_shared_experts": None})).n_shared_experts == 0
    assert moe_of(build_spec(LING)).n_shared_experts == 1
    assert moe_of(build_spec(DEEPSEEK)).n_shared_experts == 0
    assert build_spec({**DEEPSEEK, "n_routed_experts": None}).moe_layers == ()
    assert attention_of(build_spec({**DOTS, "max_window_layers": 1, "sliding_window": None}), 2).window is None


def test_dots_windows() -> None:
    windows = lambda **keys: [attention_of(build_spec({**DOTS, **keys}), i).window for i in range(3)]  # noqa: E731
    assert windows() == [None, None, None]
    assert windows(max_window_layers=1) == [None, 4096, 4096]
    assert windows(max_window_layers=0, sliding_window=7) == [7, 7, 7]
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert windows(max_window_layers=0, sliding_window=7, layer_types=kinds) == [None, 7, None]


@pytest.mark.parametrize(
    ("keys", "dim"),
    [
        ({}, 8),
        ({"rotary_dim": 4}, 4),
        ({"rotary_dim": 4, "partial_rotary_factor": 0.5}, 4),
        ({"partial_rotary_factor": 0.25}, 2),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5}, "rotary_dim": 4}, 4),
    ],
)
def test_how_much_of_a_head_rotates(keys: dict[str, Any], dim: int) -> None:
    for config in (MINIMAX, LING):
        assert attention_of(build_spec({**config, **keys})).rope.dim == dim


@pytest.mark.parametrize(
    ("keys", "routed"),
    [
        ({}, [1, 2]),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": 0}, [0]),
        ({"moe_layer_start_index": 2}, [2]),
        ({"moe_layer_start_index": 0, "moe_layer_interval": 2}, [1]),
        ({"moe_layer_end_index": None}, [1, 2]),
        ({"moe_layer_start_index": 2, "moe_layer_end_index": 1}, []),
    ],
)
def test_which_layers_of_ernie_have_experts(keys: dict[str, Any], routed: list[int]) -> None:
    assert [layer.index for layer in build_spec({**ERNIE, **keys}).moe_layers] == routed


def test_every_second_layer_of_deepseek_and_those_who_read_its_key() -> None:
    for config in (DEEPSEEK, V2, V3, DOTS, GLM, LING):
        spec = build_spec({**config, "first_k_dense_replace": 1, "moe_layer_freq": 2})
        assert [layer.index for layer in spec.moe_layers] == [2]


def test_groups_count_only_where_the_method_has_them() -> None:
    assert moe_of(build_spec({**V2, "n_group": 3, "topk_group": 9})).router.n_group == 1
    assert moe_of(build_spec({**V2, "topk_method": "gready"})).router.n_group == 1
    router = moe_of(build_spec(V2_GROUPS)).router
    assert (router.n_group, router.topk_group, router.group_score, router.group_fill) == (4, 2, "max", 0.0)


def test_one_expert_is_not_normalised_where_the_authors_make_that_exception() -> None:
    for config in ({**DEEPSEEK, "norm_topk_prob": True}, {**V2, "norm_topk_prob": True}, LING):
        spec = build_spec(config)
        assert moe_of(spec).router.renormalizes
        assert not moe_of(with_active_experts(spec, 1)).router.renormalizes
    for config in ({**V3, "norm_topk_prob": True}, {**GLM, "norm_topk_prob": True}, ERNIE, MINIMAX):
        assert moe_of(with_active_experts(build_spec(config), 1)).router.renormalizes


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (DEEPSEEK, {"scoring_func": "sigmoid"}, "`scoring_func` is `sigmoid`, which this version does not support"),
        (DEEPSEEK, {"num_experts_per_tok": None}, "`num_experts_per_tok` is missing"),
        (DEEPSEEK, {"rope_scaling": {"type": "yarn", "factor": 4}}, "`type` is `yarn`, which this version does not support"),
        (DEEPSEEK, {"moe_layer_freq": 0}, "`moe_layer_freq` is 0, not an integer of at least 1"),
        (V2, {"topk_method": "noaux_tc"}, "`topk_method` is `noaux_tc`, which this version does not support"),
        (V2, {"scoring_func": "sigmoid"}, "`scoring_func` is `sigmoid`, which this version does not support"),
        (V2, {"use_mla": False}, "`use_mla` is False, which this version does not support"),
        (V2, {"num_experts_per_tok": None}, "`num_experts_per_tok` is missing"),
        (V2, {"qk_rope_head_dim": 3}, "`qk_rope_head_dim` is 3, but must be even"),
        (V2_GROUPS, {"n_group": None}, "`n_group` is missing"),
        (V2_GROUPS, {"topk_group": None}, "`topk_group` is missing"),
        (V2_GROUPS, {"n_group": 3}, "`n_routed_experts` is 8, but must be a multiple of n_group = 3"),
        (V2_GROUPS, {"topk_group": 5}, "keeps 5 of 4 groups"),
        (V3, {"scoring_func": "softmax"}, "`scoring_func` is `softmax`, which this version does not support"),
        (V3, {"topk_method": "greedy"}, "`topk_method` is `greedy`, which this version does not support"),
        (GLM, {"partial_rotary_factor": 1.5}, "`partial_rotary_factor` is 1.5, but must be a share"),
        (GLM, {"head_dim": 6}, "`partial_rotary_factor` is 0.5, but must be a share"),
        (GLM, {"num_key_value_heads": 3}, "a multiple of num_key_value_heads = 3"),
        (GLM, {"num_nextn_predict_layers": -1}, "`num_nextn_predict_layers` is -1"),
        (GLM, {"use_qk_norm": "yes"}, "`use_qk_norm` is 'yes', not true or false"),
        (DOTS, {"n_routed_experts": None}, "`n_routed_experts` is missing"),
        (DOTS, {"n_shared_experts": None}, "`n_shared_experts` is missing"),
        (DOTS, {"layer_types": ["full_attention"] * 2}, "`layer_types` is a list of 2"),
        (DOTS, {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "`layer_types` is `chunked_attention`"),
        (DOTS, {"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "the configuration has no window"),
        (DOTS, {"n_group": 3}, "a multiple of n_group = 3"),
        (ERNIE, {"moe_num_experts": [64, 64]}, "`moe_num_experts` is [64, 64], not an integer"),
        (ERNIE, {"moe_gate_act": "sigmoid"}, "`moe_gate_act` is `sigmoid`, which this version does not support"),
        (ERNIE, {"moe_norm_min": 0}, "`moe_norm_min` is 0.0, not a number above zero"),
        (ERNIE, {"moe_layer_end_index": -2}, "`moe_layer_end_index` is -2"),
        (ERNIE, {"moe_k": 9}, "selects 9 of 8 experts"),
        (ERNIE, {"use_bias": 1}, "`use_bias` is 1, not true or false"),
        (MINIMAX, {"scoring_func": "softmax"}, "`scoring_func` is `softmax`, which this version does not support"),
        (MINIMAX, {"use_qk_norm": False}, "`use_qk_norm` is False, which this version does not support"),
        (MINIMAX, {"qk_norm_type": "per_head"}, "`qk_norm_type` is `per_head`, which this version does not support"),
        (MINIMAX, {"use_routing_bias": False}, "`use_routing_bias` is False, which this version does not support"),
        (MINIMAX, {"shared_intermediate_size": 64}, "`shared_intermediate_size` is 64, which this version does not support"),
        (MINIMAX, {"attn_type_list": [1, 0, 1]}, "`attn_type_list` is not all 1"),
        (MINIMAX, {"rotary_dim": 10}, "`rotary_dim` is 10, but must be even and at most head_dim = 8"),
        (MINIMAX, {"rotary_dim": 3}, "`rotary_dim` is 3, but must be even"),
        (MINIMAX, {"rotary_dim": 4, "partial_rotary_factor": 0.25}, "`rotary_dim` is 4, but must be the 2 values"),
        (LING, {"score_function": "softmax"}, "`score_function` is `softmax`, which this version does not support"),
        (LING, {"router_dtype": "bf16"}, "`router_dtype` is `bf16`, which this version does not support"),
        (LING, {"norm_head": True}, "`norm_head` is True, which this version does not support"),
        (LING, {"use_sliding_window": True}, "`use_sliding_window` is True, which this version does not support"),
        (LING, {"n_group": 3}, "`num_experts` is 8, but must be a multiple of n_group = 3"),
        (LING, {"n_group": 8, "topk_group": 4}, "a group has 1"),
    ],
)
def test_damaged_or_unknown_settings_are_named(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    build_spec(config)
    with pytest.raises(ModelError) as caught:
        build_spec({**config, **change})
    assert message in caught.value.message
    assert caught.value.hint


def test_ling_may_do_without_a_correction_bias() -> None:
    tensors = build_spec({**LING, "moe_router_enable_expert_bias": False}).layers[-1].tensors
    assert "correction_bias" not in tensors
    assert build_spec(LING).layers[-1].tensors["correction_bias"].name == "model.layers.2.mlp.gate.expert_bias"
