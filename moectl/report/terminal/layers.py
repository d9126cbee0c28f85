"""The layers: those that a person should look at, and a table of them all, or of the most telling ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from moectl.report.attention import attention
from moectl.report.numerals import hundredths, percent, tenths, whole
from moectl.report.rows import ENOUGH_TOKENS, even_share, overall_rows
from moectl.report.terminal.layout import INDENT, heading, indented, plain_table

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_MOST_ROWS = 16
_MOST_ATTENTION = 6


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the layer table; `rank` says what goes first when the terminal is narrow."""

    header: str
    key: str
    cell: Callable[[float], str]
    rank: int
    legend: str


_COLUMNS = (
    _Column("MaxVio", "max_vio", hundredths, 0, "how far the busiest expert is above its even share"),
    _Column("chance", "max_vio_noise_floor", hundredths, 1, "the MaxVio of an even router on this sample"),
    _Column("eff.", "effective_experts", tenths, 2, "experts that would carry this load evenly"),
    _Column("dead", "dead_experts", whole, 3, ""),
    _Column("cold", "cold_experts", whole, 4, "experts below a tenth of their even share, dead ones too"),
    _Column("CV", "cv", hundredths, 7, "spread of the loads over their mean"),
    _Column("Gini", "gini", hundredths, 8, ""),
    _Column("next", "next_token_overlap", percent, 5, "experts shared with the next token"),
    _Column("by load", "next_token_overlap_load_aware", percent, 6, "the part of it the load explains"),
)


def layers_to_look_at(stats: RouteStats) -> RenderableType:
    """The layers that stand out and why, the worst first."""
    entries = attention(stats)
    if not entries:
        return indented(Text("None stands out from the others."))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="yellow", no_wrap=True)
    grid.add_column()
    # One line more is no longer than a line that says that there is one.
    shown = entries if len(entries) == _MOST_ATTENTION + 1 else entries[:_MOST_ATTENTION]
    for entry in shown:
        grid.add_row(f"layer {entry.layer}", Text("; ".join(entry.reasons)))
    if len(entries) > len(shown):
        grid.add_row("", Text(f"and {len(entries) - len(shown)} more, marked ! below", style="dim"))
    return indented(grid)


def layer_table(stats: RouteStats, width: int) -> list[RenderableType]:
    """Title, table, and what its columns mean."""
    rows = overall_rows(stats)
    marked = {entry.layer for entry in attention(stats)}
    shown = _extremes(rows, [entry.layer for entry in attention(stats)])
    supported = even_share(stats) >= ENOUGH_TOKENS
    hidden = set() if supported else {"dead_experts", "cold_experts"}
    if rows["next_token_overlap"].isna().all():
        hidden.add("next_token_overlap_load_aware")
    columns = [column for column in _COLUMNS if column.key not in hidden and rows[column.key].notna().any()]
    columns = _fitting(columns, rows.loc[shown], width)
    table = plain_table()
    table.add_column("layer", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    for layer in shown:
        cells = [_cell(column, rows.loc[layer, column.key]) for column in columns]
        table.add_row(f"{'! ' if layer in marked else ''}{layer}", *cells, style="yellow" if layer in marked else None)
    title = "Layers" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} layers: those to look at, the extremes, and some between"
    parts: list[RenderableType] = [heading(title), indented(table)]
    legend = "; ".join(f"{column.header}: {column.legend}" for column in columns if column.legend)
    parts.append(indented(Text(legend, style="dim")))
    if len(shown) < len(rows):
        parts.append(indented(Text("All layers and metrics: `--format csv`, or `--output DIR`", style="dim")))
    return parts


def _cell(column: _Column, value: Any) -> str:
    return "-" if math.isnan(value) else column.cell(value)


def _fitting(columns: Sequence[_Column], rows: pd.DataFrame, width: int) -> list[_Column]:
    """The columns of best rank that fit into `width`, in their own order."""
    room = width - INDENT - len("! layer")
    kept = set()
    for column in sorted(columns, key=lambda column: column.rank):
        needed = 2 + max(len(column.header), *(len(_cell(column, value)) for value in rows[column.key]))
        if needed > room:
            break
        room -= needed
        kept.add(column.key)
    return [column for column in columns if column.key in kept]


def _extremes(rows: pd.DataFrame, first: Sequence[int]) -> list[int]:
    """At most 16 layers in order: the first and last, those of `first`, each metric's extremes, then an even spread."""
    layers = [int(str(layer)) for layer in rows.index]
    if len(layers) <= _MOST_ROWS:
        return layers
    wanted = [layers[0], layers[-1], *first[:_MOST_ATTENTION]]
    for key in ("max_vio", "next_token_overlap"):
        values = rows[key].dropna()
        if not values.empty:
            wanted += [int(str(values.idxmax())), int(str(values.idxmin()))]
    steps = _MOST_ROWS - 1
    wanted += [layers[round(step * (len(layers) - 1) / steps)] for step in range(steps + 1)]
    return sorted(list(dict.fromkeys(wanted))[:_MOST_ROWS])
