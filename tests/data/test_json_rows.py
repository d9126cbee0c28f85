"""`.json` files in all their forms, streamed, with the place of every row and error."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.data import json_rows as module
from moectl.data.chat import Chat
from moectl.data.documents import documents
from moectl.data.json_rows import json_rows
from moectl.data.row_text import RowText
from moectl.data.sources import source_of
from moectl.errors import DataError

_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
_TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)
_MORE = st.fixed_dictionaries({}, optional={"n": st.floats(allow_nan=False), "tags": st.lists(_TEXT, max_size=2)})
_ROW = _TEXT | st.builds(lambda text, more: {"text": text} | more, _TEXT, _MORE)


def _texts(path: Path, field: str = "text") -> list[str]:
    return ["".join(document.blocks) for document in documents(source_of(path), RowText(field, Chat(path.parent)))]


def _text_of(row: Any) -> str:
    return row if isinstance(row, str) else row["text"]


def _write(folder: Path, content: str, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(_COMPRESS[path.suffix if path.suffix in _COMPRESS else ""](content.encode()))
    return path


@pytest.mark.parametrize("suffix", _COMPRESS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(_ROW, max_size=6), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), chars=st.integers(1, 60))
def test_every_form_and_any_cut_gives_the_same_rows(
    suffix: str, rows: list[Any], indent: int | None, ascii_only: bool, chars: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, expected = tmp_path_factory.mktemp("d"), [_text_of(row) for row in rows]

    def dump(value: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    objects = [row if isinstance(row, dict) else {"text": row} for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_READ_CHARS", chars)
        patch.setattr(module, "_WHOLE_CHARS", chars)
        patch.setattr("moectl.data.text_files.BLOCK_BYTES", max(4, chars // 2))
        assert _texts(_write(folder, dump(rows), f"a.json{suffix}")) == expected
        assert _texts(_write(folder, "\ufeff \n" + dump({"da ta": rows}) + " \n", f"b.json{suffix}")) == expected
        assert _texts(_write(folder, "\n".join(map(dump, objects)), f"c.json{suffix}")) == expected
        assert _texts(_write(folder, "".join(map(dump, objects)) + "\n", f"d.json{suffix}")) == expected


@pytest.mark.parametrize("chars", [1, 5, 40, 10**6])
def test_one_object_is_a_row_or_the_list_in_it(chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_CHARS", chars)
    monkeypatch.setattr(module, "_WHOLE_CHARS", chars)
    assert _texts(_write(tmp_path, '{"text": "a", "tags": ["b"]}')) == ["a"]
    if chars > 40:  # a longer one is taken for a list in an object
        assert _texts(_write(tmp_path, '{"id": [1], "text": "a"}')) == ["a"]
    assert _texts(_write(tmp_path, '{"text": ["a", "b"]}')) == ["a", "b"]
    assert _texts(_write(tmp_path, '{"data": []}')) == []
    assert _texts(_write(tmp_path, '{"messages": []}')) == []
    assert _texts(_write(tmp_path, '{"body": ["a", "b"]}'), "body") == ["a", "b"]
    with pytest.raises(DataError, match=r"line 1 is a chat, and the model has no chat template"):
        _texts(_write(tmp_path, '{"messages": [{"role": "user", "content": "x"}]}'))
    with pytest.raises(DataError, match=r"line 1 has no field `text` \(its fields: `data`, `more`\)|more than one list of rows: `data` is"):
        _texts(_write(tmp_path, '{"data": [{"text": "aaaaaaaaa"}],\n "more": 1}'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n\n{"text" "b"}]', r"row 2 \(line 3\) is not JSON: Expecting ':' delimiter \(line 3\)$"),
        ('[{"text": "a"},\n{"text":\n\n"b" "c"}]', r"row 2 \(line 2\) is not JSON: Expecting ',' delimiter \(line 4\)$"),
        ('[{"text": "a"},\n]', r"row 2 \(line 2\) is not JSON: Expecting value \(line 2\)$"),
        ('[{"text": "a"}', r"row 1 \(line 1\) is the last before the file ends, where `,` or `\]` must stand"),
        ('[{"text": "a"} {"text": "b"}]', r"row 1 \(line 1\) is followed by `\{` \(line 1\)"),
        ('[{"text": "a"}]\n\nmore', r"`.*a\.json` goes on after the list of rows \(line 3\)"),
        ('["a", 3]', r"row 2 \(line 1\) is a JSON number, not an object"),
        ('[["a"]]', r"row 1 \(line 1\) is a JSON list, not an object"),
        ('[{"body": "a"}]', r"row 1 \(line 1\) has no field `text` \(its fields: `body`\)"),
        ('["a\\ud800"]', r"row 1 \(line 1\): the field `text` holds half a surrogate pair"),
        ('["a', r"row 1 \(line 1\) is not JSON: Unterminated string"),
        ('{"text": "a"}\n{"text": "b",}', r"line 2 is not JSON"),
        ('{"text": "a"}\n3', r"line 2 is a JSON number"),
        ('{"text": "a"},\n{"text": "b"}', r"line 1 is not JSON: Expecting value"),
        ("hello", r"`.*a\.json` is neither a JSON list nor rows"),
        ("[" * 100_000, r"row 1 \(line 1\) is not JSON that can be read"),
        ('[{"text": ' + "9" * 5000 + "}]", r"row 1 \(line 1\) is not JSON that can be read"),
        ('{"data": [{"text": "a"}, 3]}', r"row 2 is a JSON number"),
        ('{"a": 1, "b": [{"text": "a"}]}', r"line 1 has no field `text` \(its fields: `a`, `b`\)"),
    ],
)
def test_errors_name_row_and_line(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _texts(_write(tmp_path, content))
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_many_short_rows_are_no_long_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_CHARS", 50)
    monkeypatch.setattr(module, "_WHOLE_CHARS", 100)
    assert _texts(_write(tmp_path, '{"tags": ["b"], "text": "a"}\n' * 50)) == ["a"] * 50


def test_nothing_is_an_empty_file(tmp_path: Path) -> None:
    for content in ("", " \n\t", "[]", "[ ]", "{}"[:0]):
        assert _texts(_write(tmp_path, content)) == []


def test_bytes_that_are_no_text_are_refused_as_everywhere(tmp_path: Path) -> None:
    for content, message in ((b'["a\xe9"]', "bad byte at offset 3"), (b'["a\0"]', "binary"), ("[]".encode("utf-16"), "UTF-16")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match=message):
            _texts(tmp_path / "a.json")


@pytest.mark.parametrize("form", ["[{}]", '{{"data": [{}]}}', "{}"])
def test_rows_are_streamed(form: str, tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 10_000})
    before, _, after = form.partition("{}") if form == "{}" else form.replace("{{", "{").replace("}}", "}").partition("{}")
    path = _write(tmp_path, before + (", " if before else "\n").join([row] * 3000) + after)
    tracemalloc.start()
    try:
        assert sum(len(row["text"]) for _, row in json_rows(source_of(path), "text")) == 30_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7_000_000


def test_neither_a_bound_nor_an_error_reads_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def blocks(*_: object, **__: object) -> Iterator[str]:
        for start in ('[{"text": "a"}, {"text": "b"}, oops, ', *[" " * 100_000] * 100):
            read.append(len(start))
            yield start

    monkeypatch.setattr(module, "text_blocks", blocks)
    rows = json_rows(source_of(tmp_path / "a.json"), "text")
    assert next(rows)[1] == {"text": "a"}
    assert sum(read) < 400_000
    assert next(rows)[1] == {"text": "b"}
    with pytest.raises(DataError, match="row 3"):
        next(rows)
    assert sum(read) < 400_000
