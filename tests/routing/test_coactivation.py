from __future__ import annotations

import numpy as np

from moectl.routing.metrics.coactivation import Pair, strongest_pair


def test_the_largest_lift_among_pairs_met_often_enough():
    counts_EE = np.diag([50, 10, 10, 40])
    for i, j, count in ((0, 3, 30), (1, 2, 5), (0, 1, 4)):
        counts_EE[i, j] = counts_EE[j, i] = count
    assert strongest_pair(counts_EE, 100, min_count=1) == Pair(1, 2, 5, 5.0)
    assert strongest_pair(counts_EE, 100, min_count=6) == Pair(0, 3, 30, 1.5)
    assert strongest_pair(counts_EE, 100, min_count=31) is None


def test_ties_go_to_the_larger_count_then_the_lower_ids():
    counts_EE = np.diag([10, 10, 20, 20, 10])
    for i, j, count in ((0, 1, 5), (2, 3, 20), (1, 4, 5)):
        counts_EE[i, j] = counts_EE[j, i] = count
    assert strongest_pair(counts_EE, 40, min_count=1) == Pair(2, 3, 20, 2.0)
    counts_EE[2, 3] = counts_EE[3, 2] = 0
    assert strongest_pair(counts_EE, 40, min_count=1) == Pair(0, 1, 5, 2.0)


def test_experts_that_never_meet_are_no_pair():
    assert strongest_pair(np.diag([3, 3]), 6, min_count=0) is None
    assert strongest_pair(np.array([[3]]), 3, min_count=1) is None
