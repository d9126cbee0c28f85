from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

# Typer reads these once, at its first help text: help is the same on a laptop and on a CI that asks for colour.
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)


class FakeApi(ModuleType):
    """Stands for moectl.api: keeps what it was called with, and raises `error` if told to."""

    def __init__(self) -> None:
        super().__init__("moectl.api")
        self.calls = []
        self.error = None
        self.stats = SimpleNamespace(
            summary={"model": {"name": "tiny"}, "layers": [{"layer": 1, "max_vio": 0.5}]},
            layers=pd.DataFrame({"domain": ["all"], "layer": [1], "max_vio": [0.5], "next_token_overlap": [float("nan")]}),
        )
        self.plan = SimpleNamespace(
            rows=(("to read", "1.38 GB"), ("dtype", "float32 (no bf16 here)")), to_json=lambda: {"read_bytes": 1380000000}
        )

    def run_route_stats(self, options, *, progress):
        self.calls.append(("run_route_stats", options))
        progress.stage("route", 100.0, "tokens")
        progress.notice("dtype is float32")
        progress.advance(100.0)
        if self.error is not None:
            raise self.error
        return self.stats

    def run_saved_route_stats(self, options):
        self.calls.append(("run_saved_route_stats", options))
        if self.error is not None:
            raise self.error
        return self.stats

    def plan_route_stats(self, options):
        self.calls.append(("plan_route_stats", options))
        return self.plan


@pytest.fixture
def api(monkeypatch, tmp_path):
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "moectl.api", fake)
    # `inspect` does not go through the api; whatever MODEL is asked for, it looks at the built-in one.
    from moectl.inspection import run

    inspect = run.inspect
    monkeypatch.setattr(run, "inspect", lambda model, **options: inspect("demo", **{**options, "ranks": options["ranks"] and 2}))
    # Nor does `convert`; whatever is to become what, the built-in model becomes a folder of this test.
    from moectl.conversion import run as conversion

    convert = conversion.run_convert

    def convert_demo(options, *, progress):
        output = tmp_path / options.output.name
        return convert(replace(options, model="demo", output=output, overwrite=True), progress=progress)

    monkeypatch.setattr(conversion, "run_convert", convert_demo)
    return fake


@pytest.fixture
def run(monkeypatch, capsys):
    """Run one command line in this process: (exit code, stdout, stderr)."""
    from moectl.cli.app import main

    for name in ("MOECTL_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
