from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from moectl.routing.metrics.coactivation import (
    Pair,
    conditional,
    expected,
    jaccard,
    lift,
    lift_uniform,
    pmi,
    strongest_pair,
    strongest_pairs,
    weakest_pairs,
)


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


def test_the_smallest_lift_among_pairs_expected_often_enough():
    counts_EE = np.diag([50, 10, 10, 40, 0])
    for i, j, count in ((0, 3, 30), (1, 2, 5), (0, 1, 4), (0, 2, 4)):
        counts_EE[i, j] = counts_EE[j, i] = count
    # Expected: 20 of 0 and 3; 5 of 0 and 1, 0 and 2; 4 of 1 and 3, 2 and 3; 1 of 1 and 2. Of expert 4 nothing.
    found = [Pair(1, 3, 0, 0.0), Pair(2, 3, 0, 0.0), Pair(0, 1, 4, 0.8), Pair(0, 2, 4, 0.8), Pair(0, 3, 30, 1.5), Pair(1, 2, 5, 5.0)]
    assert weakest_pairs(counts_EE, 100, n=9, min_expected=0) == found
    assert weakest_pairs(counts_EE, 100, n=2, min_expected=4) == found[:2]
    assert weakest_pairs(counts_EE, 100, n=9, min_expected=5) == found[2:5]
    assert weakest_pairs(counts_EE, 0, n=9, min_expected=0) == []
    counts_EE[2, 2] = 30
    assert weakest_pairs(counts_EE, 100, n=2, min_expected=0) == [found[1], found[0]], "ties go to the larger expected count"


def sets_of(n_tokens, n_experts, top_k, seed=0):
    """Uneven sets and their counts, by M^T M."""
    rng = np.random.default_rng(seed)
    scores_TE = rng.gumbel(size=(n_tokens, n_experts)) + 0.3 * np.arange(n_experts)
    ran_TE = np.zeros((n_tokens, n_experts), np.int64)
    np.put_along_axis(ran_TE, np.argsort(-scores_TE)[:, :top_k], 1, axis=1)
    return ran_TE, ran_TE.T @ ran_TE


def test_matrices_equal_their_definitions():
    ran_TE, counts_EE = sets_of(40, 6, 2)
    ran_TE[:, 5] = 0
    counts_EE = ran_TE.T @ ran_TE
    lift_EE, pmi_EE, expected_EE = lift(counts_EE, 40), pmi(counts_EE, 40), expected(counts_EE, 40)
    jaccard_EE, conditional_EE = jaccard(counts_EE), conditional(counts_EE)
    for i in range(6):
        for j in range(6):
            if i == j:
                assert np.isnan([m[i, i] for m in (lift_EE, pmi_EE, jaccard_EE, conditional_EE, expected_EE)]).all()
                continue
            a, b = (set(np.flatnonzero(ran_TE[:, e])) for e in (i, j))
            assert expected_EE[i, j] == len(a) * len(b) / 40 or not (a and b)
            assert jaccard_EE[i, j] == len(a & b) / len(a | b)
            if not a or not b:
                assert np.isnan(lift_EE[i, j])
                assert np.isnan(conditional_EE[i, j]) == (not a)
                continue
            assert lift_EE[i, j] == pytest.approx(len(a & b) / (len(a) * len(b) / 40))
            assert conditional_EE[i, j] == len(a & b) / len(a)
            assert pmi_EE[i, j] == (pytest.approx(math.log(lift_EE[i, j])) if a & b else -math.inf)


def test_identities_of_the_matrices():
    _, counts_EE = sets_of(500, 7, 3)
    conditional_EE = conditional(counts_EE)
    assert np.nansum(conditional_EE, axis=1) == pytest.approx(2)
    assert lift(counts_EE, 500) == pytest.approx(lift(counts_EE, 500).T, nan_ok=True)
    assert lift(np.stack([counts_EE, counts_EE]), 500)[1] == pytest.approx(lift(counts_EE, 500), nan_ok=True)


@pytest.mark.parametrize(("E", "K"), [(5, 2), (6, 1), (4, 4), (2, 1)])
def test_blind_routers_have_the_uniform_lift(E, K):
    """Every set of K once."""
    ran_TE = np.array([[e in chosen for e in range(E)] for chosen in combinations(range(E), K)], np.int64)
    found_EE = lift(ran_TE.T @ ran_TE, len(ran_TE))
    assert found_EE[0, 1] == pytest.approx(lift_uniform(E, K))
    assert math.isnan(lift_uniform(1, 1))


def test_the_strongest_pairs_are_those_of_largest_lift():
    _, counts_EE = sets_of(300, 8, 3, seed=2)
    lift_EE = lift(counts_EE, 300)
    pairs = strongest_pairs(counts_EE, 300, n=5, min_count=4)
    allowed = sorted(-lift_EE[i, j] for i in range(8) for j in range(i + 1, 8) if counts_EE[i, j] >= 4)
    assert [-pair.lift for pair in pairs] == pytest.approx(allowed[:5])
    assert all(pair.count == counts_EE[pair.first, pair.second] >= 4 for pair in pairs)
    assert len(strongest_pairs(counts_EE, 300, n=100, min_count=1)) == (np.triu(counts_EE, 1) > 0).sum()
    assert strongest_pairs(np.array([[3]]), 3, n=5, min_count=1) == []
