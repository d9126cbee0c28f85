"""95 % confidence intervals of routing statistics: what the router would show on endless text of the same kind.

    weights_RX = resample_weights(len(domain_X))
    low_DL, high_DL = load_intervals(counts_XLE, domain_X, n_domains, top_k, weights_RX)["max_vio"]
    low_DL, high_DL = ratio_interval(overlap_XL, pairs_XL * top_k, domain_X, n_domains, proportion=True)

Tokens of one sequence go together, so the unit is the sequence, or a block of them where there are many: `domain_X` is the domain of each
block, the data are sums per block. Domains are strata, and how much text each has is given. Row 0 is all domains; a row with fewer than
two blocks, or no load, is NaN. In row 0 the domains of a single block make one stratum (join the largest domain if there is but one):
rather too wide than too narrow.

A percentile bootstrap fails here, since sampling noise makes any load look less even than it is. Four ways, each for what it is good at:
- A share is a proportion: Wilson's interval, with as many tokens as would scatter independently like the blocks did. That number is drawn
  towards all experts' in common, so it ends above zero for an expert that was never seen.
- max, min, cold: from these intervals, only over the experts that can be the largest (smallest), each at 2.5 % over their number.
- cv and Kullback-Leibler (with chi2 and the entropies, its functions): bootstrap tests of loads r = 1 + t (r_measured - 1). The interval
  holds the values of those t under which the measured value is not among the 2.5 % largest or smallest; 0 if even loads explain it.
  NaN with fewer than five blocks.
- Gini, total variation and the share of the busiest quarter have kinks wherever loads tie, where no resampling is right. All are a linear
  function of the loads under their own order (sign): the upper limit takes order and loads from the same blocks, which errs upwards, the
  lower one takes the order from other blocks than the loads, which errs downwards.

Simulated routers of known loads (tests/routing/test_intervals.py: E 8 and 64, K 1 and 4, 20 to 200 sequences, tokens independent or each
sequence with a topic of its own): shares are covered in 94 to 97 % of runs, cv and Kullback-Leibler in 92 to 97 %, max in 93 to 100 %, min,
Gini, total variation and the busiest quarter in 93 to 100 %; all of a perfectly even router in 94 to 100 %, where an interval can miss on
one side only. Wider than needed are the last four, and max if several experts come close to it. Too narrow is everything that hangs on
sequences rarer than one in the sample: nothing measured tells of them. Near even loads cv, chi2, Kullback-Leibler and entropy as measured
may lie outside their own interval: they hold the noise of the sample, it does not.
"""

# Shapes: X blocks of all domains, D domains (n_domains + 1 rows in a result, all of them first), L MoE layers, E experts, R resamples,
# S strata, G values of t; l layers of one chunk; "..." any trailing axes.

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from moectl.routing.limits import FloatArray, IntArray, Interval, hall, normal_tail, student_t, tail_quantiles, wilson
from moectl.routing.metrics.load import COLD_LOAD, quarter
from moectl.routing.strata import deviations, divide, freedom, position, rows

LOAD_KEYS = (
    "max_over_mean", "min_over_mean", "max_vio", "cv", "gini", "entropy", "entropy_normalized", "effective_experts", "kl_uniform",
    "tv_uniform", "top_quarter_share", "chi2", "dead_experts", "cold_experts",
)  # fmt: skip

_TAIL = 0.025
_TIE_TAIL = 0.01  # under ties the two parts of a lower limit vary together, so that 1 % becomes 2 to 6 % in simulation
_FOLDS = 4
_MANY = 10**6  # degrees of freedom
_FEWEST = 4  # degrees of freedom; with fewer, tests by resampling reject far too often
_PRIOR_BLOCKS = 10  # an expert's scatter is averaged with all experts', as if that were known from so many more blocks
_GRID_G = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0])
_CHUNK = 2**20  # numbers in the largest temporary array: 8 MB


def resample_weights(n_blocks: int, n_resamples: int = 400, seed: int = 0) -> FloatArray:
    """[R, X] how often each block is drawn: Poisson(1), independently.

    What is weighted sums to zero within each stratum, so the total drawn need not be fixed: mean, variance and skewness are those of the
    multinomial bootstrap, and the same weights serve every row, whatever its strata.
    """
    return np.random.default_rng(seed).poisson(1.0, (n_resamples, n_blocks)).astype(np.float64)


def ratio_interval(
    top_X: NDArray[np.int64 | np.float64],
    bottom_X: NDArray[np.int64 | np.float64],
    domain_X: IntArray,
    n_domains: int,
    *,
    proportion: bool = False,
) -> Interval:
    """[D, ...] each: interval of sum(top) / sum(bottom), both [X, ...]: Student's t with Hall's correction for skewness.

    `proportion`: the ratio cannot leave [0, 1], as a share of pairs. One of 0 or 1 itself gets Wilson's interval as if all that `bottom`
    counts were independent; where it could not be anything else (K = E), only the caller knows.
    """
    shape = np.broadcast_shapes(top_X.shape, bottom_X.shape)[1:]
    low_D, high_D = _empty(n_domains, shape), _empty(n_domains, shape)
    for row, blocks, stratum_X in rows(domain_X, n_domains):
        top, bottom = top_X[blocks].astype(np.float64), bottom_X[blocks].astype(np.float64)
        total = bottom.sum(0)
        ratio = divide(top.sum(0), total)
        deviation_X = np.nan_to_num(deviations(divide(top, total), divide(bottom, total), stratum_X))
        error = np.sqrt((deviation_X**2).sum(0))
        skewness = divide((deviation_X**3).sum(0), error**3)
        c = student_t(_TAIL, freedom(deviation_X**2, stratum_X))
        low_D[row], high_D[row] = ratio - hall(c, skewness) * error, ratio - hall(-c, skewness) * error
        if proportion:
            edge_low, edge_high = wilson(ratio, divide(np.ones(shape), total), student_t(_TAIL, np.full(shape, _MANY)))
            at_edge = (ratio == 0) | (ratio == 1)
            low_D[row] = np.where(at_edge, edge_low, np.maximum(low_D[row], 0.0))
            high_D[row] = np.where(at_edge, edge_high, np.minimum(high_D[row], 1.0))
    return low_D, high_D


def share_interval(counts_XLE: IntArray, domain_X: IntArray, n_domains: int, top_k: int) -> Interval:
    """[D, L, E] each: interval of every expert's share of the layer's slots, one expert at a time."""
    L, E = counts_XLE.shape[1:]
    low_DLE, high_DLE = _empty(n_domains, (L, E)), _empty(n_domains, (L, E))
    for row, blocks, stratum_X in rows(domain_X, n_domains):
        for layers in _chunks(L, E * len(blocks)):
            sample = _Sample(counts_XLE[blocks, layers], stratum_X, top_k)
            low_lE, high_lE = sample.relative_interval(student_t(_TAIL, sample.freedom_l))
            loaded_l1 = sample.slots_l[:, None] > 0
            low_DLE[row, layers], high_DLE[row, layers] = np.where(loaded_l1, low_lE / E, np.nan), np.where(loaded_l1, high_lE / E, np.nan)
    return low_DLE, high_DLE


def load_intervals(counts_XLE: IntArray, domain_X: IntArray, n_domains: int, top_k: int, weights_RX: FloatArray) -> dict[str, Interval]:
    """[D, L] each: intervals of the metrics LOAD_KEYS of `metrics.load`, all layers of E experts and `top_k` slots.

    `chi2` is that of the true loads at this many slots. A dead expert is never certain, a seen one certainly is not: 0 to as many as
    measured. The sum of squared shares, which the load-aware baselines are made of, is (1 + cv^2) / E.
    """
    L, E = counts_XLE.shape[1:]
    results: dict[str, Interval] = {key: (_empty(n_domains, (L,)), _empty(n_domains, (L,))) for key in LOAD_KEYS}
    for row, blocks, stratum_X in rows(domain_X, n_domains):
        for layers in _chunks(L, E * max(len(blocks), len(weights_RX))):
            sample = _Sample(counts_XLE[blocks, layers], stratum_X, top_k)
            for key, (low_l, high_l) in _load_intervals(sample, weights_RX[:, blocks], domain_X[blocks]).items():
                results[key][0][row, layers] = np.where(sample.slots_l > 0, low_l, np.nan)
                results[key][1][row, layers] = np.where(sample.slots_l > 0, high_l, np.nan)
    return results


class _Sample:
    """The counts of one row and some layers, with what all methods need.

    `r_lE` relative loads; `deviation_XlE` centred and scaled such that its squares sum to the variance of r; `freedom_l` its degrees.
    """

    def __init__(self, counts_XlE: IntArray, stratum_X: IntArray, top_k: int) -> None:
        X, _, E = counts_XlE.shape
        self.E, self.most, self.counts_XlE = E, E / top_k, counts_XlE
        self.slots_l = counts_XlE.sum((0, 2))
        scale_l1 = E / np.maximum(self.slots_l, 1)[:, None]  # a layer without load is made NaN by the callers
        self.r_lE = counts_XlE.sum(0) * scale_l1
        self.part_XlE = counts_XlE * scale_l1  # sums to r
        self.size_Xl = counts_XlE.sum(-1) / np.maximum(self.slots_l, 1)
        self.stratum_X = stratum_X
        self.deviation_XlE = deviations(self.part_XlE, self.size_Xl[..., None], stratum_X)
        squares_XlE = self.deviation_XlE**2
        self.variance_lE = squares_XlE.sum(0)
        self.freedom_l = freedom(squares_XlE.sum(-1), stratum_X)
        # One over the number of independent tokens: var q = per_token q (1 - q), q = r / most the chance that a token runs the expert.
        bound_lE = self.r_lE * (self.most - self.r_lE)
        bound_lE[bound_lE < 1e-12] = 0.0
        pooled_l1 = divide(self.variance_lE.sum(-1, keepdims=True), bound_lE.sum(-1, keepdims=True))
        pooled_l1[np.isnan(pooled_l1)] = 0.0  # K = E: nothing varies
        own_lE = np.where(bound_lE > 0, divide(self.variance_lE, bound_lE), pooled_l1)
        self.per_token_lE = ((X - 1) * own_lE + _PRIOR_BLOCKS * pooled_l1) / (X - 1 + _PRIOR_BLOCKS)

    def relative_interval(self, c_l: FloatArray) -> Interval:
        """[l, E] each: r within c standard errors."""
        low_lE, high_lE = wilson(self.r_lE / self.most, self.per_token_lE, c_l[:, None])
        return low_lE * self.most, high_lE * self.most


def _load_intervals(sample: _Sample, weights_RX: FloatArray, domain_X: IntArray) -> dict[str, Interval]:
    E = sample.E
    low, high = _largest(sample)
    cv, kl = _tested(sample, weights_RX, (_cv, _kl))
    most = 1.0 - 1.0 / sample.most
    gini = _kinked(sample, domain_X, _gini_slope, most)
    tv = _kinked(sample, domain_X, _tv_slope, most)
    even = quarter(E) / E
    top = _kinked(sample, domain_X, _top_quarter_slope, max(min(even * sample.most, 1.0) - even, 0.0))
    entropy = np.log(E) - kl[1], np.log(E) - kl[0]
    sure = sample.relative_interval(student_t(_TAIL / E, sample.freedom_l))
    dead_l = (sample.r_lE == 0).sum(-1).astype(np.float64)
    nothing_l = np.full(len(low), np.nan)
    return {
        "max_over_mean": (low, high),
        "max_vio": (low - 1.0, high - 1.0),
        "min_over_mean": _smallest(sample),
        "cv": cv,
        "chi2": (sample.slots_l * cv[0] ** 2, sample.slots_l * cv[1] ** 2),
        "kl_uniform": kl,
        "entropy": entropy,
        "entropy_normalized": (entropy[0] / np.log(E), entropy[1] / np.log(E)) if E > 1 else (nothing_l, nothing_l),
        "effective_experts": (np.exp(entropy[0]), np.exp(entropy[1])),
        "gini": gini,
        "tv_uniform": tv,
        "top_quarter_share": (top[0] + even, top[1] + even),
        "dead_experts": (np.zeros_like(dead_l), dead_l),
        "cold_experts": ((sure[1] < COLD_LOAD).sum(-1).astype(np.float64), (sure[0] < COLD_LOAD).sum(-1).astype(np.float64)),
    }


def _largest(sample: _Sample) -> Interval:
    """Intersection bounds of max r (Chernozhukov, Lee and Rosen 2013, Econometrica 81), with Bonferroni's correction.

    Upper: the limit of the expert that truly is the largest is under the largest limit. Lower: all that may be the largest have to be
    under theirs at once.
    """
    low_lE, high_lE = sample.relative_interval(student_t(2.0 * _TAIL / sample.E, sample.freedom_l))
    may_lE = high_lE >= low_lE.max(-1, keepdims=True)
    low_lE, _ = sample.relative_interval(student_t(_TAIL / np.maximum(may_lE.sum(-1), 1), sample.freedom_l))
    _, high_lE = sample.relative_interval(student_t(_TAIL, sample.freedom_l))
    return np.maximum(np.where(may_lE, low_lE, -np.inf).max(-1), 1.0), np.maximum(high_lE.max(-1), 1.0)


def _smallest(sample: _Sample) -> Interval:
    low_lE, high_lE = sample.relative_interval(student_t(2.0 * _TAIL / sample.E, sample.freedom_l))
    may_lE = low_lE <= high_lE.min(-1, keepdims=True)
    _, high_lE = sample.relative_interval(student_t(_TAIL / np.maximum(may_lE.sum(-1), 1), sample.freedom_l))
    low_lE, _ = sample.relative_interval(student_t(_TAIL, sample.freedom_l))
    return np.minimum(low_lE.min(-1), 1.0), np.minimum(np.where(may_lE, high_lE, np.inf).min(-1), 1.0)


def _cv(excess_E: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.einsum("...e,...e->...", excess_E, excess_E) / excess_E.shape[-1]))


def _kl(excess_E: FloatArray) -> FloatArray:
    """Mean of r ln r - r + 1, which also grows with the distance from even where noise has changed the sum of r."""
    r_E = np.maximum(excess_E + 1.0, 1e-12)
    surprise_E = np.log(r_E)
    surprise_E *= r_E
    surprise_E -= r_E
    return np.asarray(np.maximum(surprise_E.mean(-1) + 1.0, 0.0))


def _tested(sample: _Sample, weights_RX: FloatArray, statistics: tuple[Callable[[FloatArray], FloatArray], ...]) -> list[Interval]:
    """Inverted bootstrap tests along the line from even through the measured loads (DiCiccio and Romano 1990, Int. Stat. Rev. 58).

    A sample more even than half of those of an even router is taken for one in the middle of them, so that luck makes no narrow interval.
    Quantiles are expanded as Student's t is from the normal.
    """
    X, l, E = sample.deviation_XlE.shape
    noise_RlE = (weights_RX @ sample.deviation_XlE.reshape(X, l * E)).reshape(-1, l, E)
    excess_lE = sample.r_lE - 1.0
    measured_l = _cv(excess_lE)
    excess_lE = np.where(measured_l[:, None] > 0, excess_lE, noise_RlE[0])
    excess_lE = excess_lE * np.maximum(divide(np.median(_cv(noise_RlE), axis=0), _cv(excess_lE)), 1.0)[:, None]
    excess_lE[np.isnan(excess_lE)] = 0.0
    excess_GlE = _GRID_G[:, None, None] * excess_lE
    tail_l = normal_tail(student_t(_TAIL, sample.freedom_l))
    values = [np.maximum.accumulate(statistic(np.maximum(excess_GlE, -1.0))) for statistic in statistics]
    bounds = np.empty((len(statistics), 2, len(_GRID_G), l))
    for g, centre_lE in enumerate(excess_GlE):
        drawn_RlE = noise_RlE + centre_lE
        for s, statistic in enumerate(statistics):
            bounds[s, :, g] = tail_quantiles(statistic(drawn_RlE), tail_l)
    bounds = np.maximum.accumulate(bounds, axis=2)
    enough_l = sample.freedom_l >= _FEWEST
    results = []
    for s, statistic in enumerate(statistics):
        low_l, high_l = (_interpolate(statistic(excess_lE), bounds[s, side], values[s]) for side in (1, 0))
        results.append((np.where(enough_l, low_l, np.nan), np.where(enough_l, high_l, np.nan)))
    return results


def _kinked(sample: _Sample, domain_X: IntArray, slope: Callable[[IntArray], FloatArray], most: float) -> Interval:
    """A statistic that is max over a of <a, r>, 0 to `most`, reached at a = slope(r): the same blocks for a and r above, others below."""
    fold_X = position(domain_X) % _FOLDS
    value_Xl = np.empty(sample.size_Xl.shape)
    for fold in range(_FOLDS):
        inside_X = fold_X == fold
        slope_lE = slope(sample.counts_XlE[~inside_X].sum(0))
        value_Xl[inside_X] = np.einsum("xle,le->xl", sample.part_XlE[inside_X], slope_lE)
    crossed_l = value_Xl.sum(0)
    slope_lE = slope(sample.counts_XlE.sum(0))
    same_l = np.einsum("le,le->l", slope_lE, sample.r_lE)
    # By luck all counts may be equal, and the slope of all blocks zero; those of the folds are not.
    crossed_variance_l = (deviations(value_Xl, sample.size_Xl, sample.stratum_X) ** 2).sum(0)
    same_variance_l = (np.einsum("xle,le->xl", sample.deviation_XlE, slope_lE) ** 2).sum(0)
    error_l = np.sqrt(np.maximum(crossed_variance_l, same_variance_l))
    low_l = crossed_l - student_t(_TIE_TAIL, sample.freedom_l) * error_l
    high_l = same_l + student_t(_TAIL, sample.freedom_l) * error_l
    return np.clip(low_l, 0.0, most), np.clip(high_l, 0.0, most)


def _tv_slope(counts_lE: IntArray) -> FloatArray:
    E = counts_lE.shape[-1]
    sign_lE = np.sign(counts_lE * E - counts_lE.sum(-1, keepdims=True))
    return np.asarray((sign_lE - sign_lE.mean(-1, keepdims=True)) / (2.0 * E))


def _gini_slope(counts_lE: IntArray) -> FloatArray:
    """Experts of equal counts share a rank."""
    E = counts_lE.shape[-1]
    sorted_lE = np.sort(counts_lE, axis=-1)
    slope_lE = np.empty(counts_lE.shape)
    for row, (ascending_E, counts_E) in enumerate(zip(sorted_lE, counts_lE, strict=True)):
        slope_lE[row] = np.searchsorted(ascending_E, counts_E, "left") + np.searchsorted(ascending_E, counts_E, "right") - E
    return np.asarray(slope_lE / E**2)


def _top_quarter_slope(counts_lE: IntArray) -> FloatArray:
    """Experts of equal counts share the places that are left for them."""
    E, n = counts_lE.shape[-1], quarter(counts_lE.shape[-1])
    least_l1 = np.sort(counts_lE, axis=-1)[:, E - n, None]
    above_lE, at_lE = counts_lE > least_l1, counts_lE == least_l1
    left_l1 = n - above_lE.sum(-1, keepdims=True)
    return np.asarray((above_lE + at_lE * left_l1 / at_lE.sum(-1, keepdims=True) - n / E) / E)


def _interpolate(at_l: FloatArray, x_Gl: FloatArray, y_Gl: FloatArray) -> FloatArray:
    return np.array([np.interp(at, x_G, y_G) for at, x_G, y_G in zip(at_l, x_Gl.T, y_Gl.T, strict=True)])


def _chunks(L: int, numbers: int) -> Iterator[slice]:
    """Slices of layers, each layer having so many numbers."""
    step = max(1, _CHUNK // max(numbers, 1))
    return (slice(start, start + step) for start in range(0, L, step))


def _empty(n_domains: int, shape: tuple[int, ...]) -> FloatArray:
    return np.full((n_domains + 1, *shape), np.nan)
