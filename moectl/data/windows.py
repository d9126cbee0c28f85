"""The token ids of one document, a window of text at a time: equal to the ids of the whole, in the memory of a window.

Encoding takes some hundred bytes per token, so a long text is not encoded in one piece. Knows the `tokenizers` library and
nothing of BOS, EOS and files.

    for ids in encode_windows(tokenizer, iter(["The quick ", "brown fox"])):
        print(len(ids))

Why the ids are those of the whole text:

- The end of a window. A tokenizer decides about a place from the text near it, so the tokens within the margins of the end
  are not given out. The next window decides about them.
- The start of a window. It lies some margins before the last token given out, where a word of the window before starts.
  What a tokenizer does at the start of a text (a space put in front, spaces stripped, a regex out of step) dies out within
  the first margins. Behind them, both windows must agree in every token of a stretch as long as the margins. From a word
  start that both agree on, words are found and encoded alike. Byte-pair merges that never cross a place are independent
  on its two sides, so without words a common token start is enough.
- Where windows do not agree, or a word is longer than a window, the last start that is known to be right is kept and the
  text is doubled: in the end to the whole document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# Both margins are far beyond the longest token and the longest look-ahead of the known pre-tokenizers.
_MARGIN_CHARS = 4096
_MARGIN_WORDS = 8
# A caller who wants few tokens should not pay for a whole window.
_FIRST_CHARS = 1 << 16
# Larger is not faster, and leaves the allocator with holes that it does not give back.
_WINDOW_CHARS = 1 << 18
_PROBE = "The quick\n\nbrown fox jumps over 13 lazy dogs"

# Id, first and last character, and whether it starts a word.
_Placed = tuple[int, int, int, bool]


def encode_windows(
    tokenizer: Tokenizer, blocks: Iterator[str], *, in_part: bool = False, add_special_tokens: bool = True
) -> Iterator[list[int]]:
    """The ids of the document that `blocks` join to, in order, with what the post-processor adds at its two ends, if it may.

    `in_part`: the caller may stop early, so the first windows are short. No block is read before it is needed. Empty text
    gives nothing at all; else the last piece, and no other, may be empty.
    """
    reader = _Reader(blocks)
    size = min(_FIRST_CHARS, _WINDOW_CHARS) if in_part else _WINDOW_CHARS
    text, ended = reader.take(size)
    if ended:
        if text:
            yield tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return
    splits_words = _splits_words(tokenizer)
    moves = splits_words or _is_bpe(tokenizer)
    # Tokens given out, counted from the start of this window and of the one before; the text between the two starts.
    n_given = n_given_before = 0
    text_before = ""
    seam: list[_Placed] = []
    while True:
        encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids = encoding.ids
        if seam:
            joined = _behind_seam(encoding, ids, seam)
            if joined is None:
                more, ended = reader.take(len(text_before))
                text, n_given, seam = text_before + text + more, n_given_before, []
                del encoding, ids  # or two windows of tokens would be held at once
                continue
            n_given = joined
        end = len(ids) if ended else _settled(encoding, splits_words)
        if end > n_given or ended:
            yield ids[n_given:end]
        if ended:
            return
        n_given = max(n_given, end)
        check = _margin_before(encoding, n_given - 1, splits_words) if moves else None
        start = _margin_before(encoding, check, splits_words) if check is not None else None
        n_behind = _span(encoding, start - 1)[1] if start else 0
        if check is not None and 2 * n_behind >= len(text):
            seam = [_placed(encoding, ids, i, n_behind) for i in range(check, n_given)]
            text_before, n_given_before = text[:n_behind], n_given
            size = min(2 * size, _WINDOW_CHARS)
            more, ended = reader.take(size)
            text = text[n_behind:] + more
        else:  # too little would be left behind: many short steps would encode the same text again and again
            seam = []
            more, ended = reader.take(len(text))
            text += more
        del encoding, ids


def _settled(encoding: Encoding, splits_words: bool) -> int:
    """How many tokens of the beginning of a text no later text can change."""
    end = len(encoding)
    while end and encoding.token_to_chars(end - 1) is None:  # special tokens of the post-processor
        end -= 1
    if not end:
        return 0
    # Not the end of the text: a normalizer may have dropped what follows the last token.
    last_char, last_word = _span(encoding, end - 1)[1], encoding.token_to_word(end - 1)
    while end:
        span, word = encoding.token_to_chars(end - 1), encoding.token_to_word(end - 1)
        near_end = span is not None and span[1] > last_char - _MARGIN_CHARS
        # One word can be long: a run of spaces is cut or joined by what follows it.
        in_last_words = splits_words and word is not None and last_word is not None and word > last_word - _MARGIN_WORDS
        if not (near_end or in_last_words):
            break
        end -= 1
    return end


def _margin_before(encoding: Encoding, token: int, splits_words: bool) -> int | None:
    """The last token that lies the margins before `token` and starts a word, or a character where words are not split.

    None if there is none with a token of the text before it.
    """
    if token < 1 or encoding.token_to_chars(token) is None:
        return None
    limit_char, limit_word = _span(encoding, token)[0] - _MARGIN_CHARS, (encoding.token_to_word(token) or 0) - _MARGIN_WORDS
    for i in range(token - 1, 0, -1):
        if encoding.token_to_chars(i - 1) is None:
            return None
        start = _span(encoding, i)[0]
        if start > limit_char or _span(encoding, i - 1)[1] > start:  # one character can be several tokens
            continue
        if not splits_words or ((encoding.token_to_word(i) or 0) <= limit_word and _starts_word(encoding, i)):
            return i
    return None


def _behind_seam(encoding: Encoding, ids: list[int], seam: list[_Placed]) -> int | None:
    """The first token behind the seam; None if the tokens of the seam are not just these here."""
    first = 0
    while first < len(ids) and ((span := encoding.token_to_chars(first)) is None or span[0] < seam[0][1]):
        first += 1
    end = first + len(seam)
    if end > len(ids) or any(encoding.token_to_chars(i) is None for i in range(first, end)):
        return None
    return end if [_placed(encoding, ids, i, 0) for i in range(first, end)] == seam else None


def _placed(encoding: Encoding, ids: list[int], token: int, shift: int) -> _Placed:
    start, end = _span(encoding, token)
    return ids[token], start - shift, end - shift, _starts_word(encoding, token)


def _starts_word(encoding: Encoding, token: int) -> bool:
    return token == 0 or encoding.token_to_word(token - 1) != encoding.token_to_word(token)


def _span(encoding: Encoding, token: int) -> tuple[int, int]:
    """The characters of a token of the text."""
    span = encoding.token_to_chars(token)
    assert span is not None
    return span


def _splits_words(tokenizer: Tokenizer) -> bool:
    """Whether there is a pre-tokenizer at work; without one "the last words" would be the whole text."""
    return len(set(tokenizer.encode(_PROBE, add_special_tokens=False).word_ids)) > 3


def _is_bpe(tokenizer: Tokenizer) -> bool:
    """Other models, without words, tell equal scores apart by rounding, and that goes back to the start of the text."""
    from tokenizers import models

    return isinstance(tokenizer.model, models.BPE)


class _Reader:
    """Text by the number of characters, out of blocks of any length."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._block = ""
        self._at = 0

    def take(self, n_chars: int) -> tuple[str, bool]:
        """The next `n_chars` characters, or what is left of the text (then true)."""
        parts: list[str] = []
        while True:
            part = self._block[self._at : self._at + n_chars]
            self._at += len(part)
            n_chars -= len(part)
            parts.append(part)
            if not n_chars:
                return "".join(parts), False
            block = next(self._blocks, None)
            if block is None:
                return "".join(parts), True
            self._block, self._at = block, 0
