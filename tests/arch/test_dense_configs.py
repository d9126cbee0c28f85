"""Dense families: defaults of absent keys, published sizes, windows and ropes by layer, and configurations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from moectl.arch.counts import count_parameters
from moectl.arch.parts import DenseFFN, GroupedQueryAttention
from moectl.arch.registry import build_spec
from moectl.arch.spec import ModelSpec
from moectl.errors import ModelError

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
DENSE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")


def small(family: str, **keys: Any) -> ModelSpec:
    return build_spec({"model_type": family, **SMALL, **keys})


def attentions(spec: ModelSpec) -> list[GroupedQueryAttention]:
    found = [layer.attention for layer in spec.layers]
    assert all(isinstance(attention, GroupedQueryAttention) for attention in found)
    return found  # type: ignore[return-value]


def windows(spec: ModelSpec) -> list[int | None]:
    return [attention.window for attention in attentions(spec)]


@pytest.mark.parametrize("family", DENSE)
def test_a_bare_model_type_is_the_configuration_class_of_the_oracle(family: str) -> None:
    oracle, spec = AutoConfig.for_model(family), build_spec({"model_type": family})
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (oracle.vocab_size, oracle.hidden_size, oracle.num_hidden_layers)
    assert (spec.norm.eps, spec.tied, spec.max_positions) == (
        oracle.rms_norm_eps,
        oracle.tie_word_embeddings,
        oracle.max_position_embeddings,
    )
    head_dim = getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads
    types = getattr(oracle, "layer_types", None)
    for i, (layer, attention) in enumerate(zip(spec.layers, attentions(spec), strict=True)):
        assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (
            oracle.num_attention_heads,
            oracle.num_key_value_heads,
            head_dim,
        )
        slides = types is None or types[i] == "sliding_attention"
        assert attention.window == (getattr(oracle, "sliding_window", None) if slides else None)
        rope = oracle.rope_parameters.get(types[i] if types else "", oracle.rope_parameters)
        assert attention.rope is not None
        assert (attention.rope.kind, attention.rope.theta, attention.rope.dim) == ("default", rope["rope_theta"], head_dim)
        assert attention.scale == pytest.approx(getattr(oracle, "query_pre_attn_scalar", head_dim) ** -0.5)
        assert attention.softcap == (oracle.attn_logit_softcapping if family == "gemma2" else None)
        assert isinstance(layer.ffn, DenseFFN)
        assert layer.ffn.width == oracle.intermediate_size
        assert layer.ffn.act.name == (oracle.hidden_activation if family.startswith("gemma") else oracle.hidden_act)
    assert spec.head.softcap == getattr(oracle, "final_logit_softcapping", None)


# Published configurations, as far as they decide shapes, and published numbers of parameters.
PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "deepseek-llm-7b": (
        {"model_type": "llama", "vocab_size": 102400, "num_hidden_layers": 30, "num_key_value_heads": 32, "max_position_embeddings": 4096},
        6.910e9,
    ),
    "deepseek-llm-67b": (
        {
            "model_type": "llama", "vocab_size": 102400, "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 95,
            "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096,
        },
        67.42e9,
    ),
    "deepseek-coder-33b": (
        {
            "model_type": "llama", "vocab_size": 32256, "hidden_size": 7168, "intermediate_size": 19200, "num_hidden_layers": 62,
            "num_attention_heads": 56, "num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 100000,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        33.34e9,
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        {
            "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_window_layers": 28, "sliding_window": 4096, "rope_theta": 10000,
            "use_mrope": False, "use_sliding_window": False,
        },
        7.616e9,
    ),
    "Llama-3.2-1B": (
        {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True, "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        1.236e9,
    ),
    "Mistral-Nemo": (
        {
            "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128,
            "sliding_window": None, "rope_theta": 1e6,
        },
        12.25e9,
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "tie_word_embeddings": True, "rope_theta": 1e6,
        },
        0.596e9,
    ),
    "Phi-4-mini": (
        {
            "model_type": "phi3", "vocab_size": 200064, "num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True, "max_position_embeddings": 131072, "sliding_window": 262144,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.1] * 48},
        },
        3.836e9,
    ),
    "gemma-2-9b": (
        {
            "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
        9.242e9,
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
            "num_key_value_heads": 1, "sliding_window": 512, "sliding_window_pattern": 6, "rope_local_base_freq": 10000,
        },
        1.000e9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config, parameters = PUBLISHED[name]
    assert count_parameters(build_spec(config)).total == pytest.approx(parameters, rel=1e-3)


def test_deepseek_dense_models_are_llama() -> None:
    """The first line alone, with the sizes: MHA in 7B, eight key-value heads in 67B, linear positions in Coder."""
    small, large, coder = (
        attentions(build_spec(PUBLISHED[name][0]))[0] for name in ("deepseek-llm-7b", "deepseek-llm-67b", "deepseek-coder-33b")
    )
    assert [(a.n_heads, a.n_kv_heads, a.head_dim) for a in (small, large, coder)] == [(32, 32, 128), (64, 8, 128), (56, 8, 128)]
    assert coder.rope is not None
    assert (coder.rope.kind, coder.rope.factor, coder.rope.theta) == ("linear", 4.0, 100_000.0)


def test_mistral_slides_unless_told_not_to() -> None:
    assert windows(small("mistral")) == [4096] * 4
    assert windows(small("mistral", sliding_window=None)) == [None] * 4
    assert windows(small("mistral", sliding_window=5, layer_types=["full_attention"] * 4)) == [5] * 4


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_slides_from_max_window_layers_on_if_asked(family: str) -> None:
    assert windows(small(family, sliding_window=9, max_window_layers=0)) == [None] * 4
    assert windows(small(family, use_sliding_window=True, sliding_window=9, max_window_layers=3)) == [None, None, None, 9]
    assert windows(small(family, use_sliding_window=True, max_window_layers=2)) == [None, None, 4096, 4096]
    assert windows(small(family, use_sliding_window=True)) == [None] * 4
    assert windows(small(family, use_sliding_window=True, sliding_window=None, max_window_layers=0)) == [None] * 4
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert windows(small(family, use_sliding_window=True, sliding_window=9, layer_types=types)) == [9, None, None, 9]


def test_gemma_windows() -> None:
    assert windows(small("gemma2", sliding_window=9)) == [9, None, 9, None]
    assert windows(small("gemma3_text", sliding_window=9, sliding_window_pattern=3)) == [9, 9, None, 9]
    assert windows(small("gemma3_text", sliding_window=9)) == [9, 9, 9, 9]
    assert windows(small("gemma2", sliding_window=None)) == [None] * 4


def test_null_switches_caps_off_and_absence_does_not() -> None:
    assert (attentions(small("gemma2"))[0].softcap, small("gemma2").head.softcap) == (50.0, 30.0)
    off = small("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (attentions(off)[0].softcap, off.head.softcap) == (None, None)
    assert small("gemma3_text", final_logit_softcapping=7).head.softcap == 7.0


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 7e5, "rope_local_base_freq": 300, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300},
            }
        },
        {"rope_theta": 7e5, "rope_local_base_freq": 300, "rope_parameters": {"full_attention": {"type": "linear", "factor": 8.0}}},
    ],
    ids=["hub", "by-layer-type", "mixed"],
)
def test_gemma3_rotates_by_two_thetas(keys: dict[str, Any]) -> None:
    local, *_, everywhere = attentions(small("gemma3_text", sliding_window_pattern=4, **keys))
    assert local.rope is not None
    assert everywhere.rope is not None
    assert (local.rope.kind, local.rope.theta) == ("default", 300.0)
    assert (everywhere.rope.kind, everywhere.rope.theta, everywhere.rope.factor) == ("linear", 7e5, 8.0)


def test_phi3_original_length_stands_beside_the_factors_and_wins() -> None:
    scaling = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 77}
    for keys, original in (({}, 4096), ({"original_max_position_embeddings": 1000}, 1000)):
        rope = attentions(small("phi3", max_position_embeddings=131072, rope_scaling=scaling, **keys))[0].rope
        assert rope is not None
        assert (rope.kind, rope.original_max_positions, rope.factor) == ("longrope", original, 131072 / original)


_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"attention_bias": 1}, "`attention_bias` is 1, not true or false"),
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is less than 1, but must be absent or 1 in this family"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "`factor` is missing"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "it stretches nothing in the 2 dimensions"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "`low_freq_factor` is missing"),
        ("mistral", {"sliding_window": 0}, "`sliding_window` is 0, not an integer of at least 1"),
        ("mistral", {"sliding_window": "4096"}, "`sliding_window` is '4096', not an integer"),
        ("qwen2", {"use_sliding_window": "yes"}, "`use_sliding_window` is 'yes', not true or false"),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, "`layer_types` is a list of 3, but must be one of num_hidden_layers = 4"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "must be `full_attention` for all, as the configuration has no window"),
        ("qwen3", {"layer_types": ["linear_attention"] * 4}, "`linear_attention` for a layer, but must be one of full_attention, sliding"),
        ("qwen3", {"layer_types": "full_attention"}, "`layer_types` is 'full_attention', not a list of strings"),
        ("qwen3", {"max_window_layers": -1}, "`max_window_layers` is -1"),
        ("phi3", {"rope_scaling": {**_LONGROPE, "type": "llama3"}}, "`type` is `llama3`, which this version does not support"),
        ("phi3", {"rope_scaling": {**_LONGROPE, "short_factor": [1.0] * 3}}, "`short_factor` is 3 numbers, but must be 4 numbers"),
        ("phi3", {"rope_scaling": {**_LONGROPE, "long_factor": None}}, "`long_factor` is missing"),
        ("phi3", {"rope_scaling": {**_LONGROPE, "long_factor": [1.0, 1.0, 1.0, 0.0]}}, "must be 4 numbers above zero"),
        ("phi3", {"partial_rotary_factor": 0.4}, "a share that makes an even number of the 8 values of a head rotate"),
        ("gemma2", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True, which this version does not support"),
        ("gemma2", {"hidden_activation": "silu6"}, "`hidden_activation` is `silu6`, which this version does not support"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "`final_logit_softcapping` is 0.0, not a number above zero"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "`query_pre_attn_scalar` is -1.0, not a number above zero"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0, which this version does not support"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "`sliding_window_pattern` is 0"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "an object with `rope_type`, but must be one with `full_attention`"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "`full_attention` is 3, not an object"),
        ("gemma3_text", {"rope_local_base_freq": 0}, "`rope_local_base_freq` is 0.0, not a number above zero"),
        ("gemma3_text", {"rope_scaling": {"type": "linear"}}, "`factor` is missing"),
    ],
)
def test_damaged_configurations_are_named(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        small(family, **change)
    assert message in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint
