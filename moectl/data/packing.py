"""Domains: every source of one name as one stream of token ids, cut into sequences.

Documents are joined, cut at `seq_len` and never padded; the tail is its own shorter sequence and nothing crosses from one
domain to the next. Does not shuffle and does not split into batches.

    domains = load_domains(["wiki=wiki.txt"], folder=Path("checkpoint"), vocab_size=50304, seq_len=1024, tokens=4096)
    first_T = domains[0].token_ids[: domains[0].offsets[1]]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moectl.data.documents import document_blocks
from moectl.data.sources import Source, parse_sources
from moectl.data.token_files import read_token_file
from moectl.data.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from moectl.errors import DataError, UsageError

# T tokens of a domain, N sequences.

MAX_DOMAINS = 256  # a routing trace stores the domain of a sequence as uint8

_PREFIX_CHARS = 1 << 16
# Text has four to five characters per token; twice that is enough for nearly all, and more is read if it is not.
_CHARS_PER_TOKEN = 8


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
    specs: Sequence[str], *, folder: Path, vocab_size: int, seq_len: int, tokens: int | None = None, text_field: str = "text"
) -> list[Domain]:
    """Read every `[NAME=]SOURCE`, at most `tokens` tokens per domain, in order of first mention.

    `folder` is the model's, for its tokenizer. With `tokens` only the part of the sources that is needed is read and
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
    domains = []
    for name, files in sources.items():
        if files[0].kind == "npy":
            token_ids, lengths, n_documents = _from_token_files(files, vocab_size=vocab_size, seq_len=seq_len, tokens=tokens)
        else:
            assert tokenizer is not None
            token_ids, n_documents = _from_text(files, tokenizer, vocab_size=vocab_size, tokens=tokens, text_field=text_field)
            lengths = _cut(len(token_ids), seq_len)
        if not len(token_ids):
            raise DataError(
                f"the domain `{name}` holds no {'token' if files[0].kind == 'npy' else 'text'}: {_listing(files)}", hint="check the source"
            )
        domains.append(_domain(name, token_ids, lengths, n_documents, tokenizer))
    return domains


def _from_text(
    files: Sequence[Source], tokenizer: TextTokenizer, *, vocab_size: int, tokens: int | None, text_field: str
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], int]:
    """The joined ids of all documents, and how many gave any. Pulls no document and no block that is not needed."""
    parts: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    n_tokens = 0
    for file in files:
        for blocks in document_blocks(file, text_field):
            ids = _encode(tokenizer, blocks, None if tokens is None else tokens - n_tokens)
            if not ids:
                continue
            _check_ids(ids, file, tokenizer, vocab_size)
            parts.append(np.asarray(ids, dtype=np.int32))
            n_tokens += len(ids)
            if n_tokens == tokens:
                return np.concatenate(parts), len(parts)
    return np.concatenate(parts) if parts else np.empty(0, np.int32), len(parts)


def _encode(tokenizer: TextTokenizer, blocks: Iterator[str], limit: int | None) -> list[int]:
    """The first `limit` ids of the document; an empty document gives none, not even BOS and EOS."""
    if limit is None:
        text = "".join(blocks)
        return tokenizer.encode_document(text) if text else []
    text, n_wanted = "", max(_PREFIX_CHARS, _CHARS_PER_TOKEN * limit)
    while True:
        text, whole = _extend(text, blocks, n_wanted)
        if whole:
            return tokenizer.encode_document(text)[:limit] if text else []
        ids = tokenizer.encode_prefix(text[:n_wanted])
        if len(ids) >= limit:
            return ids[:limit]
        n_wanted *= 2


def _extend(text: str, blocks: Iterator[str], n_wanted: int) -> tuple[str, bool]:
    """`text` grown by whole blocks to more than `n_wanted` characters, or to the end of the document (then true)."""
    parts, n_chars = [text], len(text)
    while n_chars <= n_wanted:
        block = next(blocks, None)
        if block is None:
            return "".join(parts), True
        parts.append(block)
        n_chars += len(block)
    return "".join(parts), False


def _from_token_files(
    files: Sequence[Source], *, vocab_size: int, seq_len: int, tokens: int | None
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], list[int], int]:
    parts: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    lengths: list[int] = []
    n_documents = n_tokens = 0
    for file in files:
        if n_tokens == tokens:
            break
        read = read_token_file(file.path, vocab_size=vocab_size, seq_len=seq_len, limit=None if tokens is None else tokens - n_tokens)
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
    special_ids = sorted(tokenizer.special_ids) if tokenizer is not None else []
    digest = hashlib.sha256(token_ids.astype("<i4").tobytes())
    digest.update(offsets.astype("<i8").tobytes())
    return Domain(name, token_ids, offsets, n_documents, np.isin(token_ids, special_ids), digest.hexdigest())


def _check_ids(ids: Sequence[int], file: Source, tokenizer: TextTokenizer, vocab_size: int) -> None:
    first = next((i for i in ids if i >= vocab_size), None)
    if first is not None:
        raise DataError(
            f"the tokenizer gives the id `{first}` (`{tokenizer.token(first)}`) for `{file.path}`, "
            f"which is not below the model's vocabulary of {vocab_size}",
            hint="tokenizer and model do not belong together: copy the model's own tokenizer files beside its `config.json`",
        )


def _listing(files: Sequence[Source]) -> str:
    names = ", ".join(f"`{file.path}`" for file in files[:3])
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more"
