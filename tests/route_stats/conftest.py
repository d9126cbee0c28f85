from __future__ import annotations

import json
from pathlib import Path

import pytest
from route_runs import Output, route
from tiny_checkpoints import FAMILIES, text


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `prose.txt` and `code.jsonl` (three documents)."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "prose.txt").write_text(text("prose", 1500))
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": text("code", 311, seed=seed)}) + "\n" for seed in range(3)))
    return folder


@pytest.fixture(scope="session")
def standard(checkpoints, texts) -> tuple[str, ...]:
    """Options of a run over two domains with tails, in several micro-batches."""
    data = ("--data", str(texts / "prose.txt"), "--data", str(texts / "code.jsonl"))
    return (*data, "--seq-len", "33", "--batch-tokens", "150", "--dtype", "float32", "--trace")


@pytest.fixture(scope="session")
def runs(checkpoints, standard, tmp_path_factory) -> dict[str, Output]:
    """A resident run of every family."""
    root = tmp_path_factory.mktemp("runs")
    return {family: route(root / family, checkpoints[family].folder, *standard, "--order", "resident") for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param
