"""The bytes of a source, wherever it lies: a local file or one on the Hub, as they are or decompressed.

with opened(source) as file:
    file.read(100)
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from moectl.data.hub_files import open_hub_file
from moectl.data.sources import Source
from moectl.errors import DataError, MoectlError, from_os_error

BLOCK_BYTES = 1 << 18
# Small, because one compressed byte can become thousands: this bounds what one call may allocate.
_ZSTD_BLOCK_BYTES = 1024


@contextlib.contextmanager
def opened(source: Source, *, in_part: bool = False) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of `source`, to be read once from the start; failures of the block that reads them are named.

    `in_part`: the caller may stop early, so of a file on the Hub only what is read is fetched. Raises DataError for broken
    compression and for what the Hub refuses, ResourceError if the system refuses to read.
    """
    suffix = source.path.suffix.lower()
    try:
        with opened_as_it_is(source, in_part=in_part) as file:
            if suffix == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), BLOCK_BYTES)
            elif suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(file), BLOCK_BYTES)
            elif source.hub is not None:
                yield io.BufferedReader(file, BLOCK_BYTES)  # type: ignore[type-var]
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        kind = "gzip" if suffix == ".gz" else "zstd"
        raise DataError(f"`{source.label}` is not whole {kind} data: {error}", hint="fetch or compress the file again") from error


@contextlib.contextmanager
def opened_as_it_is(source: Source, *, in_part: bool = False) -> Iterator[IO[bytes]]:
    """As `opened`, nothing decompressed, with seek."""
    if source.hub is not None:
        with open_hub_file(source.hub, in_part=in_part) as file:
            yield file
        return
    try:
        with source.path.open("rb") as file:
            yield file
    except MoectlError:
        raise
    except gzip.BadGzipFile:  # an OSError, but not the system's
        raise
    except OSError as error:
        raise from_os_error(error, f"read `{source.label}`") from error


class _ZstdReader(io.RawIOBase):
    """Decompress frame after frame. Unlike the package's own stream reader it raises EOFError on a cut-off frame."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            block = self._input or self._file.read(_ZSTD_BLOCK_BYTES)
            if not block:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._output = memoryview(self._frame.decompress(block))
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._output))
        buffer[:n] = self._output[:n]
        self._output = self._output[n:]
        return n
