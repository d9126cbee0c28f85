"""Which experts of a layer are used together.

    strongest_pairs(counts_EE, tokens, n=10, min_count=100)      # [Pair(first=3, second=17, count=812, lift=6.4), ...]
    lift(counts_EE, tokens)[3, 17]

`counts_EE` is co-activation: N_ij tokens that ran both, diagonal N_i = tokens that ran the expert, all T = `tokens`. "Independent" means
that knowing one expert of a token says nothing of another: N_i N_j / T tokens with both. A token's K experts are different ones, so even
a router that draws them blindly stays a little below (`lift_uniform`). The diagonals of matrices of pairs are NaN.
"""

# Shapes: E experts, P pairs; "..." any leading axes (layers).

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts, `first` < `second`; `count` tokens ran both, `lift` times as many as if they were independent."""

    first: int
    second: int
    count: int
    lift: float


def strongest_pairs(counts_EE: IntArray, tokens: int, *, n: int, min_count: int) -> list[Pair]:
    """The `n` pairs with the largest lift N_ij T / (N_i N_j) among those that at least `min_count` tokens ran together.

    Ties go to the larger count, then the lower ids. `min_count` keeps two experts that met once from winning.
    """
    first_P, second_P = np.triu_indices(counts_EE.shape[0], k=1)
    enough_P = counts_EE[first_P, second_P] >= max(min_count, 1)
    first_P, second_P = first_P[enough_P], second_P[enough_P]
    count_P = counts_EE[first_P, second_P]
    n_E = np.diagonal(counts_EE).astype(np.float64)
    lift_P = count_P * float(tokens) / (n_E[first_P] * n_E[second_P])
    best = np.lexsort((second_P, first_P, -count_P, -lift_P))[:n]
    return [Pair(int(first_P[p]), int(second_P[p]), int(count_P[p]), float(lift_P[p])) for p in best]


def strongest_pair(counts_EE: IntArray, tokens: int, *, min_count: int) -> Pair | None:
    """The first of `strongest_pairs`; None if no pair has `min_count` tokens."""
    return next(iter(strongest_pairs(counts_EE, tokens, n=1, min_count=min_count)), None)


def weakest_pairs(counts_EE: IntArray, tokens: int, *, n: int, min_expected: float) -> list[Pair]:
    """The `n` pairs with the smallest lift among those that at least `min_expected` tokens would run if they were independent.

    They avoid each other. Ties, such as pairs that never meet, go to the larger expected count, then the lower ids. `min_expected` keeps
    two rare experts, of which nothing is known, from winning.
    """
    expected_EE = expected(counts_EE, tokens)
    first_P, second_P = np.nonzero(np.triu((expected_EE > 0) & (expected_EE >= min_expected), k=1))
    lift_P, expected_P = lift(counts_EE, tokens)[first_P, second_P], expected_EE[first_P, second_P]
    best = np.lexsort((second_P, first_P, -expected_P, lift_P))[:n]
    first_P, second_P, lift_P = first_P[best], second_P[best], lift_P[best]
    return [Pair(int(i), int(j), int(counts_EE[i, j]), float(x)) for i, j, x in zip(first_P, second_P, lift_P, strict=True)]


def expected(counts_EE: IntArray, tokens: int) -> FloatArray:
    """[..., E, E] N_i N_j / T: tokens that would run both if they were independent."""
    n_E = np.diagonal(counts_EE, axis1=-2, axis2=-1).astype(np.float64)
    return _pairs(n_E[..., :, None] * n_E[..., None, :], np.asarray(float(tokens)))


def lift(counts_EE: IntArray, tokens: int) -> FloatArray:
    """[..., E, E] N_ij T / (N_i N_j): 1 if independent, 0 if they never meet. NaN beside an expert that never ran."""
    n_E = np.diagonal(counts_EE, axis1=-2, axis2=-1).astype(np.float64)
    return _pairs(counts_EE * float(tokens), n_E[..., :, None] * n_E[..., None, :])


def lift_uniform(n_experts: int, top_k: int) -> float:
    """The lift of a router that draws K different experts blindly: E (K - 1) / (K (E - 1)). NaN for a single expert."""
    return n_experts * (top_k - 1) / (top_k * (n_experts - 1)) if n_experts > 1 else float("nan")


def pmi(counts_EE: IntArray, tokens: int) -> FloatArray:
    """[..., E, E] pointwise mutual information ln lift, in nats; minus infinity for experts that never meet."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(lift(counts_EE, tokens)))


def jaccard(counts_EE: IntArray) -> FloatArray:
    """[..., E, E] N_ij / (N_i + N_j - N_ij): of the tokens that ran either, the part that ran both."""
    n_E = np.diagonal(counts_EE, axis1=-2, axis2=-1)
    return _pairs(counts_EE, n_E[..., :, None] + n_E[..., None, :] - counts_EE)


def conditional(counts_EE: IntArray) -> FloatArray:
    """[..., E, E] C(i -> j) = N_ij / N_i: of the tokens that ran i, the part that ran j too (OLMoE, arXiv 2409.02060, eq. 6).

    Over all pairs of a token's experts. Rows sum to K - 1, where every token of the expert ran K experts.
    """
    return _pairs(counts_EE, np.diagonal(counts_EE, axis1=-2, axis2=-1)[..., :, None])


def _pairs(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    result: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    diagonal = np.arange(top.shape[-1])
    result[..., diagonal, diagonal] = np.nan
    return result
