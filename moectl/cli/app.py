"""The `moectl` command: its subcommands, and the one place where failures become a message and an exit code.

Command modules hold signatures only and import the library inside the function, so `moectl --help` stays quick.
This module does no work of its own and knows no command's options.

    from moectl.cli.app import main
    exit_code = main(["route-stats", "path/to/checkpoint", "--data", "wikipedia.txt"])
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import typer

from moectl import __version__
from moectl.cli import convert, failures, inspect, route_stats
from moectl.cli.console import console
from moectl.cli.options import DebugOption, VersionOption

app = typer.Typer(
    name="moectl",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Run `moectl COMMAND --help` for the options and examples of a command.",
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: VersionOption = False, debug: DebugOption = False) -> None:
    """Look inside Mixture-of-Experts language models: what their routers really do, on your text."""
    if version:
        console.line(f"moectl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        # Nothing was asked for, so nothing belongs on stdout. Typer prints its help itself and returns what is left.
        with contextlib.redirect_stdout(sys.stderr):
            typer.echo(context.get_help(), nl=False)
        raise typer.Exit(failures.USAGE)


app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("convert", epilog=convert.EXAMPLES)(convert.convert)
app.command("route-stats", epilog=route_stats.EXAMPLES)(route_stats.route_stats)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code. Prints; never raises Exception."""
    console.reset(debug=os.environ.get("MOECTL_DEBUG", "") not in ("", "0"))
    try:
        with _signals_unwind():
            code = app(args=None if arguments is None else list(arguments), prog_name="moectl", standalone_mode=False)
            console.flush()
    except BaseException as error:
        failure = failures.explain(error, debug=console.debug)
        if console.debug and failure.code != 0:
            with contextlib.suppress(OSError):
                traceback.print_exception(error)
        return _report(failure)
    # Typer turns Ctrl-C into this code by itself.
    return _report(failures.INTERRUPTED) if code == failures.INTERRUPTED.code else int(code or 0)


def _report(failure: failures.Failure) -> int:
    if failure.message is not None:
        console.error(failure.message, hint=failure.hint)
    console.settle_stdout()
    return failure.code


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that staging folders are removed.

    A signal the caller chose to ignore (`nohup`) or to handle stays as it is.
    """
    taken = [number for number in failures.STOP_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise failures.Stopped(number)
