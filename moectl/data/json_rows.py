"""Rows out of JSON: lines of objects, a list, or an object around a list, streamed in the memory of one row.

    for where, row in json_rows(Source(Path("a.json"), "json"), "text"):
        print(where)  # "`a.json` row 1 (line 2)"

What a `.json` file may be:

- `[{"text": "..."}, "...", ...]`: a row per item; a string is a row of that text.
- `{"data": [...]}`: one key, its value such a list (and not the messages of one chat).
- `{"text": "..."}`: one row; several of them one after the other, which is JSON lines, are a row each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from typing import Any

from moectl.data.row_text import MESSAGES, is_chat
from moectl.data.sources import Source
from moectl.data.text_files import text_blocks, text_lines
from moectl.errors import DataError

_READ_CHARS = 1 << 18
# An object that is longer is taken for a list in an object, if it begins like one, without a look at its end.
_WHOLE_CHARS = 1 << 20
# The longest literal that can be cut off by the end of what was read: `-Infinity`, an escaped surrogate pair.
_CUT_CHARS = 16
_SPACES = re.compile(r"[ \t\n\r]*")
_LIST_IN_OBJECT = re.compile(r'\{[ \t\n\r]*("[^"\\\x00-\x1f]*")[ \t\n\r]*:[ \t\n\r]*(?=\[)')
_HINT = "every row must be one whole JSON object; plain text needs another suffix, such as `.txt`"

# A row's name in messages, and the row.
Row = tuple[str, Any]


def jsonl_rows(source: Source, *, in_part: bool = False) -> Iterator[Row]:
    """One row per line that is not blank. Raises DataError, naming the line, and as `text_lines`."""
    for number, line in text_lines(source, in_part=in_part):
        where = f"`{source.label}` line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}", hint=_HINT) from error
        except (RecursionError, ValueError) as error:
            raise DataError(f"{where} is not JSON that can be read: {error}", hint="remove that row") from error


def json_rows(source: Source, text_field: str, *, in_part: bool = False) -> Iterator[Row]:
    """The rows of a `.json` file in any of its forms. A string of a list comes as a row with `text_field`.

    Raises DataError, naming row and line, and as `text_blocks`.
    """
    text, name = _Text(text_blocks(source, in_part=in_part)), f"`{source.label}`"
    match text.peek():
        case "":
            return
        case "[":
            yield from _items(text, name, text_field)
            _check_end(text, name)
        case "{":
            yield from _object_or_lines(text, name, text_field)
        case _:
            hint = "write a list of rows, or one row per line; plain text needs another suffix, such as `.txt`"
            raise DataError(f"{name} is neither a JSON list nor rows of JSON objects", hint=hint)


def _object_or_lines(text: _Text, name: str, text_field: str) -> Iterator[Row]:
    if not text.holds_value(_WHOLE_CHARS) and (key := text.list_key(other_than=(text_field, MESSAGES))) is not None:
        yield from _items(text, name, text_field)
        if text.peek() != "}":
            hint = "keep only the list, for example with `jq '.KEY'`"
            raise DataError(
                f"{name} holds more than one list of rows: `{ascii(key)[1:-1]}` is followed by more (line {text.line})", hint=hint
            )
        text.skip(1)
        _check_end(text, name)
        return
    where = f"{name} line {text.line}"
    row = text.value(where)
    if text.peek():
        yield where, row
        while text.peek():
            where = f"{name} line {text.line}"
            yield where, text.value(where)
        return
    items = next(iter(row.values())) if len(row) == 1 else None
    if isinstance(items, list) and not is_chat(items):
        for number, item in enumerate(items, start=1):
            yield f"{name} row {number}", _as_row(item, text_field)
    else:
        yield where, row


def _items(text: _Text, name: str, text_field: str) -> Iterator[Row]:
    """The items of the list that begins here."""
    text.skip(1)
    number = 0
    if text.peek() == "]":
        text.skip(1)
        return
    while True:
        text.peek()
        number += 1
        where = f"{name} row {number} (line {text.line})"
        yield where, _as_row(text.value(where), text_field)
        mark = text.peek()
        if mark not in (",", "]"):
            found = f"is followed by `{ascii(mark)[1:-1]}` (line {text.line})" if mark else "is the last before the file ends"
            raise DataError(f"{where} {found}, where `,` or `]` must stand", hint="is the file whole? Fetch or write it again")
        text.skip(1)
        if mark == "]":
            return


def _as_row(item: Any, text_field: str) -> Any:
    return {text_field: item} if isinstance(item, str) else item


def _check_end(text: _Text, name: str) -> None:
    if text.peek():
        raise DataError(f"{name} goes on after the list of rows (line {text.line})", hint="keep one list, or one object per line")


class _Text:
    """Text with a place in it. Holds what is read and not yet used: a block, or one value if that is longer."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder()
        self.line = 1

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACES.match(self._text, self._at)
            assert match is not None
            self.skip(match.end() - self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def skip(self, n_chars: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + n_chars)
        self._at += n_chars

    def holds_value(self, n_chars: int) -> bool:
        """Whether the value that begins here ends, or goes wrong, in the next `n_chars` characters."""
        while not self._ended and len(self._text) - self._at < n_chars:
            self._grow()
        try:
            self._decoder.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            return self._ended or not self._may_be_cut(error)
        except (RecursionError, ValueError):
            pass
        return True

    def list_key(self, *, other_than: Container[str]) -> str | None:
        """If an object with a list as its first value begins here, go to that list, and give the key; else stay, and None."""
        match = _LIST_IN_OBJECT.match(self._text, self._at)
        if match is None or (key := self._decoder.decode(match[1])) in other_than:
            return None
        self.skip(match.end() - self._at)
        return str(key)

    def value(self, where: str) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error):
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise DataError(f"{where} is not JSON: {error.msg} (line {line})", hint=_HINT) from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{where} is not JSON that can be read: {error}", hint="remove that row") from error
            else:
                if end < len(self._text) or self._ended:  # a number may go on
                    self.skip(end - self._at)
                    return value
            self._grow()

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend the error. One that could not must not read the rest of a long file."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT_CHARS

    def _grow(self) -> None:
        """Drop what is used and read as much again as is left, so that a long value is parsed a few times only."""
        parts = [self._text[self._at :]]
        wanted = max(_READ_CHARS, len(parts[0]))
        while wanted > 0:
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                break
            parts.append(block)
            wanted -= len(block)
        self._text, self._at = "".join(parts), 0
