"""Domains: every source of one name as one stream of token ids, cut into sequences.

Documents are joined with the tokenizer's BOS and EOS (chats as their template wrote them), cut at `seq_len` and never padded; the tail
is its own shorter sequence and nothing crosses from one domain to the next. Does not shuffle and does not split into batches.

    domains = load_domains(["wiki=wiki.txt"], folder=Path("checkpoint"), vocab_size=50304, seq_len=1024, tokens=4096)
    first_T = domains[0].token_ids[: domains[0].offsets[1]]
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moectl.data.chat import Chat
from moectl.data.documents import documents
from moectl.data.hub_files import download_hub_file
from moectl.data.row_text import DEFAULT_FIELD, RowText
from moectl.data.sources import Source, parse_sources
from moectl.data.token_files import read_token_file
from moectl.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from moectl.errors import DataError, UsageError

# T tokens of a domain, N sequences.

MAX_DOMAINS = 256  # a routing trace stores the domain of a sequence as uint8

_SPECIAL_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """Token ids of one domain; sequence `i` is `token_ids[offsets[i]:offsets[i + 1]]`.

    token_ids int32 [T], offsets int64 [N+1], special bool [T] (BOS, EOS and added special tokens; all false where the
    model has no tokenizer), sha256 over the little-endian bytes of token ids, then offsets.
    """

    name: str
    token_ids: np.ndarray[Any, np.dtype[np.int32]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    n_documents: int
    special: np.ndarray[Any, np.dtype[np.bool_]]
    sha256: str

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_sequences(self) -> int:
        return len(self.offsets) - 1


def load_domains(
    specs: Sequence[str], *, folder: Path, vocab_size: int, seq_len: int, tokens: int | None = None, text_field: str = DEFAULT_FIELD
) -> list[Domain]:
    """Read every `[NAME=]SOURCE`, at most `tokens` tokens per domain, in order of first mention.

    `folder` is the model's, for its tokenizer and chat template. With `tokens` only the part of the sources that is needed is read and
    checked. Rows of a 2-D `.npy` stay sequences whatever `seq_len`; the last one read may be cut by `tokens`.
    Raises UsageError, DataError (also for an id at or above `vocab_size`), ModelError (corrupt tokenizer), ResourceError.
    """
    if seq_len < 1 or (tokens is not None and tokens < 1):
        raise UsageError(f"sequence length `{seq_len}` and tokens `{tokens}` must be at least 1", hint="check `--seq-len` and `--tokens`")
    sources = parse_sources(specs)
    if len(sources) > MAX_DOMAINS:
        raise UsageError(f"{len(sources)} domains are more than {MAX_DOMAINS}", hint="give several sources the same name: `NAME=SOURCE`")
    # Token ids need no tokenizer, but if there is one it says which of them are special.
    needs_tokenizer = any(file.kind != "npy" for files in sources.values() for file in files)
    tokenizer = load_tokenizer(folder) if needs_tokenizer or has_tokenizer(folder) else None
    rows = RowText(text_field, Chat(folder))
    domains = []
    for name, files in sources.items():
        if files[0].kind == "npy":
            token_ids, lengths, n_documents = _from_token_files(files, vocab_size=vocab_size, seq_len=seq_len, tokens=tokens)
        else:
            assert tokenizer is not None
            token_ids, n_documents = _from_text(files, tokenizer, vocab_size=vocab_size, tokens=tokens, rows=rows)
            lengths = _cut(len(token_ids), seq_len)
        if not len(token_ids):
            raise DataError(
                f"the domain `{name}` holds no {'token' if files[0].kind == 'npy' else 'text'}: {_listing(files)}", hint="check the source"
            )
        domains.append(_domain(name, token_ids, lengths, n_documents, tokenizer))
    return domains


def _from_text(
    files: Sequence[Source], tokenizer: TextTokenizer, *, vocab_size: int, tokens: int | None, rows: RowText
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], int]:
    """The joined ids of all documents, and how many gave any. Pulls no document and no block that is not needed."""
    joined = array("i")  # grows in place, where joining numpy arrays would hold everything twice
    n_documents = 0
    in_part = tokens is not None
    for file in files:
        for document in documents(file, rows, in_part=in_part):
            n_before = len(joined)
            for ids in tokenizer.encode_blocks(document.blocks, in_part=in_part, add_special_tokens=not document.is_chat):
                wanted = ids if tokens is None else ids[: tokens - len(joined)]
                _check_ids(wanted, file, tokenizer, vocab_size)
                joined.frombytes(wanted.tobytes())
                if len(joined) == tokens:
                    return np.frombuffer(joined, np.int32), n_documents + 1
            n_documents += len(joined) > n_before
    return np.frombuffer(joined, np.int32), n_documents


def _from_token_files(
    files: Sequence[Source], *, vocab_size: int, seq_len: int, tokens: int | None
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], list[int], int]:
    parts: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    lengths: list[int] = []
    n_documents = n_tokens = 0
    for file in files:
        if n_tokens == tokens:
            break
        path = file.path if file.hub is None else download_hub_file(file.hub)
        read = read_token_file(path, vocab_size=vocab_size, seq_len=seq_len, limit=None if tokens is None else tokens - n_tokens)
        parts.append(read.ids_T)
        lengths += read.lengths_N
        n_documents += read.n_documents
        n_tokens += len(read.ids_T)
    return np.concatenate(parts), lengths, n_documents


def _cut(n_tokens: int, seq_len: int) -> list[int]:
    whole, tail = divmod(n_tokens, seq_len)
    return [seq_len] * whole + [tail] * (tail > 0)


def _domain(
    name: str, token_ids: np.ndarray[Any, np.dtype[np.int32]], lengths: list[int], n_documents: int, tokenizer: TextTokenizer | None
) -> Domain:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    digest = hashlib.sha256(np.ascontiguousarray(token_ids, "<i4").data)
    digest.update(np.ascontiguousarray(offsets, "<i8").data)
    return Domain(name, token_ids, offsets, n_documents, _special(token_ids, tokenizer), digest.hexdigest())


def _special(token_ids: np.ndarray[Any, np.dtype[np.int32]], tokenizer: TextTokenizer | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    special_ids = sorted(tokenizer.special_ids) if tokenizer is not None else []
    special_T = np.empty(len(token_ids), np.bool_)
    for start in range(0, len(token_ids), _SPECIAL_BLOCK):  # the search needs many times the memory of the ids
        special_T[start : start + _SPECIAL_BLOCK] = np.isin(token_ids[start : start + _SPECIAL_BLOCK], special_ids)
    return special_T


def _check_ids(ids: np.ndarray[Any, np.dtype[np.int32]], file: Source, tokenizer: TextTokenizer, vocab_size: int) -> None:
    too_high = ids[ids >= vocab_size]
    if len(too_high):
        first = int(too_high[0])
        raise DataError(
            f"the tokenizer gives the id `{first}` (`{tokenizer.token(first)}`) for `{file.label}`, "
            f"which is not below the model's vocabulary of {vocab_size}",
            hint="tokenizer and model do not belong together: copy the model's own tokenizer files beside its `config.json`",
        )


def _listing(files: Sequence[Source]) -> str:
    names = ", ".join(f"`{file.label}`" for file in files[:3])
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more"
