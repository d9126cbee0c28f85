"""The clearest specialist of each domain, and the tokens of the domain that it is most for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from moectl.report.domains import Specialist, specialists
from moectl.report.numerals import percent_tenths, times
from moectl.report.terminal.layout import INDENT, indented, plain_table

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_MOST_DOMAINS = 10
_WIDEST_NAME = 20
_LONGEST_TOKEN = 16
_INDENTATION = re.compile(" {4,}")


def specialist_table(stats: RouteStats, width: int) -> RenderableType:
    """A domain per row: the expert that gains most in it, and as many of the domain's tokens that it is most for as fit."""
    found = specialists(stats)
    if not any(found.values()):
        return indented(Text("No expert of any layer is picked clearly beyond chance."))
    rows = [(name, *_specialist(one)) for name, one in list(found.items())[:_MOST_DOMAINS]]
    tokens = {name: one.tokens for name, one in found.items() if one is not None and one.tokens}
    table = plain_table()
    for number, header in enumerate(("", "layer", "expert", "share", "lift")):
        table.add_column(
            header, justify="right" if number else "left", no_wrap=True, max_width=_WIDEST_NAME, style=None if number else "cyan"
        )
    if tokens:
        table.add_column("tokens of the domain, by lift", no_wrap=True)
    widths = [
        min(_WIDEST_NAME, max(cell_len(text) for text in texts))
        for texts in zip(("", "layer", "expert", "share", "lift"), *rows, strict=True)
    ]
    room = width - INDENT - sum(widths) - 2 * len(widths)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row), *([Text(quoted(tokens.get(row[0], ()), room))] if tokens else []))
    if len(found) > len(rows):
        table.add_row(Text(f"and {len(found) - len(rows)} more", style="dim"))
    legend = "share of the domain's picks; lift: that over the expert's share of all text" + (
        "; -: none clearly beyond chance" if None in found.values() else ""
    )
    return indented(Group(table, Text(legend, style="dim")))


def _specialist(one: Specialist | None) -> tuple[str, str, str, str]:
    if one is None:
        return "-", "-", "-", "-"
    return str(one.layer), str(one.favourite.expert), f"{percent_tenths(one.favourite.share)} %", times(one.favourite.lift)


def quoted(tokens: Sequence[str], room: int) -> str:
    """`' the' 'def' '\\n'`: as many whole ones as fit into `room` cells; long ones are cut, many spaces counted, what cannot be printed
    escaped."""
    text = ""
    for token in (_INDENTATION.sub(lambda spaces: f" \u00d7{len(spaces[0])}", token) for token in tokens):
        mark = '"' if "'" in token else "'"
        shown = mark + "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token) + mark
        if cell_len(shown) > _LONGEST_TOKEN:
            shown = f"{set_cell_size(shown, _LONGEST_TOKEN - 2).rstrip()}…{shown[-1]}"
        longer = f"{text} {shown}" if text else shown
        if cell_len(longer) > room:
            break
        text = longer
    return text
