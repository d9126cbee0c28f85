"""`route-stats` on FP8 and MXFP4: the tables of the decoded twin, resident and streamed, within its plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from quantised_checkpoints import deepseek_fp8, gpt_oss_mxfp4
from route_runs import TABLES, Output, route, same_files
from safetensors.numpy import load_file

from moectl.checkpoint.header import read_header


def same_tables(a: Output, b: Output) -> None:
    """Everything but provenance, which names the model and its configuration."""
    for name in (*TABLES, "trace.safetensors"):
        if name.endswith(".parquet"):
            tables = (pq.read_table(run.folder / name).replace_schema_metadata(None) for run in (a, b))
            assert next(tables).equals(next(tables)), name
        else:
            mine, theirs = load_file(a.folder / name), load_file(b.folder / name)
            assert mine.keys() == theirs.keys()
            assert all(mine[key].tobytes() == theirs[key].tobytes() for key in mine), name
    mine, theirs = ({key: run.summary[key] for key in ("layers", "overall", "perplexity", "data")} for run in (a, b))
    assert mine == theirs


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("build", [deepseek_fp8, gpt_oss_mxfp4])
def test_tables_are_those_of_the_twin(build, dtype: str, tmp_path: Path) -> None:
    twins = build(tmp_path / "twins")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 103, 400))
    options = ("--data", tmp_path / "ids.npy", "--seq-len", "33", "--batch-tokens", "150", "--dtype", dtype, "--trace", "--perplexity")
    resident = route(tmp_path / "resident", twins.quantised, *options, "--order", "resident")
    streamed = route(tmp_path / "streamed", twins.quantised, *options, "--order", "streamed")
    same_files(resident, streamed)
    same_tables(resident, route(tmp_path / "twin", getattr(twins, dtype), *options, "--order", "streamed"))


@pytest.mark.parametrize("build", [deepseek_fp8, gpt_oss_mxfp4])
@pytest.mark.parametrize("order", ["resident", "streamed"])
def test_the_plan_counts_codes_and_scales(build, order: str, tmp_path: Path, moectl) -> None:
    twins = build(tmp_path / "twins")
    np.save("ids.npy", np.arange(103))  # every row of the embedding
    options = ("--data", "ids.npy", "--dtype", "bfloat16", "--order", order, "--format", "json")
    plan = json.loads(moectl("route-stats", twins.quantised, *options, "--dry-run").out)
    tensors = [info for file in twins.quantised.glob("*.safetensors") for info in read_header(file).tensors.values()]
    main = [info for info in tensors if not info.name.startswith("model.layers.3.")]
    assert plan["read_bytes"] == sum(info.nbytes for info in main)
    read = json.loads(moectl("route-stats", twins.quantised, *options).out)["throughput"]["read_gb"] * 1e9
    # Rounded to 1,000 bytes; streamed, the last layer's experts and what follows them are not read.
    assert read <= plan["read_bytes"] + 500
    assert order == "streamed" or read >= plan["read_bytes"] - 500
