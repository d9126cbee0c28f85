"""`--active-experts K`: the same as a checkpoint whose configuration says K, and as what transformers executes then."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, run_oracle
from route_runs import TABLES, route
from tiny_checkpoints import FAMILIES, VOCAB_SIZE, set_config

# Shapes: T tokens, L MoE layers, K slots.


@pytest.fixture(scope="module")
def runs_of_one(checkpoints, standard, tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    return {family: route(root / family, checkpoints[family].folder, *standard, "--active-experts", "1") for family in FAMILIES}


def test_experts_and_weights_are_those_of_transformers(checkpoints, runs_of_one, family):
    oracle = make_oracle(family, {**CASES[FAMILIES[family]][1], "vocab_size": VOCAB_SIZE, "num_experts_per_tok": 1})
    trace = runs_of_one[family].trace
    layers = [layer for layer, _, _ in checkpoints[family].moe_layers]
    start, stop = trace["sequence_offsets"][:2]
    executed = run_oracle(oracle, torch.from_numpy(trace["token_ids"][start:stop].astype(np.int64))[None])
    ids_TLK = torch.stack([executed.ids[layer] for layer in layers], 1).numpy()
    weights_TLK = torch.stack([executed.weights[layer] for layer in layers], 1).float().numpy()
    assert ids_TLK.shape[2] == 1
    assert (trace["expert_ids"][start:stop] == ids_TLK).all()
    np.testing.assert_allclose(trace["weights"][start:stop].astype(np.float32), weights_TLK, rtol=2e-3)


def test_it_is_as_if_the_configuration_said_so(checkpoints, standard, runs_of_one, tmp_path):
    folder = shutil.copytree(checkpoints["mixtral"].folder, tmp_path / "model")
    set_config(folder, num_experts_per_tok=1)
    expected, output = route(tmp_path / "out", folder, *standard, "--order", "streamed"), runs_of_one["mixtral"]
    assert output.experts.equals(expected.experts)
    assert output.layers.equals(expected.layers)
    assert (output.coactivation == expected.coactivation).all()
    assert (output.layers["top_k"] == 1).all()


def test_the_summary_says_what_ran_and_what_the_configuration_says(checkpoints, standard, runs, runs_of_one, family):
    top_k = checkpoints[family].moe_layers[0][2]
    model, usual = runs_of_one[family].summary["model"], runs[family].summary["model"]
    assert (model["top_k"], model["top_k_config"]) == (1, top_k)
    assert (usual["top_k"], usual["top_k_config"]) == (top_k, top_k)
    assert model["routing"].startswith("top-1 of ")
    assert runs_of_one[family].summary["provenance"]["active_experts"] == 1
    assert runs[family].summary["provenance"]["active_experts"] is None


def test_what_the_configuration_says_anyway_changes_nothing_but_provenance(checkpoints, standard, runs, tmp_path):
    again = route(tmp_path / "out", checkpoints["mixtral"].folder, *standard, "--active-experts", "2")
    assert again.experts.equals(runs["mixtral"].experts)
    assert [name for name in TABLES if (again.folder / name).read_bytes() == (runs["mixtral"].folder / name).read_bytes()] == []


def test_the_plan_says_it(checkpoints, standard, moectl):
    data = standard[:4]
    result = moectl("route-stats", checkpoints["qwen3_moe"].folder, *data, "--active-experts", "9", "--dry-run", "--format", "json")
    usual = moectl("route-stats", checkpoints["qwen3_moe"].folder, *data, "--dry-run", "--format", "json")
    plan, usual_plan = json.loads(result.out), json.loads(usual.out)
    assert (plan["top_k"], plan["top_k_config"], usual_plan["top_k"]) == (9, 4, 4)
    assert plan["flops"] > usual_plan["flops"]
    table = moectl("route-stats", checkpoints["qwen3_moe"].folder, *data, "--active-experts", "9", "--dry-run").out
    assert "9 a token (the configuration says 4)" in table


@pytest.mark.parametrize(
    ("k", "message", "hint"),
    [
        ("7", "`7` active experts are too many for layer 1: it has 6 in the 2 groups of 3", "choose 1 to 6"),
        ("0", "`--active-experts`: `0` is not a count", ""),
        ("256", "`--active-experts 256` is too large", "lower"),
    ],
)
def test_what_the_router_cannot_do_is_refused(checkpoints, standard, moectl, k, message, hint):
    result = moectl("route-stats", checkpoints["deepseek_v3"].folder, *standard[:4], "--active-experts", k)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert hint in result.err
