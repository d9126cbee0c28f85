"""The one way a command talks: data to stdout, everything else to stderr.

Rich is imported only when something is drawn. Without a terminal there is no colour and no progress bar;
`NO_COLOR` and `TERM=dumb` are honoured. Commands never call `print`.

    console.json({"tokens": 4096})
    console.notice("dtype is `float32`: the checkpoint says so")
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from moectl.errors import from_os_error

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

    from moectl.plan import Progress

_STYLES = {"error": "1;31", "warning": "1;33", "hint": "36", "note": "2"}


class Console:
    """Where output goes. The streams are looked up at each call, so redirection works."""

    def __init__(self) -> None:
        self.debug = False

    def reset(self, *, debug: bool = False) -> None:
        """Start a new command: forget its predecessor's `--debug`, and never fail on a character the terminal lacks."""
        self.debug = debug
        for stream in (sys.stdout, sys.stderr):
            if not (stream.encoding or "").lower().startswith("utf") and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")

    # Data, to stdout.

    @property
    def width(self) -> int:
        """Columns that `out` may use."""
        return _rich(sys.stdout).width

    def line(self, text: str) -> None:
        """One line of text, as it is."""
        with _stdout() as stream:
            stream.write(text + "\n")

    def out(self, *renderables: RenderableType) -> None:
        """Draw rich renderables; in a file or a pipe without the blanks rich pads lines with."""
        with _stdout() as stream:
            rich = _rich(stream)
            with rich.capture() as captured:
                rich.print(*renderables, sep="\n")
            text = captured.get()
            stream.write(text if stream.isatty() else re.sub(r" +$", "", text, flags=re.MULTILINE))

    def json(self, value: Any) -> None:
        """One JSON value, indented. NaN is refused: a metric that does not apply is null."""
        self.line(json.dumps(value, indent=2, allow_nan=False))

    def csv(self, frame: pd.DataFrame) -> None:
        """A data frame as CSV with a header line; null is empty."""
        with _stdout() as stream:
            frame.to_csv(stream, index=False, lineterminator="\n")

    def csv_rows(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows of text as CSV with a header line, without pandas."""
        with _stdout() as stream:
            csv.writer(stream, lineterminator="\n").writerows([columns, *rows])

    def rows(self, rows: Sequence[tuple[str, str]], *, output_format: str, columns: tuple[str, str] = ("label", "value")) -> None:
        """Pairs of text: aligned for people, or CSV. (Their JSON belongs to whoever made them.)"""
        with _stdout() as stream:
            if output_format == "csv":
                csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
                return
            from rich.table import Table
            from rich.text import Text

            grid = Table.grid(padding=(0, 2))
            for label, value in rows:
                grid.add_row(Text(label, style="bold"), Text(value))
            self.out(grid)

    def flush(self) -> None:
        """Push what is buffered, so that a full disk or a closed pipe shows here and not at exit."""
        with _stdout() as stream:
            stream.flush()

    def settle_stdout(self) -> None:
        """After a failure: push what is buffered, and if stdout takes no more, point it at nothing.

        Python would try again at exit, complain, and replace the exit code by 120.
        """
        try:
            sys.stdout.flush()
        except OSError:
            if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())

    # The rest, to stderr.

    def notice(self, text: str) -> None:
        """Something worth knowing: a choice made and why. A text that starts with `warning:` is shown as one."""
        if text.startswith("warning: "):
            self.warn(text.removeprefix("warning: "))
        else:
            _say("note", text)

    def warn(self, text: str) -> None:
        """Something the user should act on, or that makes a number less certain."""
        _say("warning", text)

    def hint(self, text: str) -> None:
        """What to do next."""
        _say("hint", text)

    def error(self, text: str, *, hint: str | None = None) -> None:
        """What failed, and what to do about it."""
        with contextlib.suppress(OSError):
            _say("error", text)
            if hint is not None:
                _say("hint", hint)

    @contextlib.contextmanager
    def progress(self, *, verbose: bool = False) -> Iterator[Progress]:
        """A Progress for one job: a bar on a terminal; elsewhere plain lines if `verbose`, else only its notices."""
        from moectl.cli import progress

        if _is_terminal(sys.stderr):
            with progress.bars(_rich(sys.stderr), self.notice) as bars:
                yield bars
        else:
            yield progress.Lines(sys.stderr if verbose else None, self.notice)


@contextlib.contextmanager
def _stdout() -> Iterator[TextIO]:
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, "write to standard output") from error


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream, highlight=False, markup=False, emoji=False)


def _say(kind: str, text: str) -> None:
    # Drawn by hand: messages are not wrapped, and an error needs no imports to be told.
    label = f"{kind}:"
    if _is_terminal(sys.stderr) and not os.environ.get("NO_COLOR"):
        label = f"\x1b[{_STYLES[kind]}m{label}\x1b[0m"
    sys.stderr.write(f"{label} {text}\n")
    sys.stderr.flush()


console = Console()
