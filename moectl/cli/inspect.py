"""`moectl inspect`: options in, library call, page out. The work is `moectl.inspection.run`; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moectl.cli.console import console
from moectl.cli.options import (
    CacheBitsOption,
    ContextOption,
    DebugOption,
    FormatOption,
    InspectedModelArgument,
    RanksOption,
    TensorsOption,
    WhatIfOption,
)

EXAMPLES = """Examples:

moectl inspect ./mixtral
moectl inspect org/name --context 128k --cache-bits 8
moectl inspect ./deepseek-v3/config.json --ranks 64 --format json
moectl inspect ./llama --what-if 64,8,granularity=8,shared=1

moectl inspect ./mixtral --tensors --format csv > tensors.csv"""


def inspect(
    model: InspectedModelArgument,
    context: ContextOption = None,
    cache_bits: CacheBitsOption = 16,
    ranks: RanksOption = None,
    what_if: WhatIfOption = None,
    tensors: TensorsOption = False,
    output_format: FormatOption = "table",
    debug: DebugOption = False,
) -> None:
    """What is in this checkpoint, and what will it cost?

    Reads headers and config.json only: parameters, bytes, FLOPs per token, KV cache and memory.
    """
    from moectl.inspection import run

    found = run.inspect(model, context=context, cache_bits=cache_bits, ranks=ranks, what_if=what_if, tensors=tensors)
    for note in found.notes:
        console.notice(note)
    match output_format:
        case "json":
            console.json(found.to_json())
        case "csv" if tensors:
            rows = ((row.name, row.dtype, " ".join(map(str, row.shape)), str(row.bytes), row.file) for row in found.tensors)
            console.csv_rows(("name", "dtype", "shape", "bytes", "file"), rows)
        case "csv":
            console.csv_rows(("key", "value"), _leaves(found.to_json()))
        case _:
            from moectl.report.inspection import render, tensor_table

            console.out(tensor_table(found) if tensors else render(found))


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """`parameters.total`, `layers.0.window`, ...: every number and text with the path that leads to it; null is empty."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
