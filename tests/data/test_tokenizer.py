"""The tokenizer wrapper: BOS and EOS rules, special ids, printable tokens, broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moectl.data.tokenizer import TextTokenizer, load_tokenizer
from moectl.errors import DataError, ModelError

TEXT = "The quick brown fox"
CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}


def _id(raw: Tokenizer, token: str) -> int:
    token_id = raw.token_to_id(token)
    assert token_id is not None
    return token_id


def _load(raw: Tokenizer, *, add_bos: bool = False) -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_str(raw.to_str()), bos_id=raw.token_to_id("<s>"), eos_id=raw.token_to_id("</s>"), add_bos=add_bos)


@pytest.mark.parametrize("kind", ["plain", "template", "both_ends", "sentencepiece", "unigram"])
def test_document_is_the_tokenizers_own_ids_and_one_eos(
    kind: str, raw_tokenizers: dict[str, Tokenizer], model_folders: dict[str, Path]
) -> None:
    raw = raw_tokenizers[kind]
    expected = raw.encode(TEXT).ids
    eos = _id(raw, "</s>")
    if expected[-1] != eos:
        expected = [*expected, eos]
    ids = load_tokenizer(model_folders[kind]).encode_document(TEXT)
    assert ids == expected
    assert ids.count(eos) == 1
    assert ids.count(_id(raw, "<s>")) == (kind in ("template", "both_ends", "sentencepiece"))


@pytest.mark.parametrize(
    ("kind", "add_bos", "n_bos"),
    [("plain", True, 1), ("plain", False, 0), ("template", True, 1), ("template", False, 1), ("both_ends", True, 1)],
)
def test_bos_comes_once(kind: str, add_bos: bool, n_bos: int, make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder(kind, tokenizer_config=CONFIG | {"add_bos_token": add_bos}))
    ids = tokenizer.encode_document(TEXT)
    assert ids.count(0) == n_bos
    assert (ids[0] == 0) == bool(n_bos)


def test_add_bos_without_a_bos_token_adds_nothing(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder("plain", tokenizer_config={"bos_token": None, "eos_token": "</s>", "add_bos_token": True}))
    assert tokenizer.bos_id is None
    assert 0 not in tokenizer.encode_document(TEXT)


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 9}}, 1),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}}, 1),
        ({"special_tokens_map": {"eos_token": {"content": "</s>"}}, "config": {"eos_token_id": 9}}, 1),
        ({"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<s>"}}, 1),
        ({"generation_config": {"eos_token_id": [7, 8]}, "config": {"eos_token_id": 9}}, 7),
        ({"generation_config": {}, "config": {"eos_token_id": 9}}, 9),
        ({"tokenizer_config": {"eos_token": "<unknown>"}, "config": {"eos_token_id": [9]}}, 9),
        ({"config": {"eos_token_id": []}}, None),
        ({"config": {"eos_token_id": None}}, None),
        ({}, None),
    ],
)
def test_where_eos_comes_from(files: dict[str, object], eos: int | None, make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder("plain", **files))
    assert tokenizer.eos_id == eos
    assert tokenizer.encode_document(TEXT)[-1:] != [1] if eos is None else tokenizer.encode_document(TEXT)[-1] == eos


def test_stored_truncation_and_padding_are_off(raw_tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    raw = Tokenizer.from_str(raw_tokenizers["plain"].to_str())
    whole = raw.encode(TEXT * 20).ids
    raw.enable_truncation(max_length=4)
    raw.enable_padding(length=5000)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_document(TEXT * 20) == whole


def test_special_ids(model_folders: dict[str, Path], make_folder: Callable[..., Path]) -> None:
    assert load_tokenizer(model_folders["plain"]).special_ids == {0, 1}
    assert load_tokenizer(model_folders["unigram"]).special_ids == {0, 1, 2}
    assert load_tokenizer(make_folder("plain", config={"eos_token_id": 77})).special_ids == {0, 1, 77}


def test_token_is_printable(model_folders: dict[str, Path], raw_tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("plain", "sentencepiece", "unigram"):
        tokenizer, raw = load_tokenizer(model_folders[kind]), raw_tokenizers[kind]
        shown = [tokenizer.token(i) for i in range(raw.get_vocab_size())]
        assert all(text and text.isprintable() for text in shown)
        assert tokenizer.token(10**6) == "<1000000>"
        assert tokenizer.token(_id(raw, "</s>")) == "</s>"
        assert " the" in shown
    plain = load_tokenizer(model_folders["plain"])
    assert "\\n" in {plain.token(i) for i in plain.encode_document("a\nb")}
    # Byte-level pieces that end within a character: their bytes, not the letters that stand for them.
    vocabulary = raw_tokenizers["plain"].get_vocab()
    assert plain.token(vocabulary["\u00e2"]) == "\\xe2"
    assert plain.token(vocabulary["\u0122"]) == "\\x80"
    assert plain.token(vocabulary["\u0120"]) == " "
    sentencepiece = load_tokenizer(model_folders["sentencepiece"])
    assert sentencepiece.token(_id(raw_tokenizers["sentencepiece"], "<0x09>")) == "\\t"
    assert sentencepiece.token(_id(raw_tokenizers["sentencepiece"], "<0xE2>")) == "<0xE2>"


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_byte_level_decode_gives_the_text_back(text: str, model_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(model_folders["plain"])
    assert tokenizer.decode(tokenizer.encode_document(text)) == text + "</s>"


def test_decode_spells_unknown_ids(model_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(model_folders["plain"])
    ids = tokenizer.encode_document(TEXT)
    assert tokenizer.decode([5000, *ids, 6000, 6001]) == f"<5000>{TEXT}</s><6000><6001>"
    assert tokenizer.decode([]) == ""


def test_no_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer in `.*`: looked for `tokenizer.json`$") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 5
    assert ".npy" in str(caught.value.hint)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(DataError, match=r"found only `tokenizer.model`") as caught:
        load_tokenizer(tmp_path)
    assert ".npy" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"version": "9.0"}', '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_corrupt_tokenizer_is_a_model_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"`.*tokenizer.json` is not a tokenizer that can be read") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config", "{", "is not JSON"),
        ("special_tokens_map", "[" * 100_000, "is not JSON"),
        ("generation_config", "[]", "is not a JSON object"),
        ("tokenizer_config", json.dumps({"eos_token": 3}), "is `3`, not a token"),
        ("config", json.dumps({"eos_token_id": "1"}), "is `1`, not a token id"),
        ("config", json.dumps({"eos_token_id": [-1]}), "not a token id"),
        ("config", json.dumps({"eos_token_id": True}), "not a token id"),
    ],
)
def test_corrupt_side_files_are_model_errors(name: str, content: str, message: str, make_folder: Callable[..., Path]) -> None:
    folder = make_folder("plain")
    (folder / f"{name}.json").write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(folder)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["plain", "template", "both_ends", "sentencepiece", "unigram"])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("text", ["The", "The quick\n brown fox " * 40, "<s>" * 40 + " the fox " * 80 + "</s>", "\u200b", " ", ""])
def test_blocks_give_the_ids_of_the_document(
    kind: str, add_bos: bool, text: str, raw_tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moectl.data.windows._WINDOW_CHARS", 200)
    monkeypatch.setattr("moectl.data.windows._MARGIN_CHARS", 16)
    tokenizer = _load(raw_tokenizers[kind], add_bos=add_bos)
    pieces = list(tokenizer.encode_blocks(iter([text[:100], text[100:]])))
    assert all(piece.dtype == np.int32 for piece in pieces)
    assert [i for piece in pieces for i in piece.tolist()] == (tokenizer.encode_document(text) if text else [])
    assert len(pieces) > 3 or len(text) < 200
