"""Ctrl-C and SIGTERM in the middle of a run: exit codes 130 and 143, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import snapshot
from tiny_checkpoints import VOCAB_SIZE


@pytest.fixture
def after_events(monkeypatch):
    """Do something when the router of the run has spoken `count` times."""
    from moectl.routing.counters import Counters

    real = Counters.record

    def install(count: int, action: Callable[[], None]) -> list[int]:
        seen: list[int] = []

        def record(self: Counters, event: Any) -> None:
            real(self, event)
            seen.append(event.layer)
            if len(seen) == count:
                action()

        monkeypatch.setattr(Counters, "record", record)
        return seen

    return install


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("order", ["resident", "streamed"])
def test_ctrl_c_in_the_middle(model, refused, after_events, order):
    seen = after_events(5, ctrl_c)
    arguments = ("model", "--data", "text.txt", "--seq-len", "16", "--batch-tokens", "32", "--order", order)
    assert refused(*arguments, "--output", "out", "--trace", code=130).message == "interrupted"
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle(model, refused, after_events, name):
    number = getattr(signal, name)
    after_events(3, lambda: os.kill(os.getpid(), number))
    arguments = ("model", "--data", "text.txt", "--seq-len", "16", "--batch-tokens", "32", "--output", "out", "--trace")
    assert refused(*arguments, code=128 + number).message == f"stopped by {name}"


def test_ctrl_c_while_an_earlier_output_is_replaced(model, moectl, refused, monkeypatch):
    command = ("model", "--data", "text.txt", "--output", "out")
    assert moectl("route-stats", *command).code == 0
    real, calls = os.rename, []

    def rename(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    refused(*command, "--overwrite", code=130)
    assert len(calls) == 3


@pytest.mark.parametrize(("number", "code", "last"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")])
def test_a_real_process_stopped_in_the_middle(model, number, code, last):
    # Micro-batches of one short sequence are slow on purpose: this run would take minutes.
    np.save("ids.npy", np.random.default_rng(0).integers(0, VOCAB_SIZE, (100_000, 8)))
    before = snapshot(Path())
    command = [sys.executable, "-m", "moectl", "route-stats", "model", "--data", "ids.npy", "--batch-tokens", "8", "--threads", "1"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made pytest, and so its children, ignore it
    try:
        process = subprocess.Popen(
            [*command, "--output", "out", "--verbose"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        said = read_until(process.stderr, b"routing tokens: ", seconds=60)
        assert process.poll() is None
        assert len(list(Path().glob(".out.partial-*"))) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (code, b"")
    assert (said + err).decode().splitlines()[-1] == f"error: {last}"
    assert b"Traceback" not in said + err
    assert snapshot(Path()) == before


def read_until(stream: Any, text: bytes, *, seconds: float) -> bytes:
    """What a process says up to and with the line that holds `text`."""
    said, until = b"", time.monotonic() + seconds
    while text not in said or not said.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"nothing more within {seconds} s after {said!r}"
        part = os.read(stream.fileno(), 4096)
        assert part, f"the process ended: {said!r}"
        said += part
    return said
