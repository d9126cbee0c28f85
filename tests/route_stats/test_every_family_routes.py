"""`moectl route-stats` on every configuration with experts: it counts the experts that transformers executes, layer by layer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle_cases import MOE_CASES
from oracle_models import make_oracle, run_oracle, save
from route_runs import route
from safetensors.torch import save_file

from moectl.arch.registry import build_spec

ROWS = np.random.default_rng(11).integers(0, 103, (4, 21))


@pytest.mark.parametrize("case", MOE_CASES)
def test_counts_are_those_of_the_executed_experts(case: str, tmp_path: Path) -> None:
    oracle = make_oracle(*MOE_CASES[case])
    executed = run_oracle(oracle, torch.from_numpy(ROWS))
    np.save(tmp_path / "ids.npy", ROWS)
    model = save(oracle, tmp_path / "model", hub_style=True)
    options = ("--data", tmp_path / "ids.npy", "--dtype", "float32", "--batch-tokens", "50", "--order", "streamed")
    output = route(tmp_path / "out", model, *options)

    experts, layers = (table[table["domain"] == "all"] for table in (output.experts, output.layers))
    assert sorted(layers["layer"]) == sorted(experts["layer"].unique()) == sorted(executed.ids)
    for row in layers.to_dict("records"):
        ids_TK, weights_TK = (kept[row["layer"]].numpy() for kept in (executed.ids, executed.weights))
        of_layer = experts[experts["layer"] == row["layer"]].sort_values("expert")
        counts = np.bincount(ids_TK.ravel(), minlength=len(of_layer))
        assert (of_layer["tokens"].to_numpy() == counts).all()
        sums = np.bincount(ids_TK.ravel(), weights=weights_TK.ravel(), minlength=len(of_layer))
        np.testing.assert_allclose(of_layer["weight_sum"], sums, rtol=1e-4, atol=1e-4)
        assert (row["tokens"], row["top_k"]) == (ROWS.size, ids_TK.shape[1])
        assert all(math.isfinite(row[metric]) for metric in ("router_entropy", "captured_mass", "z_loss", "balance_loss"))
        assert 0 < row["captured_mass"] <= 1


def test_layers_may_differ_in_experts_and_in_how_many_a_token_gets(tmp_path: Path) -> None:
    """Lists of Hunyuan's keys; transformers takes a list for one of them only."""
    n_experts, top_k = [7, 4, 5], [1, 3, 2]
    keys = MOE_CASES["hunyuan_v1_moe-alpha-topk-list"][1]
    config = {**keys, "model_type": "hunyuan_v1_moe", "num_experts": n_experts, "moe_topk": top_k, "moe_intermediate_size": [12, 20, 8]}
    generator = torch.Generator().manual_seed(2)
    tensors = {ref.name: torch.randn(ref.shape, generator=generator) * 0.3 for ref in build_spec(config).refs()}
    (tmp_path / "model").mkdir()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "ids.npy", ROWS)
    output = route(tmp_path / "out", tmp_path / "model", "--data", tmp_path / "ids.npy", "--dtype", "float32", "--trace")
    experts = output.experts[output.experts["domain"] == "all"]
    for layer in range(3):
        counts = experts[experts["layer"] == layer]["tokens"]
        assert (len(counts), counts.sum()) == (n_experts[layer], ROWS.size * top_k[layer])
        ids_TK = output.trace["expert_ids"][:, layer]
        assert (ids_TK[:, : top_k[layer]] < n_experts[layer]).all()
        assert (ids_TK[:, top_k[layer] :] == 255).all()
