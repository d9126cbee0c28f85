"""Documents out of files: one per text file, one per row, streamed. Nothing is tokenised here.

for document in documents(Source(Path("wiki.jsonl.gz"), "jsonl"), RowText("text", Chat(folder))):
    print("".join(document.blocks))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moectl.data import demo
from moectl.data.json_rows import json_rows, jsonl_rows
from moectl.data.parquet_files import parquet_rows
from moectl.data.row_text import RowText
from moectl.data.sources import Source
from moectl.data.text_files import text_blocks


@dataclass(frozen=True, slots=True)
class Document:
    """The pieces of one text, in order, so that a long file can be read in part.

    `is_chat`: a chat template wrote it, with all the special tokens there are to be.
    """

    blocks: Iterator[str]
    is_chat: bool = False


def documents(source: Source, rows: RowText, *, in_part: bool = False) -> Iterator[Document]:
    """The documents of a file or of a built-in domain, in order; `rows` says what a row's text is.

    Pulls nothing before it is needed; `in_part` says that the caller may stop early. Raises DataError for what is not UTF-8, not JSON or
    Parquet, not text, corrupt or without text, ModelError for a broken chat template, ResourceError if the system refuses to read.
    """
    if source.kind == "demo":
        label, domain = source.path.parts
        for text in demo.documents(domain, label.removeprefix("demo:")):
            yield Document(iter((text,)))
    elif source.kind == "text":
        yield Document(text_blocks(source, in_part=in_part))
    else:
        for where, row in _rows(source, rows, in_part=in_part):
            text, is_chat = rows.read(row, where)
            yield Document(iter((text,)), is_chat)


def _rows(source: Source, rows: RowText, *, in_part: bool) -> Iterator[tuple[str, Any]]:
    if source.kind == "parquet":
        return parquet_rows(source, rows, in_part=in_part)
    if source.kind == "json":
        return json_rows(source, rows.text_field, in_part=in_part)
    return jsonl_rows(source, in_part=in_part)
