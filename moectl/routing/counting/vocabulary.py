"""Counts of what the experts of each layer read: tokens by their own id, and by the id that follows them.

    tracked = track_ids(batches, "input", limit=4000)
    add_tokens(table_LME[position], tracked.rows(batch)[:, None], bins_TK, n_experts)

All token ids are known before a run, so which are counted and the memory for them are fixed at its start. Ids that a model predicts
would be one more table, fed with rows from its logits.
"""

# Shapes: B sequences of a micro-batch, S tokens of each, T = B x S, K slots, L MoE layers, E experts, M ids counted, V ids known.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch

IntArray = NDArray[np.int64]
Kind = Literal["input", "next"]
"""The token itself, or the one that follows it in its sequence; the last one of a sequence has none."""

KINDS: tuple[Kind, ...] = ("input", "next")
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
        """[T] the row of each token of a micro-batch, -1 where its id is not counted."""
        ids_BS = ids_of(self.kind, batch.ids_BS)
        rows_BS = self._row_V[np.where((ids_BS < 0) | (ids_BS >= len(self._row_V)), -1, ids_BS)]
        return rows_BS.reshape(-1).astype(np.int64)


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
    tokens_V = np.zeros(1 + max((int(batch.ids_BS.max(initial=0)) for batch in batches), default=0), np.int64)
    for batch in batches:
        ids = ids_of(kind, batch.ids_BS)[batch.counted_BS]
        tokens_V += np.bincount(ids[ids >= 0], minlength=len(tokens_V))
    order_V = np.argsort(-tokens_V, kind="stable")
    ids_M = order_V[: min(limit, int((tokens_V >= MIN_OCCURRENCES).sum()))]
    row_V = np.full(len(tokens_V) + 1, -1, np.int32)  # the last one for what has no id
    row_V[ids_M] = np.arange(len(ids_M))
    return TrackedIds(kind, ids_M, tokens_V[ids_M], row_V)


def add_tokens(table_ME: NDArray[Any], rows: IntArray, bins: IntArray, E: int) -> None:
    """Count the experts of each token, `bins` [T] or [T, K] (E where nothing counts), in its row, `rows` [T] or [T, 1] (-1: nowhere)."""
    keys = (rows * table_ME.shape[1] + bins)[(rows >= 0) & (bins < E)]
    # numpy's own `add.at` takes a hundred times as long.
    flat = torch.from_numpy(table_ME).view(-1)
    flat.scatter_add_(0, torch.from_numpy(keys), flat.new_ones(len(keys)))
