"""Intervals of the metrics that are curved functions of the loads: balance loss, what neighbours share by the load, and domains.

    low_DL, high_DL = balance_loss_interval(tokens_XLE, score_sums_XLE, counted_XL, domain_X, n_domains, top_k)
    low_L, high_L = domain_intervals(tokens_XLE, domain_X, n_domains, top_k)["domain_information_bits"]

By `jackknife`. Rows are those of `strata`; one with fewer than three blocks is NaN.

Simulated routers of known truth (tests/routing/test_curved.py: E 8 and 64, K 1 and 4, 20 to 200 sequences a domain, tokens independent or
each sequence with a topic, scores that follow the loads or not): 93 to 99 % of runs cover the truth where loads are uneven, scores are, or
domains differ, mostly 95 to 96 %; 99 to 100 % where all is flat. There the value as measured may lie above its own interval, since it holds
the noise of the sample.
"""

# Shapes: X blocks of all domains (of one row; a of one domain), D domains (n_domains + 1 rows in a result, all of them first), L MoE
# layers, E experts, F features of a function (see `jackknife`); l layers of one chunk.

from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np
from numpy.typing import NDArray

from moectl.routing.jackknife import Curvature, deleted, jackknife, limits, second_order
from moectl.routing.limits import FloatArray, IntArray, Interval
from moectl.routing.metrics.conditional_poisson import surprise_of_disjoint
from moectl.routing.metrics.temporal import any_overlap_uniform
from moectl.routing.strata import deviations, divide, rows

_FEWEST = 3  # blocks: two miss up to one time in ten, with limits beyond all bounds
_CHUNK = 2**20  # numbers in the largest temporary array: 8 MB


def balance_loss_interval(
    tokens_XLE: IntArray,
    score_sums_XLE: NDArray[np.int64 | np.float64],
    counted_XL: IntArray,
    domain_X: IntArray,
    n_domains: int,
    top_k: int,
    *,
    unit: float = 1.0,
) -> Interval:
    """[D, L] each: interval of `metrics.losses.balance_loss`, E sum f P; the sums of scores are in `unit`."""
    L, E = tokens_XLE.shape[1:]
    low_DL, high_DL = np.full((2, n_domains + 1, L), np.nan)
    # Of df dP + dP df = ((df + dP)^2 - (df - dP)^2) / 2 every feature meets itself only.
    curvature_F = 0.5 * E * np.repeat([1.0, -1.0], E)
    for row, blocks, stratum_X in rows(domain_X, n_domains):
        for layers in _chunks(L, len(blocks), 2 * E):
            counted_Xl = counted_XL[blocks, layers]
            size_Xl1 = _parts(counted_Xl[..., None], counted_Xl.sum(0))
            f_XlE = _parts(tokens_XLE[blocks, layers], counted_Xl.sum(0) * top_k)
            p_XlE = _parts(score_sums_XLE[blocks, layers], counted_Xl.sum(0)) * unit
            value_l = E * (f_XlE.sum(0) * p_XlE.sum(0)).sum(-1)
            deleted_Xl = E * np.einsum("xle,xle->xl", deleted(f_XlE, size_Xl1, stratum_X), deleted(p_XlE, size_Xl1, stratum_X))
            estimate_l, influence_Xl = jackknife(value_l, deleted_Xl, stratum_X)
            features_XlF = deviations(np.concatenate([f_XlE + p_XlE, f_XlE - p_XlE], axis=2), size_Xl1, stratum_X)
            second = second_order(influence_Xl, features_XlF, lambda a, b: curvature_F, stratum_X)
            low_l, high_l = limits(estimate_l, influence_Xl, second, stratum_X)
            low_DL[row, layers], high_DL[row, layers] = np.clip(low_l, 0.0, E / top_k), np.clip(high_l, 0.0, E / top_k)
    return low_DL, high_DL


def any_overlap_load_aware_interval(tokens_XLE: IntArray, counted_XL: IntArray, domain_X: IntArray, n_domains: int, top_k: int) -> Interval:
    """[D, L] each: interval of `metrics.temporal.any_overlap_load_aware`, on the scale of -ln(1 - value).

    No block is deleted, since every time would take a fit of its own: the slope at the measured loads says what a block moves, to first
    order in its size, which is also what a jackknife is good to. The scale is nearly a sum of squares of the loads, so that its second
    derivative is about that of even loads; near them, where it matters, exactly. NaN where tokens have to share an expert by the measured
    loads, but not by K and E.
    """
    L, E = tokens_XLE.shape[1:]
    low_DL, high_DL = np.full((2, n_domains + 1, L), np.nan)
    value_DL, slope_DLE = _surprises(tokens_XLE, counted_XL, domain_X, n_domains, top_k)
    even, surely = any_overlap_uniform(E, top_k), 2 * top_k > E
    curvature_F = np.full(E, 0.0 if surely else _curvature_of_even(E, top_k))
    for row, blocks, stratum_X in rows(domain_X, n_domains):
        for layers in _chunks(L, len(blocks), E):
            counted_Xl = counted_XL[blocks, layers]
            size_Xl1 = _parts(counted_Xl[..., None], counted_Xl.sum(0))
            features_XlE = deviations(_parts(tokens_XLE[blocks, layers], counted_Xl.sum(0)), size_Xl1, stratum_X)
            estimate_l = value_DL[row, layers] - 0.5 * (features_XlE**2 * curvature_F).sum((0, 2))
            influence_Xl = np.einsum("xle,le->xl", features_XlE, slope_DLE[row, layers])
            second = second_order(influence_Xl, features_XlE, lambda a, b: curvature_F, stratum_X)
            limits_l = 1.0 - np.exp(-np.maximum(limits(estimate_l, influence_Xl, second, stratum_X), 0.0))
            low_DL[row, layers], high_DL[row, layers] = np.maximum(limits_l, even)
    return low_DL, high_DL


def _surprises(tokens_XLE: IntArray, counted_XL: IntArray, domain_X: IntArray, n_domains: int, top_k: int) -> tuple[FloatArray, FloatArray]:
    """[D, L] -ln(1 - any_overlap_load_aware) and [D, L, E] its slope: of all rows at once, which is much faster than one by one."""
    L, E = tokens_XLE.shape[1:]
    counts_DLE, counted_DL = np.zeros((n_domains + 1, L, E), np.int64), np.zeros((n_domains + 1, L), np.int64)
    for row, blocks, _ in rows(domain_X, n_domains):
        counts_DLE[row], counted_DL[row] = tokens_XLE[blocks].sum(0), counted_XL[blocks].sum(0)
    full_DL = (counted_DL > 0) & (counts_DLE.sum(-1) == counted_DL * top_k)
    value_DL, slope_DLE = np.full(full_DL.shape, np.nan), np.full(counts_DLE.shape, np.nan)
    if 2 * top_k > E:  # sets of over half of the experts always meet
        value_DL[full_DL], slope_DLE[full_DL] = np.inf, 0.0
    else:
        value_DL[full_DL], slope_DLE[full_DL] = surprise_of_disjoint(counts_DLE[full_DL] / counted_DL[full_DL][:, None], top_k)
    return value_DL, slope_DLE


def domain_intervals(tokens_XLE: IntArray, domain_X: IntArray, n_domains: int, top_k: int) -> dict[str, Interval]:
    """[L] each: intervals of the metrics of `metrics.domains`. NaN if a domain has fewer than two blocks."""
    L, E = tokens_XLE.shape[1:]
    most = {"domain_information_bits": np.log2(max(n_domains, 1)), "domain_jsd_bits": 1.0}
    results = {key: (np.full(L, np.nan), np.full(L, np.nan)) for key in most}
    if n_domains < 2 or np.bincount(domain_X, minlength=n_domains).min() < 2:
        return results
    for layers in _chunks(L, len(domain_X), E):
        counts_XlE = tokens_XLE[:, layers]
        features_XlE = np.concatenate([_load_deviations(counts_XlE[domain_X == domain]) for domain in range(n_domains)])
        for key, (value_l, deleted_Xl, curvature) in _divergences(counts_XlE, domain_X, n_domains).items():
            estimate_l, influence_Xl = jackknife(value_l, deleted_Xl, domain_X)
            second = second_order(influence_Xl, features_XlE, curvature, domain_X)
            for bound_L, limit_l in zip(results[key], limits(estimate_l, influence_Xl, second, domain_X), strict=True):
                bound_L[layers] = np.clip(limit_l, 0.0, min(most[key], np.log2(E / top_k)))
    return results


def _divergences(counts_XlE: IntArray, domain_X: IntArray, D: int) -> dict[str, tuple[FloatArray, FloatArray, Curvature]]:
    """Value, values without each block, curvature: of H(mean p) - mean H(p) over all domains, and of that of two, the mean of all pairs."""
    counts_DlE = np.stack([counts_XlE[domain_X == domain].sum(0) for domain in range(D)])
    p_DlE = _loads(counts_DlE)
    m_lE, entropy_Dl = p_DlE.mean(0), _entropy(p_DlE)
    pair_DDl = np.stack([_entropy((p_DlE + p_DlE[domain]) / 2.0) for domain in range(D)])
    information_l = _entropy(m_lE) - entropy_Dl.mean(0)
    n_pairs = D * (D - 1) / 2.0
    jsd_l = (pair_DDl.sum((0, 1)) - entropy_Dl.sum(0)) / 2.0 / n_pairs - entropy_Dl.mean(0)
    information_Xl, jsd_Xl = np.empty(counts_XlE.shape[:2]), np.empty(counts_XlE.shape[:2])
    for domain in range(D):
        inside_X = domain_X == domain
        p_alE = _loads(counts_DlE[domain] - counts_XlE[inside_X])
        change_al = (_entropy(p_alE) - entropy_Dl[domain]) / D
        information_Xl[inside_X] = _entropy(m_lE + (p_alE - p_DlE[domain]) / D) - entropy_Dl.mean(0) - change_al
        others = (_entropy((p_alE + p_DlE[other]) / 2.0) - pair_DDl[domain, other] for other in range(D) if other != domain)
        jsd_Xl[inside_X] = jsd_l + sum(others) / n_pairs - change_al

    def of_information(a: int, b: int) -> FloatArray:
        return np.asarray(((_inverse(p_DlE[a]) if a == b else 0.0) - _inverse(m_lE) / D) / (D * log(2.0)))

    def of_jsd(a: int, b: int) -> FloatArray:
        def mixed(other: int) -> FloatArray:
            return -_inverse(p_DlE[a] + p_DlE[other]) / 2.0

        own_lE = sum(_inverse(p_DlE[a]) / 2.0 + mixed(other) for other in range(D) if other != a)
        return np.asarray((own_lE if a == b else mixed(b)) / (n_pairs * log(2.0)))

    return {
        "domain_information_bits": (information_l, information_Xl, of_information),
        "domain_jsd_bits": (jsd_l, jsd_Xl, of_jsd),
    }


def _load_deviations(counts_alE: IntArray) -> FloatArray:
    slots_al1 = counts_alE.sum(-1, keepdims=True)
    one_stratum = np.zeros(len(counts_alE), np.int64)
    return deviations(divide(counts_alE, slots_al1.sum(0)), divide(slots_al1, slots_al1.sum(0)), one_stratum)


def _curvature_of_even(E: int, top_k: int) -> float:
    """Of -ln(1 - any_overlap_load_aware): the same for all experts, by symmetry."""
    change = 1e-3 * min(top_k / E, 1.0 - top_k / E)
    q_RE = np.full((1, E), top_k / E)
    q_RE[0, :2] += change, -change
    _, slope_RE = surprise_of_disjoint(q_RE, top_k)
    return float((slope_RE[0, 0] - slope_RE[0, 1]) / (2.0 * change))


def _parts(sums_XlE: NDArray[np.int64 | np.float64], total_l: IntArray) -> FloatArray:
    return divide(sums_XlE, total_l[:, None])


def _loads(counts_alE: IntArray) -> FloatArray:
    return divide(counts_alE, counts_alE.sum(-1, keepdims=True))


def _entropy(p_alE: FloatArray) -> FloatArray:
    """In bits."""
    return np.asarray(-np.einsum("...e,...e->...", p_alE, np.log2(np.maximum(p_alE, 1e-300))))


def _inverse(p_lE: FloatArray) -> FloatArray:
    """0 of 0: where an expert has no load there is none to move."""
    return np.divide(1.0, p_lE, out=np.zeros_like(p_lE), where=p_lE > 0)


def _chunks(L: int, n_blocks: int, numbers: int) -> Iterator[slice]:
    """Slices of layers that have so many numbers a block; none if the blocks are too few."""
    step = max(1, _CHUNK // (n_blocks * max(n_blocks, numbers)))
    return (slice(start, start + step) for start in range(0, L if n_blocks >= _FEWEST else 0, step))
