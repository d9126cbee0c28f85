"""Documents out of text and jsonl files, compressed or not, and the place named in every error."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.data.chat import Chat
from moectl.data.documents import documents
from moectl.data.row_text import RowText
from moectl.data.sources import Source, source_of
from moectl.errors import DataError, ResourceError

_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
_TEXT = st.text(st.characters(exclude_characters="\0\ufeff", codec="utf-8"), max_size=50)


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(_COMPRESS[path.suffix if path.suffix in _COMPRESS else ""](data))
    return path


def _read(path: Path, text_field: str = "text") -> list[str]:
    return list(_texts(source_of(path), text_field))


def _texts(source: Source, text_field: str = "text") -> Iterator[str]:
    return ("".join(document.blocks) for document in documents(source, RowText(text_field, Chat(source.path.parent))))


@pytest.mark.parametrize("suffix", _COMPRESS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(_TEXT), blank=st.sampled_from(["", "\n", "  \n\r\n"]), end=st.sampled_from(["\n", "\r\n"]), ascii_only=st.booleans())
def test_jsonl_rows(
    suffix: str, texts: list[str], blank: str, end: str, ascii_only: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) + end + blank for text in texts]
    path = _write(tmp_path_factory.mktemp("d"), f"a.jsonl{suffix}", "".join(rows))
    assert _read(path) == texts
    assert _read(_write(path.parent, f"b.jsonl{suffix}", "\ufeff" + "".join(rows).rstrip("\r\n "))) == texts


@pytest.mark.parametrize("suffix", _COMPRESS)
@settings(max_examples=40, deadline=None)
@given(text=_TEXT)
def test_text_is_kept_as_it_is(suffix: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("d")
    assert _read(_write(folder, f"a.txt{suffix}", text)) == [text]
    assert _read(_write(folder, f"b.txt{suffix}", "\ufeff" + text)) == [text]


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_characters_across_blocks(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moectl.data.text_files.BLOCK_BYTES", max(block, 3))
    monkeypatch.setattr("moectl.data.opening._ZSTD_BLOCK_BYTES", block)
    text = "a\r\nü日本\U0001f600\n" * 20
    for suffix in _COMPRESS:
        assert _read(_write(tmp_path, f"a.txt{suffix}", "\ufeff" + text)) == [text]
    with pytest.raises(DataError, match=r"bad byte at offset 224$"):
        _read(_write(tmp_path, "b.txt", (text[:-1].encode()[:224]) + b"\xff" + b"ok"))


def test_frames_and_members_after_one_another(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(_COMPRESS[suffix](b'{"text": "a"}\n') + _COMPRESS[suffix](b"") + _COMPRESS[suffix](b'{"text": "b"}'))
        assert _read(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ('{"body": "x", "id": 1}', r"`.*a\.jsonl` line 3 has no field `text` \(its fields: `body`, `id`\)$", "--text-field"),
        ("{}", r"line 3 has no field `text` \(its fields: none\)", "--text-field"),
        ('{"messages": "hello"}', r"line 3: the field `messages` is a string, not a list of messages with `role`", "--text-field"),
        ('{"messages": [3]}', r"line 3 is a chat, and the model has no chat template: looked for .*jinja` and ", "instruction-tuned"),
        ('{"text": 5}', r"line 3: the field `text` is a number, not a string", "--text-field"),
        ('{"text": ["a"]}', r"line 3: the field `text` is a list", "--text-field"),
        ('{"text": "a"', r"line 3 is not JSON: .* at column", "whole JSON object"),
        ("plain words", r"line 3 is not JSON", r"\.txt"),
        ('["a"]', r"line 3 is a JSON list, not an object", "rows like"),
        ('"a"', r"line 3 is a JSON string, not an object", "rows like"),
        ("[" * 100_000, r"line 3 is not JSON that can be read", "remove"),
        ('{"text": ' + "9" * 5000 + "}", r"line 3 is not JSON that can be read", "remove"),
        ('{"text": "ab\\ud800"}', r"line 3: the field `text` holds half a surrogate pair \(`\\ud800`\)", "whole characters"),
        ('{"\\ud800": "x"}', r"line 3 has no field `text` \(its fields: `\\ud800`\)", "--text-field"),
    ],
)
def test_bad_rows_name_their_line(row: str, message: str, hint: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"text": "good"}\n\n' + row + "\n")
    reader = _texts(source_of(path))
    assert next(reader) == "good"
    with pytest.raises(DataError, match=message) as caught:
        next(reader)
    assert caught.value.exit_code == 5
    assert hint in str(caught.value.hint).replace("\\", "") or hint == r"\.txt"
    str(caught.value).encode()


def test_a_null_is_an_empty_document(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, "a.jsonl", '{"text": null}\n{"text": null, "messages": []}\n{"messages": null}')) == [""] * 3
    assert _read(_write(tmp_path, "a.jsonl", '{"body": null, "messages": [{"role": "user"}]}'), "body") == [""]


def test_chats_are_not_taken_for_a_field_that_was_named(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}')
    with pytest.raises(DataError, match=r"has no field `body` \(its fields: `messages`\)") as caught:
        _read(path, "body")
    assert "`--text-field messages`" in str(caught.value.hint)


def test_other_text_field(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"body": "x", "text": 3}\n{"body": "\\ud83d\\ude00"}\n')
    assert _read(path, "body") == ["x", "\U0001f600"]


def test_not_utf8_names_the_offset(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.txt", b"abc\xe9 def")
    with pytest.raises(DataError, match=r"`.*a\.txt` is not UTF-8: bad byte at offset 3$") as caught:
        _read(path)
    assert "iconv" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"bad byte at offset 4$"):
        _read(_write(tmp_path, "b.txt", b"\xef\xbb\xbfa\xe9"))
    with pytest.raises(DataError, match=r"bad byte at offset 600000$"):
        _read(_write(tmp_path, "c.txt", b"abc" * 200_000 + b"\xe6\x97"))
    with pytest.raises(DataError, match=r"bad byte at offset 24 \(line 2\)$"):
        _read(_write(tmp_path, "a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n'))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_binary_and_utf16_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a binary file, not text: it holds a NUL byte at offset 3"):
        _read(_write(tmp_path, name, b"abc\0" * 100))
    with pytest.raises(DataError, match=r"is UTF-16, not UTF-8") as caught:
        _read(_write(tmp_path, name, "abc\n".encode("utf-16")))
    assert "UTF-16" in str(caught.value.hint)


@pytest.mark.parametrize(("suffix", "kind"), [(".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_cut_off_or_corrupt_compression(name: str, suffix: str, kind: str, tmp_path: Path) -> None:
    path = _write(tmp_path, name + suffix, "".join(json.dumps({"text": str(i * i)}) + "\n" for i in range(5000)))
    whole = path.read_bytes()
    for broken in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:3],
        b"no compression at all",
        whole + b"garbage",
        whole[:40] + b"\xff" * 40 + whole[80:],
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"`.*{suffix}` is not whole {kind} data: ") as caught:
            _read(path)
        assert caught.value.exit_code == 5
        assert caught.value.hint
    path.write_bytes(b"")
    assert _read(path) == ([""] if name == "a.txt" else [])


def test_a_file_that_is_gone_or_closed(tmp_path: Path) -> None:
    source = source_of(tmp_path / "gone.txt")
    with pytest.raises(ResourceError, match=r"cannot read `.*gone\.txt`"):
        list(_texts(source))


def test_rows_are_streamed(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 10_000}) + "\n"
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(row.encode() * 5000))
    tracemalloc.start()
    try:
        assert sum(len(text) for text in _texts(source_of(path))) == 50_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 45_000_000
