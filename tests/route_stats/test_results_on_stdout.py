"""The faces of `moectl route-stats`: dry run, JSON, CSV, Python, a process of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from route_runs import Output, same_files, varying_removed

import moectl as package
from moectl.cli.app import main

# Shapes: T tokens, L MoE layers, K slots, E experts.


def snapshot(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_dry_run_computes_and_writes_nothing(checkpoints, standard, moectl, tmp_path, output_format, monkeypatch):
    from moectl.checkpoint.reader import TensorReader

    monkeypatch.setattr(TensorReader, "_read", lambda *_: pytest.fail("a dry run read a tensor"))
    before = snapshot(tmp_path)
    arguments = ("route-stats", checkpoints["mixtral"].folder, *standard, "--output", tmp_path / "out", "--dry-run")
    result = moectl(*arguments, "--format", output_format)
    assert (result.code, result.err) == (0, "")
    assert snapshot(tmp_path) == before
    if output_format == "json":
        plan = json.loads(result.out)
        assert (plan["tokens"] > 1000, plan["dtype"], plan["order"]) == (True, "float32", "resident")
        assert all(plan[key] > 0 for key in ("read_bytes", "peak_bytes", "budget_bytes", "flops", "output_bytes", "arithmetic_seconds"))
    elif output_format == "csv":
        rows = list(csv.reader(io.StringIO(result.out)))
        assert rows[0] == ["label", "value"]
        assert {row[0] for row in rows} >= {"model", "data", "peak memory"}
    else:
        assert "peak memory" in result.out


def test_json_on_stdout_is_the_summary(checkpoints, standard, runs, moectl, tmp_path):
    arguments = ("route-stats", checkpoints["qwen3_moe"].folder, *standard, "--output", tmp_path / "out", "--format", "json")
    result = moectl(*arguments)
    assert result.code == 0
    printed = json.loads(result.out, parse_constant=pytest.fail)
    assert printed == Output(tmp_path / "out").summary
    assert varying_removed(printed) == varying_removed(runs["qwen3_moe"].summary)
    throughput = printed["throughput"]
    assert {"tokens_per_s", "seconds", "read_gb", "peak_rss_gb"} <= throughput.keys()
    assert throughput["tokens_per_s"] > 0


def test_csv_on_stdout_is_the_layers(checkpoints, standard, runs, moectl):
    without_trace = [argument for argument in standard if argument != "--trace"]
    result = moectl("route-stats", checkpoints["qwen3_moe"].folder, *without_trace, "--format", "csv")
    assert result.code == 0
    expected = runs["qwen3_moe"].layers
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert list(rows[0]) == list(expected.columns)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        for key, value in wanted.items():
            if key == "domain":
                assert row[key] == value
            elif isinstance(value, float) and math.isnan(value):
                assert row[key] == ""
            else:
                assert float(row[key]) == value


def test_without_an_output_nothing_is_written(checkpoints, standard, moectl, isolated):
    without_trace = [argument for argument in standard if argument != "--trace"]
    before = snapshot(isolated)
    result = moectl("route-stats", checkpoints["deepseek_v3"].folder, *without_trace)
    assert result.code == 0
    assert "deepseek_v3" in result.out
    assert "\x1b" not in result.out + result.err
    assert all(line.startswith(("note: ", "warning: ")) for line in result.err.splitlines())
    assert snapshot(isolated) == before


def test_python_gives_what_the_command_gives(checkpoints, texts, runs, family, tmp_path):
    stats = package.route_stats(
        checkpoints[family].folder,
        data=[str(texts / "prose.txt"), str(texts / "code.jsonl")],
        seq_len=33,
        batch_tokens=150,
        dtype="float32",
        output=tmp_path / "out",
        trace=True,
        order="resident",
    )
    expected = runs[family]
    same_files(Output(tmp_path / "out"), expected)
    pd.testing.assert_frame_equal(stats.experts, expected.experts, check_dtype=False)
    pd.testing.assert_frame_equal(stats.layers, expected.layers, check_dtype=False)
    assert (stats.coactivation_LEE == expected.coactivation).all()
    assert stats.moe_layers == tuple(layer for layer, _, _ in checkpoints[family].moe_layers)
    assert varying_removed(stats.summary) == varying_removed(expected.summary)


def test_a_process_of_its_own(checkpoints, standard, runs, tmp_path):
    command = [sys.executable, "-m", "moectl", "route-stats", str(checkpoints["mixtral"].folder), *standard]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--format", "json", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert varying_removed(json.loads(result.stdout)) == varying_removed(runs["mixtral"].summary)
    assert all(line.startswith("note: ") for line in result.stderr.splitlines())
    pd.testing.assert_frame_equal(Output(tmp_path / "out").experts, runs["mixtral"].experts)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout(checkpoints, standard, capsys):
    without_trace = [argument for argument in standard if argument != "--trace"]
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails, as it must
    with contextlib.redirect_stdout(full):
        code = main(["route-stats", str(checkpoints["mixtral"].folder), *without_trace, "--format", "csv"])
    with contextlib.suppress(OSError):
        full.close()
    assert code == 4
    assert "error: cannot write to standard output: the disk is full" in capsys.readouterr().err
