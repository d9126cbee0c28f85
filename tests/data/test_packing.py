"""Domains: joining, cutting, the bound on tokens, and that the bound reads only what it needs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.data.documents import Document
from moectl.data.packing import Domain, load_domains
from moectl.data.row_text import RowText
from moectl.data.sources import Source
from moectl.data.tokenizer import load_tokenizer
from moectl.errors import DataError, ModelError, UsageError

KINDS = ["plain", "template", "both_ends", "sentencepiece", "unigram"]
VOCAB = 1000


def _load(specs: list[str], folder: Path, *, seq_len: int = 16, tokens: int | None = None, vocab_size: int = VOCAB) -> list[Domain]:
    return load_domains(specs, folder=folder, vocab_size=vocab_size, seq_len=seq_len, tokens=tokens)


def _jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _check(domain: Domain, seq_len: int) -> None:
    """What holds for every domain of text."""
    assert [array.dtype.name for array in (domain.token_ids, domain.offsets, domain.special)] == ["int32", "int64", "bool"]
    assert domain.n_tokens == len(domain.token_ids) == len(domain.special)
    lengths = np.diff(domain.offsets)
    assert domain.n_sequences == len(lengths) == -(-domain.n_tokens // seq_len)
    assert domain.offsets[0] == 0
    assert domain.offsets[-1] == domain.n_tokens
    assert (lengths[:-1] == seq_len).all()
    assert 1 <= lengths[-1] <= seq_len


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=8), seq_len=st.integers(1, 20), tokens=st.none() | st.integers(1, 80))
@pytest.mark.parametrize("kind", ["plain", "both_ends"])
def test_documents_joined_cut_and_bounded(
    kind: str, texts: list[str], seq_len: int, tokens: int | None, model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = load_tokenizer(model_folders[kind])
    path = _jsonl(tmp_path_factory.mktemp("d") / "a.jsonl", texts)
    encoded = [tokenizer.encode_document(text) for text in texts if text]
    stream = list(chain.from_iterable(encoded))[:tokens]
    if not stream:
        with pytest.raises(DataError, match="the domain `a` holds no text"):
            _load([str(path)], model_folders[kind], seq_len=seq_len, tokens=tokens)
        return
    (domain,) = _load([str(path)], model_folders[kind], seq_len=seq_len, tokens=tokens)
    _check(domain, seq_len)
    assert domain.token_ids.tolist() == stream
    ends = np.cumsum([len(ids) for ids in encoded])
    assert domain.n_documents == int(np.searchsorted(ends, len(stream))) + 1
    assert domain.special.tolist() == [i in tokenizer.special_ids for i in stream]


def test_domains_do_not_mix(model_folders: dict[str, Path], tmp_path: Path) -> None:
    one = _jsonl(tmp_path / "one.jsonl", ["The quick", "brown fox"])
    two = tmp_path / "two.txt"
    two.write_text("the lazy dog " * 9)
    tokenizer = load_tokenizer(model_folders["plain"])
    a, b = _load([str(one), f"m={two}", f"one={two}"], model_folders["plain"])
    assert (a.name, b.name) == ("one", "m")
    assert (a.n_documents, b.n_documents) == (3, 1)
    whole = tokenizer.encode_document("the lazy dog " * 9)
    assert b.token_ids.tolist() == whole
    assert a.token_ids.tolist() == [*tokenizer.encode_document("The quick"), *tokenizer.encode_document("brown fox"), *whole]


def test_sha256_is_of_ids_and_offsets(model_folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The quick brown fox " * 10)
    (a,), (b,) = (_load([f"{name}={path}"], model_folders["plain"]) for name in ("a", "b"))
    assert a.sha256 == b.sha256 == hashlib.sha256(a.token_ids.astype("<i4").tobytes() + a.offsets.astype("<i8").tobytes()).hexdigest()
    assert _load([str(path)], model_folders["plain"], seq_len=15)[0].sha256 != a.sha256
    assert _load([str(path)], model_folders["plain"], tokens=10)[0].sha256 != a.sha256


def _awkward_text(n_chars: int, seed: int) -> str:
    """Words among runs of spaces and line ends, CRLF, marks that combine, specials spelled out, no break for a long while."""
    rng = random.Random(seed)
    pieces = [
        "the",
        " quick",
        " brown fox",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        " \n \n",
        "\u3000",
        "日本語",
        "e\u0301",
        "\U0001f600",
        "<s>",
        "</s>",
        "12345",
        "....",
        "'ll",
    ]
    parts: list[str] = []
    n = 0
    while n < n_chars:
        piece = rng.choice(pieces)
        parts.append(piece * rng.choice([1, 1, 1, 1, 2, 7, 300, 5000] if rng.random() < 0.05 else [1]))
        n += len(parts[-1])
    return "".join(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bounded_text_file_equals_the_start_of_the_whole(kind: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(_awkward_text(300_000, seed=len(kind)).encode())
    (whole,) = _load([str(path)], model_folders[kind])
    for tokens in (1, 100, 5_000, 20_000, 40_000, whole.n_tokens - 1, whole.n_tokens, whole.n_tokens + 1, 10**9):
        (some,) = _load([str(path)], model_folders[kind], tokens=tokens)
        _check(some, 16)
        assert np.array_equal(some.token_ids, whole.token_ids[:tokens])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), window_chars=st.integers(1, 400), tokens=st.none() | st.integers(1, 1500), block=st.integers(4, 500))
def test_any_window_gives_the_same_ids(
    kind: str,
    seed: int,
    window_chars: int,
    tokens: int | None,
    block: int,
    model_folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = _awkward_text(3000, seed)
    path = tmp_path_factory.mktemp("d") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moectl.data.windows._FIRST_CHARS", window_chars)
        patch.setattr("moectl.data.windows._WINDOW_CHARS", 2 * window_chars)
        patch.setattr("moectl.data.windows._MARGIN_CHARS", 64)
        patch.setattr("moectl.data.text_files.BLOCK_BYTES", block)
        (domain,) = _load([str(path)], model_folders[kind], tokens=tokens)
    assert domain.token_ids.tolist() == load_tokenizer(model_folders[kind]).encode_document(text)[:tokens]


def test_the_bound_stops_reading_a_long_file(model_folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"The quick brown fox jumps over the lazy dog. " * 30_000)
        file.write(b"\xff")  # not UTF-8: reading on would fail
        file.truncate(100 * 10**9)
    (domain,) = _load([str(path)], model_folders["plain"], tokens=50_000)
    assert domain.n_tokens == 50_000
    with pytest.raises(DataError, match="bad byte at offset 1350000"):
        _load([str(path)], model_folders["plain"], tokens=10**6)


def test_the_bound_stops_pulling_documents(model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[int] = []

    def endless(source: Source, rows: RowText, *, in_part: bool) -> Iterator[Document]:
        assert in_part
        for i in range(50):
            pulled.append(i)
            yield Document(iter(("The quick brown fox",)))

    monkeypatch.setattr("moectl.data.packing.documents", endless)
    n = len(load_tokenizer(model_folders["plain"]).encode_document("The quick brown fox"))
    (domain,) = _load([str(_jsonl(tmp_path / "a.jsonl", []))], model_folders["plain"], tokens=5 * n)
    assert (domain.n_tokens, domain.n_documents, len(pulled)) == (5 * n, 5, 5)


def test_a_row_after_the_bound_is_not_read(model_folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The quick brown fox"}\nnot json\n')
    other = tmp_path / "b.txt"
    other.write_bytes(b"\xff")
    assert _load([f"d={path}", f"d={other}"], model_folders["plain"], tokens=3)[0].n_documents == 1
    with pytest.raises(DataError, match="line 2 is not JSON"):
        _load([f"d={path}", f"d={other}"], model_folders["plain"])


def test_text_field(model_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "The quick"}\n')
    (domain,) = load_domains([str(tmp_path / "a.jsonl")], folder=model_folders["plain"], vocab_size=VOCAB, seq_len=8, text_field="body")
    assert domain.token_ids.tolist() == load_tokenizer(model_folders["plain"]).encode_document("The quick")


def test_empty_documents_give_nothing(model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "a.py").touch()
    with pytest.raises(DataError, match=r"the domain `src` holds no text: `.*a\.py`$") as caught:
        _load([str(folder)], model_folders["template"])
    assert caught.value.exit_code == 5
    (folder / "b.py").write_text("x")
    assert _load([str(folder)], model_folders["template"])[0].n_documents == 1
    _jsonl(tmp_path / "e.jsonl", [])
    with pytest.raises(DataError, match="the domain `e` holds no text"):
        _load([str(tmp_path / "e.jsonl")], model_folders["template"], tokens=5)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_empty_token_files(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.int32))
    with pytest.raises(DataError, match=r"the domain `a` holds no token: `.*a\.npy`"):
        _load([str(tmp_path / "a.npy")], tmp_path)


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.arange(20))
    np.save(tmp_path / "rows.npy", np.arange(60).reshape(3, 20))
    flat, rows = _load([str(tmp_path / "flat.npy"), str(tmp_path / "rows.npy")], tmp_path)
    assert flat.offsets.tolist() == [0, 16, 20]
    assert rows.offsets.tolist() == [0, 20, 40, 60]
    assert (flat.n_documents, rows.n_documents) == (1, 3)
    assert rows.token_ids.tolist() == list(range(60))
    assert not flat.special.any()
    (both,) = _load([f"d={tmp_path / 'flat.npy'}", f"d={tmp_path / 'rows.npy'}"], tmp_path, tokens=45)
    assert both.offsets.tolist() == [0, 16, 20, 40, 45]
    assert both.n_documents == 3
    (one,) = _load([f"d={tmp_path / 'flat.npy'}", f"d={tmp_path / 'rows.npy'}"], tmp_path, tokens=20)
    assert one.n_documents == 1


def test_special_tokens_of_token_files_come_from_the_folder(model_folders: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([0, 5, 1, 6]))
    assert _load([str(tmp_path / "a.npy")], model_folders["plain"])[0].special.tolist() == [True, False, True, False]


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="no tokenizer in"):
        _load([str(tmp_path / "a.txt")], tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError):
        _load([str(tmp_path / "a.txt")], tmp_path)


def test_ids_above_the_vocabulary_are_refused(model_folders: dict[str, Path], make_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The quick")
    largest = max(load_tokenizer(model_folders["plain"]).encode_document("The quick"))
    assert _load([str(tmp_path / "a.txt")], model_folders["plain"], vocab_size=largest + 1)
    with pytest.raises(
        DataError, match=rf"id `{largest}` \(`.+`\) for `.*a\.txt`, which is not below the model's vocabulary of {largest}$"
    ) as caught:
        _load([str(tmp_path / "a.txt")], model_folders["plain"], vocab_size=largest)
    assert "do not belong together" in str(caught.value.hint)
    folder = make_folder("plain", config={"eos_token_id": VOCAB})
    with pytest.raises(DataError, match=r"id `1000` \(`<1000>`\)"):
        _load([str(tmp_path / "a.txt")], folder)
    np.save(tmp_path / "b.npy", [VOCAB])
    with pytest.raises(DataError, match="token id `1000` in"):
        _load([str(tmp_path / "b.npy")], folder)


def test_usage(tmp_path: Path) -> None:
    specs = []
    for i in range(257):
        np.save(tmp_path / f"{i}.npy", [1, 2])
        specs.append(str(tmp_path / f"{i}.npy"))
    assert len(_load(specs[:256], tmp_path)) == 256
    with pytest.raises(UsageError, match="257 domains are more than 256") as caught:
        _load(specs, tmp_path)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="must be at least 1"):
        _load(specs[:1], tmp_path, seq_len=0)
    with pytest.raises(UsageError, match="must be at least 1"):
        _load(specs[:1], tmp_path, tokens=0)
