"""The output files: contract, types, and the same bytes for the same input."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from route_runs import TABLES
from safetensors import safe_open

from moectl.errors import ResourceError
from moectl.report.files import summary_json, write_route_stats
from moectl.routing.counters import Counters
from moectl.routing.frames import expert_frame, layer_frame, layer_records, overall
from moectl.routing.result import RouteStats

PROVENANCE = {"model": "tiny", "seed": 0}
NAMES = (
    *TABLES,
    "report.html",
    "summary.json",
)


def stats_of(run, events):
    counters = Counters(run.layers, len(run.names), run.batches)
    for event in events:
        counters.record(event)
    layers = layer_frame(counters, run.names)
    data = {name: {"documents": 1, "sequences": 4, "tokens": 30} for name in run.names}
    summary = {"provenance": {}, "data": data, "layers": layer_records(layers), "overall": overall(layers)}
    moe_layers = tuple(info.layer for info in run.layers)
    return RouteStats(summary, expert_frame(counters, run.names), layers, counters.coactivation_LEE(), moe_layers)


def written(folder, stats):
    folder.mkdir()
    write_route_stats(stats, folder, provenance=PROVENANCE)
    assert {file.name for file in folder.iterdir()} == set(NAMES)
    return {name: (folder / name).read_bytes() for name in NAMES}


def test_both_schedules_write_the_same_bytes(run_of, tmp_path):
    run = run_of(counted=0.7, empty=0.1)
    assert written(tmp_path / "a", stats_of(run, run.events)) == written(tmp_path / "b", stats_of(run, run.batch_outer))


def test_parquet_columns_and_nulls(run_of, tmp_path):
    run = run_of(shapes=((0, 2, 1), (1, 1, 3)))
    stats = stats_of(run, run.events)
    written(tmp_path / "out", stats)
    experts, layers = pq.read_table(tmp_path / "out/experts.parquet"), pq.read_table(tmp_path / "out/layers.parquet")
    for table in (experts, layers):
        assert table.schema.metadata == {b"moectl": json.dumps(PROVENANCE).encode()}
    assert experts.schema.names == [
        "domain", "layer", "expert", "tokens", "share", "relative_load", "weight_sum", "mean_weight", "first_choice_tokens",
        "share_low", "share_high", "domain_specialisation", "lift", "gate_score", "domain_entropy", "expert_set", "expert_set_gate",
    ]  # fmt: skip
    assert experts.schema.types == [
        pa.string(), pa.int32(), pa.int32(), pa.int64(), *[pa.float64()] * 4, pa.int64(), *[pa.float64()] * 6, *[pa.int32()] * 2,
    ]  # fmt: skip
    assert experts["tokens"].to_pylist() == stats.experts["tokens"].tolist()
    assert experts["domain"].to_pylist() == stats.experts["domain"].tolist()
    # Sequences of one token have no neighbours.
    wiki = [domain == "wiki" for domain in layers["domain"].to_pylist()]
    assert [value is None for value in layers["any_overlap"].to_pylist()] == wiki
    assert not any(isinstance(v, float) and math.isnan(v) for name in layers.schema.names for v in layers[name].to_pylist())


def test_coactivation_is_plain_safetensors(run_of, tmp_path):
    run = run_of()
    stats = stats_of(run, run.events)
    written(tmp_path / "out", stats)
    with safe_open(tmp_path / "out/coactivation.safetensors", framework="np") as file:
        assert list(file.keys()) == ["counts"]
        assert file.get_tensor("counts").dtype == np.int64
        assert (file.get_tensor("counts") == stats.coactivation_LEE).all()
        assert json.loads(file.metadata()["layers"]) == [3, 4, 7]
        assert json.loads(file.metadata()["provenance"]) == PROVENANCE


def test_summary_has_null_for_nan_and_keeps_its_key_order():
    text = summary_json({"b": math.nan, "a": [{"x": (1.5, math.nan)}], "n": "Köln"})
    assert json.loads(text, parse_constant=pytest.fail) == {"b": None, "a": [{"x": [1.5, None]}], "n": "Köln"}
    assert list(json.loads(text)) == ["b", "a", "n"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        summary_json({"a": math.inf})


def test_a_folder_that_cannot_be_written_is_named(run_of, tmp_path):
    run = run_of()
    with pytest.raises(ResourceError, match=r"cannot write `.*experts\.parquet`"):
        write_route_stats(stats_of(run, run.events), tmp_path / "missing", provenance=PROVENANCE)
