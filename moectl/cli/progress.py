"""How a long job shows where it is, on stderr: bars on a terminal, plain lines elsewhere. Both count work, not time.

with bars(rich_console, notice) as progress:
    progress.stage("route", total=27.6, unit="GB")
    progress.advance(1.7)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from moectl.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 10.0


class Bars:
    """Progress as one bar per stage; a finished stage keeps no line."""

    def __init__(self, display: RichProgress, notice: Callable[[str], None]) -> None:
        self._display = display
        self._notice = notice
        self._task: TaskID | None = None
        self._started = 0.0

    def stage(self, name: str, total: float, unit: str) -> None:
        """Begin `name`: `total` of `unit` (`GB`, `tokens`, `layers`) to do."""
        if self._task is not None:
            self._display.remove_task(self._task)
        self._started = time.monotonic()
        self._task = self._display.add_task(name, total=total, unit=unit, work=_work(0, total, unit), rate="")

    def advance(self, amount: float) -> None:
        """`amount` more of the current stage is done."""
        assert self._task is not None, "advance before stage"
        self._display.advance(self._task, amount)
        task = self._display.tasks[-1]
        seconds = max(time.monotonic() - self._started, 1e-9)
        unit, total = task.fields["unit"], task.total or 0.0
        self._display.update(self._task, work=_work(task.completed, total, unit), rate=_rate(task.completed / seconds, unit))

    def notice(self, text: str) -> None:
        """Say `text` above the bar."""
        self._notice(text)


class Lines:
    """Progress as a plain line when a stage begins and every ten seconds; without a stream only the notices remain."""

    def __init__(self, stream: TextIO | None, notice: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._notice = notice
        self._clock = clock
        self._name, self._unit, self._total, self._done = "", "", 0.0, 0.0
        self._started = self._printed = 0.0

    def stage(self, name: str, total: float, unit: str) -> None:
        """Begin `name`: `total` of `unit` to do."""
        self._name, self._unit, self._total, self._done = name, unit, total, 0.0
        self._started = self._printed = self._clock()
        self._print(f"{name}: {_amount(total, unit)}")

    def advance(self, amount: float) -> None:
        """`amount` more of the current stage is done."""
        self._done += amount
        now = self._clock()
        finished = self._done >= self._total
        if finished or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            seconds = now - self._started
            rate = f", {_rate(self._done / seconds, self._unit)}" if seconds > 0 else ""
            self._print(f"{self._name}: {_work(self._done, self._total, self._unit)}{rate}, {format_seconds(seconds)}")

    def notice(self, text: str) -> None:
        """Say `text`."""
        self._notice(text)

    def _print(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text + "\n")
            self._stream.flush()


@contextlib.contextmanager
def bars(console: RichConsole, notice: Callable[[str], None]) -> Iterator[Bars]:
    """A live display on `console` that disappears at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[work]}"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TimeRemainingColumn(),
    )
    # Rich redirects stderr while the bar lives, so notices appear above it.
    with Progress(*columns, console=console, transient=True, expand=True) as display:
        yield Bars(display, notice)


def _amount(value: float, unit: str) -> str:
    return format_bytes(1e9 * value) if unit == "GB" else f"{format_count(value)} {unit}"


def _work(done: float, total: float, unit: str) -> str:
    if unit == "GB":
        return f"{_amount(done, unit)} of {_amount(total, unit)}"
    return f"{format_count(done)} of {format_count(total)} {unit}"


def _rate(per_second: float, unit: str) -> str:
    return f"{_amount(per_second, unit)}/s"
