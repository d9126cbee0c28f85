"""The tables of the demo data: what the standard library knows in rows, as Markdown, CSV, HTML or JSON lines."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from moectl.data.demo_sources import Entry

_ROWS = 32
_MIN_ROWS = 8
# Scripts whose characters are named by a number only, surrogates and private use; the rest of the planes is empty.
_UNNAMED = ((0x3400, 0xA000), (0xAC00, 0xF900), (0x17000, 0x18D80), (0x1B170, 0x1B300))
_END = 0x1FC00
_NUMBERED = (
    "CJK UNIFIED",
    "CJK COMPATIBILITY IDEOGRAPH",
    "HANGUL SYLLABLE",
    "TANGUT",
    "NUSHU CHARACTER-",
    "KHITAN SMALL SCRIPT CHARACTER-",
)

_Row = tuple[str | int, ...]


def tables() -> Iterator[Entry]:
    """Characters by blocks of 32, and lists of names and numbers in parts of 32 rows."""
    for start in range(0, _END, _ROWS):
        if not any(first <= start < end for first, end in _UNNAMED):
            yield Entry(f"unicode/{start:05X}", partial(_characters, start))
    for name, columns, rows in _lists():
        for start in range(0, len(rows), _ROWS):
            entry = f"{name}/{start}"
            yield Entry(entry, partial(_rendered, entry, columns, rows[start : start + _ROWS]))


def _characters(start: int) -> list[str]:
    import unicodedata

    rows: list[_Row] = []
    for code in range(start, start + _ROWS):
        char = chr(code)
        name = unicodedata.name(char, "")
        if name and not name.startswith(_NUMBERED):
            numeric = unicodedata.numeric(char, None)
            rows.append(
                (
                    f"U+{code:04X}",
                    char if char.isprintable() and not unicodedata.combining(char) else "",
                    name,
                    unicodedata.category(char),
                    unicodedata.bidirectional(char),
                    char.encode().hex(" "),
                    "" if numeric is None else f"{numeric:g}",
                    unicodedata.decomposition(char),
                )
            )
    columns = ("code", "char", "name", "category", "bidi", "utf8", "numeric", "decomposition")
    return _rendered(f"unicode/{start:05X}", columns, rows) if len(rows) >= _MIN_ROWS else []


def _lists() -> Iterator[tuple[str, tuple[str, ...], list[_Row]]]:
    import encodings.aliases
    import errno
    import html.entities
    import http
    import keyword
    import locale
    import mimetypes
    import opcode
    import os
    import pickletools
    import token

    yield "http", ("status", "name", "phrase", "description"), [(s.value, s.name, s.phrase, s.description) for s in http.HTTPStatus]
    yield "errno", ("number", "name", "message"), [(n, name, os.strerror(n)) for n, name in sorted(errno.errorcode.items())]
    entities = sorted(html.entities.html5.items())
    yield "entities", ("entity", "text", "codes"), [(f"&{n}", t, " ".join(f"U+{ord(c):04X}" for c in t)) for n, t in entities]
    yield "aliases", ("alias", "encoding"), sorted(encodings.aliases.aliases.items())
    # The built-in types only: those of the module's functions depend on files of the system.
    yield "types", ("suffix", "type"), sorted(mimetypes.MimeTypes().types_map[True].items())
    yield "keywords", ("keyword", "soft"), [(word, int(word in keyword.softkwlist)) for word in [*keyword.kwlist, *keyword.softkwlist]]
    yield "tokens", ("number", "token"), sorted(token.tok_name.items())
    yield "opcodes", ("opcode", "number"), sorted(opcode.opmap.items())
    yield "pickle", ("code", "name", "protocol"), [(op.code.encode("latin-1").hex(), op.name, op.proto) for op in pickletools.opcodes]
    yield "locales", ("alias", "locale"), sorted(locale.locale_alias.items())
    yield "windows_locales", ("id", "locale"), [(f"0x{n:04x}", name) for n, name in sorted(locale.windows_locale.items())]


def _rendered(name: str, columns: Sequence[str], rows: Sequence[_Row]) -> list[str]:
    form = _FORMS[hashlib.sha256(f"form of {name}".encode()).digest()[0] % len(_FORMS)]
    return [form(columns, rows)]


def _markdown(columns: Sequence[str], rows: Sequence[_Row]) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [list(columns), ["---"] * len(columns), *cells])


def _csv(columns: Sequence[str], rows: Sequence[_Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([tuple(columns), *rows])
    return text.getvalue()


def _html(columns: Sequence[str], rows: Sequence[_Row]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def _json(columns: Sequence[str], rows: Sequence[_Row]) -> str:
    return "".join(json.dumps({c: v for c, v in zip(columns, row, strict=True) if v != ""}, ensure_ascii=False) + "\n" for row in rows)


_FORMS: tuple[Callable[[Sequence[str], Sequence[_Row]], str], ...] = (_markdown, _csv, _html, _json)
