"""Text out of files: one document per text file, one per `.jsonl` row, streamed, with errors that name the place.

Line ends and spaces are kept as they are in the file; only a byte order mark is dropped. Nothing is tokenised here.

    for text in documents(Source(Path("wiki.jsonl.gz"), "jsonl")):
        print(len(text))
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from moectl.data import demo
from moectl.data.sources import READABLE, Source
from moectl.errors import DataError, MoectlError, from_os_error

_BLOCK_BYTES = 1 << 18
_BINARY_PROBE_BYTES = 8192
# Small, because one compressed byte can become thousands: this bounds what one call may allocate.
_ZSTD_BLOCK_BYTES = 1024
_REENCODE = "re-encode it, for example with `iconv -f LATIN1 -t UTF-8 IN > OUT`"


def documents(source: Source, text_field: str = "text") -> Iterator[str]:
    """The documents of a text or jsonl file, or of a built-in domain, in order.

    Raises DataError for what is not UTF-8, not JSON, not text, corrupt or without `text_field`, ResourceError if the
    system refuses to read.
    """
    return ("".join(blocks) for blocks in document_blocks(source, text_field))


def document_blocks(source: Source, text_field: str = "text") -> Iterator[Iterator[str]]:
    """As `documents`, each document as an iterator of its pieces, so a long text file can be read in part."""
    if source.kind == "demo":
        label, domain = source.path.parts
        for text in demo.documents(domain, label.removeprefix("demo:")):
            yield iter((text,))
    elif source.kind == "text":
        yield _text_blocks(source.path)
    else:
        for row in _jsonl_rows(source.path, text_field):
            yield iter((row,))


def _text_blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with _opened(path) as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            if offset == 0:
                _check_is_text(block[:_BINARY_PROBE_BYTES], path)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def _jsonl_rows(path: Path, text_field: str) -> Iterator[str]:
    offset = 0
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if offset == 0:
                _check_is_text(line[:_BINARY_PROBE_BYTES], path)
            try:
                row = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, f" (line {number})") from error
            if offset == 0:
                row = row.removeprefix("\ufeff")
            offset += len(line)
            if row.strip():
                yield _text_of_row(row, text_field, f"`{path}` line {number}")


def _text_of_row(row: str, text_field: str, where: str) -> str:
    try:
        value = json.loads(row)
    except json.JSONDecodeError as error:
        hint = "every line must be one whole JSON object; plain text needs another suffix, such as `.txt`"
        raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}", hint=hint) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where} is not JSON that can be read: {error}", hint="remove that row") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is a JSON {_json_type(value)}, not an object", hint=f'write rows like `{{"{text_field}": "..."}}`')
    if text_field not in value:
        raise _no_field(value, text_field, where)
    text = value[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field `{text_field}` is a {_json_type(text)}, not a string", hint="choose another with `--text-field`"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = (
            f"{where}: the field `{text_field}` holds half a surrogate pair (`\\u{ord(text[error.start]):04x}`), which is no character"
        )
        raise DataError(message, hint="write the row again with whole characters") from error
    return text


def _no_field(row: dict[str, Any], text_field: str, where: str) -> DataError:
    fields = ", ".join(f"`{ascii(field)[1:-1]}`" for field in row) or "none"
    message = f"{where} has no field `{text_field}` (its fields: {fields})"
    if "messages" in row:
        return DataError(
            f"{message}; chat rows with `messages` are not read by this version", hint=f"write the chat as one string in `{text_field}`"
        )
    return DataError(message, hint="name the field that holds the text with `--text-field`")


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _check_is_text(start: bytes, path: Path) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"`{path}` is UTF-16, not UTF-8", hint="re-encode it with `iconv -f UTF-16 -t UTF-8 IN > OUT`")
    if b"\0" in start:
        raise DataError(f"`{path}` is a binary file, not text: it holds a NUL byte at offset {start.index(0)}", hint=READABLE)


def _not_utf8(path: Path, offset: int, place: str = "") -> DataError:
    return DataError(f"`{path}` is not UTF-8: bad byte at offset {offset}{place}", hint=_REENCODE)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of `path`; failures of the block that reads them are named."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if suffix == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), _BLOCK_BYTES)
            elif suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(file), _BLOCK_BYTES)
            else:
                yield file
    except MoectlError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        kind = "gzip" if suffix == ".gz" else "zstd"
        raise DataError(f"`{path}` is not whole {kind} data: {error}", hint="fetch or compress the file again") from error
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error


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
