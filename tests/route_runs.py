"""Runs of `moectl route-stats` from the command line to its files, and how to compare two of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from safetensors import safe_open

from moectl.cli.app import main

# Shapes: L MoE layers, E experts.

SPECIAL = (0, 1)  # <s> and </s> of the tiny tokenizer
TABLES = (
    "experts.parquet", "layers.parquet", "vocabulary.parquet", "token_classes.parquet", "expert_pairs.parquet", "domain_pairs.parquet",
    "coactivation.safetensors",
)  # fmt: skip


class Output(NamedTuple):
    """The files of one run."""

    folder: Path

    @property
    def experts(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "experts.parquet").to_pandas()

    @property
    def layers(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "layers.parquet").to_pandas()

    @property
    def expert_pairs(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "expert_pairs.parquet").to_pandas()

    @property
    def domain_pairs(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "domain_pairs.parquet").to_pandas()

    @property
    def coactivation(self) -> np.ndarray:
        with safe_open(self.folder / "coactivation.safetensors", framework="np") as file:
            return file.get_tensor("counts")

    @property
    def trace(self) -> dict[str, np.ndarray]:
        with safe_open(self.folder / "trace.safetensors", framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def of(self, column: str, domain: str = "all") -> np.ndarray:
        """A column of experts.parquet as [L, E]."""
        rows = self.experts[self.experts["domain"] == domain]
        return rows[column].to_numpy().reshape(rows["layer"].nunique(), -1)


def route(output: Path, model: Path, *arguments: str | Path) -> Output:
    """Run the command, which must succeed."""
    code = main(["route-stats", str(model), *map(str, arguments), "--output", str(output)])
    assert code == 0
    return Output(output)


def without_circumstances(page: str) -> str:
    """A page without what it says of how it was made: throughput, provenance and the command."""
    data = re.search(r'(?<=id="data">).*?(?=</script>)', page)[0]
    kept = json.dumps(varying_removed(json.loads(data)), sort_keys=True)
    return re.sub(r'(?s)<dl class="provenance">.*?</dl>|<pre><code>.*?</code></pre>', "", page.replace(data, kept))


def varying_removed(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("throughput", "provenance")}


def same_files(a: Output, b: Output) -> None:
    """Every file byte for byte, JSON and the page but for throughput and provenance."""
    assert sorted(os.listdir(a.folder)) == sorted(os.listdir(b.folder))
    for name in os.listdir(a.folder):
        if name not in ("summary.json", "report.html"):
            assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes(), name
    assert varying_removed(a.summary) == varying_removed(b.summary)
    assert without_circumstances(a.page) == without_circumstances(b.page)
