"""The whole summary: first what a person wants to know, then a compact table of the layers.

It decides no content (see `report/findings.py`, `report/attention.py`) and writes to no stream. Meaning never hangs on colour: a layer to
look at carries a `!`.

    rich.console.Console().print(render(stats, width=80))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moectl.report.findings import findings
from moectl.report.headline import headline
from moectl.report.numerals import counted, extent
from moectl.report.rows import domain_names, overall_rows
from moectl.report.terminal.figures import figure_table
from moectl.report.terminal.layers import layer_table, layers_to_look_at
from moectl.report.terminal.layout import heading
from moectl.report.terminal.specialists import specialist_table
from moectl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_MOST_DOMAINS = 10


def render(stats: RouteStats, *, width: int) -> Group:
    """The whole summary for a terminal of `width` columns."""
    parts: list[RenderableType] = [_run(stats)]
    figures = headline(stats)
    if figures:
        parts += ["", heading("The model in figures"), figure_table(figures, len(overall_rows(stats)), width)]
    parts += ["", _findings(stats)]
    if len(domain_names(stats)) > 1:
        parts += ["", heading("The clearest specialist of each domain"), specialist_table(stats, width)]
    parts += ["", heading("Layers to look at"), layers_to_look_at(stats)]
    parts += ["", *layer_table(stats, width)]
    return Group(*parts)


def _run(stats: RouteStats) -> Text:
    model, data, throughput = stats.summary["model"], stats.summary["data"], stats.summary["throughput"]
    rows = overall_rows(stats)
    shared = model["shared_experts"]
    text = Text(str(model["name"]), style="bold cyan")
    text.append(
        f"  {model['model_type']}, {counted(len(rows), 'MoE layer')} of {model['layers']}, {extent(rows['n_experts'])} experts, "
        f"{extent(rows['top_k'])} per token{f' + {shared} shared' if shared else ''}\n",
        style="not bold default",
    )
    tokens, sequences = sum(row["tokens"] for row in data.values()), sum(row["sequences"] for row in data.values())
    text.append(f"{counted(tokens, 'token')} in {counted(sequences, 'sequence')}: {_sources(data)}\n", style="not bold default")
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


def _per_second(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 10 else f"{tokens:.2g}"


def _findings(stats: RouteStats) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for finding in findings(stats):
        grid.add_row(finding.label, Text(finding.text))
    return grid
