"""The tables of one run as files: the same statistics give the same bytes, whatever the machine was doing.

    with staged_directory(output, overwrite=False) as folder:
        write_route_stats(stats, folder, provenance=stable)

It stages nothing itself and computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moectl.checkpoint.layout import lay_out
from moectl.errors import from_os_error
from moectl.report.page.build import report_page
from moectl.report.plain_json import null_for_nan
from moectl.routing.result import RouteStats

_ARROW_TYPES = {"int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64()}


def write_route_stats(stats: RouteStats, folder: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write `experts layers vocabulary token_classes expert_pairs domain_pairs .parquet`, `coactivation.safetensors`, `report.html` and
    `summary.json` into `folder`.

    `provenance` goes into all but the last two and must not vary between equal runs; these two hold what `stats.summary` says.
    Raises ResourceError if the disk refuses.
    """
    text = json.dumps(provenance, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _write(folder / "experts.parquet", _parquet(stats.experts, text))
    _write(folder / "layers.parquet", _parquet(stats.layers, text))
    _write(folder / "vocabulary.parquet", _parquet(stats.vocabulary, text))
    _write(folder / "token_classes.parquet", _parquet(stats.token_classes, text))
    _write(folder / "expert_pairs.parquet", _parquet(stats.expert_pairs, text))
    _write(folder / "domain_pairs.parquet", _parquet(stats.domain_pairs, text))
    counts_LEE = np.ascontiguousarray(stats.coactivation_LEE, dtype="<i8")
    coactivation = folder / "coactivation.safetensors"
    metadata = {"layers": json.dumps(list(stats.moe_layers)), "provenance": text}
    header, _ = lay_out(coactivation, [("counts", "I64", counts_LEE.shape)], metadata=metadata)
    _write(coactivation, header, counts_LEE.reshape(-1).view(np.uint8).data)
    _write(folder / "report.html", report_page(stats).encode())
    # Last: a folder with a summary is a whole one.
    _write(folder / "summary.json", summary_json(stats.summary).encode())


def summary_json(summary: Mapping[str, Any]) -> str:
    """`summary` as JSON text in its own key order, null for NaN. Raises ValueError for an infinite number."""
    return json.dumps(null_for_nan(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parquet(frame: pd.DataFrame, provenance: str) -> bytes:
    """Parquet bytes with types fixed by the columns' dtypes, null for NaN, and no trace of pandas or its version."""
    columns, fields = [], []
    for name in frame.columns:
        values = frame[name]
        arrow = _ARROW_TYPES.get(str(values.dtype), pa.string())
        columns.append(pa.array(values.to_numpy(), type=arrow, from_pandas=True))
        fields.append(pa.field(name, arrow))
    table = pa.table(columns, schema=pa.schema(fields, metadata={"moectl": provenance}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _write(path: Path, *parts: bytes | memoryview) -> None:
    try:
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
    except OSError as error:
        raise from_os_error(error, f"write `{path}`") from error
