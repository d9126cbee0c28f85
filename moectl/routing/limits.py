"""The distributions that confidence intervals rest on: Student's t, and limits of a proportion and of a skewed mean.

student_t(0.025, np.array([63]))      # 2.00
"""

from __future__ import annotations

from functools import lru_cache
from math import expm1, pi, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Interval = tuple[FloatArray, FloatArray]

# Shapes: R resamples, l layers.


def wilson(q: FloatArray, per_token: FloatArray, c: FloatArray) -> Interval:
    """All p from which q is within c standard errors sqrt(per_token p (1 - p)) (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    h = c**2 * per_token
    half = np.sqrt(h * np.maximum(q * (1.0 - q), 0.0) + h**2 / 4.0)
    low, high = (q + h / 2.0 - half) / (1.0 + h), (q + h / 2.0 + half) / (1.0 + h)
    return np.where(q == 0, 0.0, np.maximum(low, 0.0)), np.where(q == 1, 1.0, np.minimum(high, 1.0))


def hall(c: FloatArray, skewness: FloatArray) -> FloatArray:
    """The inverse of t + k t^2 / 3 + k^2 t^3 / 27 + k / 6 at c."""
    k = np.where(np.abs(skewness) > 1e-6, skewness, 1e-6)
    return np.asarray(3.0 / k * (np.cbrt(1.0 + k * (c - k / 6.0)) - 1.0))


def student_t(tail: float | FloatArray, freedom: IntArray) -> FloatArray:
    """Student's t that is exceeded with chance `tail`."""
    tail, freedom = np.broadcast_arrays(tail, freedom)
    values = [_student(float(p), int(n)) for p, n in zip(tail.flat, freedom.flat, strict=True)]
    return np.array(values, dtype=np.float64).reshape(freedom.shape)


@lru_cache(maxsize=4096)
def _student(tail: float, n: int) -> float:
    """Hill 1970, Communications of the ACM 13, algorithm 396."""
    p = 2.0 * tail
    if n == 1:
        return float(1.0 / np.tan(p * pi / 2.0))
    if n == 2:
        return sqrt(2.0 / (p * (2.0 - p)) - 2.0)
    a = 1.0 / (n - 0.5)
    b = 48.0 / a**2
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * sqrt(a * pi / 2.0) * n
    y = (d * p) ** (2.0 / n)
    if y <= 0.05 + a:
        y = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0)) * y - 1.0) * (n + 1.0) / (
            n + 2.0
        ) + 1.0 / y
        return sqrt(n * y)
    x = NormalDist().inv_cdf(tail)
    if n < 5:
        c += 0.3 * (n - 4.5) * (x + 0.6)
    c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
    y = (((((0.4 * x**2 + 6.3) * x**2 + 36.0) * x**2 + 94.5) / c - x**2 - 3.0) / b + 1.0) * x
    return sqrt(n * expm1(a * y**2))


def normal_tail(t_l: FloatArray) -> FloatArray:
    return np.array([NormalDist().cdf(-t) for t in t_l])


def tail_quantiles(drawn_Rl: FloatArray, tail_l: FloatArray) -> FloatArray:
    """[2, l] the `tail` and 1 - `tail` quantiles."""
    sorted_Rl = np.sort(drawn_Rl, axis=0)
    last = len(sorted_Rl) - 1
    at_2l = np.stack([tail_l, 1.0 - tail_l]) * last
    below_2l = np.minimum(at_2l.astype(np.int64), last - 1)
    lower_2l, upper_2l = np.take_along_axis(sorted_Rl, below_2l, 0), np.take_along_axis(sorted_Rl, below_2l + 1, 0)
    return np.asarray(lower_2l + (at_2l - below_2l) * (upper_2l - lower_2l))
