"""Configurations of mixtral, Qwen's MoE families, olmoe, granitemoe, hunyuan and Ling V1: defaults, aliases and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import reference_bailing  # noqa: F401, makes transformers know the family
from published_configs import OLMOE_1B_7B
from transformers import AutoConfig

from moectl.arch import counts
from moectl.arch.active_experts import with_active_experts
from moectl.arch.parts import GroupedQueryAttention, MoE, Norm, QKNorm
from moectl.arch.registry import build_spec
from moectl.arch.spec import ModelSpec
from moectl.errors import ModelError, UsageError

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 20, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN2_MOE = {**SMALL, "model_type": "qwen2_moe", "num_experts": 5, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 16}
OLMOE = {**SMALL, "model_type": "olmoe", "num_experts": 5}
GRANITE = {**SMALL, "model_type": "granitemoeshared", "num_local_experts": 5, "shared_intermediate_size": 16}
HUNYUAN = {**SMALL, "model_type": "hunyuan_v1_moe", "num_experts": 5}
LING = {**SMALL, "model_type": "bailing_moe", "num_experts": 5, "moe_intermediate_size": 12}
# Sizes of models on huggingface.co, and the parameters their cards state, total and active: Qwen/Qwen1.5-MoE-A2.7B,
# allenai/OLMoE-1B-7B-0924, ibm-granite/granite-3.1-3b-a800m-base, tencent/Hunyuan-A13B-Instruct, inclusionAI/Ling-lite.
PUBLISHED: dict[str, tuple[dict[str, Any], float, float]] = {
    "Qwen1.5-MoE-A2.7B": ({"model_type": "qwen2_moe"}, 14.3e9, 2.7e9),
    "OLMoE-1B-7B": (OLMOE_1B_7B, 6.92e9, 1.28e9),
    "Granite-3.1-3B-A800M": (
        {"model_type": "granitemoe", "vocab_size": 49155, "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
         "num_attention_heads": 24, "num_key_value_heads": 8, "num_local_experts": 40, "num_experts_per_tok": 8,
         "tie_word_embeddings": True},
        3.3e9, 0.88e9,
    ),
    "Hunyuan-A13B": (
        {"model_type": "hunyuan_v1_moe", "vocab_size": 128167, "hidden_size": 4096, "intermediate_size": 3072, "num_hidden_layers": 32,
         "moe_intermediate_size": [3072] * 32, "num_attention_heads": 32, "num_key_value_heads": 8, "attention_head_dim": 128,
         "num_experts": 64, "moe_topk": [8] * 32, "num_shared_expert": [1] * 32, "use_mixed_mlp_moe": True, "use_qk_norm": True,
         "tie_word_embeddings": True, "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}},
        80.4e9, 13e9,
    ),
    "Ling-lite": (
        {"model_type": "bailing_moe", "vocab_size": 126464, "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
         "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 64,
         "num_experts_per_tok": 6, "num_shared_experts": 2, "norm_topk_prob": True, "norm_head": True, "use_bias": False},
        16.8e9, 2.75e9,
    ),
}  # fmt: skip


def attention_of(spec: ModelSpec, layer: int = 0) -> GroupedQueryAttention:
    attention = spec.layers[layer].attention
    assert isinstance(attention, GroupedQueryAttention)
    return attention


def moe_of(spec: ModelSpec, layer: int = 0) -> MoE:
    ffn = spec.layers[layer].ffn
    assert isinstance(ffn, MoE)
    return ffn


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    """What the model cards say: 14.3 B / 2.7 B, 6.9 B / 1.3 B, 3.3 B / 800 M, 80 B / 13 B, 16.8 B / 2.75 B, embedding tables included."""
    config, total, active = PUBLISHED[name]
    spec = build_spec(config)
    parameters = counts.count_parameters(spec)
    assert parameters.total == pytest.approx(total, rel=5e-3)
    assert parameters.active + (0 if spec.tied else parameters.embedding) == pytest.approx(active, rel=3e-2)
    parts = ("embedding", "head", "attention", "dense_ffn", "routed_experts", "shared_experts", "router", "norms")
    assert parameters.total == sum(getattr(parameters, part) for part in parts)


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "granitemoeshared", "hunyuan_v1_moe", "bailing_moe"]
)
def test_absent_keys_are_the_defaults_of_the_configuration_class(family: str) -> None:
    # Ling's class leaves these two without a usable value.
    given = {"num_key_value_heads": 4, "moe_intermediate_size": 96} if family == "bailing_moe" else {}
    theirs, spec = AutoConfig.for_model(family, **given), build_spec({"model_type": family, **given})
    attention, moe = attention_of(spec), moe_of(spec)
    router = moe.router
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers)
    assert (spec.norm, spec.tied, spec.max_positions) == (
        Norm(eps=theirs.rms_norm_eps),
        theirs.tie_word_embeddings,
        theirs.max_position_embeddings,
    )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
        head_dim,
    )
    assert attention.scale == getattr(theirs, "attention_multiplier", head_dim**-0.5)
    assert (attention.rope.theta, attention.rope.kind, attention.window) == (theirs.rope_parameters["rope_theta"], "default", None)
    assert attention.clip == getattr(theirs, "clip_qkv", None)
    assert router.n_experts == getattr(theirs, "num_experts", None) or theirs.num_local_experts
    assert router.top_k == theirs.num_experts_per_tok
    # Two families always divide by the sum, two have a softmax over the selected.
    assert router.renormalize == getattr(theirs, "norm_topk_prob", family in ("mixtral", "hunyuan_v1_moe"))
    assert moe.expert_width == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
    shared = {"qwen2_moe": 5632, "hunyuan_v1_moe": theirs.intermediate_size}
    assert moe.shared_width == shared.get(family, 0)
    biases = {slot for slot in spec.layers[0].tensors if slot.endswith("_bias")}
    assert biases == {"qwen2_moe": {"q_bias", "k_bias", "v_bias"}, "bailing_moe": {"o_bias"}}.get(family, set())
    assert (spec.embedding.scale, spec.head.divisor, spec.head.unit_columns, spec.layers[0].residual_scale) == (1.0, 1.0, False, 1.0)


def test_windows_of_qwen2_moe() -> None:
    keys = {**QWEN2_MOE, "num_hidden_layers": 6, "use_sliding_window": True, "max_window_layers": 4}

    def windows(**changes: Any) -> list[int | None]:
        return [attention_of(build_spec({**keys, **changes}), i).window for i in range(6)]

    assert windows() == [4096, None, 4096, None, None, None]
    assert windows(sliding_window=7, max_window_layers=28) == [7, None, 7, None, 7, None]
    assert windows(use_sliding_window=False, sliding_window=0) == [None] * 6
    types = ["full_attention"] * 5 + ["sliding_attention"]
    assert windows(layer_types=types, sliding_window=7) == [None] * 5 + [7]
    assert windows(layer_types=types, sliding_window=None) == [None] * 6


def test_lists_of_hunyuan_hold_layer_by_layer() -> None:
    lists = {"num_experts": [5, 4], "moe_topk": [1, 3], "moe_intermediate_size": [12, 8], "num_shared_expert": [2, 1]}
    spec = build_spec({**HUNYUAN, **lists})
    shapes = {ref.name: ref.shape for ref in spec.refs()}
    for i, layer in enumerate(spec.moe_layers):
        moe = moe_of(spec, i)
        assert (moe.router.n_experts, moe.router.top_k) == (lists["num_experts"][i], lists["moe_topk"][i])
        assert (moe.expert_width, moe.shared_width) == (lists["moe_intermediate_size"][i], 20 * lists["num_shared_expert"][i])
        assert layer.tensors["router"].shape == (lists["num_experts"][i], 24)
        assert shapes[f"model.layers.{i}.mlp.shared_mlp.down_proj.weight"] == (24, moe.shared_width)
    plain = build_spec({**HUNYUAN, "use_mixed_mlp_moe": False, "use_qk_norm": False})
    assert (moe_of(plain).shared_width, attention_of(plain).qk_norm) == (0, None)
    assert not [slot for slot in plain.layers[0].tensors if slot.startswith("shared_") or slot == "q_norm"]


def test_rope_of_hunyuan() -> None:
    def rope(**settings: Any) -> Any:
        return attention_of(build_spec({**HUNYUAN, "head_dim": 8, "rope_theta": 100.0, "rope_scaling": settings})).rope

    assert (rope(type="dynamic", alpha=16.0, factor=1.0).kind, rope(type="dynamic", alpha=16.0).theta) == (
        "default",
        100.0 * 16.0 ** (8 / 6),
    )
    assert (rope(type="dynamic", alpha=None, factor=3.0).kind, rope(type="dynamic", factor=3.0).theta) == ("dynamic", 100.0)
    assert (rope(type="linear", alpha=16.0, factor=3.0).kind, rope(type="linear", factor=3.0).theta) == ("linear", 100.0)


def test_rope_of_ling() -> None:
    def rope(**settings: Any) -> Any:
        return attention_of(build_spec({**LING, "head_dim": 32, "rope_scaling": {"type": "yarn", "factor": 4.0, **settings}})).rope

    assert rope().attention_factor == pytest.approx(1.1386294)
    assert rope(mscale=0.5).attention_factor == pytest.approx(1.0693147)
    assert rope(mscale=0.5, mscale_all_dim=0.5).attention_factor == 1.0
    assert rope() == rope(original_max_position_embeddings=4096)
    assert rope(original_max_position_embeddings=16384) != rope()


def test_qk_norms() -> None:
    norm = Norm(eps=1e-5)
    spec = build_spec({**OLMOE, "clip_qkv": 8.0})
    assert (attention_of(spec).qk_norm, attention_of(spec).clip) == (QKNorm(norm=norm, over="all_heads"), 8.0)
    assert [spec.layers[0].tensors[slot].shape for slot in ("q_norm", "k_norm")] == [(24,), (12,)]
    assert attention_of(build_spec(HUNYUAN)).qk_norm == QKNorm(norm=norm, after_rope=True)


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        (QWEN2_MOE, "top-2 of 5 by softmax(x W); weights softmax(x W)"),
        ({**OLMOE, "norm_topk_prob": True}, "top-2 of 5 by softmax(x W); weights softmax(x W), normalised over the selected"),
        (GRANITE, "top-2 of 5 by x W; weights softmax over the selected"),
        ({**HUNYUAN, "moe_topk": 1}, "top-1 of 5 by softmax(x W); weights softmax(x W), normalised over the selected"),
        (LING, "top-2 of 5 by softmax(x W); weights softmax(x W), normalised over the selected"),
        ({**LING, "num_experts_per_tok": 1}, "top-1 of 5 by softmax(x W); weights softmax(x W)"),
    ],
)
def test_rules_in_words(config: dict[str, Any], formula: str) -> None:
    assert moe_of(build_spec(config)).router.formula() == formula


def test_another_number_of_active_experts() -> None:
    """What the family makes of it: Ling divides by the sum only where there are two, Hunyuan always; lists become one number."""
    for config, renormalizes in ((LING, False), (HUNYUAN, True), ({**QWEN2_MOE, "norm_topk_prob": True}, True)):
        one = moe_of(with_active_experts(build_spec(config), 1)).router
        assert (one.top_k, one.renormalizes) == (1, renormalizes)
    lists = build_spec({**HUNYUAN, "num_experts": [5, 3], "moe_topk": [1, 3]})
    assert [layer.ffn.router.top_k for layer in with_active_experts(lists, 2).layers] == [2, 2]
    with pytest.raises(UsageError, match="`4` active experts are too many for layer 1: it has 3"):
        with_active_experts(lists, 4)
    granite = build_spec(GRANITE)
    assert moe_of(with_active_experts(granite, 5)).router == replace(moe_of(granite).router, top_k=5)


def test_granite_shares_only_where_it_says_so() -> None:
    names = {ref.name for ref in build_spec(GRANITE).refs()}
    assert "model.layers.1.shared_mlp.input_linear.weight" in names
    for config in ({**GRANITE, "shared_intermediate_size": 0}, {**GRANITE, "model_type": "granitemoe"}):
        assert moe_of(build_spec(config)).shared_width == 0
        assert not [ref.name for ref in build_spec(config).refs() if "shared" in ref.name]


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (QWEN2_MOE, {"layer_types": ["full_attention"]}, "`layer_types` is a list of 1, but must be one of num_hidden_layers = 2"),
        (QWEN2_MOE, {"layer_types": ["full_attention", "chunked_attention"]}, "`layer_types` is `chunked_attention` for a layer"),
        (QWEN2_MOE, {"layer_types": ["full_attention", "sliding_attention"]}, "`use_sliding_window` is false, but must be true"),
        (QWEN2_MOE, {"use_sliding_window": True, "sliding_window": 0}, "`sliding_window` is 0, not an integer of at least 1"),
        (QWEN2_MOE, {"mlp_only_layers": "1"}, "`mlp_only_layers` is '1', not a list of integers"),
        (QWEN2_MOE, {"decoder_sparse_step": 0}, "`decoder_sparse_step` is 0, not an integer of at least 1"),
        (QWEN2_MOE, {"num_experts_per_tok": 6}, "the router of layer 0 selects 6 of 5 experts"),
        ({**QWEN2_MOE, "head_dim": 8}, {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is less than 1"),
        (OLMOE, {"clip_qkv": -1.0}, "`clip_qkv` is -1.0, not a number above zero"),
        (OLMOE, {"norm_topk_prob": 1}, "`norm_topk_prob` is 1, not true or false"),
        (GRANITE, {"residual_multiplier": "0.22"}, "`residual_multiplier` is '0.22', not a number"),
        (GRANITE, {"logits_scaling": 0}, "`logits_scaling` is 0.0, not a number above zero"),
        (GRANITE, {"shared_intermediate_size": -4}, "`shared_intermediate_size` is -4, not an integer of at least 0"),
        (HUNYUAN, {"moe_topk": [2]}, "`moe_topk` is a list of 1, but must be an integer or a list of num_hidden_layers = 2"),
        (HUNYUAN, {"moe_topk": [2, 0]}, "`moe_topk` is 0, not an integer of at least 1 in every layer"),
        (HUNYUAN, {"moe_topk": [2, "2"]}, "`moe_topk` is [2, '2'], not a list of integers"),
        (HUNYUAN, {"moe_topk": [2, 6]}, "the router of layer 1 selects 6 of 5 experts"),
        (HUNYUAN, {"num_experts": [5, 1]}, "the router of layer 1 selects 2 of 1 experts"),
        (HUNYUAN, {"use_cla": True}, "`use_cla` is True, which this version does not support"),
        (HUNYUAN, {"moe_layer_num_skipped": 1}, "`moe_layer_num_skipped` is 1, which this version does not support"),
        (HUNYUAN, {"head_dim": 2, "rope_scaling": {"type": "dynamic", "alpha": 9.0}}, "`head_dim` is 2, but must be at least 4"),
        (HUNYUAN, {"rope_scaling": {"type": "dynamic", "alpha": -9.0}}, "`alpha` is -9.0, not a number above zero"),
        (LING, {"moe_intermediate_size": None}, "`moe_intermediate_size` is missing"),
        (LING, {"first_k_dense_replace": 1, "intermediate_size": None}, "`intermediate_size` is missing"),
        (LING, {"num_key_value_heads": 0}, "`num_key_value_heads` is 0, not an integer of at least 1"),
        (LING, {"norm_head": True, "tie_word_embeddings": True}, "`norm_head` is true, but must be false"),
        (LING, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "`type` is `longrope`, which this version does not support"),
    ],
)  # fmt: skip
def test_damaged_configurations_are_named(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    build_spec(config)
    with pytest.raises(ModelError) as caught:
        build_spec({**config, **change})
    assert message in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint
