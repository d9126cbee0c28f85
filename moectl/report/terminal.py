"""What `moectl route-stats` prints: first what a person wants to know, then a compact table of the layers.

It decides no content (see `findings.py`, `attention.py`) and writes to no stream. Meaning never hangs on colour: a layer to look at
carries a `!`.

    rich.console.Console().print(render(stats, width=80))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moectl.report.attention import attention
from moectl.report.domains import Specialist, specialists
from moectl.report.findings import findings
from moectl.report.headline import Figure, headline
from moectl.report.rows import ENOUGH_TOKENS, domain_names, even_share, overall_rows
from moectl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_MOST_ROWS = 16
_MOST_ATTENTION = 6
_MOST_DOMAINS = 10
_WIDEST_NAME = 20
_LONGEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the layer table; `rank` says what goes first when the terminal is narrow."""

    header: str
    key: str
    cell: Callable[[float], str]
    rank: int
    legend: str


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _decimal(value: float) -> str:
    return f"{value:.2f}"


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_COLUMNS = (
    _Column("MaxVio", "max_vio", _decimal, 0, "how far the busiest expert is above its even share"),
    _Column("chance", "max_vio_noise_floor", _decimal, 1, "the MaxVio of an even router on this sample"),
    _Column("eff.", "effective_experts", _tenths, 2, "experts that would carry this load evenly"),
    _Column("dead", "dead_experts", _whole, 3, ""),
    _Column("cold", "cold_experts", _whole, 4, "experts below a tenth of their even share, dead ones too"),
    _Column("CV", "cv", _decimal, 7, "spread of the loads over their mean"),
    _Column("Gini", "gini", _decimal, 8, ""),
    _Column("next", "next_token_overlap", _percent, 5, "experts shared with the next token"),
    _Column("by load", "next_token_overlap_load_aware", _percent, 6, "the part of it the load explains"),
)


def render(stats: RouteStats, *, width: int) -> Group:
    """The whole summary for a terminal of `width` columns."""
    parts: list[RenderableType] = [_run(stats)]
    figures = headline(stats)
    if figures:
        parts += ["", _heading("The model in figures"), _figure_table(figures, len(overall_rows(stats)), width)]
    parts += ["", _findings(stats)]
    if len(domain_names(stats)) > 1:
        parts += ["", _heading("The clearest specialist of each domain"), _specialist_table(stats, width)]
    parts += ["", _heading("Layers to look at"), _attention(stats)]
    parts += ["", *_layer_table(stats, width)]
    return Group(*parts)


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _run(stats: RouteStats) -> Text:
    model, data, throughput = stats.summary["model"], stats.summary["data"], stats.summary["throughput"]
    shared = model["shared_experts"]
    text = Text(str(model["name"]), style="bold cyan")
    text.append(
        f"  {model['model_type']}, {_count(len(overall_rows(stats)), 'MoE layer')} of {model['layers']}, {model['experts']} experts, "
        f"{model['top_k']} per token{f' + {shared} shared' if shared else ''}\n",
        style="not bold default",
    )
    tokens, sequences = sum(row["tokens"] for row in data.values()), sum(row["sequences"] for row in data.values())
    text.append(f"{_count(tokens, 'token')} in {_count(sequences, 'sequence')}: {_sources(data)}\n", style="not bold default")
    provenance = stats.summary["provenance"]
    if throughput["tokens_per_s"] is None:
        return text.append(f"{provenance['dtype']} on {provenance['device']}; counted again from its trace", style="dim not bold")
    speed = (
        f"{provenance['dtype']} on {provenance['device']}: {_per_second(throughput['tokens_per_s'])} tokens/s, "
        f"{format_bytes(1e9 * throughput['read_gb'])} read, peak {format_bytes(1e9 * throughput['peak_rss_gb'])}, "
        f"{format_seconds(throughput['seconds'])}"
    )
    return text.append(speed, style="dim not bold")


def _sources(data: Mapping[str, Mapping[str, Any]]) -> str:
    tokens = {name: row["tokens"] for name, row in data.items()}
    alike = len(tokens) > 1 and len(set(tokens.values())) == 1
    shown = ", ".join(name if alike or len(tokens) == 1 else f"{name} {count:,}" for name, count in list(tokens.items())[:_MOST_DOMAINS])
    rest = f" and {len(tokens) - _MOST_DOMAINS} more" if len(tokens) > _MOST_DOMAINS else ""
    return shown + rest + (f", {next(iter(tokens.values())):,} each" if alike else "")


def _findings(stats: RouteStats) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for finding in findings(stats):
        grid.add_row(finding.label, Text(finding.text))
    return grid


def _attention(stats: RouteStats) -> RenderableType:
    entries = attention(stats)
    if not entries:
        return Padding(Text("None stands out from the others."), (0, 0, 0, 2))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="yellow", no_wrap=True)
    grid.add_column()
    # One line more is no longer than a line that says that there is one.
    shown = entries if len(entries) == _MOST_ATTENTION + 1 else entries[:_MOST_ATTENTION]
    for entry in shown:
        grid.add_row(f"layer {entry.layer}", Text("; ".join(entry.reasons)))
    if len(entries) > len(shown):
        grid.add_row("", Text(f"and {len(entries) - len(shown)} more, marked ! below", style="dim"))
    return Padding(grid, (0, 0, 0, 2))


def _figure_table(figures: Sequence[Figure], n_layers: int, width: int) -> RenderableType:
    """A figure per row; columns that are empty are left out, and the last ones where they do not fit."""
    columns = [
        ("", [figure.label for figure in figures]),
        ("typical" if n_layers > 1 else "value", [figure.value for figure in figures]),
        ("95 % interval", [figure.interval for figure in figures]),
        ("over the layers", [figure.extremes for figure in figures]),
        ("", [figure.meaning for figure in figures]),
    ]
    columns = [(header, cells) for header, cells in columns if any(cells)]
    while 2 + sum(2 + max(cell_len(text) for text in (header, *cells)) for header, cells in columns) > width:
        del columns[-1]
    table = _plain_table()
    for number, (header, _) in enumerate(columns):
        table.add_column(header, justify="right" if number == 1 else "left", no_wrap=True, style="cyan" if number == 0 else None)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return Padding(table, (0, 0, 0, 2))


def _specialist_table(stats: RouteStats, width: int) -> RenderableType:
    """A domain per row: the expert that gains most in it, and as many of that expert's tokens as fit."""
    found = specialists(stats)
    if not any(found.values()):
        return Padding(Text("No expert of any layer is picked clearly beyond chance."), (0, 0, 0, 2))
    rows = [(name, *_specialist(one)) for name, one in list(found.items())[:_MOST_DOMAINS]]
    tokens = {name: one.tokens for name, one in found.items() if one is not None and one.tokens}
    table = _plain_table()
    for number, header in enumerate(("", "layer", "expert", "share", "lift")):
        table.add_column(
            header, justify="right" if number else "left", no_wrap=True, max_width=_WIDEST_NAME, style=None if number else "cyan"
        )
    if tokens:
        table.add_column("its tokens, by lift", no_wrap=True)
    widths = [
        min(_WIDEST_NAME, max(cell_len(text) for text in texts))
        for texts in zip(("", "layer", "expert", "share", "lift"), *rows, strict=True)
    ]
    room = width - 2 - sum(widths) - 2 * len(widths)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row), *([Text(quoted(tokens.get(row[0], ()), room))] if tokens else []))
    if len(found) > len(rows):
        table.add_row(Text(f"and {len(found) - len(rows)} more", style="dim"))
    legend = "share of the domain's picks; lift: that over the expert's share of all text" + (
        "; -: none clearly beyond chance" if None in found.values() else ""
    )
    return Padding(Group(table, Text(legend, style="dim")), (0, 0, 0, 2))


def _specialist(one: Specialist | None) -> tuple[str, str, str, str]:
    if one is None:
        return "-", "-", "-", "-"
    return str(one.layer), str(one.favourite.expert), f"{100 * one.favourite.share:.1f} %", f"{one.favourite.lift:.1f}x"


def quoted(tokens: Sequence[str], room: int) -> str:
    """`' the' 'def' '\\n'`: as many whole ones as fit into `room` cells; long ones are cut, what is not printable is escaped."""
    text = ""
    for token in tokens:
        mark = '"' if "'" in token else "'"
        shown = mark + "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token) + mark
        if cell_len(shown) > _LONGEST_TOKEN:
            shown = f"{set_cell_size(shown, _LONGEST_TOKEN - 2).rstrip()}…{shown[-1]}"
        longer = f"{text} {shown}" if text else shown
        if cell_len(longer) > room:
            break
        text = longer
    return text


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _layer_table(stats: RouteStats, width: int) -> list[RenderableType]:
    rows = overall_rows(stats)
    marked = {entry.layer for entry in attention(stats)}
    shown = _extremes(rows, [entry.layer for entry in attention(stats)])
    supported = even_share(stats) >= ENOUGH_TOKENS
    hidden = set() if supported else {"dead_experts", "cold_experts"}
    if rows["next_token_overlap"].isna().all():
        hidden.add("next_token_overlap_load_aware")
    columns = [column for column in _COLUMNS if column.key not in hidden and rows[column.key].notna().any()]
    columns = _fitting(columns, rows.loc[shown], width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("layer", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    for layer in shown:
        cells = [_cell(column, rows.loc[layer, column.key]) for column in columns]
        table.add_row(f"{'! ' if layer in marked else ''}{layer}", *cells, style="yellow" if layer in marked else None)
    title = "Layers" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} layers: those to look at, the extremes, and some between"
    parts: list[RenderableType] = [_heading(title), Padding(table, (0, 0, 0, 2))]
    legend = "; ".join(f"{column.header}: {column.legend}" for column in columns if column.legend)
    parts.append(Padding(Text(legend, style="dim"), (0, 0, 0, 2)))
    if len(shown) < len(rows):
        parts.append(Padding(Text("All layers and metrics: `--format csv`, or `--output DIR`", style="dim"), (0, 0, 0, 2)))
    return parts


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _per_second(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 10 else f"{tokens:.2g}"


def _cell(column: _Column, value: Any) -> str:
    return "-" if math.isnan(value) else column.cell(value)


def _fitting(columns: Sequence[_Column], rows: pd.DataFrame, width: int) -> list[_Column]:
    """The columns of best rank that fit into `width`, in their own order."""
    room = width - 2 - len("! layer")
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
