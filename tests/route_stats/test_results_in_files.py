"""The files of `moectl route-stats`: trace, layer indices, provenance."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
from route_runs import TABLES
from safetensors import safe_open

# Shapes: T tokens, L MoE layers, K slots, E experts.


def test_the_trace_keeps_its_contract(checkpoints, runs, family):
    folder, trace = runs[family].folder, runs[family].trace
    n_layers, (_, n_experts, top_k) = len(checkpoints[family].moe_layers), checkpoints[family].moe_layers[0]
    n_tokens = sum(entry["tokens"] for entry in runs[family].summary["data"].values())
    shapes = {name: (str(array.dtype), array.shape) for name, array in trace.items()}
    n_sequences = len(trace["domain_ids"])
    assert shapes == {
        "expert_ids": ("uint8", (n_tokens, n_layers, top_k)),
        "weights": ("float16", (n_tokens, n_layers, top_k)),
        "token_ids": ("int32", (n_tokens,)),
        "sequence_offsets": ("int64", (n_sequences + 1,)),
        "domain_ids": ("uint8", (n_sequences,)),
    }
    assert (np.diff(trace["weights"].astype(np.float32), axis=-1) <= 0).all()
    assert (trace["weights"] > 0).all()
    assert trace["expert_ids"].max() < n_experts
    ordered = np.sort(trace["expert_ids"], -1)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()
    with safe_open(folder / "trace.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["layers"]) == [layer for layer, _, _ in checkpoints[family].moe_layers]
    assert json.loads(metadata["domains"]) == ["prose", "code"]
    assert json.loads(metadata["provenance"])["model"] == str(checkpoints[family].folder)


def test_layers_keep_their_own_index(checkpoints, runs, family):
    expected = [layer for layer, _, _ in checkpoints[family].moe_layers]
    output = runs[family]
    assert expected == {"qwen3_moe": [0, 2], "mixtral": [0, 1, 2], "deepseek_v3": [1, 2]}[family]
    assert output.experts["layer"].unique().tolist() == expected
    assert output.layers["layer"].unique().tolist() == expected
    assert [row["layer"] for row in output.summary["layers"]] == expected
    assert output.summary["model"]["moe_layers"] == expected
    assert output.layers["domain"].unique().tolist() == ["all", "prose", "code"]


def test_provenance_is_in_every_artefact(checkpoints, runs, family):
    output, found = runs[family], []
    for name in (table for table in TABLES if table.endswith(".parquet")):
        found.append(json.loads(pq.read_schema(output.folder / name).metadata[b"moectl"]))
    for name in ("coactivation.safetensors", "trace.safetensors"):
        with safe_open(output.folder / name, framework="np") as file:
            found.append(json.loads(file.metadata()["provenance"]))
    assert all(item == found[0] for item in found)
    provenance = output.summary["provenance"]
    assert found[0].items() <= provenance.items()
    wanted = ("moectl_version", "torch_version", "command", "model", "revision", "config_sha256", "data_hash", "seed", "dtype", "device")
    assert set(wanted) <= found[0].keys()
    assert found[0]["data_hash"] == {name: entry["hash"] for name, entry in output.summary["data"].items()}
