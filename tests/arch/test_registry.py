"""Configurations: defaults, aliases, contradictions, unknown families, and tensors that do not match."""

from __future__ import annotations

from typing import Any

import pytest

from moectl.arch import counts
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, LatentAttention, MoE
from moectl.arch.registry import FAMILIES, build_spec
from moectl.arch.spec import ModelSpec
from moectl.errors import ModelError

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip
# Published configurations: huggingface.co/deepseek-ai/DeepSeek-V3, mistralai/Mixtral-8x7B-v0.1, Qwen/Qwen3-30B-A3B.
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096},
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6,
}  # fmt: skip
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "rope_theta": 1e6,
}  # fmt: skip


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {ref.name: ref.shape for ref in spec.refs()}


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(DEEPSEEK_V3, 671.03e9, 36.6e9), (MIXTRAL_8X7B, 46.70e9, 12.75e9), (QWEN3_30B_A3B, 30.53e9, 3.04e9)],
    ids=["DeepSeek-V3", "Mixtral-8x7B", "Qwen3-30B-A3B"],
)
def test_published_totals(config: dict[str, Any], total: float, active: float) -> None:
    """DeepSeek-V3 671 B / 37 B, Mixtral 46.7 B / 12.9 B, Qwen3 30.5 B / 3.3 B; our active count leaves out the embedding table."""
    parameters = counts.count_parameters(build_spec(config))
    assert parameters.total == pytest.approx(total, rel=1e-3)
    assert parameters.active == pytest.approx(active, rel=1e-2)


def test_deepseek_v3_softmax_scale() -> None:
    """mscale_all_dim enters the softmax scale squared; cos and sin stay unscaled because mscale equals it."""
    spec = build_spec(DEEPSEEK_V3)
    attention = spec.layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert attention.scale == pytest.approx(0.135234, abs=1e-6)
    assert attention.rope.attention_factor == 1.0
    assert [isinstance(layer.ffn, DenseFFN) for layer in spec.layers[:4]] == [True, True, True, False]
    assert spec.n_mtp_layers == 1


@pytest.mark.parametrize("n_experts_key", ["num_experts", "num_local_experts"])
def test_qwen3_moe_aliases_and_defaults(n_experts_key: str) -> None:
    config = {k: v for k, v in QWEN3_30B_A3B.items() if k not in ("num_experts", "norm_topk_prob", "head_dim")}
    spec = build_spec({**config, n_experts_key: 12, "head_dim": None})
    ffn, attention = spec.layers[0].ffn, spec.layers[0].attention
    assert isinstance(ffn, MoE)
    assert isinstance(attention, GroupedQueryAttention)
    assert (ffn.router.n_experts, ffn.router.renormalize, attention.head_dim, attention.window) == (12, False, 64, None)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama", "mixtral", "qwen3_moe"])
def test_a_bare_model_type_is_the_configuration_class_of_the_oracle(family: str) -> None:
    """Every key absent: sizes must be those of the defaults that transformers declares."""
    from transformers import AutoConfig

    oracle, spec = AutoConfig.for_model(family), build_spec({"model_type": family})
    layer = spec.layers[-1]
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (oracle.vocab_size, oracle.hidden_size, oracle.num_hidden_layers)
    assert (layer.attention.n_heads, spec.norm.eps, spec.tied) == (
        oracle.num_attention_heads,
        oracle.rms_norm_eps,
        oracle.tie_word_embeddings,
    )
    if isinstance(layer.attention, GroupedQueryAttention):
        head_dim = getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads
        assert (layer.attention.n_kv_heads, layer.attention.head_dim) == (oracle.num_key_value_heads, head_dim)
        assert (layer.attention.rope.theta, layer.attention.window) == (oracle.rope_parameters["rope_theta"], None)
    else:
        assert (layer.attention.q_lora_rank, layer.attention.kv_lora_rank) == (oracle.q_lora_rank, oracle.kv_lora_rank)
        assert (layer.attention.nope_dim, layer.attention.value_dim) == (oracle.qk_nope_head_dim, oracle.v_head_dim)
    if isinstance(layer.ffn, MoE):
        router = layer.ffn.router
        assert (router.n_experts, router.top_k) == (oracle.num_local_experts, oracle.num_experts_per_tok)
        assert layer.ffn.expert_width == getattr(oracle, "moe_intermediate_size", oracle.intermediate_size)
        assert router.renormalize == getattr(oracle, "norm_topk_prob", True)
    else:
        assert layer.ffn.width == oracle.intermediate_size


def test_null_switches_off_where_absence_means_the_default() -> None:
    for value, rank in ((None, None), (7, 7)):
        attention = build_spec({**DEEPSEEK_V3, "q_lora_rank": value}).layers[0].attention
        assert isinstance(attention, LatentAttention)
        assert attention.q_lora_rank == rank


def test_missing_mixtral_keys_take_the_family_defaults() -> None:
    spec = build_spec(MIXTRAL)
    attention = spec.layers[0].attention
    assert isinstance(attention, GroupedQueryAttention)
    assert (attention.rope.theta, spec.norm.eps, spec.tied, attention.window) == (1e6, 1e-5, False, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type `gpt_neox` is not supported"),
        ({"model_type": None}, "`model_type` is missing"),
        ({"hidden_size": "24"}, "`hidden_size` is '24', not an integer"),
        ({"hidden_size": True}, "`hidden_size` is True, not an integer"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0, not an integer of at least 1"),
        ({"vocab_size": 2**60}, "not a plausible size"),
        ({"hidden_size": 26}, "`hidden_size` is 26, but must be a multiple of num_attention_heads = 4"),
        ({"num_key_value_heads": 3}, "`num_attention_heads` is 4, but must be a multiple of num_key_value_heads = 3"),
        ({"head_dim": 7}, "`head_dim` is 7, but must be even"),
        ({"num_experts_per_tok": 4}, "the router of layer 0 selects 4 of 3 experts"),
        ({"rms_norm_eps": "1e-5"}, "`rms_norm_eps` is '1e-5', not a number"),
        ({"rms_norm_eps": -1.0}, "not a number above zero"),
        ({"hidden_act": "mish"}, "`hidden_act` is `mish`, which this version does not support"),
        ({"rope_scaling": {"type": "ntk-by-parts"}}, "`type` is `ntk-by-parts`, which this version does not support"),
        ({"rope_scaling": [1]}, "`rope_scaling` is [1], not an object"),
        ({"tie_word_embeddings": "no"}, "`tie_word_embeddings` is 'no', not true or false"),
    ],
)
def test_damaged_configurations_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_spec({**MIXTRAL, **change})
    assert message in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_group": 7}, "a multiple of n_group = 7"),
        ({"topk_group": 9}, "keeps 9 of 8 groups"),
        ({"n_routed_experts": 8, "topk_group": 8}, "a group has 1"),
        ({"n_routed_experts": 16, "topk_group": 3}, "selects 8 experts out of 3 groups of 2"),
    ],
)
def test_impossible_groups(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_spec({**DEEPSEEK_V3, **change})


def test_the_hint_lists_every_family() -> None:
    with pytest.raises(ModelError) as caught:
        build_spec({"model_type": "nope"})
    assert caught.value.hint == f"supported model types: {', '.join(sorted(FAMILIES))}"
    assert {"deepseek_v3", "llama", "mixtral", "qwen3_moe"} <= set(FAMILIES)


def test_matching_tensors_pass_with_what_may_be_skipped() -> None:
    spec = build_spec({**MIXTRAL, "tie_word_embeddings": True})
    shapes = shapes_of(spec) | {"lm_head.weight": (50, 24), "model.layers.0.self_attn.rotary_emb.inv_freq": (3,)}
    build_spec({**MIXTRAL, "tie_word_embeddings": True}, shapes=shapes)


def test_mtp_layers_are_not_part_of_the_stack() -> None:
    small = {**DEEPSEEK_V3, "num_hidden_layers": 4, "n_routed_experts": 16}
    shapes = shapes_of(build_spec(small)) | {"model.layers.4.eh_proj.weight": (7168, 14336)}
    assert len(build_spec(small, shapes=shapes).layers) == 4
    with pytest.raises(ModelError, match="no place for"):
        build_spec(small, shapes=shapes | {"model.layers.5.eh_proj.weight": (7168, 14336)})


@pytest.mark.parametrize("layout", ["hub", "fused"])
def test_missing_wrong_and_surplus_tensors_are_counted_and_named(layout: str) -> None:
    shapes = shapes_of(build_spec(MIXTRAL))
    if layout == "fused":
        for i in range(2):
            for name in [n for n in shapes if n.startswith(f"model.layers.{i}.block_sparse_moe")]:
                del shapes[name]
            shapes[f"model.layers.{i}.mlp.gate.weight"] = (3, 24)
            shapes[f"model.layers.{i}.mlp.experts.gate_up_proj"] = (3, 40, 24)
            shapes[f"model.layers.{i}.mlp.experts.down_proj"] = (3, 24, 20)
    spec = build_spec(MIXTRAL, shapes=shapes)
    assert shapes_of(spec) == shapes
    ffn = spec.layers[1].ffn
    assert isinstance(ffn, MoE)
    assert [ref.part_shape for ref in ffn.experts.refs(2)] == [(20, 24), (20, 24), (24, 20)]

    gone = dict(shapes)
    del gone["model.norm.weight"]
    with pytest.raises(ModelError, match=r"lacks 1 of \d+ tensors that its config.json asks for: model.norm.weight"):
        build_spec(MIXTRAL, shapes=gone)
    with pytest.raises(ModelError, match=r"1 tensors have another shape .* model.norm.weight is \[25\] instead of \[24\]"):
        build_spec(MIXTRAL, shapes=shapes | {"model.norm.weight": (25,)})
    with pytest.raises(ModelError, match=r"holds 1 tensors .* no place for: model.layers.0.self_attn.q_proj.bias"):
        build_spec(MIXTRAL, shapes=shapes | {"model.layers.0.self_attn.q_proj.bias": (24,)})


def test_counts_cover_every_weight_once() -> None:
    for config in (MIXTRAL, {**DEEPSEEK_V3, "num_hidden_layers": 4, "n_routed_experts": 16}):
        spec = build_spec(config)
        parameters = counts.count_parameters(spec)
        assert parameters.total == sum(ref.numel for ref in spec.refs())
        parts = ("embedding", "head", "attention", "dense_ffn", "routed_experts", "shared_experts", "router", "norms")
        assert parameters.total == sum(getattr(parameters, part) for part in parts)
