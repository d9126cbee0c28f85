"""Multimodal models open by their text model: its logits, its names, what is saved, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle_wrappers import WRAPPER_CASES, make_wrapper, save_in_memory_names
from safetensors.torch import save_file
from tiny_checkpoints import all_tensors

from moectl.api import load_model
from moectl.arch.text_tower import NESTED, WRAPPERS, find_tower
from moectl.cli.app import main
from moectl.errors import ModelError
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.save import save_model

# Below the ids that stand for images.
IDS = torch.randint(3, 10, (3, 33), generator=torch.Generator().manual_seed(5)) * 10


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)


def same_weights(a: Model, b: Model) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_every_wrapper_has_a_case() -> None:
    assert sorted(WRAPPER_CASES) == sorted(WRAPPERS)


@pytest.mark.parametrize("model_type", WRAPPER_CASES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_text_alone_gives_the_logits_of_the_whole(model_type: str, tied: bool, tmp_path: Path) -> None:
    oracle = make_wrapper(model_type, tied=tied)
    with torch.no_grad():
        expected = oracle(input_ids=IDS, use_cache=False).logits
    model = load_model(save(oracle, tmp_path / "saved"))
    got = logits(model)
    assert float((got - expected).norm() / expected.norm()) <= 1e-5
    assert model.spec.tied is tied
    in_memory = load_model(save_in_memory_names(oracle, tmp_path / "memory"))
    assert same_weights(in_memory, model)
    if model_type != "llama4":  # whose modules are named as its files are
        assert in_memory.spec.tensors["embed"].name.startswith(("model.language_model.", "model.text_model."))
    assert torch.equal(logits(in_memory), got)


@pytest.mark.parametrize("model_type", WRAPPER_CASES)
def test_what_is_saved_takes_the_place_of_what_was_loaded(model_type: str, tmp_path: Path) -> None:
    folder = save(make_wrapper(model_type, tied=False), tmp_path / "theirs")
    model, config = load_model(folder), config_of(folder)
    (tmp_path / "ours").mkdir()
    save_model(model, config, tmp_path / "ours", shard_size=60_000)
    assert config_of(tmp_path / "ours") == config
    again = load_model(tmp_path / "ours")
    assert same_weights(again, model)
    assert again.spec.model_type == model.spec.model_type
    ours, theirs = all_tensors(tmp_path / "ours"), all_tensors(folder)
    with open_checkpoint(str(folder)) as checkpoint:
        outside = set(checkpoint.outside)
    assert outside
    if model_type == "kimi_k25":  # whose layers newer transformers writes as `blocks`, which the Hub's files do not have
        theirs = {name.replace(".blocks.", ".layers.") if name not in outside else name: tensor for name, tensor in theirs.items()}
    assert ours.keys() == theirs.keys() - outside
    for name, tensor in ours.items():
        # Experts of the Hub's Qwen3-VL-MoE lie the other way round.
        expected = theirs[name] if model_type != "qwen3_vl_moe" or ".experts." not in name else theirs[name].transpose(1, 2)
        assert torch.equal(tensor, expected)


def test_the_text_model_can_be_saved_alone(tmp_path: Path) -> None:
    folder = save(make_wrapper("gemma3", tied=True), tmp_path / "theirs")
    model, config = load_model(folder), config_of(folder)
    (tmp_path / "text").mkdir()
    save_model(model, config["text_config"], tmp_path / "text")
    alone = load_model(tmp_path / "text")
    assert same_weights(alone, model)
    assert "model.layers.0.self_attn.q_proj.weight" in all_tensors(tmp_path / "text")


def test_plain_names_and_a_flat_configuration(tmp_path: Path) -> None:
    """Qwen2-VL on the Hub: the text model's keys are the wrapper's own, its tensors have no prefix."""
    folder = save(make_wrapper("qwen2_vl", tied=False), tmp_path / "theirs")
    config = config_of(folder)
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **config, "rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    tensors = all_tensors(folder)
    assert "model.layers.0.self_attn.q_proj.weight" in tensors
    assert same_weights(load_model(write(tmp_path / "flat", flat, tensors)), load_model(folder))
    assert torch.equal(logits(load_model(tmp_path / "flat")), logits(load_model(folder)))


def test_where_the_two_levels_contradict_each_other_the_head_decides(tmp_path: Path) -> None:
    """Newer transformers writes the default of each level; what it computes goes by the outer one and the tensors."""
    for tied in (True, False):
        folder = save(make_wrapper("mistral3", tied=tied), tmp_path / f"tied-{tied}")
        config, tensors = config_of(folder), all_tensors(folder)
        expected = load_model(folder)
        for outer, text in ((True, False), (False, True), (None, None) if not tied else (True, None)):
            config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = outer, text
            model = load_model(write(tmp_path / f"{tied}-{outer}-{text}", config, tensors))
            assert model.spec.tied is tied
            assert torch.equal(logits(model), logits(expected))


def test_what_does_not_fit_inside_is_refused_by_its_own_name(tmp_path: Path) -> None:
    folder = save(make_wrapper("gemma3", tied=True), tmp_path / "theirs")
    config, tensors = config_of(folder), all_tensors(folder)
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    gone = {key: tensor for key, tensor in tensors.items() if key != name}
    with pytest.raises(ModelError, match=rf"lacks 1 of \d+ tensors .* {name}"):
        load_model(write(tmp_path / "gone", config, gone))
    with pytest.raises(ModelError, match=rf"{name} is \[3\] instead of \[48, 48\]"):
        load_model(write(tmp_path / "wrong", config, {**tensors, name: torch.zeros(3)}))
    stray = "language_model.model.layers.1.self_attn.q_proj.bias"
    with pytest.raises(ModelError, match=f"holds 1 tensors that model_type `gemma3_text` has no place for: {stray}"):
        load_model(write(tmp_path / "stray", config, {**tensors, stray: torch.zeros(48)}))
    elsewhere = load_model(write(tmp_path / "elsewhere", config, {**tensors, "audio_tower.layers.0.weight": torch.zeros(3)}))
    assert same_weights(elsewhere, load_model(folder))


def test_dtype_is_that_of_the_text_model(tmp_path: Path) -> None:
    """A vision tower in float32, with more tensors, beside a text model in bfloat16."""
    oracle = make_wrapper("mistral3", tied=False)
    folder = save(oracle, tmp_path / "theirs")
    tensors = all_tensors(folder)
    mixed = {name: tensor.bfloat16() if name.startswith("language_model.") else tensor for name, tensor in tensors.items()}
    mixed |= {f"vision_tower.more.{i}": torch.zeros(1) for i in range(100)}
    folder = write(tmp_path / "mixed", config_of(folder), mixed)
    with open_checkpoint(str(folder)) as checkpoint:
        assert set(checkpoint.stored_dtypes) == {"BF16"}
        assert len(checkpoint.outside) > 100


def test_a_dtype_is_written_on_every_level_that_says_one(tmp_path: Path) -> None:
    folder = save(make_wrapper("llava", tied=False), tmp_path / "theirs")
    config = config_of(folder)
    config["text_config"]["torch_dtype"] = "float32"
    (tmp_path / "ours").mkdir()
    save_model(load_model(folder), config, tmp_path / "ours", dtype=torch.bfloat16)
    assert config["text_config"]["torch_dtype"] == "float32"
    expected = {**config, "dtype": "bfloat16", "text_config": {**config["text_config"], "torch_dtype": "bfloat16"}}
    assert config_of(tmp_path / "ours") == expected


def test_route_stats_says_once_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_in_memory_names(make_wrapper("llama4", tied=False), tmp_path / "model")
    np.save(tmp_path / "ids.npy", IDS.numpy())
    code = main(["route-stats", str(folder), "--data", str(tmp_path / "ids.npy"), "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0
    assert json.loads(out)["model"]["model_type"] == "llama4_text"
    assert [layer["layer"] for layer in json.loads(out)["layers"]] == [1]
    notes = [line for line in err.splitlines() if "outside the text model" in line]
    assert notes == [
        "note: 26 tensors outside the text model are not loaded: 25 in `vision_model`, 1 in `multi_modal_projector`",
    ]
    assert find_tower(config_of(folder)) is not None
    assert find_tower(config_of(folder), names=[NESTED.on_disk("model.embed_tokens.weight")]).layout == NESTED  # type: ignore[union-attr]
