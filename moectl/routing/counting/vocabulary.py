"""Counts of what the experts of each layer read: tokens by their own id, and by the id that follows them.

    tracked = track_ids(batches, "input", limit=4000)
    add_tokens(table_LME[position], tracked.rows(batch)[:, None], bins_TK, n_experts)

All token ids are known before a run, so which are counted and the memory for them are fixed at its start. Ids that a model predicts
are known after it: see `predicted.py`.
"""

# Shapes: B sequences of a micro-batch, S tokens of each, T = B x S, K slots, L MoE layers, E experts, M ids counted, V ids known.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch

IntArray = NDArray[np.int64]
Kind = Literal["input", "next", "predicted"]
"""The token itself, the one that follows it in its sequence (the last one of a sequence has none), or the one that the model predicts."""

KINDS: tuple[Kind, ...] = ("input", "next")
"""Those that are known before a run."""
MIN_OCCURRENCES = 10
TABLE_BYTES = 96_000_000
"""Memory of all tables together."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedIds:
    """The ids that are counted, the most frequent first: `ids_M`, and of how many counted tokens (`tokens_M`)."""

    kind: Kind
    ids_M: IntArray
    tokens_M: IntArray
    _row_V: NDArray[np.int32]

    def rows(self, batch: MicroBatch) -> IntArray:
        """[T] the row of each token of a micro-batch, -1 where its id is not counted; for the kinds in KINDS."""
        return self.rows_of(ids_of(self.kind, batch.ids_BS).reshape(-1))

    def rows_of(self, ids_T: NDArray[Any]) -> IntArray:
        """[T] the row of each id, -1 where it is not counted."""
        rows_T = self._row_V[np.where((ids_T < 0) | (ids_T >= len(self._row_V)), -1, ids_T)]
        return rows_T.astype(np.int64)


def ids_of(kind: Kind, ids_BS: IntArray) -> IntArray:
    """[B, S] the id of each token that `kind` asks for, -1 where there is none."""
    if kind == "input":
        return ids_BS
    return np.concatenate([ids_BS[:, 1:], np.full_like(ids_BS[:, :1], -1)], axis=1)


def most_ids(n_layers: int, n_experts: int, n_tokens: int, *, n_tables: int) -> int:
    """How many ids `n_tables` tables of 4 bytes a count have room for in TABLE_BYTES, and `n_tokens` tokens can fill."""
    return min(TABLE_BYTES // (4 * n_tables * n_layers * n_experts), n_tokens // MIN_OCCURRENCES)


def track_ids(batches: Sequence[MicroBatch], kind: Kind, *, limit: int) -> TrackedIds:
    """The at most `limit` most frequent ids that at least MIN_OCCURRENCES counted tokens have; ties go to the lowest id."""
    n_ids = 1 + max((int(batch.ids_BS.max(initial=0)) for batch in batches), default=0)
    return track(kind, (ids_of(kind, batch.ids_BS)[batch.counted_BS] for batch in batches), n_ids=n_ids, limit=limit)


def track(kind: Kind, counted: Iterable[NDArray[Any]], *, n_ids: int, limit: int) -> TrackedIds:
    """The same of any ids below `n_ids` of the counted tokens, -1 for none."""
    tokens_V = np.zeros(n_ids, np.int64)
    for ids in counted:
        tokens_V += np.bincount(ids[ids >= 0], minlength=len(tokens_V))
    order_V = np.argsort(-tokens_V, kind="stable")
    ids_M = order_V[: min(limit, int((tokens_V >= MIN_OCCURRENCES).sum()))]
    row_V = np.full(len(tokens_V) + 1, -1, np.int32)  # the last one for what has no id
    row_V[ids_M] = np.arange(len(ids_M))
    return TrackedIds(kind, ids_M, tokens_V[ids_M], row_V)


def home_domains(tracked: TrackedIds, batches: Sequence[MicroBatch], n_domains: int) -> IntArray:
    """[M] the domain that more than half of the counted tokens of each id lie in, -1 where none has as many; for the kinds in KINDS."""
    home_M = np.full(len(tracked.ids_M), -1, np.int64)
    for domain in range(n_domains):
        tokens_M = np.zeros_like(tracked.tokens_M)
        for batch in (batch for batch in batches if batch.domain == domain):
            rows = tracked.rows(batch)[batch.counted_BS.reshape(-1)]
            tokens_M += np.bincount(rows[rows >= 0], minlength=len(tokens_M))
        home_M[2 * tokens_M > tracked.tokens_M] = domain
    return home_M


def add_tokens(table_ME: NDArray[Any], rows: IntArray, bins: IntArray, E: int) -> None:
    """Count the experts of each token, `bins` [T] or [T, K] (E where nothing counts), in its row, `rows` [T] or [T, 1] (-1: nowhere)."""
    keys = (rows * table_ME.shape[1] + bins)[(rows >= 0) & (bins < E)]
    # numpy's own `add.at` takes a hundred times as long.
    flat = torch.from_numpy(table_ME).view(-1)
    flat.scatter_add_(0, torch.from_numpy(keys), flat.new_ones(len(keys)))
