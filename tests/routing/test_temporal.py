"""Repetition of neighbouring tokens and its baselines."""

from __future__ import annotations

from itertools import combinations
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moectl.routing.metrics import conditional_poisson, temporal


def test_published_random_baselines():
    """Mixtral, arXiv 2401.04088 section 5: 12.5 % and 46.4 %; OLMoE 67.9 %."""
    assert temporal.first_choice_repeat_uniform(8) == 0.125
    assert round(temporal.any_overlap_uniform(8, 2), 3) == 0.464
    assert round(temporal.any_overlap_uniform(64, 8), 3) == 0.679
    assert temporal.next_token_overlap_uniform(64, 8) == 0.125


@given(st.integers(1, 6), st.integers(1, 6))
def test_any_overlap_uniform_is_the_share_of_pairs_of_sets(E, K):
    K = min(E, K)
    sets = list(map(set, combinations(range(E), K)))
    share = sum(bool(a & b) for a in sets for b in sets) / len(sets) ** 2
    assert temporal.any_overlap_uniform(E, K) == pytest.approx(share)


def test_observations_are_ratios_and_nan_without_pairs():
    pairs = np.array([0, 8])
    assert temporal.next_token_overlap(np.array([0, 12]), pairs, 3)[1] == 0.5
    assert temporal.any_overlap(np.array([0, 2]), pairs)[1] == 0.25
    assert temporal.first_choice_repeat(np.array([0, 4]), pairs)[1] == 0.5
    for value in (
        temporal.next_token_overlap(pairs, pairs, 3),
        temporal.any_overlap(pairs, pairs),
        temporal.first_choice_repeat(pairs, pairs),
    ):
        assert np.isnan(value[0])


def test_load_aware_first_choice_and_overlap():
    counts_E, first_E, tokens = np.array([8, 4, 4]), np.array([6, 2, 0]), np.array(8)
    assert temporal.first_choice_repeat_load_aware(first_E, tokens) == (36 + 4) / 64
    assert temporal.next_token_overlap_load_aware(counts_E, tokens, 2) == (1 + 0.25 + 0.25) / 2
    for value in (
        temporal.first_choice_repeat_load_aware(0 * first_E, 0 * tokens),
        temporal.next_token_overlap_load_aware(0 * counts_E, 0 * tokens, 2),
        temporal.any_overlap_load_aware(0 * counts_E, 0 * tokens, 2),
    ):
        assert np.isnan(value)


@pytest.mark.parametrize(("E", "K"), [(2, 1), (8, 2), (64, 8), (512, 10), (512, 32), (6, 6), (6, 5)])
def test_even_load_gives_the_uniform_formula(E, K):
    counts_E, tokens = np.full(E, 5 * K), np.array(5 * E)
    assert temporal.any_overlap_load_aware(counts_E, tokens, K) == pytest.approx(temporal.any_overlap_uniform(E, K), rel=1e-9)
    assert temporal.next_token_overlap_load_aware(counts_E, tokens, K) == pytest.approx(K / E)


@st.composite
def loads(draw):
    """Counts that T sets of K of E experts can have: the sets are drawn, so 0 and T occur."""
    E = draw(st.integers(1, 7))
    K = draw(st.integers(1, E))
    sets = draw(st.lists(st.permutations(range(E)).map(lambda order: order[:K]), min_size=1, max_size=60))
    return np.bincount(np.concatenate(sets), minlength=E), len(sets), K


@settings(deadline=None)
@given(loads())
@example((np.array([10**9 - 1, 1]), 10**9, 1))
@example((np.array([10**6, 10**6 - 1, 1, 0]), 10**6, 2))
@example((np.array([10**6 - 1, 10**6 - 1, 2]), 10**6, 2))
def test_any_overlap_load_aware_by_brute_force(load):
    """Enumerate all sets: the fitted law must have the measured loads, the form prod w, and the stated overlap."""
    counts_E, tokens, K = load
    E, q_E = len(counts_E), counts_E / tokens
    (p_E,) = conditional_poisson.fit_bernoulli(q_E[None], K)
    sets = list(combinations(range(E), K))
    weights = np.array([prod(p_E[e] if e in chosen else 1 - p_E[e] for e in range(E)) for chosen in sets])
    law = weights / weights.sum()
    included_E = [sum(p for p, chosen in zip(law, sets, strict=True) if e in chosen) for e in range(E)]
    assert included_E == pytest.approx(q_E, abs=1e-9)
    overlap = sum(p * r for p, a in zip(law, sets, strict=True) for r, b in zip(law, sets, strict=True) if set(a) & set(b))
    assert temporal.any_overlap_load_aware(counts_E, np.array(tokens), K) == pytest.approx(overlap, abs=1e-9)


@pytest.mark.parametrize(("E", "K"), [(128, 8), (512, 32)])
def test_the_fit_holds_for_very_uneven_large_layers(E, K):
    rng = np.random.default_rng(E)
    scores_TE = 6 * rng.normal(size=(1, E)) + rng.gumbel(size=(300, E))
    counts_E = np.bincount(np.argsort(-scores_TE, axis=1)[:, :K].ravel(), minlength=E)
    value = float(temporal.any_overlap_load_aware(counts_E, np.array(300), K))
    sampled = np.zeros((300, E), bool)
    np.put_along_axis(sampled, np.argsort(-scores_TE, axis=1)[:, :K], True, axis=1)
    observed = (sampled.astype(int) @ sampled.T.astype(int) > 0)[np.triu_indices(300, 1)].mean()
    assert 0 < value <= 1
    assert value == pytest.approx(observed, abs=0.02)


def test_the_order_of_experts_and_other_rows_change_no_bit():
    counts_RE = np.array([[9, 1, 4, 6], [4, 6, 9, 1], [10, 10, 0, 0]])
    found_R = temporal.any_overlap_load_aware(counts_RE, np.array([10, 10, 10]), 2)
    assert found_R[0] == found_R[1]
    assert found_R[2] == 1.0


def test_load_aware_any_overlap_does_not_apply_where_slots_ran_nothing():
    assert np.isnan(temporal.any_overlap_load_aware(np.array([3, 2, 2]), np.array(4), 2))


@pytest.mark.parametrize(("E", "K"), [(2, 1), (8, 2), (8, 4), (64, 8), (40, 16)])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.6, 1.2])
def test_the_slope_of_any_overlap_is_its_change(E, K, spread):
    weights_E = np.exp(spread * np.random.default_rng(E).standard_normal(E))
    q_E = K * weights_E / weights_E.sum()
    for _ in range(200):  # as close to always as 0.95
        q_E = np.minimum(q_E, 0.95)
        q_E[q_E < 0.95] *= (K - 0.95 * (q_E == 0.95).sum()) / q_E[q_E < 0.95].sum()
    values_R, slopes_RE = conditional_poisson.surprise_of_disjoint(q_E[None], K)
    change_EE = 1e-5 * q_E.min() * (np.eye(E) - 1 / E)  # loads still sum to K
    more, less = (-np.log(conditional_poisson.disjoint(q_E + sign * change_EE, K)) for sign in (1, -1))
    expected_E = (more - less) / (2e-5 * q_E.min())
    assert values_R[0] == pytest.approx(-np.log(conditional_poisson.disjoint(q_E[None], K)[0]), rel=1e-9)
    slope_E = slopes_RE[0] - slopes_RE[0].mean()
    np.testing.assert_allclose(slope_E, expected_E - expected_E.mean(), atol=1e-5 * np.abs(expected_E).max() + 1e-7)


def test_the_slope_where_experts_run_always_or_never():
    q_RE = np.array([[0.5, 0.5, 0.0, 0.0], [0.75, 0.25, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    values_R, slopes_RE = conditional_poisson.surprise_of_disjoint(q_RE, 1)
    assert values_R[:2] == pytest.approx(-np.log([1 / 2, 6 / 16]))
    assert np.isnan(values_R[2])
    assert np.isnan(slopes_RE[2]).all()
    # One expert of each: -ln(1 - sum q^2) has the slope 2 q / (1 - sum q^2).
    assert slopes_RE[1, 0] - slopes_RE[1, 1] == pytest.approx(2 * 0.5 / (6 / 16), rel=1e-5)
    assert (slopes_RE[:2, 2:] == 0).all()
