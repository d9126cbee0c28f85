"""The figures a routing study quotes, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from moectl.report.headline import Figure
from moectl.report.terminal.layout import INDENT, indented, plain_table


def figure_table(figures: Sequence[Figure], n_layers: int, width: int) -> RenderableType:
    """A figure per row; columns that are empty are left out, and the last ones where they do not fit."""
    columns = [
        ("", [figure.label for figure in figures]),
        ("typical" if n_layers > 1 else "value", [figure.value for figure in figures]),
        ("95 % interval", [figure.interval for figure in figures]),
        ("over the layers", [figure.extremes for figure in figures]),
        ("", [figure.meaning for figure in figures]),
    ]
    columns = [(header, cells) for header, cells in columns if any(cells)]
    while INDENT + sum(2 + max(cell_len(text) for text in (header, *cells)) for header, cells in columns) > width:
        del columns[-1]
    table = plain_table()
    for number, (header, _) in enumerate(columns):
        table.add_column(header, justify="right" if number == 1 else "left", no_wrap=True, style="cyan" if number == 0 else None)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return indented(table)
