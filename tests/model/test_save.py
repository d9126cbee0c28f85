"""A saved model is the model: tensor by tensor, through our own reader, and in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_checkpoints import all_tensors
from training_runs import CONFIG, VOCAB_SIZE, make_model, stack_experts
from transformers import AutoModelForCausalLM

from moectl.api import load_model
from moectl.arch.registry import build_spec
from moectl.errors import ModelError
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.save import named_weights, save_model

IDS_BS = torch.randint(0, VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(3))


def randomised(**keys: Any) -> Model:
    """With norms and correction biases that a forgotten tensor would show in."""
    model, generator = make_model(**keys), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_((0.2 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model


def saved(model: Model, folder: Path, *, config: dict[str, Any] = CONFIG, **kwargs: Any) -> Path:
    folder.mkdir()
    save_model(model, config, folder, **kwargs)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_family_comes_back_tensor_by_tensor(case: str, tmp_path: Path) -> None:
    folder = save(make_oracle(*CASES[case]), tmp_path / "theirs", hub_style=True)
    config = json.loads((folder / "config.json").read_text())
    again = saved(load_model(folder), tmp_path / "ours", config=config, shard_size=30_000)
    expected, got = all_tensors(folder), all_tensors(again)
    assert len(list(again.glob("*.safetensors"))) > 1
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert json.loads((again / "config.json").read_text()) == config


def test_prediction_layers_and_their_copies_come_back(tmp_path: Path) -> None:
    model = randomised(num_nextn_predict_layers=2)
    folder = saved(model, tmp_path / "out", config={**CONFIG, "num_nextn_predict_layers": 2})
    again = load_model(folder, mtp=True)
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    tensors = load_file(folder / "model.safetensors")
    for layer in (3, 4):
        assert torch.equal(tensors[f"model.layers.{layer}.embed_tokens.weight"], model.embed)
        assert torch.equal(tensors[f"model.layers.{layer}.shared_head.head.weight"], model.head)
    with torch.no_grad():
        assert torch.equal(again(IDS_BS), model(IDS_BS))
        ahead = [m.predict_ahead(1, m.predict_ahead(0, m.hidden(IDS_BS), IDS_BS), IDS_BS) for m in (model, again)]
    assert torch.equal(*ahead)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_the_same(tied: bool, tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": tied}
    model = randomised(tie_word_embeddings=tied)
    folder = saved(model, tmp_path / "out", config=config)
    oracle, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(name.startswith("model.layers.3.") for name in info["unexpected_keys"])
    with torch.no_grad():
        theirs, ours = oracle.eval()(IDS_BS, use_cache=False).logits, model(IDS_BS)
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    assert float(theirs.std()) > 0.1


def test_another_dtype_is_written_and_what_stays_float32_stays(tmp_path: Path) -> None:
    model = randomised()
    folder = saved(model, tmp_path / "narrow", dtype=torch.bfloat16)
    wide, narrow = (load_file(path / "model.safetensors") for path in (saved(model, tmp_path / "wide"), folder))
    assert narrow.keys() == wide.keys()
    for name, tensor in narrow.items():
        kept = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(tensor, wide[name].to(tensor.dtype))
    back = saved(load_model(folder, dtype="bfloat16", mtp=True), tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_configuration_says_the_dtype_under_the_key_it_has(tmp_path: Path) -> None:
    new = {key: value for key, value in CONFIG.items() if key != "torch_dtype"} | {"dtype": "float32"}
    for name, config, key in (("old", CONFIG, "torch_dtype"), ("new", new, "dtype")):
        folder = saved(make_model(), tmp_path / name, config=config, dtype=torch.bfloat16)
        assert json.loads((folder / "config.json").read_text()) == {**config, key: "bfloat16"}


def test_stacked_experts_are_written_in_the_hubs_layout(tmp_path: Path) -> None:
    folder = saved(randomised(), tmp_path / "plain")
    fused = shutil.copytree(folder, tmp_path / "fused")
    save_file(stack_experts(load_file(folder / "model.safetensors")), fused / "model.safetensors")
    model = load_model(fused, mtp=True)
    assert any("gate_up_proj" in ref.name for ref in model.spec.refs())
    again = saved(model, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    # In their own layout every part is there as well, though not under a name of its own.
    own = named_weights(model)
    assert len(own) == len(named_weights(model, build_spec(CONFIG))) > len({ref.name for ref, _ in own})


def test_what_was_not_loaded_is_not_written(tmp_path: Path) -> None:
    folder = saved(make_model(mtp=False), tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("model.layers.3.")]  # noqa: SIM118
    with open_checkpoint(str(folder)) as checkpoint:
        assert len(checkpoint.spec.mtp) == 1
    with pytest.raises(ModelError, match="multi-token-prediction"):
        load_model(folder, mtp=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "describes 4 layers, the model has 3"),
        ({"num_nextn_predict_layers": 0}, "announces 0 multi-token-prediction layers, the model has 1"),
        ({"tie_word_embeddings": True}, "ties the head to the embedding"),
        ({"vocab_size": 98}, r"asks for `model.embed_tokens.weight` \[98, 32\], the model has \[97, 32\]"),
        ({"intermediate_size": 44}, "layer 0 differs"),
        ({"moe_intermediate_size": 16}, "layer 1 differs"),
        ({"num_experts_per_tok": 3}, "layer 1 differs"),
        ({"n_routed_experts": 16}, "layer 1 differs"),
        ({"first_k_dense_replace": 0}, "layer 0 differs"),
        ({"q_lora_rank": None}, "layer 0 differs"),
        ({"rope_theta": 5e5}, "layer 0 differs"),
        ({"rms_norm_eps": 1e-3}, "layer 0 differs"),
    ],
)
def test_a_configuration_of_another_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        save_model(make_model(), {**CONFIG, **changes}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_untied_configuration_gets_a_head_of_its_own(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    folder = saved(model, tmp_path / "out")
    assert torch.equal(load_file(folder / "model.safetensors")["lm_head.weight"], model.embed)
    assert torch.equal(load_model(folder)(IDS_BS), model(IDS_BS))
