"""Multi-token-prediction layers that are stored otherwise than DeepSeek's: Ling 2.0's and ERNIE's, and those that are only skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, run_oracle, save
from safetensors.torch import load_file, save_file
from tiny_checkpoints import all_tensors, set_config
from torch import nn
from transformers.masking_utils import create_causal_mask
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeDecoderLayer, Ernie4_5_MoeRMSNorm

from moectl.api import load_model
from moectl.arch.parts import DenseFFN, MoE
from moectl.arch.registry import build_spec
from moectl.errors import ModelError
from moectl.model.save import save_model

S = 16
IDS = torch.randint(0, 103, (2, S + 3), generator=torch.Generator().manual_seed(7))
LING = "bailing_moe_v2-groups-qkv-bias-half-rope"
ERNIE = ("ernie4_5_moe-interval-biases-yarn", "ernie4_5_moe-unshared-floor-llama3")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def comes_back(folder: Path, out: Path) -> None:
    """Loaded with its prediction layers and written again, a checkpoint holds the same tensors."""
    out.mkdir()
    save_model(load_model(folder, mtp=True), json.loads((folder / "config.json").read_text()), out)
    expected, got = all_tensors(folder), all_tensors(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def make_ling(folder: Path) -> Any:
    family, keys = CASES[LING]
    oracle = make_oracle(family, {**keys, "num_nextn_predict_layers": 2})
    save(oracle, folder, hub_style=True)
    return oracle


def test_ling_keeps_them_in_the_stack_without_copies(tmp_path: Path) -> None:
    oracle = make_ling(tmp_path / "ling")
    model, plain = load_model(tmp_path / "ling", mtp=True), load_model(tmp_path / "ling")
    assert [layer.index for layer in plain.spec.layers] == [0, 1, 2]
    assert all(isinstance(mtp.layer.ffn, MoE) for mtp in model.spec.mtp)
    with torch.no_grad():
        assert relative(plain(IDS), run_oracle(oracle, IDS).logits_BSV) <= 1e-5
        h, theirs = model.hidden(IDS[:, :S]), oracle.hidden(IDS[:, :S])
        for n in range(2):
            following = IDS[:, n + 1 : n + 1 + S]
            h, theirs = model.predict_ahead(n, h, following), oracle.predict_ahead(n, theirs, following)
            assert relative(h, theirs) <= 1e-5
    comes_back(tmp_path / "ling", tmp_path / "again")


def test_ling_layers_inside_the_announced_stack_are_refused(tmp_path: Path) -> None:
    """As the first published code numbered them: the last of `num_hidden_layers` is a prediction layer."""
    make_ling(tmp_path)
    set_config(tmp_path, num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"no place for: model.layers.3.enorm.weight"):
        load_model(tmp_path)


class ErniePrediction(nn.Module):
    """After Baidu's FastDeploy: the normed states and the next embeddings, a decoder layer counted as layer 0, the shared final norm."""

    def __init__(self, main: Any) -> None:
        super().__init__()
        config = main.config
        norm = lambda: Ernie4_5_MoeRMSNorm(config.hidden_size, config.rms_norm_eps)  # noqa: E731
        self.mtp_emb_norm, self.mtp_hidden_norm = nn.ModuleList([norm()]), nn.ModuleList([norm()])
        self.mtp_linear_proj = nn.ModuleList([nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.use_bias)])
        self.mtp_block = nn.ModuleList([Ernie4_5_MoeDecoderLayer(config, 0)])
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, tensor in self.named_parameters():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = 0.3 if tensor.ndim == 1 else 1.5 / tensor.shape[-1] ** 0.5
                tensor.copy_((1.0 if "norm" in name else 0.0) + scale * noise)

    def forward(self, main: Any, h_BSH: torch.Tensor, next_ids_BS: torch.Tensor) -> torch.Tensor:
        embedded = self.mtp_emb_norm[0](main.model.embed_tokens(next_ids_BS))
        x_BSH = self.mtp_linear_proj[0](torch.cat([embedded, self.mtp_hidden_norm[0](h_BSH)], -1))
        positions = torch.arange(x_BSH.shape[1])[None]
        mask = create_causal_mask(main.config, x_BSH, None, past_key_values=None, position_ids=positions)
        tables = main.model.rotary_emb(x_BSH, positions)
        return main.model.norm(self.mtp_block[0](x_BSH, attention_mask=mask, position_embeddings=tables, position_ids=positions))


def make_ernie(case: str, folder: Path) -> tuple[Any, ErniePrediction]:
    main = make_oracle(*CASES[case])
    ahead = ErniePrediction(main).eval()
    save(main, folder, hub_style=True, shard="1GB")
    tensors = load_file(folder / "model.safetensors") | {f"model.{name}": tensor for name, tensor in ahead.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, num_nextn_predict_layers=1)
    return main, ahead


@pytest.mark.parametrize("case", ERNIE)
def test_ernie_keeps_one_beside_the_stack_and_shares_the_final_norm(case: str, tmp_path: Path) -> None:
    main, ahead = make_ernie(case, tmp_path / "ernie")
    model, plain = load_model(tmp_path / "ernie", mtp=True), load_model(tmp_path / "ernie")
    assert isinstance(model.spec.mtp[0].layer.ffn, DenseFFN)
    with torch.no_grad():
        assert relative(plain(IDS), run_oracle(main, IDS).logits_BSV) <= 1e-5
        h = model.predict_ahead(0, model.hidden(IDS[:, :S]), IDS[:, 1 : S + 1])
        theirs = ahead(main, main.model(IDS[:, :S], use_cache=False).last_hidden_state, IDS[:, 1 : S + 1])
        assert relative(h, theirs) <= 1e-5
        assert relative(model.logits(h), main.lm_head(theirs)) <= 1e-5
    comes_back(tmp_path / "ernie", tmp_path / "again")


def test_every_weight_of_a_shared_norm_and_a_biased_projection_gets_a_gradient(tmp_path: Path) -> None:
    make_ernie(ERNIE[0], tmp_path)
    model = load_model(tmp_path, mtp=True).requires_grad_(True)
    model.predict_ahead(0, model.hidden(IDS[:, :S]), IDS[:, 1 : S + 1]).square().mean().backward()
    assert [name for name, parameter in model.mtp.named_parameters() if parameter.grad is None] == []
    assert "eh_proj_bias" in model.mtp[0].weights


def test_what_ernie_has_beside_its_one_layer_is_refused(tmp_path: Path) -> None:
    make_ernie(ERNIE[1], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match="`num_nextn_predict_layers` is 2, but must be 0 or 1"):
        build_spec({**config, "num_nextn_predict_layers": 2})
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.mtp_block.0.mlp.gate_proj.bias": torch.ones(56)}, file)
    load_model(tmp_path)
    with pytest.raises(ModelError, match=r"no place for: model.mtp_block.0.mlp.gate_proj.bias"):
        load_model(tmp_path, mtp=True)
    save_file({name: tensor for name, tensor in tensors.items() if name != "model.mtp_emb_norm.0.weight"}, file)
    with pytest.raises(ModelError, match=r"lacks 1 of .* multi-token-prediction layers: model.mtp_emb_norm.0.weight"):
        load_model(tmp_path, mtp=True)
    set_config(tmp_path, num_nextn_predict_layers=0)
    with pytest.raises(ModelError, match=r"no place for: model.mtp_"):
        load_model(tmp_path)


def test_minimax_layers_are_skipped_and_refused_when_asked_for(tmp_path: Path) -> None:
    save(make_oracle(*CASES["minimax_m2-partial"]), tmp_path, hub_style=True, shard="1GB")
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"model.layers.3.eh_proj.weight": torch.ones(48, 96)}, file)
    load_model(tmp_path)
    with pytest.raises(ModelError, match="announces no multi-token-prediction layers that this version knows"):
        load_model(tmp_path, mtp=True)
