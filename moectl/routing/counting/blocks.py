"""Blocks: the sequences of each domain dealt to at most 64 parts. Counts are kept per block, so that blocks can be drawn again.

blocks = Blocks(n_domains=2, batches=batches)
blocks.add(counted_XL[:, position], batch, counted_B)      # sequence i of a domain goes to its block i mod 64
blocks.by_domain(counted_XL)                               # [D, L]
"""

# Shapes: D domains, X blocks (those of all domains, in order of domain), N micro-batches, B sequences of one; "..." any more axes.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch

IntArray = NDArray[np.int64]

MAX_BLOCKS = 64


class Blocks:
    """Which block each sequence is in. `domain_X` is the domain of each block; a domain of fewer sequences has a block for each."""

    def __init__(self, n_domains: int, batches: Sequence[MicroBatch]) -> None:
        sequences_D = np.zeros(n_domains, np.int64)
        # Sequences are numbered within their domain, however its micro-batches lie among the others.
        self._start_N: list[int] = []
        for batch in batches:
            self._start_N.append(int(sequences_D[batch.domain]))
            sequences_D[batch.domain] += batch.ids_BS.shape[0]
        self._size_D = np.minimum(sequences_D, MAX_BLOCKS)
        self._first_D = np.cumsum(self._size_D) - self._size_D
        self.domain_X: IntArray = np.repeat(np.arange(n_domains), self._size_D)

    def of(self, batch: MicroBatch) -> IntArray:
        """[B] the block of each sequence of a micro-batch."""
        numbers_B = self._start_N[batch.index] + np.arange(batch.ids_BS.shape[0])
        blocks_B: IntArray = self._first_D[batch.domain] + numbers_B % self._size_D[batch.domain]
        return blocks_B

    def add(self, total_X: NDArray[Any], batch: MicroBatch, values_B: NDArray[Any]) -> None:
        """Add `values_B` [B, ...], one for each sequence of `batch`, to their blocks of `total_X` [X, ...] in place."""
        blocks_B, size = self.of(batch), int(self._size_D[batch.domain])
        for start in range(0, len(blocks_B), size):  # so many sequences in a row are in different blocks
            rows = slice(start, start + size)
            total_X[blocks_B[rows]] += values_B[rows]

    def by_domain(self, total_X: NDArray[Any]) -> NDArray[Any]:
        """[D, ...] the sums over the blocks of each domain; integers as int64."""
        dtype = np.int64 if total_X.dtype.kind == "i" else total_X.dtype
        stops_D = self._first_D + self._size_D
        return np.stack([total_X[start:stop].sum(0, dtype=dtype) for start, stop in zip(self._first_D, stops_D, strict=True)])
