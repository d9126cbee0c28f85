"""UTF-8 text out of the bytes of a file, in blocks or lines, with errors that name the place.

Line ends and spaces are kept as they are in the file; only a byte order mark is dropped.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from moectl.data.file_kinds import READABLE
from moectl.data.opening import BLOCK_BYTES, opened
from moectl.data.sources import Source
from moectl.errors import DataError

_BINARY_PROBE_BYTES = 8192


def text_blocks(source: Source, *, in_part: bool = False) -> Iterator[str]:
    """The text in pieces. Raises DataError for what is not UTF-8, not text or corrupt, ResourceError if the system refuses."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with opened(source, in_part=in_part) as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if offset == 0:
                _check_is_text(block[:_BINARY_PROBE_BYTES], source)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(source, offset - pending + error.start) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def text_lines(source: Source, *, in_part: bool = False) -> Iterator[tuple[int, str]]:
    """(number, line) of every line that is not blank, counted from 1. Raises as `text_blocks`."""
    offset = 0
    with opened(source, in_part=in_part) as file:
        for number, line in enumerate(file, start=1):
            if offset == 0:
                _check_is_text(line[:_BINARY_PROBE_BYTES], source)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(source, offset + error.start, f" (line {number})") from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(line)
            if text.strip():
                yield number, text


def _check_is_text(start: bytes, source: Source) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"`{source.label}` is UTF-16, not UTF-8", hint="re-encode it with `iconv -f UTF-16 -t UTF-8 IN > OUT`")
    if b"\0" in start:
        raise DataError(f"`{source.label}` is a binary file, not text: it holds a NUL byte at offset {start.index(0)}", hint=READABLE)


def _not_utf8(source: Source, offset: int, place: str = "") -> DataError:
    hint = "re-encode it, for example with `iconv -f LATIN1 -t UTF-8 IN > OUT`"
    return DataError(f"`{source.label}` is not UTF-8: bad byte at offset {offset}{place}", hint=hint)
