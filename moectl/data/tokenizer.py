"""The model's own tokenizer: `tokenizer.json` as it is, with the BOS and EOS of the files beside it.

Holds no vocabulary of its own and knows no chat templates (`chat.py` does). The size of the tokenizer says nothing about the size of the
model's embedding: models pad it, and ids the tokenizer does not know are legal.

    tokenizer = load_tokenizer(Path("checkpoint"))
    ids = tokenizer.encode_document("Some text")
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moectl.data.windows import encode_windows
from moectl.errors import DataError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class TextTokenizer:
    """Text to token ids and back. `special_ids` are BOS, EOS and the added tokens marked special."""

    def __init__(self, tokenizer: Tokenizer, *, bos_id: int | None, eos_id: int | None, add_bos: bool) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.bos_id = bos_id
        self.eos_id = eos_id
        self._add_bos = add_bos
        added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(added | {i for i in (bos_id, eos_id) if i is not None})

    def encode_document(self, text: str) -> list[int]:
        """The ids of one whole document, in one piece: some hundred bytes of memory per token while it runs.

        The post-processor's own special tokens, BOS in front if `add_bos_token` asks for it, and the EOS, if the
        tokenizer has one, at the end.
        """
        ids = self._with_bos(self._tokenizer.encode_batch_fast([text])[0].ids)
        if self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def encode_blocks(
        self, blocks: Iterator[str], *, in_part: bool = False, add_special_tokens: bool = True
    ) -> Iterator[np.ndarray[Any, np.dtype[np.int32]]]:
        """The ids of `encode_document` of the joined blocks, piece by piece, in the memory of a window of text.

        Empty text gives nothing, not even BOS and EOS. Reads no block before it is needed; `in_part` says that the
        caller may stop early. Without `add_special_tokens` there are only those that the text spells out, as in a chat.
        """
        last_id, n_pieces = None, 0
        for piece in encode_windows(self._tokenizer, blocks, in_part=in_part, add_special_tokens=add_special_tokens):
            ids = self._with_bos(piece) if add_special_tokens and not n_pieces else piece
            last_id = ids[-1] if ids else last_id
            n_pieces += 1
            yield np.array(ids, np.int32)
        if add_special_tokens and n_pieces and self.eos_id is not None and last_id != self.eos_id:
            yield np.array([self.eos_id], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelled out, an id the tokenizer does not know as `<123>`."""
        parts = []
        for known, run in itertools.groupby(ids, key=lambda token_id: self._tokenizer.id_to_token(token_id) is not None):
            run_ids = list(run)
            parts.append(self._tokenizer.decode(run_ids, skip_special_tokens=False) if known else "".join(f"<{i}>" for i in run_ids))
        return "".join(parts)

    def token(self, token_id: int) -> str:
        """One token as it can be shown in a table: its leading space kept, control characters and bytes escaped, `<123>` if unknown."""
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return f"<{token_id}>"
        text = piece
        if token_id not in self.special_ids:
            decoded = self._tokenizer.decode([token_id], skip_special_tokens=False)
            # A piece that is only part of a character decodes to nothing that can be read.
            text = decoded if decoded and "\ufffd" not in decoded else _bytes_spelled_out(piece)
            # SentencePiece decoders drop the space that starts a word.
            if piece.startswith("\u2581") and not text.startswith((" ", "\u2581")):
                text = " " + text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self._add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids


def _bytes_spelled_out(piece: str) -> str:
    """What a byte-level piece stands for where that is not all text, ` \\xe2\\x80` of `\u0120\u00e2\u0122`; any other piece as it is."""
    byte_of_letter = _byte_level_letters()
    if not byte_of_letter.keys() >= set(piece):
        return piece
    return bytes(byte_of_letter[letter] for letter in piece).decode("utf-8", errors="backslashreplace")


@functools.cache
def _byte_level_letters() -> dict[str, int]:
    """The byte of each letter in which byte-level BPE writes bytes (GPT-2's `bytes_to_unicode`)."""
    themselves = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(256 + at): byte for at, byte in enumerate(others)}


def has_tokenizer(folder: Path) -> bool:
    """Whether the model folder holds a tokenizer that can be read."""
    return (folder / TOKENIZER_FILE).is_file()


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder.

    Raises DataError if there is no `tokenizer.json`, ModelError if it or a file beside it is corrupt.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    if not has_tokenizer(folder):
        raise _no_tokenizer(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise ModelError(f"`{path}` is not a tokenizer that can be read: {error}", hint="fetch the file again") from error
    settings = read_settings(folder)
    bos_id = _token_id(tokenizer, settings, "bos_token", folder)
    eos_id = _token_id(tokenizer, settings, "eos_token", folder)
    for name in ("generation_config.json", "config.json"):
        if eos_id is None:
            eos_id = _first_id(_read_json(folder / name).get("eos_token_id"), folder / name)
    return TextTokenizer(tokenizer, bos_id=bos_id, eos_id=eos_id, add_bos=settings.get("add_bos_token") is True)


def read_settings(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json`, and below it `special_tokens_map.json`, say; empty without them. Raises ModelError."""
    return _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")


def _no_tokenizer(folder: Path) -> DataError:
    message = f"no tokenizer in `{folder}`: looked for `{TOKENIZER_FILE}`"
    hint = "copy the model's tokenizer files there, or pass `.npy` token ids, which need no tokenizer"
    other = next((name for name in ("tokenizer.model", "tekken.json", "vocab.json", "spiece.model") if (folder / name).is_file()), None)
    if other is not None:
        message += f", found only `{other}`, which is not read"
        hint = f"convert it to `{TOKENIZER_FILE}` with `transformers`, or pass `.npy` token ids, which need no tokenizer"
    return DataError(message, hint=hint)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in an optional file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{path}` is not JSON: {error}", hint="fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` is not a JSON object", hint="fetch the file again")
    return value


def _token_id(tokenizer: Tokenizer, names: dict[str, Any], key: str, folder: Path) -> int | None:
    """The id of a token given as text or as an object with `content`; None if it is absent or not in the vocabulary."""
    token = names.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        return None
    if not isinstance(token, str):
        raise ModelError(
            f"`{key}` in the tokenizer files of `{folder}` is `{token}`, not a token", hint="correct it, or fetch the files again"
        )
    return tokenizer.token_to_id(token)


def _first_id(value: Any, path: Path) -> int | None:
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first == []:
        return None
    if type(first) is not int or first < 0:
        raise ModelError(f"`eos_token_id` in `{path}` is `{value}`, not a token id", hint="correct it, or fetch the file again")
    return first
