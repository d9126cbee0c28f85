"""What DeepSeek's families and their kin have of their own: rotations, aliases, and rules that transformers lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, run_oracle, save, weight_map
from oracle_sizes import LLAMA3, YARN
from tiny_checkpoints import set_config

from moectl.api import load_model
from moectl.arch.parts import MoE
from moectl.model.router import Routing

IDS = torch.randint(0, 103, (3, 33), generator=torch.Generator().manual_seed(5))
LONG_IDS = torch.randint(0, 103, (2, 90), generator=torch.Generator().manual_seed(6))
# The cases whose rotation varies: what rotates of a head, in pairs.
PAIRS = {
    "deepseek_v2-best-of-groups-yarn-biases": 3,
    "deepseek_v3-groups-yarn-biases": 3,
    "dots1-groups-windows-biases": 5,
    "ernie4_5_moe-interval-biases-yarn": 5,
    "glm4_moe-groups-qk-norm-biases-yarn": 3,
    "minimax_m2-partial": 3,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 50.0},
    "linear": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 3.0},
    "llama3": LLAMA3,
    "yarn": {**YARN, "truncate": False, "attention_factor": 1.4},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0},
    "longrope": {"rope_type": "longrope", "rope_theta": 50.0, "original_max_position_embeddings": 48, "factor": 2.0},
}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("case", PAIRS)
def test_every_rotation_below_and_beyond_the_original_length(case: str, rope: str, tmp_path: Path) -> None:
    family, keys = CASES[case]
    share = {key: value for key, value in keys.get("rope_parameters", {}).items() if key == "partial_rotary_factor"}
    settings = {**ROPES[rope], **share}
    if rope == "longrope":
        settings |= {"short_factor": [1.0 + 0.2 * j for j in range(PAIRS[case])], "long_factor": [2.0 + j for j in range(PAIRS[case])]}
    oracle = make_oracle(family, {**keys, "rope_parameters": settings, "max_position_embeddings": 64})
    model = load_model(save(oracle, tmp_path, hub_style=True))
    with torch.no_grad():
        for ids in (IDS, LONG_IDS):
            assert relative(model(ids), run_oracle(oracle, ids).logits_BSV) <= 1e-5


def test_kimi_is_deepseek_v3_under_another_name(tmp_path: Path) -> None:
    oracle = make_oracle(*CASES["deepseek_v3-one-group-steep-yarn"])
    folder = save(oracle, tmp_path, hub_style=True)
    set_config(folder, model_type="kimi_k2", num_nextn_predict_layers=0)
    model = load_model(folder)
    assert model.spec.model_type == "kimi_k2"
    with torch.no_grad():
        assert relative(model(LONG_IDS), run_oracle(oracle, LONG_IDS).logits_BSV) <= 1e-5


@pytest.mark.parametrize("top_k", [3, 1])
def test_deepseek_v2_normalises_as_its_authors_do_where_transformers_does_not(top_k: int, tmp_path: Path) -> None:
    """`norm_topk_prob`: over the sum of the selected, unless there is one only, then times the scale (DeepSeek-VL2's code, and V3's)."""
    family, keys = CASES["deepseek_v2-best-of-groups-yarn-biases"]
    keys = {**keys, "num_experts_per_tok": top_k, "norm_topk_prob": True}
    oracle = make_oracle(family, keys)
    scale = keys["routed_scaling_factor"]

    def normalise(_module: Any, _args: Any, output: Any) -> Any:
        logits, weights, ids = output
        return logits, weights / weights.sum(-1, keepdim=True) * scale if top_k > 1 else weights, ids

    for layer in oracle.model.layers[1:]:
        layer.mlp.gate.register_forward_hook(normalise)
    expected = run_oracle(oracle, IDS)
    model = load_model(save(oracle, tmp_path, hub_style=True))
    routings: dict[int, Routing] = {}
    with torch.no_grad():
        logits = model(IDS, on_routing=lambda _i, layer, routing: routings.__setitem__(layer, routing))
    assert relative(logits, expected.logits_BSV) <= 1e-5
    for layer, routing in routings.items():
        maps = [
            weight_map(*pair, 12) for pair in ((routing.expert_ids_TK, routing.weights_TK), (expected.ids[layer], expected.weights[layer]))
        ]
        assert (maps[0] - maps[1]).abs().max().item() <= 1e-5


def test_deepseek_without_experts_is_dense(tmp_path: Path) -> None:
    family, keys = CASES["deepseek-renormed-every-second-dynamic"]
    oracle = make_oracle(family, {**keys, "n_routed_experts": None})
    model = load_model(save(oracle, tmp_path, hub_style=True))
    assert model.spec.moe_layers == ()
    with torch.no_grad():
        assert relative(model(IDS), run_oracle(oracle, IDS).logits_BSV) <= 1e-5


@pytest.mark.parametrize("keep", ["architectures", "score_function"])
def test_ling_2_says_bailing_moe(keep: str, tmp_path: Path) -> None:
    oracle = make_oracle(*CASES["bailing_moe_v2-groups-qkv-bias-half-rope"])
    folder = save(oracle, tmp_path, hub_style=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bailing_moe"
    assert config["architectures"] == ["BailingMoeV2ForCausalLM"]
    dropped = {"architectures", "score_function"} - {keep}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in dropped}))
    model = load_model(folder)
    ffn = model.spec.layers[1].ffn
    assert isinstance(ffn, MoE)
    assert ffn.router.score == "sigmoid"
    with torch.no_grad():
        assert relative(model(IDS), run_oracle(oracle, IDS).logits_BSV) <= 1e-5


def test_what_stays_float32_in_a_bfloat16_model(tmp_path: Path) -> None:
    """Correction biases of every family that has them, and ERNIE's router; nothing else."""
    for case, names in (
        ("ernie4_5_moe-unshared-floor-llama3", {"correction_bias", "router"}),
        ("minimax_m2-partial", {"correction_bias"}),
        ("bailing_moe_v2-groups-qkv-bias-half-rope", {"correction_bias"}),
        ("glm4_moe-unnormed-tied", {"correction_bias"}),
        ("dots1-layer-types-linear-tied", {"correction_bias"}),
        ("deepseek_v2-greedy-plain-q-tied", set()),
        ("deepseek-unshared-linear-tied", set()),
    ):
        model = load_model(save(make_oracle(*CASES[case]), tmp_path / case, hub_style=True), dtype="bfloat16")
        wide = {name.rsplit(".", 1)[-1] for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
        assert wide == names
