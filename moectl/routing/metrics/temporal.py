"""How often neighbouring tokens use the same experts, and how often they would by chance.

    first_choice_repeat(repeats, pairs) / first_choice_repeat_uniform(n_experts)

Two baselines for each: `_uniform` (every expert equally likely) and `_load_aware` (tokens independent, experts as busy as they were
measured). Only the excess over the load-aware one says that routing depends on the text's order. A baseline is NaN where its tokens ran
nothing, an observation where there is no pair.

K is always the configured number of slots. Where slots ran no expert (capacity overflow) the observations count them as shared with
nothing, and the loads q_e = n_e / T sum to less than K.
"""

# Shapes: E experts, R rows fitted together, K slots; "..." any leading axes (domains, layers).

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_FIT_STEPS = 500
_FIT_TOLERANCE = 1e-12
_ROWS_AT_ONCE = 256  # E = 512 and K = 32 take 70 MB


def first_choice_repeat(repeats: IntArray, pairs: IntArray) -> FloatArray:
    """Share of pairs whose tokens have the same first choice, the expert of the largest weight (Mixtral, arXiv 2401.04088, table 5)."""
    return _ratio(repeats, pairs)


def first_choice_repeat_uniform(n_experts: int) -> float:
    """1 / E."""
    return 1.0 / n_experts


def first_choice_repeat_load_aware(first_choice_E: IntArray, tokens: IntArray) -> FloatArray:
    """sum_e p_e^2, p_e the share of tokens with first choice e."""
    return np.asarray((_ratio(np.sort(first_choice_E, axis=-1), tokens[..., None]) ** 2).sum(-1))


def any_overlap(any_overlap_pairs: IntArray, pairs: IntArray) -> FloatArray:
    """Share of pairs whose tokens share at least one expert."""
    return _ratio(any_overlap_pairs, pairs)


def any_overlap_uniform(n_experts: int, top_k: int) -> float:
    """1 - C(E - K, K) / C(E, K)."""
    return 1.0 - comb(n_experts - top_k, top_k) / comb(n_experts, top_k)


def any_overlap_load_aware(counts_E: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """Probability that two independent tokens share an expert, if each draws K experts that are as busy as measured.

    Loads alone do not fix the law of a set of K experts; the one that assumes nothing more has the largest entropy: conditional Poisson
    sampling, P(S) = prod_{e in S} w_e / e_K(w), e_K the elementary symmetric polynomial, with odds w such that P(e in S) = q_e = n_e / T
    (Chen, Dempster and Liu 1994, Biometrika 81). Two draws are disjoint with probability [x^K y^K] prod_e (1 + w_e x + w_e y) / e_K(w)^2.
    Even loads give `any_overlap_uniform`. NaN where slots ran no expert: then no law on sets of K has these loads.
    """
    E = counts_E.shape[-1]
    full = (tokens > 0) & (counts_E.sum(-1) == tokens * top_k)
    q_RE = np.sort(counts_E[full], axis=-1) / tokens[full][:, None]
    result: FloatArray = np.full(tokens.shape, np.nan)
    values_R = np.empty(len(q_RE))
    for start in range(0, len(q_RE), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values_R[rows] = 1.0 - _disjoint(q_RE[rows].reshape(-1, E), top_k)
    result[full] = values_R
    return result


def next_token_overlap(overlap: IntArray, pairs: IntArray, top_k: int) -> FloatArray:
    """Mean of |S_t & S_t+1| / K over pairs."""
    return _ratio(overlap, pairs * top_k)


def overlap_at_lag(overlap: IntArray, pairs: IntArray, top_k: int) -> FloatArray:
    """Mean of |S_t & S_t+lag| / K over the pairs at that lag; both baselines of `next_token_overlap` are those of every lag."""
    return _ratio(overlap, pairs * top_k)


def next_token_overlap_uniform(n_experts: int, top_k: int) -> float:
    """K / E."""
    return top_k / n_experts


def next_token_overlap_load_aware(counts_E: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """sum_e q_e^2 / K with q_e = n_e / T; K / E if the loads are even."""
    return np.asarray((_ratio(np.sort(counts_E, axis=-1), tokens[..., None]) ** 2).sum(-1) / top_k)


def _disjoint(q_RE: FloatArray, K: int) -> FloatArray:
    """[R] probability that two conditional Poisson draws with inclusion probabilities q share nothing."""
    p_RE = fit_bernoulli(q_RE, K)
    R, E = p_RE.shape
    both_RKK = np.zeros((R, K + 1, K + 1))  # [r, a, b]: a experts in the first draw, b others in the second
    both_RKK[:, 0, 0] = 1.0
    for e in range(E):
        p_R11 = p_RE[:, e, None, None]
        grown_RKK = (1.0 - p_R11) ** 2 * both_RKK
        taken_RKK = p_R11 * (1.0 - p_R11) * both_RKK
        grown_RKK[:, 1:, :] += taken_RKK[:, :-1, :]
        grown_RKK[:, :, 1:] += taken_RKK[:, :, :-1]
        both_RKK = grown_RKK
    size_K = _prefixes(p_RE, K)[-1, :, K]
    return np.minimum(both_RKK[:, K, K] / size_K**2, 1.0)


def fit_bernoulli(q_RE: FloatArray, K: int) -> FloatArray:
    """p [R, E]: independent coins with these chances, given that exactly K come up heads, show coin e with chance q_e.

    p_e = w_e / (1 + w_e) of the odds w above. In coins every partial sum is a probability, so nothing overflows for E = 512, K = 32.
    Each row of q must sum to K; 0 and 1 stay what they are. With N the number of heads among all coins but e,
    q_e / (1 - q_e) = w_e P(N = K - 1) / P(N = K); solving for ln w_e with the old right side and going half way converges, since half
    of the Jacobian is a normalised graph Laplacian with eigenvalues in [0, 1]. Rows that miss q by over 1e-9 become NaN.
    """
    free_RE = (q_RE > 0.0) & (q_RE < 1.0)
    target_RE = np.log(np.where(free_RE, q_RE, 0.5)) - np.log1p(-np.where(free_RE, q_RE, 0.5))
    logit_RE = target_RE.copy()
    for _ in range(_FIT_STEPS):
        p_RE = np.where(free_RE, 1.0 / (1.0 + np.exp(-logit_RE)), q_RE)
        one_less_RE, as_many_RE = _others(p_RE, K)
        shift_RE = np.log(np.where(free_RE, one_less_RE, 1.0)) - np.log(np.where(free_RE, as_many_RE, 1.0))
        miss_RE = np.where(free_RE, 1.0 / (1.0 + np.exp(-(logit_RE + shift_RE))) - q_RE, 0.0)
        miss_R = np.abs(miss_RE).max(1, initial=0.0)
        if miss_R.max(initial=0.0) <= _FIT_TOLERANCE:
            break
        logit_RE += 0.5 * (target_RE - logit_RE - shift_RE)
    return np.where(miss_R[:, None] <= 1e-9, p_RE, np.nan)


def _others(p_RE: FloatArray, K: int) -> tuple[FloatArray, FloatArray]:
    """[R, E] each: P(K - 1 heads) and P(K heads) among all coins but e. Sums of positive terms only: no cancellation."""
    before_ERK = _prefixes(p_RE, K)[:-1]
    after_ERK = _prefixes(p_RE[:, ::-1], K)[-2::-1]
    one_less_RE = np.einsum("erk,erk->re", before_ERK[..., :K], after_ERK[..., K - 1 :: -1])
    as_many_RE = np.einsum("erk,erk->re", before_ERK, after_ERK[..., ::-1])
    return one_less_RE, as_many_RE


def _prefixes(p_RE: FloatArray, K: int) -> FloatArray:
    """[E + 1, R, K + 1]: chance of k heads among the first e coins."""
    R, E = p_RE.shape
    heads_ERK = np.zeros((E + 1, R, K + 1))
    heads_ERK[0, :, 0] = 1.0
    for e in range(E):
        p_R1 = p_RE[:, e, None]
        heads_ERK[e + 1] = (1.0 - p_R1) * heads_ERK[e]
        heads_ERK[e + 1, :, 1:] += p_R1 * heads_ERK[e, :, :-1]
    return heads_ERK


def _ratio(top: IntArray, bottom: IntArray) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
