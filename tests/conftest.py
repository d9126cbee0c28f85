"""Every test runs in a world of its own: no Hub cache, no terminal, no user settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import settings

# Quick tests are the same tests every time; long ones look further at every run.
SOAKING = bool(os.environ.get("MOECTL_SOAK"))
settings.register_profile("moectl", derandomize=not SOAKING, database=None)
settings.load_profile("moectl")

if TYPE_CHECKING:
    from tiny_checkpoints import TinyCheckpoint


class Result(NamedTuple):
    """What one command line left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary HF_HOME, offline; no colours; the working directory is a fresh folder."""
    home = tmp_path_factory.mktemp("world")
    for name in ("MOECTL_DEBUG", "NO_COLOR", "FORCE_COLOR", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def moectl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command line in this process, with the real library behind it."""
    from moectl.cli.app import main

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyCheckpoint]:
    """A tiny checkpoint of every MoE family, by `model_type`. Copy one before damaging it."""
    # Here, because most tests do without transformers, which takes seconds to import.
    from tiny_checkpoints import build_checkpoints

    return build_checkpoints(tmp_path_factory.mktemp("checkpoints"))
