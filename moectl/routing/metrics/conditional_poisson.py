"""Sets of K experts that have given loads and are otherwise as random as can be.

    disjoint(q_RE, top_k)      # [R] the chance that two such sets share no expert

The law of largest entropy is conditional Poisson sampling, P(S) = prod_{e in S} w_e / e_K(w), e_K the elementary symmetric polynomial, with
odds w such that P(e in S) = q_e (Chen, Dempster and Liu 1994, Biometrika 81). Two draws are disjoint with probability
[x^K y^K] prod_e (1 + w_e x + w_e y) / e_K(w)^2.
"""

# Shapes: R rows fitted together, E experts, K experts of a set.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_FIT_STEPS = 500
_FIT_TOLERANCE = 1e-12
_SLOPE_STEPS = 20  # of conjugate gradients; 6 are enough as a rule
_SLOPE_TOLERANCE = 1e-6
_SLOPE_CHANGE = 1e-4  # of a log odds
_ROWS_AT_ONCE = 256  # E = 512 and K = 32 take 70 MB
_PRODUCT_NUMBERS = 2**20  # those of a product kept in every step


def disjoint(q_RE: FloatArray, top_k: int) -> FloatArray:
    """[R] the chance that two draws with loads q, which sum to K, share nothing. NaN where no law is found."""
    value_R = np.empty(len(q_RE))
    for start in range(0, len(q_RE), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        value_R[rows] = _disjoint_rows(q_RE[rows], top_k)
    return value_R


def surprise_of_disjoint(q_RE: FloatArray, top_k: int) -> tuple[FloatArray, FloatArray]:
    """G = -ln `disjoint`, [R], and its slope dG/dq, [R, E] up to a constant per row.

    In log odds the slope is 2 q_e - P(e in either draw | disjoint). Loads depend on log odds by the covariance C of the indicators "e is
    drawn", so the slope in loads is the x of C x = that. Experts that run always or never have a slope of 0. NaN where the draws cannot be
    disjoint.
    """
    value_R, slope_RE = np.empty(len(q_RE)), np.empty(q_RE.shape)
    for start in range(0, len(q_RE), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        value_R[rows], slope_RE[rows] = _surprise_rows(q_RE[rows], top_k)
    return value_R, slope_RE


def _surprise_rows(q_RE: FloatArray, K: int) -> tuple[FloatArray, FloatArray]:
    """C x = b by conjugate gradients, with products C v as differences of loads: good to 1e-5 of the largest x."""
    p_RE = fit_bernoulli(q_RE, K)
    free_RE = (q_RE > 0.0) & (q_RE < 1.0)
    value_R, either_RE = np.empty(len(p_RE)), np.empty(p_RE.shape)
    at_once = max(1, _PRODUCT_NUMBERS // (p_RE.shape[1] * (K + 1) ** 2))
    for start in range(0, len(p_RE), at_once):
        rows = slice(start, start + at_once)
        value_R[rows], either_RE[rows] = _either(p_RE[rows], K)
    right_RE = np.where(free_RE, 2.0 * q_RE - either_RE, 0.0)
    scale_RE = np.where(free_RE, q_RE * (1.0 - q_RE), 0.0)  # C's diagonal
    # What is left of rounding along the direction in which odds change no load.
    right_RE -= scale_RE * np.nan_to_num(_ratio(right_RE.sum(1), scale_RE.sum(1)))[:, None]
    logit_RE = np.log(np.where(free_RE, p_RE, 0.5)) - np.log1p(-np.where(free_RE, p_RE, 0.5))

    def product(v_RE: FloatArray) -> FloatArray:
        h_R1 = _SLOPE_CHANGE / np.maximum(np.abs(v_RE).max(1, keepdims=True), 1e-100)
        more_RE, less_RE = (_loads_of(logit_RE + sign * h_R1 * v_RE, q_RE, free_RE, K) for sign in (1.0, -1.0))
        return np.asarray((more_RE - less_RE) / (2.0 * h_R1))

    slope_RE, rest_RE = np.zeros_like(q_RE), right_RE
    inverse_RE = np.divide(1.0, scale_RE, out=np.zeros_like(scale_RE), where=free_RE)
    step_RE, size_R = inverse_RE * rest_RE, (inverse_RE * rest_RE**2).sum(1)
    enough_R = size_R * _SLOPE_TOLERANCE**2
    for _ in range(_SLOPE_STEPS):
        going_R = size_R > enough_R
        if not going_R.any():
            break
        moved_RE = product(step_RE)
        length_R1 = np.where(going_R, np.nan_to_num(_ratio(size_R, (step_RE * moved_RE).sum(1))), 0.0)[:, None]
        slope_RE, rest_RE = slope_RE + length_R1 * step_RE, rest_RE - length_R1 * moved_RE
        next_R = (inverse_RE * rest_RE**2).sum(1)
        step_RE, size_R = inverse_RE * rest_RE + np.nan_to_num(_ratio(next_R, size_R))[:, None] * step_RE, next_R
    return value_R, np.where(np.isnan(value_R)[:, None], np.nan, slope_RE)


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


def _disjoint_rows(q_RE: FloatArray, K: int) -> FloatArray:
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


def _either(p_RE: FloatArray, K: int) -> tuple[FloatArray, FloatArray]:
    """[R] -ln of the chance that two draws are disjoint, [R, E] the chance that one of them has e if they are."""
    R, E = p_RE.shape
    before_ERKK = np.zeros((E + 1, R, K + 1, K + 1))  # as in `_disjoint_rows`, of the first e experts
    before_ERKK[0, :, 0, 0] = 1.0
    for e in range(E):
        p_R11 = p_RE[:, e, None, None]
        before_ERKK[e + 1] = (1.0 - p_R11) ** 2 * before_ERKK[e]
        taken_RKK = p_R11 * (1.0 - p_R11) * before_ERKK[e]
        before_ERKK[e + 1, :, 1:, :] += taken_RKK[:, :-1, :]
        before_ERKK[e + 1, :, :, 1:] += taken_RKK[:, :, :-1]
    after_RKK = np.zeros((R, K + 1, K + 1))  # the chance to get from [a, b] to [K, K] with the last experts
    after_RKK[:, K, K] = 1.0
    either_RE = np.empty((R, E))
    for e in reversed(range(E)):
        p_R11 = p_RE[:, e, None, None]
        taken_RKK = np.zeros_like(after_RKK)
        taken_RKK[:, :-1, :] += after_RKK[:, 1:, :]
        taken_RKK[:, :, :-1] += after_RKK[:, :, 1:]
        taken_RKK *= p_R11 * (1.0 - p_R11)
        either_RE[:, e] = np.einsum("rab,rab->r", before_ERKK[e], taken_RKK)
        after_RKK = (1.0 - p_R11) ** 2 * after_RKK + taken_RKK
    both_R = after_RKK[:, 0, 0]
    disjoint_R = np.minimum(_ratio(both_R, _prefixes(p_RE, K)[-1, :, K] ** 2), 1.0)
    value_R = -np.log(np.where(disjoint_R > 0, disjoint_R, np.nan))
    return value_R, _ratio(either_RE, both_R[:, None])


def _loads_of(logit_RE: FloatArray, q_RE: FloatArray, free_RE: NDArray[np.bool_], K: int) -> FloatArray:
    """q of the coins with these log odds; 0 and 1 stay what they are."""
    p_RE = np.where(free_RE, 1.0 / (1.0 + np.exp(-logit_RE)), q_RE)
    one_less_RE, as_many_RE = _others(p_RE, K)
    with_RE = p_RE * one_less_RE
    return np.where(free_RE, _ratio(with_RE, with_RE + (1.0 - p_RE) * as_many_RE), q_RE)


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


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
