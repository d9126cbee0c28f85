"""Parquet: types of columns, nulls, what is read of a large file, and broken ones."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moectl.data import opening
from moectl.data.chat import Chat
from moectl.data.documents import documents
from moectl.data.packing import load_domains
from moectl.data.row_text import RowText
from moectl.data.sources import Source, source_of
from moectl.data.tokenizer import load_tokenizer
from moectl.errors import DataError, ResourceError

TEXTS = ["The quick", "", "brown fox \U0001f600", None, "jumps\n"] * 3
CHATS = [[{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": None}] for i in range(3)]


def _write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def _texts(path: Path, field: str = "text") -> list[str]:
    return ["".join(document.blocks) for document in documents(source_of(path), RowText(field, Chat(path.parent)))]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes were read of all files."""
    n_bytes = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal n_bytes
            data = super().read(-1 if size is None else size)
            n_bytes += len(data)
            return data

    @contextmanager
    def opened(source: Source, *, in_part: bool = False) -> Iterator[IO[bytes]]:
        with Counting(source.path) as file:
            yield file  # type: ignore[misc]

    monkeypatch.setattr("moectl.data.parquet_files.opened_as_it_is", opened)
    return lambda: n_bytes


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("rows_per_group", [4, 1000])
def test_every_type_of_text(kind: pa.DataType, rows_per_group: int, tmp_path: Path) -> None:
    column = pa.array(TEXTS, pa.string()).cast(kind)
    path = _write(tmp_path / "a.parquet", {"id": range(15), "text": column}, row_group_size=rows_per_group)
    assert pq.ParquetFile(path).schema_arrow.field("text").type == kind
    assert _texts(path) == [text or "" for text in TEXTS]


def test_nulls_are_empty_documents(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    assert _texts(_write(tmp_path / "a.parquet", {"text": pa.nulls(3)})) == ["", "", ""]
    _write(tmp_path / "b.parquet", {"text": ["The quick", None, "", "fox"]})
    (domain,) = load_domains([str(tmp_path / "b.parquet")], folder=model_folders["plain"], vocab_size=1000, seq_len=8)
    tokenizer = load_tokenizer(model_folders["plain"])
    assert domain.token_ids.tolist() == [*tokenizer.encode_document("The quick"), *tokenizer.encode_document("fox")]
    assert domain.n_documents == 2
    with pytest.raises(DataError, match=r"the domain `a` holds no text"):
        load_domains([str(tmp_path / "a.parquet")], folder=model_folders["plain"], vocab_size=1000, seq_len=8)


@pytest.mark.parametrize("write_statistics", [True, False])
def test_messages_stand_in_for_text_that_is_missing(write_statistics: bool, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}")
    chats = [f"[user:Hi {i}][assistant:]" for i in range(3)]
    assert _texts(_write(tmp_path / "a.parquet", {"messages": CHATS})) == chats
    assert _texts(_write(tmp_path / "c.parquet", {"text": [1, 2, 3], "talk": CHATS}), "talk") == chats
    both = _write(
        tmp_path / "b.parquet",
        {"text": ["a", "b", "c", "d", None, None], "messages": [*CHATS, *CHATS[:2], None]},
        row_group_size=3,
        write_statistics=write_statistics,
    )
    assert _texts(both) == ["a", "b", "c", "d", chats[1], ""]
    assert _texts(both, "messages") == [*chats, *chats[:2], ""]
    odd = _write(tmp_path / "d.parquet", {"text": ["a", None], "messages": [json.dumps(CHATS[0])] * 2})
    with pytest.raises(DataError, match=r"row 2: the field `messages` is a string, not a list of messages"):
        _texts(odd)
    assert _texts(_write(tmp_path / "e.parquet", {"text": ["a", None], "messages": [1, 2]})) == ["a", ""]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "body": ["x"]}, r"`.*a\.parquet` has no column `text` \(its columns: `id` int64, `body` string\)$"),
        (
            {"text": [1], "body": ["x"]},
            r"the column `text` of `.*` is int64, neither text nor messages \(its columns: `text` int64, `body`",
        ),
        ({"text": [b"x"]}, r"is binary, neither text nor messages"),
        ({"text": [["x"]]}, r"is list<element: string>, neither"),
        ({"messages": [[{"from": "x"}]]}, r"the column `messages` of `.*` is list<element: struct<from: string>>, neither"),
        ({"messages": [[{"role": "x", "content": "y"}]]}, r"`.*` row 1 is a chat, and the model has no chat template"),
        ({}, r"\(its columns: none\)"),
    ],
)
def test_columns_that_hold_no_text_are_named(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _texts(_write(tmp_path / "a.parquet", columns))
    assert caught.value.exit_code == 5
    assert "--text-field" in str(caught.value.hint)


def test_broken_files(tmp_path: Path) -> None:
    whole = _write(tmp_path / "a.parquet", {"text": [str(i) * 50 for i in range(5000)]}).read_bytes()
    middle = len(whole) // 4
    for broken in (b"", b"PAR1", b"text" * 100, whole[:-1], whole[: len(whole) // 2], whole[100:], whole[:8] + b"\xff" * 600 + whole[608:],
                   whole[:middle] + b"\0" * 900 + whole[middle + 900 :], whole[:-200] + b"\xff" * 100 + whole[-100:]):  # fmt: skip
        (tmp_path / "b.parquet").write_bytes(broken)
        with pytest.raises(DataError, match=r"`.*b\.parquet` is not (a whole Parquet file: .|UTF-8 in)") as caught:
            _texts(tmp_path / "b.parquet")
        assert caught.value.hint
        assert "\n" not in str(caught.value)
    with pytest.raises(ResourceError, match=r"cannot read `.*gone\.parquet`"):
        _texts(tmp_path / "gone.parquet")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    column = pa.array([b"a"] * 70 + [b"\xe9"], pa.binary()).view(pa.string())
    with pytest.raises(DataError, match=r"is not UTF-8 in one of the rows 65 to 71"):
        _texts(_write(tmp_path / "a.parquet", {"text": column}))


def test_several_files(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    for name in ("b", "a"):
        _write(tmp_path / f"{name}.parquet", {"text": [name]})
    tokenizer = load_tokenizer(model_folders["plain"])
    expected = [*tokenizer.encode_document("a"), *tokenizer.encode_document("b")]
    for spec in (str(tmp_path), f"{tmp_path}/*.parquet"):
        (domain,) = load_domains([f"d={spec}"], folder=model_folders["plain"], vocab_size=1000, seq_len=8)
        assert domain.token_ids.tolist() == expected


def _large(path: Path, *, n_groups: int) -> int:
    """A file of text that does not compress, without nulls, so that its messages are not wanted; the bytes of one group's text."""
    source = random.Random(0)
    texts = ["".join(source.choices("abcdefghijklmnop", k=4000)) for _ in range(1500)]
    table = pa.table({"messages": [[{"role": "user", "content": text[::-1]}] for text in texts], "text": texts})
    with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False, write_batch_size=50) as writer:
        for _ in range(n_groups):
            writer.write_table(table)
    return sum(map(len, texts))


def test_a_bound_reads_some_pages_of_one_column(tmp_path: Path, model_folders: dict[str, Path], counted: Callable[[], int]) -> None:
    n_bytes = _large(tmp_path / "a.parquet", n_groups=3)
    with (tmp_path / "a.parquet").open("r+b") as file:  # reading on would fail
        file.seek(int(pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(2).data_page_offset))
        file.write(b"\xff" * 1000)
    (domain,) = load_domains([str(tmp_path / "a.parquet")], folder=model_folders["plain"], vocab_size=1000, seq_len=512, tokens=1000)
    assert domain.n_tokens == 1000
    assert counted() < n_bytes // 3
    with pytest.raises(DataError, match="is not a whole Parquet file"):
        _texts(tmp_path / "a.parquet")


def test_all_of_a_file_reads_no_other_column(tmp_path: Path, counted: Callable[[], int]) -> None:
    n_bytes = _large(tmp_path / "a.parquet", n_groups=2)
    assert len("".join(_texts(tmp_path / "a.parquet"))) == 2 * n_bytes
    assert 2 * n_bytes < counted() < 2.2 * n_bytes


def test_memory_is_that_of_some_pages(tmp_path: Path) -> None:
    n_bytes = _large(tmp_path / "a.parquet", n_groups=2)
    pool = pa.system_memory_pool()
    before, default = pool.bytes_allocated(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        peak = 0
        for _ in documents(source_of(tmp_path / "a.parquet"), RowText("text", Chat(tmp_path))):
            peak = max(peak, pool.bytes_allocated() - before)
    finally:
        pa.set_memory_pool(default)
    assert 0 < peak < n_bytes // 2


def test_opening_gives_the_bytes_as_they_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.parquet", {"text": ["x"]})
    with opening.opened_as_it_is(source_of(path)) as file:
        assert file.read() == path.read_bytes()
