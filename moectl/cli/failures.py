"""Every exception -> what the user reads and the exit code. Prints nothing.

    failure = explain(error, debug=False)
    failure.code, failure.message, failure.hint

Codes 0 to 5 are the contract; a process ended by signal N exits with 128 + N, as a shell reports it (Ctrl-C 130).
"""

from __future__ import annotations

import errno
import re
import signal
import sys
from dataclasses import dataclass

import typer

from moectl.errors import INTERRUPTED_EXIT_CODE, MoectlError, ResourceError, UsageError, from_os_error

USAGE = UsageError.exit_code
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """SIGTERM or SIGHUP arrived. Not an Exception, so that no handler on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class Failure:
    """One message, one hint, one exit code. A `message` of None says nothing."""

    code: int
    message: str | None = None
    hint: str | None = None


INTERRUPTED = Failure(INTERRUPTED_EXIT_CODE, "interrupted")
# 128 + SIGPIPE: whoever read our output went away, so there is nobody to tell.
BROKEN_PIPE = Failure(141)


def explain(error: BaseException, *, debug: bool) -> Failure:
    """Name a failure. `debug` drops the hint to ask for a traceback, which is then already there."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = from_os_error(error, f"write `{error.filename}`" if error.filename else "write to standard output")
    if isinstance(error, MoectlError):
        return Failure(error.exit_code, error.message, error.hint)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, BrokenPipeError) or (isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)):
        return BROKEN_PIPE
    if isinstance(error, SystemExit):
        return Failure(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
    if isinstance(error, Stopped):
        return Failure(128 + error.number, f"stopped by {signal.Signals(error.number).name}")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if _out_of_memory(error):
        reason = str(error).strip().splitlines()
        return Failure(
            ResourceError.exit_code,
            f"out of memory{': ' + reason[0] if reason else ''}",
            "lower `--memory` so that weights are streamed, or use fewer `--batch-tokens`",
        )
    text = str(error).strip()
    return Failure(
        1,
        f"this is a bug in moectl: {type(error).__name__}{': ' + text if text else ''}",
        None if debug else "run again with `--debug` for the traceback and report it together with the command",
    )


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch is looked up, not imported: an error of its own means it is loaded already.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # On a CPU torch raises a plain RuntimeError that names its allocator.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _usage(error: typer.TyperException) -> Failure:
    """Typer's usage errors in the style of all others: backticks, lower case, no full stop."""
    text = re.sub(r"\s+", " ", error.format_message()).strip().rstrip(".").replace("Value error, ", "")
    text = re.sub(r"'([^']*)'", r"`\1`", text)
    text = re.sub(r"(No such option:) (\S+)", r"\1 `\2`", text)
    text = re.sub(r" ?\(Possible options: ([^)]*)\)", lambda match: f"; did you mean `{match[1].replace(', ', '` or `')}`?", text)
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path} --help` lists what it takes" if context is not None else "add `--help` to see what the command takes"
    return Failure(USAGE, text[:1].lower() + text[1:], hint)
