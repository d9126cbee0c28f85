from __future__ import annotations

import io

from moectl.cli.console import Console
from moectl.cli.progress import Lines, bars


def test_plain_lines_come_every_ten_seconds_and_at_the_end():
    now = [100.0]
    stream = io.StringIO()
    said = []
    lines = Lines(stream, said.append, clock=lambda: now[0])
    lines.stage("read", 4, "GB")
    for seconds in (4, 4, 4, 4):
        now[0] += seconds
        lines.advance(1)
    lines.notice("streamed")
    assert stream.getvalue().splitlines() == [
        "read: 4.00 GB",
        "read: 3.00 GB of 4.00 GB, 250 MB/s, 12 s",
        "read: 4.00 GB of 4.00 GB, 250 MB/s, 16 s",
    ]
    assert said == ["streamed"]


def test_a_stage_that_takes_no_time_has_no_rate():
    stream = io.StringIO()
    lines = Lines(stream, print, clock=lambda: 1.0)
    lines.stage("layers", 2, "layers")
    lines.advance(2)
    assert stream.getvalue().splitlines()[-1] == "layers: 2 of 2 layers, 0.0 s"


def test_without_a_stream_only_notices_remain(capsys):
    said = []
    lines = Lines(None, said.append)
    lines.stage("read", 1, "layers")
    lines.advance(1)
    lines.notice("x")
    assert (said, capsys.readouterr().err) == (["x"], "")


def test_bars_show_work_and_rate_and_vanish(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    from rich.console import Console as RichConsole

    stream = io.StringIO()
    rich = RichConsole(file=stream, force_terminal=True, width=100, color_system=None)
    said = []
    with bars(rich, said.append) as progress:
        progress.stage("read weights", 4, "GB")
        progress.advance(1)
        progress.notice("streamed")
        progress.stage("route", 1000, "tokens")
        progress.advance(500)
    text = stream.getvalue()
    assert "route" in text
    assert "500 of 1.00 k tokens" in text
    assert said == ["streamed"]
    assert text.endswith("\x1b[2K") or text.rstrip().endswith("\x1b[2K")


def test_warnings_among_the_notices_are_shown_as_such(capsys):
    Console().notice("warning: bfloat16 is slow here")
    assert capsys.readouterr().err == "warning: bfloat16 is slow here\n"
