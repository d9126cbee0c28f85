from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moectl.routing.options import Export, RouteStatsOptions, SavedRunOptions

BASE = ("route-stats", "some/model", "--data", "a.txt")
DEFAULTS = RouteStatsOptions(model="some/model", data=("a.txt",))


def test_defaults_reach_the_library(run, api):
    assert run(*BASE, "--format", "json")[0] == 0
    assert api.calls == [("run_route_stats", DEFAULTS)]


def test_every_option_reaches_the_library(run, api):
    code, _, _ = run(
        "route-stats", "m", "--data", "code=src/", "--data", "prose=book.txt", "--tokens", "100k", "--seq-len", "128",
        "--batch-tokens", "1k", "--dtype", "bfloat16", "--device", "cuda:1", "--memory", "16GB", "--threads", "3",
        "--order", "streamed", "--output", "out dir",
        "--overwrite", "--trace", "--skip-special", "--text-field", "body", "--active-experts", "5", "--perplexity",
        "--export", "eplb=load.npy", "--export", "sglang=load.json", "--format", "json",
    )  # fmt: skip
    assert code == 0
    options = RouteStatsOptions(
        model="m", data=("code=src/", "prose=book.txt"), tokens=100_000, seq_len=128, batch_tokens=1000, dtype="bfloat16", device="cuda:1",
        memory=16_000_000_000, threads=3, order="streamed", output=Path("out dir"), overwrite=True, trace=True, skip_special=True,
        text_field="body", active_experts=5, perplexity=True,
        exports=(Export("eplb", Path("load.npy")), Export("sglang", Path("load.json"))),
    )  # fmt: skip
    assert api.calls == [("run_route_stats", options)]


def test_a_saved_run_needs_no_model(run, api):
    code, out, err = run("route-stats", "--from", "stats", "--output", "copy", "--overwrite", "--export", "eplb=a.npy", "--format", "json")
    assert (code, json.loads(out)) == (0, api.stats.summary)
    assert err == "note: wrote `copy`\nnote: wrote `a.npy`\n"
    options = SavedRunOptions(source=Path("stats"), output=Path("copy"), overwrite=True, exports=(Export("eplb", Path("a.npy")),))
    assert api.calls == [("run_saved_route_stats", options)]


def test_json_is_the_summary(run, api):
    code, out, err = run(*BASE, "--format", "json")
    assert (code, json.loads(out), err) == (0, api.stats.summary, "note: dtype is float32\n")


def test_csv_is_the_layers(run, api):
    code, out, _ = run(*BASE, "--format", "csv")
    assert code == 0
    assert list(csv.DictReader(io.StringIO(out))) == [{"domain": "all", "layer": "1", "max_vio": "0.5", "next_token_overlap": ""}]


def test_table_is_the_terminal_summary(run, api, monkeypatch):
    from moectl.report.terminal import summary

    monkeypatch.setattr(summary, "render", lambda stats, width: f"{stats.summary['model']['name']} at {width}   ")
    assert run(*BASE)[:2] == (0, "tiny at 80\n")


def test_the_output_folder_is_named_on_stderr(run, api):
    code, out, err = run(*BASE, "--output", "some/where", "--format", "json")
    assert (code, json.loads(out)) == (0, api.stats.summary)
    assert err.endswith("note: wrote `some/where`\n")


def test_a_nan_in_the_summary_is_never_printed(run, api):
    api.stats.summary["layers"][0]["max_vio"] = float("nan")
    code, out, _ = run(*BASE, "--format", "json")
    assert (code, out) == (1, "")


@pytest.mark.parametrize(
    ("output_format", "expected"),
    [
        ("table", "to read  1.38 GB\ndtype    float32 (no bf16 here)\n"),
        ("csv", "label,value\nto read,1.38 GB\ndtype,float32 (no bf16 here)\n"),
        ("json", '{\n  "read_bytes": 1380000000\n}\n'),
    ],
)
def test_dry_run_prints_the_plan_and_runs_nothing(run, api, output_format, expected):
    code, out, _ = run(*BASE, "--dry-run", "--format", output_format)
    assert (code, out) == (0, expected)
    assert api.calls == [("plan_route_stats", DEFAULTS)]


def test_data_defaults_to_the_built_in_domains(run, api):
    assert run("route-stats", "some/model", "--dry-run")[0] == 0
    assert api.calls == [("plan_route_stats", replace(DEFAULTS, data=("demo",)))]


def test_a_trace_needs_an_output(run, api):
    expected = "error: `--trace` writes a file, and there is no `--output` to put it in\nhint: add `--output DIR`\n"
    assert run(*BASE, "--trace") == (2, "", expected)
    assert api.calls == []


def test_progress_lines_only_when_asked(run, api):
    assert run(*BASE, "--format", "json")[2] == "note: dtype is float32\n"
    for flag in ("-v", "--verbose"):
        err = run(*BASE, "--format", "json", flag)[2]
        assert err.startswith("route: 100 tokens\nnote: dtype is float32\nroute: 100 of 100 tokens")
