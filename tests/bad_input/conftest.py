from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from refusals import Refusal, snapshot
from tiny_checkpoints import text


@pytest.fixture
def model(isolated, checkpoints):
    """`model/`: a copy that a test may damage; `text.txt` lies beside it. Tests run in the folder of both."""
    shutil.copytree(checkpoints["qwen3_moe"].folder, "model")
    Path("text.txt").write_text(text("prose", 400))
    return Path("model")


@pytest.fixture
def refused(moectl):
    """Run a command that must fail with `code`: no stdout, no traceback, no path changed, made or left."""

    def call(*arguments: str, code: int) -> Refusal:
        before = snapshot(Path())
        result = moectl("route-stats", *arguments)
        assert (result.code, result.out) == (code, ""), result.err
        assert "Traceback" not in result.err
        assert snapshot(Path()) == before
        error, *hints = [line for line in result.err.splitlines() if not line.startswith("note: ")]
        assert error.startswith("error: ")
        assert not error.endswith(".")
        assert len(hints) <= 1
        assert all(hint.startswith("hint: ") for hint in hints)
        return Refusal(error.removeprefix("error: "), "".join(hints).removeprefix("hint: "))

    return call
