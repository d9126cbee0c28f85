"""How uneven a perfectly even router looks by chance: the band of each place in the order of loads.

low_E, high_E = ordered_band(64)
1 + high_E[0] * math.sqrt((64 / 8 - 1) / tokens)      # the busiest of 64 experts, top-8, is rarely above this relative load
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_TWO_SIDED_95 = 1.96


def ordered_band(n_experts: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Between which values about 95 % of the largest, second largest, ... of E standard normal deviations lie: (low, high), descending.

    A token count is close to normal; the i-th of E ordered uniform numbers is Beta(i, E + 1 - i), whose log-odds are close to normal with
    variance trigamma(i) + trigamma(E + 1 - i).
    """
    low, high = np.empty(n_experts, np.float32), np.empty(n_experts, np.float32)
    normal = NormalDist()
    for i in range(1, n_experts + 1):
        above, below = i, n_experts + 1 - i
        middle = _digamma(below) - _digamma(above)
        spread = _TWO_SIDED_95 * math.sqrt(_trigamma(above) + _trigamma(below))
        low[i - 1], high[i - 1] = (normal.inv_cdf(1 / (1 + math.exp(-(middle + sign * spread)))) for sign in (-1, 1))
    return low, high


def _digamma(n: int) -> float:
    """psi(n) + Euler's constant, of a whole number."""
    return sum(1 / k for k in range(1, n))


def _trigamma(n: int) -> float:
    """psi'(n) of a whole number."""
    return math.pi**2 / 6 - sum(1 / k**2 for k in range(1, n))
