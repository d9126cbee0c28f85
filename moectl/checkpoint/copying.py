"""Bytes from one file to another, by the kernel where it can, which may share them instead of copying.

copy_range(source, 0, target, 128, nbytes)
"""

from __future__ import annotations

import ctypes
import errno
import os

# One call of the kernel; and, where bytes pass through this process, one buffer.
_MAX_CALL = 1 << 30
_BUFFER = 1 << 22
# File systems and kernels that cannot say no in these ways; others mean a real failure.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def reserve(file: int, nbytes: int) -> None:
    """Give a new open file its size, and its place on the disk where the file system can, so that a full disk shows before the first byte.

    Pages of a file whose place is known are also written in half the time (ext4). `os.posix_fallocate` would write every block where the
    system has no such call. Raises OSError.
    """
    os.ftruncate(file, nbytes)
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None or nbytes == 0:
        return
    if fallocate(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(nbytes)) != 0 and ctypes.get_errno() in _FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def copy_range(source: int, source_start: int, target: int, target_start: int, nbytes: int) -> None:
    """Copy `nbytes` between two open files. Raises OSError, EOFError where the source is shorter."""
    done = _by_kernel(source, source_start, target, target_start, nbytes)
    buffer = memoryview(bytearray(min(_BUFFER, nbytes - done)))
    while done < nbytes:
        count = os.preadv(source, [buffer[: nbytes - done]], source_start + done)
        if count == 0:
            raise EOFError
        written = 0
        while written < count:
            written += os.pwrite(target, buffer[written:count], target_start + done + written)
        done += count


def _by_kernel(source: int, source_start: int, target: int, target_start: int, nbytes: int) -> int:
    """How many bytes the kernel copied: all, or fewer where it cannot."""
    done = 0
    while hasattr(os, "copy_file_range") and done < nbytes:
        try:
            count = os.copy_file_range(source, target, min(nbytes - done, _MAX_CALL), source_start + done, target_start + done)
        except OSError as error:
            if error.errno in _NOT_HERE:
                break
            raise
        if count == 0:
            break
        done += count
    return done
