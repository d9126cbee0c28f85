"""Token ids from `.npy` files: checked against the vocabulary, used as they are.

No pickled objects are ever loaded and nothing is added or converted but the width of the integers.

    ids, lengths = read_token_file(Path("tokens.npy"), vocab_size=50304, seq_len=1024, limit=None)
"""

from __future__ import annotations

import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moectl.errors import DataError, from_os_error

# T tokens, N sequences.


@dataclass(frozen=True, slots=True, eq=False)
class TokenFile:
    """int32 ids [T] in file order, the length of every sequence [N], and how many documents they come from."""

    ids_T: np.ndarray[Any, np.dtype[np.int32]]
    lengths_N: list[int]
    n_documents: int


def read_token_file(path: Path, *, vocab_size: int, seq_len: int, limit: int | None) -> TokenFile:
    """The first `limit` tokens. Rows of a 2-D array are sequences (and documents); a flat one is one document cut at `seq_len`.

    Only the tokens that are used are read and checked. Raises DataError for a file that is not an integer array of one or
    two dimensions, for negative ids and for ids at or above `vocab_size`; ResourceError if the system refuses to read.
    """
    array = _open(path)
    if array.dtype.kind not in "iu":
        raise DataError(
            f"`{path}` holds {array.dtype}, not integers", hint="save token ids, for example `numpy.save(OUT, ids.astype('int32'))`"
        )
    if array.ndim not in (1, 2):
        shape = "x".join(map(str, array.shape)) or "none"
        raise DataError(f"`{path}` has {array.ndim} dimensions (shape {shape})", hint="save a flat array, or `[sequences, length]`")
    width = array.shape[-1] if array.ndim == 2 else seq_len
    n_tokens = array.size if limit is None else min(limit, array.size)
    if n_tokens == 0:
        return TokenFile(np.empty(0, np.int32), [], 0)
    n_rows = -(-n_tokens // width)
    values_T = (array[:n_rows] if array.ndim == 2 else array[:n_tokens]).reshape(-1)[:n_tokens]
    _check_ids(values_T, path, vocab_size, width if array.ndim == 2 else None)
    lengths_N = [width] * n_rows
    lengths_N[-1] = n_tokens - width * (n_rows - 1)
    return TokenFile(values_T.astype(np.int32), lengths_N, n_rows if array.ndim == 2 else 1)


def _open(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    except (ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        reason = "it holds pickled objects" if "Python objects" in str(error) else str(error)
        raise DataError(f"`{path}` is not a whole `.npy` array: {reason}", hint="write it again with `numpy.save`") from error


def _check_ids(values_T: np.ndarray[Any, np.dtype[Any]], path: Path, vocab_size: int, width: int | None) -> None:
    if int(values_T.min()) >= 0 and int(values_T.max()) < vocab_size:
        return
    first = int(np.argmax((values_T < 0) | (values_T >= vocab_size)))
    place = f"position {first}" if width is None else f"row {first // width}, column {first % width}"
    value = int(values_T[first])
    why = "is negative" if value < 0 else f"is not below the model's vocabulary of {vocab_size}"
    raise DataError(
        f"the token id `{value}` in `{path}` ({place}) {why}", hint=f"ids must be 0 to {vocab_size - 1}: use this model's tokenizer"
    )
