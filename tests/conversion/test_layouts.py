"""Layouts: what transformers has in memory, name by name and bit by bit, and back to what is on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, save
from oracle_wrappers import WRAPPER_CASES, make_wrapper
from safetensors.torch import load_file

from moectl.conversion.run import convert

# Families that transformers lacks: their references keep experts apart.
OWN_REFERENCES = ("bailing_moe", "bailing_moe_v2", "deepseek")


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("case", CASES)
def test_fused_is_what_transformers_has_in_memory_and_back_is_what_it_was(case: str, tmp_path: Path) -> None:
    oracle = make_oracle(*CASES[case])
    hub = save(oracle, tmp_path / "hub", hub_style=True)
    convert(hub, tmp_path / "fused", layout="fused", shard_size=50_000)
    if CASES[case][0] not in OWN_REFERENCES:
        tied = oracle.config.tie_word_embeddings
        in_memory = {name: tensor for name, tensor in oracle.state_dict().items() if not (tied and name == "lm_head.weight")}
        assert same(tensors_in(tmp_path / "fused"), in_memory)

    convert(tmp_path / "fused", tmp_path / "back", layout="hub", shard_size=50_000)
    assert same(tensors_in(tmp_path / "back"), tensors_in(hub))
    assert (tmp_path / "back" / "config.json").read_bytes() == (hub / "config.json").read_bytes()


@pytest.mark.parametrize("model_type", WRAPPER_CASES)
def test_text_towers(model_type: str, tmp_path: Path) -> None:
    oracle = make_wrapper(model_type, tied=False)
    oracle.save_pretrained(tmp_path / "hub", max_shard_size="60KB")
    convert(tmp_path / "hub", tmp_path / "fused", layout="fused")
    convert(tmp_path / "fused", tmp_path / "back", layout="hub")
    published = tensors_in(tmp_path / "hub")
    if model_type == "qwen3_vl_moe":
        # On the Hub its experts lie the other way round; transformers writes them as it has them in memory.
        published = {name: tensor.transpose(1, 2) if ".experts." in name else tensor for name, tensor in published.items()}
    assert same(tensors_in(tmp_path / "back"), published)
    experts = [name for name in tensors_in(tmp_path / "fused") if ".experts." in name]
    assert all(name.endswith(("gate_up_proj", "down_proj")) for name in experts)
