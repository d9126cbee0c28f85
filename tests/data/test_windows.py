"""Windows: joined ids equal those of the whole text, whatever the window, and no call sees more than a few windows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from moectl.data.windows import encode_windows

KINDS = ["plain", "template", "both_ends", "sentencepiece", "unigram", "far_sight"]
WINDOW = 1200
PROSE = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!\n"


AWKWARD = st.lists(
    st.one_of(
        st.sampled_from(
            [
                " ",
                "  ",
                "\n",
                "\r\n",
                "\t",
                " \n \n",
                "\u3000",
                "the",
                " fox",
                "日本語",
                "e\u0301",
                "\U0001f600",
                "<s>",
                "</s>",
                "9",
                "..",
                "'ll",
            ]
        ),
        st.text(max_size=3),
        st.tuples(st.sampled_from([" ", "\n", "\r\n", "a", "7", "=", "\u0301"]), st.integers(1, 60)).map(lambda run: run[0] * run[1]),
    ),
    max_size=60,
).map("".join)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moectl.data.windows._WINDOW_CHARS", WINDOW)
    monkeypatch.setattr("moectl.data.windows._FIRST_CHARS", 300)
    monkeypatch.setattr("moectl.data.windows._MARGIN_CHARS", 64)


class _Spy:
    """A tokenizer that notes the length of every text it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.lengths.append(len(text))
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.lengths += map(len, texts)
        return self._tokenizer.encode_batch_fast(texts)


def _blocks(text: str, n_chars: int) -> Iterator[str]:
    return iter([text[i : i + n_chars] for i in range(0, len(text), n_chars)])


def _joined(tokenizer: Any, text: str, block: int = 250, *, in_part: bool = False) -> list[int]:
    return [i for piece in encode_windows(tokenizer, _blocks(text, block), in_part=in_part) for i in piece]


def _words(n_chars: int, seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(PROSE) for _ in range(n_chars))


LONG = {
    "prose": PROSE * 200,
    "random letters and spaces": _words(12_000, 1),
    "spaces": "the fox" + " " * 9000 + "jumps " * 900,
    "line ends": ("the fox" + "\n" * 700 + " jumps") * 12,
    "crlf": "the quick\r\nbrown\r\n\r\n" * 500,
    "tabs and spaces": "\t\t  if x:\n        return  x\n\n\n" * 300,
    "japanese": "日本語の文章です。" * 900,
    "composed and combining": "cafe\u0301 naïve u\u0308ber \u3000" * 500,
    "emoji": "\U0001f600" * 4000,
    "emoji among words": "the \U0001f600\U0001f600 fox \U0001f468\u200d\U0001f469 " * 400,
    "digits": "1234567890" * 700,
    "digits and spaces": "".join(f" {i * i}" for i in range(1500)),
    "one endless word": "thequickbrownfox" * 500,
    "one endless letter": "a" * 8000 + " the end",
    "punctuation": "=" * 4000 + "the" + "..!?" * 1500,
    "specials spelled out": "the <s>fox</s> </s>\n <s>" * 400,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(LONG))
def test_windows_equal_the_whole(kind: str, name: str, raw_tokenizers: dict[str, Tokenizer]) -> None:
    raw = raw_tokenizers[kind]
    whole = raw.encode(LONG[name]).ids
    assert _joined(raw, LONG[name]) == whole
    assert _joined(raw, LONG[name], block=10**6, in_part=True) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(AWKWARD, min_size=5, max_size=12), window=st.integers(100, 900), block=st.integers(1, 400), in_part=st.booleans())
def test_windows_equal_the_whole_on_awkward_text(
    kind: str, parts: list[str], window: int, block: int, in_part: bool, raw_tokenizers: dict[str, Tokenizer]
) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moectl.data.windows._WINDOW_CHARS", window)
        patch.setattr("moectl.data.windows._FIRST_CHARS", window // 2)
        assert _joined(raw_tokenizers[kind], text, block, in_part=in_part) == (raw_tokenizers[kind].encode(text).ids if text else [])


def _variant(raw: Tokenizer, **parts: Any) -> Tokenizer:
    tokenizer = Tokenizer.from_str(raw.to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize("name", ["prose", "random letters and spaces", "tabs and spaces", "emoji among words", "specials spelled out"])
def test_what_happens_only_at_the_start_of_a_text(name: str, raw_tokenizers: dict[str, Tokenizer]) -> None:
    plain, sentencepiece = raw_tokenizers["plain"], raw_tokenizers["sentencepiece"]
    mask = _variant(plain)
    mask.add_special_tokens([AddedToken("fox", lstrip=True, rstrip=True)])
    tokenizers = [
        _variant(plain, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        _variant(plain, post_processor=processors.ByteLevel(trim_offsets=True)),
        _variant(plain, post_processor=processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=True)),
        _variant(plain, normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.Prepend("xyz"), normalizers.NFD()])),
        _variant(sentencepiece, normalizer=None, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        _variant(raw_tokenizers["unigram"], pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
        mask,
    ]
    for tokenizer in tokenizers:
        assert _joined(tokenizer, LONG[name]) == tokenizer.encode(LONG[name]).ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_part", [False, True])
def test_no_call_sees_more_than_a_few_windows(kind: str, in_part: bool, raw_tokenizers: dict[str, Tokenizer]) -> None:
    text = _words(40_000, 2) + PROSE * 500
    spy = _Spy(raw_tokenizers[kind])
    assert _joined(spy, text, block=10**6, in_part=in_part) == raw_tokenizers[kind].encode(text).ids
    assert max(spy.lengths) <= 3 * WINDOW
    assert sum(spy.lengths) < 2.5 * len(text)


def test_a_word_longer_than_a_window_is_read_whole_and_then_windows_are_small_again(raw_tokenizers: dict[str, Tokenizer]) -> None:
    text = PROSE * 100 + "a" * 10_000 + PROSE * 400
    spy = _Spy(raw_tokenizers["plain"])
    assert _joined(spy, text) == raw_tokenizers["plain"].encode(text).ids
    assert 10_000 < max(spy.lengths) < 30_000
    assert max(spy.lengths[-10:]) <= 2 * WINDOW
    assert sum(spy.lengths) < 4 * len(text)


def test_words_as_long_as_windows_are_not_encoded_over_and_over(raw_tokenizers: dict[str, Tokenizer]) -> None:
    text = ("a" * 1000 + " ") * 150
    spy = _Spy(raw_tokenizers["plain"])
    assert _joined(spy, text) == raw_tokenizers["plain"].encode(text).ids
    assert sum(spy.lengths) < 6 * len(text)


def test_without_words_only_byte_pairs_are_cut(raw_tokenizers: dict[str, Tokenizer]) -> None:
    unigram = _variant(raw_tokenizers["unigram"], pre_tokenizer=pre_tokenizers.Metaspace(split=False))
    text = _words(9000, 3)
    spy = _Spy(unigram)
    assert _joined(spy, text) == unigram.encode(text).ids
    assert max(spy.lengths) == len(text)


def test_windows_that_never_agree_end_at_the_whole_text(raw_tokenizers: dict[str, Tokenizer]) -> None:
    # Pairs are counted from the start of a text, and the character put in front shifts them for good.
    never = _variant(raw_tokenizers["sentencepiece"], normalizer=normalizers.Prepend("a"))
    text = "a" * 20_000
    spy = _Spy(never)
    assert _joined(spy, text) == never.encode(text).ids
    assert sum(spy.lengths) < 6 * len(text)


def test_blocks_are_read_only_when_needed(raw_tokenizers: dict[str, Tokenizer]) -> None:
    def blocks() -> Iterator[str]:
        yield PROSE * 10
        raise AssertionError

    ids = next(encode_windows(raw_tokenizers["template"], blocks(), in_part=True))
    assert ids == raw_tokenizers["template"].encode(PROSE * 10).ids[: len(ids)]
    assert len(ids) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_gives_nothing(kind: str, raw_tokenizers: dict[str, Tokenizer]) -> None:
    assert list(encode_windows(raw_tokenizers[kind], iter([]))) == []
    assert list(encode_windows(raw_tokenizers[kind], iter(["", ""]))) == []
