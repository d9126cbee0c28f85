"""How evenly the experts of a layer are loaded.

    max_vio(counts_E)      # [..., E] token counts -> [...] floats

Definitions: n_e tokens of expert e, f_e = n_e / sum n its share, r_e = E f_e its relative load (1 if even). Standard deviations are
of the population. Every function takes int64 counts [..., E] and returns float64 [...]; no load at all gives NaN, never 0.
Counts are sorted first, so the order of the experts changes no bit of a result.
"""

# Shapes: E experts; "..." any leading axes (domains, layers).

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

COLD_LOAD = 0.1


def max_over_mean(counts_E: IntArray) -> FloatArray:
    """max r_e: 1 if even, E if one expert does all."""
    return _relative(counts_E)[..., -1]


def min_over_mean(counts_E: IntArray) -> FloatArray:
    """min r_e: 1 if even, 0 if an expert is dead."""
    return _relative(counts_E)[..., 0]


def max_vio(counts_E: IntArray) -> FloatArray:
    """MaxVio = max r_e - 1 over all tokens (Loss-Free Balancing, arXiv 2408.15664, MaxVio_global)."""
    return _relative(counts_E)[..., -1] - 1.0


def max_vio_noise_floor(counts_E: IntArray, top_k: int) -> FloatArray:
    """MaxVio that a perfectly even router shows by chance: sqrt(2 ln E (1 - K/E) / mean load).

    The largest of E roughly normal deviations of a binomial count. NaN if K = E: nothing is left to chance.
    """
    E = counts_E.shape[-1]
    if top_k >= E:
        return np.full(counts_E.shape[:-1], np.nan)
    mean = np.asarray(counts_E.sum(-1) / E)
    return np.asarray(np.sqrt(_divide(np.asarray(2.0 * np.log(E) * (1.0 - top_k / E)), mean)))


def cv(counts_E: IntArray) -> FloatArray:
    """Coefficient of variation: std(n) / mean(n)."""
    return np.asarray(np.std(_relative(counts_E), axis=-1))


def gini(counts_E: IntArray) -> FloatArray:
    """Gini coefficient: sum_i (2i - E - 1) n_(i) / (E sum n) over ascending n_(i), i from 1. 0 if even, 1 - 1/E if one does all."""
    E = counts_E.shape[-1]
    rank_E = 2.0 * np.arange(1, E + 1) - E - 1
    return np.asarray((rank_E * _relative(counts_E)).sum(-1) / E**2)


def entropy(counts_E: IntArray) -> FloatArray:
    """H(f) = -sum f ln f in nats."""
    shares_E = _shares(counts_E)
    return np.asarray(-(shares_E * np.log(np.where(shares_E > 0, shares_E, 1.0))).sum(-1)) + 0.0  # + 0.0: no -0.0


def entropy_normalized(counts_E: IntArray) -> FloatArray:
    """H(f) / ln E, 1 if even. NaN for a single expert."""
    E = counts_E.shape[-1]
    return entropy(counts_E) / np.log(E) if E > 1 else np.full(counts_E.shape[:-1], np.nan)


def effective_experts(counts_E: IntArray) -> FloatArray:
    """exp H(f): how many evenly loaded experts have the same entropy."""
    return np.asarray(np.exp(entropy(counts_E)))


def kl_uniform(counts_E: IntArray) -> FloatArray:
    """KL(f || uniform) = ln E - H(f) in nats."""
    # The difference of two rounded logarithms may fall an ulp below zero; a divergence does not.
    return np.asarray(np.maximum(np.log(counts_E.shape[-1]) - entropy(counts_E), 0.0))


def tv_uniform(counts_E: IntArray) -> FloatArray:
    """Total variation from uniform: sum |f_e - 1/E| / 2, the share of slots that would have to move."""
    return np.asarray(0.5 * np.abs(_shares(counts_E) - 1.0 / counts_E.shape[-1]).sum(-1))


def chi2(counts_E: IntArray) -> FloatArray:
    """Pearson's chi-square against even load, E - 1 degrees of freedom: sum (n_e - mean)^2 / mean."""
    mean = counts_E.sum(-1) / counts_E.shape[-1]
    return np.asarray(mean * ((_relative(counts_E) - 1.0) ** 2).sum(-1))


def dead_experts(counts_E: IntArray) -> FloatArray:
    """Experts that no token ran."""
    return _count(counts_E, _relative(counts_E) == 0)


def cold_experts(counts_E: IntArray) -> FloatArray:
    """Experts with a relative load below 0.1, the dead ones included."""
    return _count(counts_E, _relative(counts_E) < COLD_LOAD)


def top_share(counts_E: IntArray, n: int) -> FloatArray:
    """Share of the load on the `n` busiest experts: n / E if even. What a cache of n experts per layer would serve."""
    return np.asarray(_shares(counts_E)[..., max(0, counts_E.shape[-1] - n) :].sum(-1))


def top_quarter_share(counts_E: IntArray) -> FloatArray:
    """Share of the load on the busiest quarter of the experts, ceil(E / 4) of them: a quarter if even and E is a multiple of 4."""
    return top_share(counts_E, quarter(counts_E.shape[-1]))


def quarter(n_experts: int) -> int:
    """A quarter of the experts, rounded up."""
    return -(-n_experts // 4)


def _count(counts_E: IntArray, is_E: NDArray[np.bool_]) -> FloatArray:
    return np.where(counts_E.sum(-1) > 0, is_E.sum(-1).astype(np.float64), np.nan)


def _shares(counts_E: IntArray) -> FloatArray:
    """f_e ascending."""
    return _divide(np.sort(counts_E, axis=-1), counts_E.sum(-1, keepdims=True))


def _relative(counts_E: IntArray) -> FloatArray:
    """r_e ascending; one rounding only, so an even load is exactly 1."""
    return _divide(np.sort(counts_E, axis=-1) * counts_E.shape[-1], counts_E.sum(-1, keepdims=True))


def _divide(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
