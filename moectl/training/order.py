"""Which sequence comes next: every domain shuffled anew each epoch, domains mixed in fixed proportions. The state is one count per domain.

    order = DataOrder(domains, seq_len=512, seed=0, weights={"code": 2, "prose": 1})
    ids_BS = order.take(8)

Shapes: B sequences, S tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moectl.data.packing import Domain
from moectl.errors import DataError, ModelError, UsageError

# D domains.


class DataOrder:
    """An endless stream of whole sequences of `seq_len` tokens; shorter tails are left out.

    `weights`: how many sequences of each domain, relative to the others; by default all sequences are seen equally often. Raises
    DataError for no domain at all or one without a whole sequence, UsageError for weights that name no domain or are not positive.
    """

    def __init__(self, domains: Sequence[Domain], *, seq_len: int, seed: int, weights: Mapping[str, float] | None = None) -> None:
        if not domains:
            raise DataError("there is no domain to train on", hint="give at least one source of text")
        self._domains = domains
        self._seed = seed
        self._sequences = [np.flatnonzero(np.diff(domain.offsets) == seq_len) for domain in domains]
        for domain, sequences in zip(domains, self._sequences, strict=True):
            if not len(sequences):
                raise DataError(
                    f"the domain `{domain.name}` has {domain.n_tokens:,} tokens, not one sequence of {seq_len:,}",
                    hint="give it more text, or shorter sequences",
                )
        share_D = np.array(_weights(domains, weights) or [len(sequences) for sequences in self._sequences], np.float64)
        self._share_D = share_D / share_D.sum()
        self._seq_len = seq_len
        self.taken = [0] * len(domains)
        self._shuffled: list[tuple[int, np.ndarray[Any, np.dtype[np.int64]]] | None] = [None] * len(domains)

    @property
    def sha256(self) -> str:
        """Of the data and its mixture: equal streams have equal hashes."""
        parts = [f"{domain.name} {domain.sha256} {share!r}" for domain, share in zip(self._domains, self._share_D.tolist(), strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain has been seen."""
        return {d.name: n / len(s) for d, n, s in zip(self._domains, self.taken, self._sequences, strict=True)}

    def take(self, n_sequences: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The next sequences, int64 `[B, S]`."""
        return np.stack([self._next() for _ in range(n_sequences)])

    def restore(self, taken: Sequence[int]) -> None:
        """Continue where a stream with these counts stopped. Raises ModelError if they cannot be counts of these domains."""
        if len(taken) != len(self._domains) or min(taken) < 0:
            raise ModelError(
                f"a data position of {list(taken)} does not fit {len(self._domains)} domains", hint="resume from an older checkpoint"
            )
        self.taken = list(taken)

    def _next(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        # The domain furthest behind its share is next: proportions hold in every stretch, without drawing lots.
        behind_D = self._share_D * (sum(self.taken) + 1) - self.taken
        d = int(behind_D.argmax())
        epoch, position = divmod(self.taken[d], len(self._sequences[d]))
        self.taken[d] += 1
        kept = self._shuffled[d]
        if kept is None or kept[0] != epoch:
            kept = (epoch, np.random.default_rng([self._seed, d, epoch]).permutation(self._sequences[d]))
            self._shuffled[d] = kept
        domain, start = self._domains[d], int(self._domains[d].offsets[kept[1][position]])
        return domain.token_ids[start : start + self._seq_len].astype(np.int64)


def _weights(domains: Sequence[Domain], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return []
    names = [domain.name for domain in domains]
    if sorted(weights) != sorted(names):
        raise UsageError(f"the weights name {sorted(weights)}, the domains are {sorted(names)}", hint="give every domain one weight")
    if not all(0 < weight < float("inf") for weight in weights.values()):
        raise UsageError(f"domain weights must be above 0: {dict(weights)}")
    return [float(weights[name]) for name in names]
