"""Micro-batches: the unit of arithmetic, a block of consecutive sequences of one domain and one length.

No padding, no shuffling, no reordering: every token is in exactly one micro-batch, in order.

    batches = micro_batches(domains, batch_tokens=4096)
    first_ids_BS = batches[0].ids_BS
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moectl.data.packing import Domain
from moectl.errors import UsageError

# B sequences of a micro-batch, S tokens of each.


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """ids int64 [B, S]; `counted_BS` bool [B, S] is false where statistics leave a token out.

    `index` is the place in the list, `domain` the place of its domain, `first_sequence` counts over all domains in order.
    """

    index: int
    domain: int
    first_sequence: int
    ids_BS: np.ndarray[Any, np.dtype[np.int64]]
    counted_BS: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def n_tokens(self) -> int:
        """B * S, counted or not."""
        return self.ids_BS.size


def micro_batches(domains: Sequence[Domain], batch_tokens: int, *, skip_special: bool = False) -> list[MicroBatch]:
    """Cut the domains into micro-batches of at most `batch_tokens` tokens, but at least one sequence each.

    With `skip_special` BOS, EOS and added special tokens are run but not counted. Raises UsageError if `batch_tokens` < 1.
    """
    if batch_tokens < 1:
        raise UsageError(f"`{batch_tokens}` batch tokens are too few: at least 1", hint="check `--batch-tokens`")
    batches: list[MicroBatch] = []
    first_sequence = 0
    for domain_index, domain in enumerate(domains):
        for start, stop in _blocks(np.diff(domain.offsets), batch_tokens):
            span = slice(domain.offsets[start], domain.offsets[stop])
            ids_BS = domain.token_ids[span].reshape(stop - start, -1).astype(np.int64)
            special_BS = domain.special[span].reshape(ids_BS.shape)
            counted_BS = ~special_BS if skip_special else np.ones(ids_BS.shape, np.bool_)
            batches.append(MicroBatch(len(batches), domain_index, first_sequence + start, ids_BS, counted_BS))
        first_sequence += domain.n_sequences
    return batches


def _blocks(lengths: np.ndarray[Any, np.dtype[np.int64]], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of runs of sequences of one length that fit `batch_tokens`."""
    run_starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist()]
    for start, stop in zip(run_starts, [*run_starts[1:], len(lengths)], strict=True):
        step = max(1, batch_tokens // int(lengths[start]))
        for first in range(start, stop, step):
            yield first, min(first + step, stop)
