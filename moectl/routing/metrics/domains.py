"""How much the experts of a layer say about the domain of a text, and how much chance would make them say.

    domain_information_bits(counts_DE)                   # [..., D, E] token counts -> [...] bits
    domain_information_floor(counts_QE, domain_Q).mean   # the same of random domains

Definitions: p_d the load of domain d over the experts, summing to 1; m the mean of all p_d: every domain weighs the same, however many
tokens it has. Where a domain has no load, or there is only one, nothing can be compared: NaN, never 0. Experts are put into an order of
their own first, so theirs changes no bit of a result.
"""

# Shapes: D domains, P pairs of domains, E experts, Q sequences; "..." any leading axes (layers).

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def domain_information_bits(counts_DE: IntArray) -> FloatArray:
    """I(domain; expert) = sum_d KL(p_d || m) / D in bits: 0 if all domains load alike, log2 D if none shares an expert with another.

    What one pick of an expert tells about the domain it was made in; also known as the generalised Jensen-Shannon divergence of the p_d
    (Lin 1991). Where a token runs K different experts it is at most log2(E / K) as well: no p_d then puts more than 1/K on one expert.
    """
    return _information(_loads(counts_DE))


def domain_jsd_bits(counts_DE: IntArray) -> FloatArray:
    """The mean of `domain_pair_jsd_bits` over all pairs of domains: 0 to 1."""
    D = counts_DE.shape[-2]
    total = np.zeros(counts_DE.shape[:-2])
    for jsd_P in _jsd_with_later(counts_DE):
        total += jsd_P.sum(-1)
    return total / (D * (D - 1) / 2) if D > 1 else np.full(total.shape, np.nan)


def domain_pair_jsd_bits(counts_DE: IntArray) -> FloatArray:
    """[..., P] Jensen-Shannon divergence of two domains' loads in bits: 0 alike, 1 if they share no expert. P = D (D - 1) / 2, the pairs in
    the order (0, 1), (0, 2), ..., (1, 2), ..."""
    return np.concatenate([np.empty((*counts_DE.shape[:-2], 0)), *_jsd_with_later(counts_DE)], axis=-1)


@dataclass(frozen=True, slots=True)
class Floor:
    """What chance gives: the mean, and what 95 percent of the deals stay below or reach."""

    mean: float
    quantile_95: float


def domain_information_floor(counts_QE: IntArray, domain_Q: IntArray, *, permutations: int = 200, seed: int = 0) -> Floor:
    """`domain_information_bits` where the sequences are dealt to the domains at random, each domain keeping its number of them.

    `counts_QE`: tokens of each sequence that ran each expert; `domain_Q`: any integer for its domain. Sequences are dealt and not tokens,
    because tokens of one text are alike and choose alike: dealt token by token, far less would seem to be beyond chance. Sequences
    without load are not dealt. Equal seeds deal alike, whatever the counts. NaN where the information is.
    """
    _, domain_Q = np.unique(domain_Q, return_inverse=True)
    loaded_Q = counts_QE.sum(-1) > 0
    sizes_D = np.bincount(domain_Q[loaded_Q], minlength=int(domain_Q.max(initial=-1)) + 1)
    if len(sizes_D) < 2 or not sizes_D.all():
        return Floor(np.nan, np.nan)
    counts_QE = counts_QE[loaded_Q]
    starts_D = np.cumsum(sizes_D) - sizes_D
    rng = np.random.default_rng(seed)
    bits_P = np.empty(permutations)
    for i in range(permutations):
        bits_P[i] = domain_information_bits(np.add.reduceat(counts_QE[rng.permutation(len(counts_QE))], starts_D, axis=0))
    return Floor(float(bits_P.mean()), float(np.quantile(bits_P, 0.95)))


def _jsd_with_later(counts_DE: IntArray) -> Iterator[FloatArray]:
    """For each domain but the last, [..., later domains] its divergence from every one after it."""
    p_DE = _loads(counts_DE)
    for d in range(p_DE.shape[-2] - 1):
        other_PE = p_DE[..., d + 1 :, :]
        yield _information(np.stack([np.broadcast_to(p_DE[..., d : d + 1, :], other_PE.shape), other_PE], axis=-2))


def _loads(counts_DE: IntArray) -> FloatArray:
    """p_d, the experts in the order of the first domain's counts, ties by the next domain's. NaN where a domain has no load."""
    order_E = np.lexsort(np.moveaxis(counts_DE, -2, 0)[::-1], axis=-1)
    sorted_DE = np.take_along_axis(counts_DE, order_E[..., None, :], axis=-1)
    total_D1 = sorted_DE.sum(-1, keepdims=True)
    loads_DE: FloatArray = np.divide(sorted_DE, total_D1, out=np.full(sorted_DE.shape, np.nan), where=total_D1 > 0)
    return loads_DE


def _information(p_DE: FloatArray) -> FloatArray:
    if p_DE.shape[-2] < 2:
        return np.full(p_DE.shape[:-2], np.nan)
    ratio_DE = np.divide(p_DE, p_DE.mean(-2, keepdims=True), out=np.ones_like(p_DE), where=p_DE != 0)  # 0 log 0 = 0; NaN stays
    # Rounding may leave an ulp below zero; a divergence does not.
    return np.asarray(np.maximum((p_DE * np.log2(ratio_DE)).sum(-1).mean(-1), 0.0))
