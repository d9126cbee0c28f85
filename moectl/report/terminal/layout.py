"""The look that the parts of the terminal summary have in common."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT = 2


def heading(text: str) -> Text:
    """A title above a part."""
    return Text(text, style="bold")


def indented(part: RenderableType) -> Padding:
    """What stands under a heading."""
    return Padding(part, (0, 0, 0, INDENT))


def plain_table() -> Table:
    """A table with one rule under its header, columns two cells apart."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
