"""Multimodal configurations: which text model they hold, under which names, and what is said of those that cannot be opened."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from moectl.arch.check import check_mtp_tensors
from moectl.arch.parts import GroupedQueryAttention, MoE
from moectl.arch.registry import FAMILIES, build_spec, find_family
from moectl.arch.text_tower import INSIDE_OUT, NESTED, NESTED_TEXT, PLAIN, WRAPPERS, Layout, describe_outside, find_tower, with_dtype
from moectl.errors import ModelError

TEXT: dict[str, Any] = {
    "model_type": "mistral", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MISTRAL3: dict[str, Any] = {"model_type": "mistral3", "text_config": TEXT, "vision_config": {"hidden_size": 7}}
KIMI: dict[str, Any] = {
    "model_type": "kimi_k25",
    "text_config": {
        "model_type": "kimi_k2", "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip
LAYOUTS = (INSIDE_OUT, NESTED, NESTED_TEXT, PLAIN, Layout(body="language_model.model.", head="language_model.lm_head.", layers="blocks."))


def shapes_on_disk(config: dict[str, Any], layout: Layout = INSIDE_OUT) -> dict[str, tuple[int, ...]]:
    tower = find_tower(config)
    assert tower is not None
    own = INSIDE_OUT if tower.layout == INSIDE_OUT else tower.layout
    plain = {own.plain(ref.name): ref.shape for ref in build_spec(config).refs()}
    return {layout.on_disk(str(name)): shape for name, shape in plain.items()}


def test_text_models_of_all_wrappers_are_families() -> None:
    assert {wrapper.text for wrapper in WRAPPERS.values()} <= set(FAMILIES)
    assert not set(WRAPPERS) & set(FAMILIES)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.body + layout.layers)
def test_names_there_and_back(layout: Layout) -> None:
    for name in ("model.layers.12.mlp.experts.3.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert layout.plain(layout.on_disk(name)) == name
    assert layout.plain("vision_tower.layers.0.weight") is None
    assert (layout.plain("model.vision_tower.layers.0.weight") is None) == (layout != PLAIN)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.body + layout.layers)
def test_the_layout_is_the_one_the_tensors_have(layout: Layout) -> None:
    shapes = shapes_on_disk(MISTRAL3, layout)
    shapes |= {"vision_tower.layers.0.weight": (3,), "multi_modal_projector.weight": (3, 3)}
    spec = build_spec(MISTRAL3, shapes=shapes)
    assert {ref.name for ref in spec.refs()} == {
        name for name in shapes if name not in ("vision_tower.layers.0.weight", "multi_modal_projector.weight")
    }
    tower = find_tower(MISTRAL3, names=shapes)
    assert tower is not None
    assert tower.outside(shapes) == ("vision_tower.layers.0.weight", "multi_modal_projector.weight")
    # Without tensors, the names of the Hub.
    assert "language_model.model.layers.1.mlp.up_proj.weight" in {ref.name for ref in build_spec(MISTRAL3).refs()}


def test_prediction_layers_are_renamed_too() -> None:
    spec = build_spec(KIMI)
    (ahead,) = spec.mtp
    assert ahead.tensors["eh_proj"].name == "language_model.model.layers.2.eh_proj.weight"
    assert ahead.prefixes == ("language_model.model.layers.2.",)
    assert all(ref.name.startswith("language_model.") for ref in spec.mtp_refs())
    assert spec.layers[1].tensors["router"].name == "language_model.model.layers.1.mlp.gate.weight"
    shapes = {ref.name: ref.shape for ref in [*spec.refs(), *spec.mtp_refs()]}
    check_mtp_tensors(build_spec(KIMI, shapes=shapes), shapes)
    gone = {name: shape for name, shape in shapes.items() if not name.endswith("eh_proj.weight")}
    with pytest.raises(ModelError, match=r"lacks 1 of .* language_model.model.layers.2.eh_proj.weight"):
        check_mtp_tensors(build_spec(KIMI, shapes=gone), gone)
    stray = shapes | {"language_model.model.layers.2.more.weight": (1,)}
    with pytest.raises(ModelError, match=r"no place for: language_model.model.layers.2.more.weight"):
        check_mtp_tensors(build_spec(KIMI, shapes=stray), stray)


def test_a_missing_text_model_type_is_the_wrappers() -> None:
    text = {key: value for key, value in TEXT.items() if key != "model_type"}
    assert build_spec({**MISTRAL3, "text_config": text}).model_type == "mistral"
    assert find_family({"model_type": "gemma3", "text_config": {}}) is FAMILIES["gemma3_text"]
    assert find_family({"model_type": "qwen2_vl", "vocab_size": 5}) is FAMILIES["qwen2_vl_text"]
    other = {**MISTRAL3, "text_config": {**TEXT, "model_type": "llama"}}
    assert build_spec(other).model_type == "llama"


HEAD, NO_HEAD, UNKNOWN = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"), ("other",), ()


@pytest.mark.parametrize(
    ("outer", "text", "names", "tied"),
    [
        (None, None, UNKNOWN, None),
        (None, None, HEAD, False),
        (None, None, NO_HEAD, None),
        (True, None, HEAD, True),
        (True, None, UNKNOWN, True),
        (None, True, HEAD, True),
        (False, False, NO_HEAD, False),
        (True, False, UNKNOWN, True),
        (False, True, UNKNOWN, False),
        (True, False, HEAD, False),
        (False, True, NO_HEAD, True),
    ],
)
def test_who_says_whether_the_head_is_tied(outer: bool | None, text: bool | None, names: tuple[str, ...], tied: bool | None) -> None:
    config = {**MISTRAL3, "tie_word_embeddings": outer, "text_config": {**TEXT, "tie_word_embeddings": text}}
    tower = find_tower(config, names=names)
    assert tower is not None
    assert tower.config.values["tie_word_embeddings"] == tied


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"model_type": "gpt_neox"}, "model_type `gpt_neox` is not supported by this version", "supported model types: bailing_moe, "),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}},
            "model_type `paligemma`, a multimodal model around a text model `gemma2`, is not supported by this version",
            "multimodal models that open by their text model: gemma3, ",
        ),
        (
            {"model_type": "paligemma", "text_config": {}},
            "model_type `paligemma`, a multimodal model around a text model `unnamed`, is not supported",
            "supported model types: bailing_moe, ",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "cohere"}},
            "model_type `llava` opens by its text model, whose model_type `cohere` is not supported by this version",
            "supported model types: bailing_moe, ",
        ),
        ({"model_type": "gemma3"}, "`text_config` is missing, but must be there in a `gemma3` model", "contradicts itself"),
        ({"model_type": "gemma3", "text_config": [1]}, "`text_config` is [1], not an object", "damaged"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": 3}},
            "config.json: text_config: `model_type` is 3, not a string",
            "damaged",
        ),
        ({"model_type": ["gemma3"]}, "`model_type` is ['gemma3'], not a string", "damaged"),
        ({**MISTRAL3, "tie_word_embeddings": 1}, "`tie_word_embeddings` is 1, not true or false", "damaged"),
        (
            {**MISTRAL3, "text_config": {**TEXT, "hidden_size": "24"}},
            "config.json: text_config: `hidden_size` is '24', not an integer",
            "damaged",
        ),
    ],
)
def test_what_cannot_be_opened_is_named(config: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_spec(config)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 3


def test_a_plain_text_model_is_no_tower() -> None:
    assert find_tower(TEXT) is None
    assert find_tower({**TEXT, "text_config": {"model_type": "llama"}}) is None
    assert build_spec({**TEXT, "text_config": {"model_type": "llama"}}).model_type == "mistral"


def test_what_lies_outside_is_counted_by_place() -> None:
    names = ("vision_tower.a", "vision_tower.b.c", "model.visual.x", "model.visual.y.z", "model.visual.w", "image_newline")
    assert describe_outside(names) == (
        "6 tensors outside the text model are not loaded: 3 in `model.visual`, 2 in `vision_tower`, 1 in `image_newline`"
    )
    assert describe_outside(("image_newline",)) == "1 tensor outside the text model is not loaded: 1 in `image_newline`"


def test_the_dtype_is_written_where_it_was() -> None:
    assert with_dtype({"model_type": "llama", "dtype": "float16"}, "bfloat16") == {"model_type": "llama", "dtype": "bfloat16"}
    assert with_dtype({"model_type": "llama"}, "bfloat16") == {"model_type": "llama", "torch_dtype": "bfloat16"}
    inner = {**MISTRAL3, "text_config": {"torch_dtype": "float16"}}
    assert with_dtype(inner, "bfloat16") == {**MISTRAL3, "text_config": {"torch_dtype": "bfloat16"}}
    assert inner["text_config"]["torch_dtype"] == "float16"


@pytest.mark.parametrize("model_type", ["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"])
def test_bare_text_models_of_qwen_vl_are_the_configuration_class_of_the_oracle(model_type: str) -> None:
    oracle, spec = AutoConfig.for_model(model_type), build_spec({"model_type": model_type})
    assert (spec.vocab_size, spec.hidden_size, len(spec.layers)) == (oracle.vocab_size, oracle.hidden_size, oracle.num_hidden_layers)
    assert (spec.norm.eps, spec.max_positions) == (oracle.rms_norm_eps, oracle.max_position_embeddings)
    assert spec.tied == getattr(oracle, "tie_word_embeddings", False)
    attention, ffn = spec.layers[-1].attention, spec.layers[-1].ffn
    assert isinstance(attention, GroupedQueryAttention)
    assert attention.rope is not None
    head_dim = getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (
        oracle.num_attention_heads,
        oracle.num_key_value_heads,
        head_dim,
    )
    assert (attention.rope.theta, attention.window) == (oracle.rope_parameters["rope_theta"], None)
    if isinstance(ffn, MoE):
        assert (ffn.router.n_experts, ffn.router.top_k, ffn.router.renormalize) == (oracle.num_experts, oracle.num_experts_per_tok, True)
        assert ffn.expert_width == oracle.moe_intermediate_size
    else:
        assert ffn.width == oracle.intermediate_size
