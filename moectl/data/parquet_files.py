"""Rows out of Parquet files, a batch at a time, of the columns that are needed and no others.

    for where, row in parquet_rows(Source(Path("a.parquet"), "parquet"), rows):
        print(where, row["text"])  # "`a.parquet` row 1"

A column of one row group can be as large as the file, so it is read in pieces too: a caller who stops after a few rows has paid for the
footer and some pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moectl.data.opening import opened_as_it_is
from moectl.data.row_text import RowText
from moectl.data.sources import Source
from moectl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Rows are long: this many may be decoded without being asked for.
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 18


def parquet_rows(source: Source, rows: RowText, *, in_part: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name in messages, row) of every row, counted from 1, with the fields that `rows` reads.

    Raises DataError for a file that is not whole and without a column of text or messages, ResourceError if the system refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened_as_it_is(source, in_part=in_part) as file:
        try:
            # Without a buffer size, or with pre-buffering, whole column chunks are read at once.
            with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
                yield from _rows(parquet, source, rows)
        except MemoryError:  # pyarrow's own is an ArrowException as well
            raise
        except (pa.ArrowException, OSError) as error:
            # pyarrow calls some corruption an OSError, but the system's have a number, and the Hub's a class of their own.
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"`{source.label}` is not a whole Parquet file: {reason}", hint="fetch or write the file again") from error


def _rows(parquet: pq.ParquetFile, source: Source, rows: RowText) -> Iterator[tuple[str, dict[str, Any]]]:
    schema = parquet.schema_arrow
    fields = rows.fields(schema.names)
    if not fields:
        hint = "name the column that holds the text with `--text-field`"
        raise DataError(f"`{source.label}` has no column `{rows.text_field}` (its columns: {_listing(schema)})", hint=hint)
    first, *others = fields
    if not _holds_text(schema.field(first).type):
        message = f"the column `{first}` of `{source.label}` is {schema.field(first).type}, neither text nor messages"
        raise DataError(f"{message} (its columns: {_listing(schema)})", hint="choose another with `--text-field`")
    others = [field for field in others if _holds_text(schema.field(field).type)]
    number = 0
    for group in range(parquet.num_row_groups):
        columns = [first, *others] if _may_hold_nulls(parquet, group, first) else [first]
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            try:
                values = [batch.column(column).to_pylist() for column in columns]
            except UnicodeDecodeError as error:
                place = f"one of the rows {number + 1} to {number + batch.num_rows}"
                raise DataError(f"`{source.label}` is not UTF-8 in {place}: {error.reason}", hint="write the file again") from error
            for row in zip(*values, strict=True):
                number += 1
                yield f"`{source.label}` row {number}", dict(zip(columns, row, strict=True))


def _may_hold_nulls(parquet: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether a second choice may be needed; a group without counts of its nulls may hold some."""
    found = parquet.metadata.row_group(group)
    for i in range(found.num_columns):
        chunk = found.column(i)
        if chunk.path_in_schema == column:
            return not (chunk.is_stats_set and chunk.statistics.has_null_count and chunk.statistics.null_count == 0)
    return True


def _holds_text(kind: pa.DataType) -> bool:
    """Text, messages, or nothing at all."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_struct(kind.value_type) and kind.value_type.get_field_index("role") >= 0)
    return any(is_text(kind) for is_text in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def _listing(schema: pa.Schema) -> str:
    return ", ".join(f"`{ascii(field.name)[1:-1]}` {field.type}" for field in schema) or "none"
