"""N-gram baselines over token ids: what a language model's loss has to beat.

    model = train_trigram(train_sequences, vocab_size)
    loss(model, held_out_sequences)  # nats a token, to set beside a causal LM's loss on the same sequences

Both models predict the positions 1..S-1 of every sequence, as a causal LM does, from the tokens that the sequence offers: nothing is
padded, so position 1 has one token of context and the trigram model answers it with its bigram distribution. Only those positions are
trained on, so the first token of a sequence (often BOS) is context and never a target.

Tables are sorted int64 keys (`(u * V + v) * V + w` for the trigram u v w), looked up by binary search.

Shape letters: S tokens of a sequence, P predicted positions, N rows of a table, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class NgramModel(Protocol):
    """What `loss` needs of a model."""

    def log_probs(self, sequence: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Table:
    """Counts by key; keys ascend and are unique, and an absent key counts 0."""

    keys_N: np.ndarray
    counts_N: np.ndarray

    def __getitem__(self, keys_P: np.ndarray) -> np.ndarray:
        """Counts of `keys_P`, as int64 `[P]`."""
        if not self.keys_N.size:
            return np.zeros(keys_P.shape, np.int64)
        rows_P = np.minimum(np.searchsorted(self.keys_N, keys_P), self.keys_N.size - 1)
        return np.where(self.keys_N[rows_P] == keys_P, self.counts_N[rows_P], 0)


@dataclass(frozen=True)
class Order:
    """One order of a Kneser-Ney model: counts of n-grams, and of their contexts the total and the number of distinct next tokens."""

    ngrams: Table
    context_totals: Table
    context_types: Table

    def interpolate(self, ngrams_P: np.ndarray, contexts_P: np.ndarray, discount: float, lower_P: np.ndarray) -> np.ndarray:
        """P(w|context) = (max(c - D, 0) + D * types * P_lower(w)) / total, and P_lower(w) after a context never seen. `[P]`."""
        totals_P = self.context_totals[contexts_P]
        kept_P = np.maximum(self.ngrams[ngrams_P] - discount, 0.0)
        spread_P = discount * self.context_types[contexts_P]
        return np.where(totals_P > 0, (kept_P + spread_P * lower_P) / np.maximum(totals_P, 1), lower_P)


@dataclass(frozen=True)
class Unigram:
    """P(w) = (c(w) + 1) / (N + V): add-one, so that every token has a probability."""

    log_probs_V: np.ndarray

    def log_probs(self, sequence: np.ndarray) -> np.ndarray:
        """Natural log of the probability of tokens 1..S-1 of `sequence` `[S]`: float64 `[S - 1]`, empty if S < 2."""
        return self.log_probs_V[_checked(sequence, self.log_probs_V.size)[1:]]


@dataclass(frozen=True)
class Trigram:
    """Interpolated Kneser-Ney with one fixed discount; see `train_trigram`."""

    vocab_size: int
    discount: float
    unigram_V: np.ndarray
    bigrams: Order
    trigrams: Order

    def log_probs(self, sequence: np.ndarray) -> np.ndarray:
        """Natural log of the probability of tokens 1..S-1 of `sequence` `[S]`: float64 `[S - 1]`, empty if S < 2."""
        ids_S = _checked(sequence, self.vocab_size)
        pairs_P = _pairs(ids_S, self.vocab_size)
        probs_P = self.bigrams.interpolate(pairs_P, ids_S[:-1], self.discount, self.unigram_V[ids_S[1:]])
        triples_P = _triples(ids_S, self.vocab_size)
        probs_P[1:] = self.trigrams.interpolate(triples_P, pairs_P[:-1], self.discount, probs_P[1:])
        return np.log(probs_P)


def train_unigram(sequences: Sequence[np.ndarray], vocab_size: int) -> Unigram:
    """Add-one unigram model of the predicted tokens of `sequences` (integer ids `[S]` each). Raises ValueError for an id outside V."""
    counts_V = np.bincount(_join(_checked(sequence, vocab_size)[1:] for sequence in sequences), minlength=vocab_size)
    return Unigram(np.log((counts_V + 1) / (counts_V.sum() + vocab_size)))


def train_trigram(sequences: Sequence[np.ndarray], vocab_size: int, discount: float = 0.75) -> Trigram:
    """Interpolated Kneser-Ney trigram model of `sequences` (integer ids `[S]` each), `0 < discount < 1` at every order.

    Trigrams use their counts. A bigram v w counts the distinct tokens seen before it, N1+(. v w), and a unigram w likewise, N1+(. w);
    the unigram is interpolated with the uniform 1/V. A context never seen hands over to the next lower order.
    Kneser & Ney 1995, "Improved backing-off for m-gram language modeling"; the interpolated form and fixed discount are those of
    Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling" (TR-10-98). Raises ValueError for a discount
    outside (0, 1), an id outside V, or a V whose cube is beyond int64.
    """
    if not 0 < discount < 1:
        raise ValueError(f"discount is {discount}, must lie between 0 and 1")
    if vocab_size**3 >= 2**63:
        raise ValueError(f"vocab_size is {vocab_size}: three ids do not fit into 63 bits")
    checked = [_checked(sequence, vocab_size) for sequence in sequences]
    trigrams = Table(*np.unique(_join(_triples(ids_S, vocab_size) for ids_S in checked), return_counts=True))
    # Each distinct trigram u v w is one distinct u before v w; each distinct bigram v w one distinct v before w.
    bigrams = Table(*np.unique(trigrams.keys_N % vocab_size**2, return_counts=True))
    pair_keys = np.unique(_join(_pairs(ids_S, vocab_size) for ids_S in checked))
    counts_V = np.bincount(pair_keys % vocab_size, minlength=vocab_size)
    spread = discount * np.count_nonzero(counts_V)
    unigram_V = np.full(vocab_size, 1 / vocab_size)
    if pair_keys.size:
        unigram_V = (np.maximum(counts_V - discount, 0.0) + spread / vocab_size) / pair_keys.size
    return Trigram(vocab_size, discount, unigram_V, _order(bigrams, vocab_size), _order(trigrams, vocab_size))


def loss(model: NgramModel, sequences: Iterable[np.ndarray]) -> float:
    """Mean negative log-probability in nats a token over all predicted positions of `sequences`. Raises ValueError if there is none."""
    total, positions = 0.0, 0
    for sequence in sequences:
        log_probs_P = model.log_probs(sequence)
        total -= float(log_probs_P.sum())
        positions += log_probs_P.size
    if not positions:
        raise ValueError("no sequence has two tokens, so there is nothing to predict")
    return total / positions


def _order(ngrams: Table, vocab_size: int) -> Order:
    # Sorted keys keep the n-grams of a context together: a context begins where the key without its last token changes.
    contexts_N = ngrams.keys_N // vocab_size
    keys, starts, types = np.unique(contexts_N, return_index=True, return_counts=True)
    totals = np.add.reduceat(ngrams.counts_N, starts) if starts.size else starts
    return Order(ngrams, Table(keys, totals), Table(keys, types))


def _pairs(ids_S: np.ndarray, vocab_size: int) -> np.ndarray:
    return ids_S[:-1] * vocab_size + ids_S[1:]


def _triples(ids_S: np.ndarray, vocab_size: int) -> np.ndarray:
    return (ids_S[:-2] * vocab_size + ids_S[1:-1]) * vocab_size + ids_S[2:]


def _join(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _checked(sequence: np.ndarray, vocab_size: int) -> np.ndarray:
    """`sequence` as int64, so that packed keys cannot overflow. Raises ValueError for anything but ids in [0, vocab_size)."""
    ids_S = np.asarray(sequence)
    if ids_S.ndim != 1 or (ids_S.size and not np.issubdtype(ids_S.dtype, np.integer)):
        raise ValueError(f"a sequence is a flat array of integer ids, not {ids_S.dtype} of shape {ids_S.shape}")
    if ids_S.size and not (ids_S.min() >= 0 and ids_S.max() < vocab_size):
        raise ValueError(f"token ids run from {ids_S.min()} to {ids_S.max()}, outside a vocabulary of {vocab_size}")
    return ids_S.astype(np.int64)
