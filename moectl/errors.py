"""The errors moectl raises on purpose, each with the exit code a script can rely on.

Library code raises these and never prints; the CLI turns them into one message and an exit code.
A message says what failed, with the value, and why; the hint says what to do about it.
"""

from __future__ import annotations

import errno


class MoectlError(Exception):
    """A failure the user can act on. Subclasses fix the exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MoectlError):
    """Options that do not fit together, or an output that already exists."""

    exit_code = 2


class ModelError(MoectlError):
    """A checkpoint that is missing, unsupported, corrupt or incomplete."""

    exit_code = 3


class ResourceError(MoectlError):
    """Not enough memory or disk, or a device that is not there."""

    exit_code = 4


class DataError(MoectlError):
    """Text or token ids that cannot be read or used."""

    exit_code = 5


INTERRUPTED_EXIT_CODE = 130


def from_os_error(error: OSError, what: str) -> MoectlError:
    """Name an operating-system failure while doing `what`, for example "write `out/a.parquet`"."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"cannot {what}: the disk is full", hint="free some space or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(f"cannot {what}: {error.strerror}", hint="check the permissions of that path")
    return ResourceError(f"cannot {what}: {error.strerror or error}")
