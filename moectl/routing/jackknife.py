"""A jackknife that deletes a block of sequences at a time, for curved functions of sums over blocks.

    estimate_l, influence_Xl = jackknife(value_l, deleted_Xl, stratum_X)
    second = second_order(influence_Xl, features_XlF, curvature, stratum_X)
    low_l, high_l = limits(estimate_l, influence_Xl, second, stratum_X)

How much text each domain has is given, so the other blocks of a domain are scaled up to its size when one is deleted. The mean of what is
left says how far noise has moved the estimate, which is taken back, its spread how sure it is (Tukey 1958; strata: Jones 1974, Biometrika
61).

Where a function is flat (even loads, domains alike) the estimate is a sum of squares of noise, and a plain jackknife fails in two ways. If
the sample is flat by luck the deleted values hardly scatter: the variance is taken to be at least tr (H S)^2 / 2, that of a flat function,
H its second derivatives and S the covariance of the loads. And the true variance grows with the distance from flat. So the limit on the
side where it grows is the value that, if true, has the estimate t of *its* standard errors away (as in Wilson's interval of a share); the
limit on the other side is t of the measured ones away, too far if anything. Without that up to one in five truths close to flat are missed
where the noise has one direction only (E = 2, or sequences that differ in one way). `curved` says how often they are not.
"""

# Shapes: X blocks (a, b those of a stratum), E experts, F features: what a function takes sums over blocks of, one or more for an expert,
# l layers.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moectl.routing.limits import FloatArray, IntArray, Interval, student_t
from moectl.routing.strata import divide, freedom

Curvature = Callable[[int, int], FloatArray]
"""[l, F] the second derivative by feature f of one stratum and f of another; those by two different features are zero."""

_TAIL = 0.025


def deleted(parts_XlE: FloatArray, size_Xl1: FloatArray, stratum_X: IntArray) -> FloatArray:
    """The sum of `parts` without each block, the others of its stratum scaled up to the stratum's size. NaN if nothing is left of it."""
    result_XlE, sum_lE = np.empty(parts_XlE.shape), parts_XlE.sum(0)
    for stratum in range(stratum_X.max() + 1):
        inside_X = stratum_X == stratum
        part_alE, size_al1 = parts_XlE[inside_X], size_Xl1[inside_X]
        total_lE, size_l1 = part_alE.sum(0), size_al1.sum(0)
        scale_al1 = np.where(size_l1 > 0, divide(size_l1, size_l1 - size_al1), 1.0)
        result_XlE[inside_X] = sum_lE - total_lE + (total_lE - part_alE) * scale_al1
    return result_XlE


def jackknife(value_l: FloatArray, deleted_Xl: FloatArray, stratum_X: IntArray) -> tuple[FloatArray, FloatArray]:
    """The estimate without its bias, and what each block moves it by: zero in all, squares that sum to the variance."""
    estimate_l, influence_Xl = value_l.copy(), np.empty(deleted_Xl.shape)
    for stratum in range(stratum_X.max() + 1):
        inside_X = stratum_X == stratum
        n, mean_l = int(inside_X.sum()), deleted_Xl[inside_X].mean(0)
        estimate_l -= (n - 1) * (mean_l - value_l)
        influence_Xl[inside_X] = (mean_l - deleted_Xl[inside_X]) * np.sqrt((n - 1) / n)
    return estimate_l, influence_Xl


def second_order(
    influence_Xl: FloatArray, features_XlF: FloatArray, curvature: Curvature, stratum_X: IntArray
) -> tuple[FloatArray, FloatArray]:
    """[l] tr (H S)^2 and g' S H S g, g the slope: sums over pairs of different blocks, since a block with itself would add noise."""
    squares_l, turn_l = np.zeros((2, influence_Xl.shape[1]))
    inside = [stratum_X == stratum for stratum in range(stratum_X.max() + 1)]
    for a, inside_a in enumerate(inside):
        for b, inside_b in enumerate(inside[: a + 1]):
            weighted_laF = (features_XlF[inside_a] * curvature(a, b)).transpose(1, 0, 2)
            pairs_lab = weighted_laF @ features_XlF[inside_b].transpose(1, 2, 0)
            if a == b:
                pairs_lab[:, np.arange(inside_a.sum()), np.arange(inside_a.sum())] = 0.0
            times = 1.0 if a == b else 2.0
            squares_l += times * np.einsum("lab,lab->l", pairs_lab, pairs_lab)
            turn_l += times * np.einsum("la,la->l", influence_Xl[inside_a].T, (pairs_lab @ influence_Xl[inside_b].T[..., None])[..., 0])
    return squares_l, turn_l


def limits(estimate_l: FloatArray, influence_Xl: FloatArray, second: tuple[FloatArray, FloatArray], stratum_X: IntArray) -> Interval:
    """The limit x on the side where the variance grows solves (x - estimate)^2 = t^2 (variance + growth (x - estimate)).

    The growth is along the direction in which the fewest standard errors move the value. The measured variance g' S g holds tr (H S)^2
    more than the slope's own share of the true one, since the slope is measured too, and the true one half of that.
    """
    squares_l, turn_l = second
    variance_l = (influence_Xl**2).sum(0)
    t_l = student_t(_TAIL, freedom(influence_Xl**2, stratum_X))
    near_l = t_l * np.sqrt(np.maximum(variance_l, squares_l / 2.0))
    growth_l = np.nan_to_num(divide(2.0 * turn_l, variance_l))
    half_l = t_l * np.abs(growth_l) / 2.0
    far_l = t_l * (half_l + np.sqrt(half_l**2 + np.maximum(variance_l - squares_l / 2.0, squares_l / 2.0)))
    far_l = np.maximum(far_l, near_l)
    return estimate_l - np.where(growth_l < 0, far_l, near_l), estimate_l + np.where(growth_l > 0, far_l, near_l)
