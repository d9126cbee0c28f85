"""Intervals against routers whose true loads are known, an obvious bootstrap, and the laws they must keep."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from simulated_routers import simulate, true_shares

from moectl.routing import intervals, limits
from moectl.routing.intervals import LOAD_KEYS, load_intervals, ratio_interval, resample_weights, share_interval
from moectl.routing.metrics import load

SIMULATED = ("max_vio", "min_over_mean", "cv", "kl_uniform", "gini", "tv_uniform", "top_quarter_share", "cold_experts")


def missed(runs, n_sequences, E, K, kind, topics, seed):
    """{metric: [percent of runs with the truth below the interval, above it]}."""
    shares, rng = true_shares(E, K, kind), np.random.default_rng(seed)
    exact = np.round(shares.ravel() / K * 2**52).astype(np.int64)
    truth = {key: float(getattr(load, key)(exact)) for key in SIMULATED}
    result = {key: np.zeros(2) for key in (*SIMULATED, "share")}
    for start in range(0, runs, 50):
        counts = simulate(shares, n_sequences, 50, topics, rng)
        domain = np.zeros(len(counts), np.int64)
        found = load_intervals(counts, domain, 1, K, resample_weights(len(domain), 400, start))
        for key in SIMULATED:
            low, high = found[key]
            result[key] += [(truth[key] < low[1] - 1e-9).sum(), (truth[key] > high[1] + 1e-9).sum()]
        low, high = share_interval(counts, domain, 1, K)
        result["share"] += [(shares.ravel() / K < low[1]).sum() / E, (shares.ravel() / K > high[1]).sum() / E]
    return {key: 100 * misses / runs for key, misses in result.items()}


# One side misses 2.5 % if all is right; 200 runs have a standard error of 1.1 % (5 % under ties: 1.6 %).
@pytest.mark.parametrize("topics", [None, 1.0])
@pytest.mark.parametrize("kind", ["even", "skewed"])
@pytest.mark.parametrize(("n_sequences", "E", "K"), [(20, 8, 1), (64, 8, 4), (64, 64, 1)])
def test_coverage(n_sequences, E, K, kind, topics):
    runs = 100 if E == 64 else 200
    below, above = np.array([*missed(runs, n_sequences, E, K, kind, topics, seed=1).values()]).T
    assert below.max() <= (10 if kind == "even" else 8)
    assert above.max() <= 8
    assert (below + above).max() <= 10


@pytest.mark.soak
@pytest.mark.parametrize("topics", [None, 4.0, 1.0])
@pytest.mark.parametrize("kind", ["even", "skewed"])
@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("E", [8, 64])
@pytest.mark.parametrize("n_sequences", [20, 64, 200])
def test_coverage_in_full(n_sequences, E, K, kind, topics):
    found = missed(500, n_sequences, E, K, kind, topics, seed=2)
    assert 3 <= found["share"].sum() <= 7
    for key, misses in found.items():
        assert misses.sum() <= 10, key
    if kind == "skewed":  # nothing is at an edge, so they have no reason to be wider than they need to be
        assert found["cv"].sum() >= 2
        assert found["kl_uniform"].sum() >= 2


def test_a_share_of_pairs_and_a_mean_are_covered():
    rng, runs = np.random.default_rng(3), 3000
    for n in (20, 64):
        pairs = np.where(np.arange(n) % 7 == 6, 80, 255)[:, None]
        domain = np.zeros(n, np.int64)
        top = rng.binomial(pairs, rng.beta(0.9, 2.1, (n, runs)))  # a mean of 0.3, and 0.23 apart
        low, high = ratio_interval(top, np.broadcast_to(pairs, top.shape), domain, 1, proportion=True)
        assert 0.93 <= np.mean((low[1] <= 0.3) & (high[1] >= 0.3)) <= 0.97
        top = rng.lognormal(0, 0.5, (n, runs)) * pairs
        low, high = ratio_interval(top, np.broadcast_to(pairs, top.shape), domain, 1)
        truth = np.exp(0.125)
        assert 0.93 <= np.mean((low[1] <= truth) & (truth <= high[1])) <= 0.97


def test_even_blocks_give_students_t():
    top = np.array([1.0, 2.0, 4.0, 6.0, 7.0])
    low, high = ratio_interval(top, np.full(5, 2.0), np.zeros(5, np.int64), 1)
    half = 2.7764 * np.std(top, ddof=1) / np.sqrt(5) / 2
    assert [low[1], high[1]] == pytest.approx([2 - half, 2 + half], abs=1e-3)


def test_strata_are_covered_together():
    """Domains of other loads and sizes, whose mix is given."""
    rng, runs, E = np.random.default_rng(4), 400, 8
    sizes, shares = (20, 40, 12), [np.roll(true_shares(E, 1, "skewed"), 3 * d, axis=1) for d in range(3)]
    counts = np.concatenate([simulate(p, n, runs, None, rng) for p, n in zip(shares, sizes, strict=True)])
    domain = np.repeat(np.arange(3), sizes)
    tokens = np.array([counts[domain == d].sum((0, 2))[0] for d in range(3)])
    truth = (tokens[:, None] * np.concatenate(shares)).sum(0) / tokens.sum()
    low, high = share_interval(counts, domain, 3, 1)
    assert 0.93 <= np.mean((low[0] <= truth) & (truth <= high[0])) <= 0.97


def obvious_bootstrap(statistic, counts_XE, n_resamples, seed):
    """Draw blocks, add them up, compute, sort."""
    rng = np.random.default_rng(seed)
    X = len(counts_XE)
    drawn = [statistic(counts_XE[rng.integers(0, X, X)].sum(0)) for _ in range(n_resamples)]
    return np.quantile(drawn, [0.025, 0.975], axis=0)


def test_agrees_with_an_obvious_bootstrap_where_that_is_right():
    """Loads far from even, many blocks, little noise."""
    counts = simulate(true_shares(8, 1, "skewed"), 64, 1, 4.0, np.random.default_rng(6), tokens=4096)
    domain = np.zeros(64, np.int64)
    found = load_intervals(counts, domain, 1, 1, resample_weights(64, 2000))
    for key in ("max_over_mean", "max_vio", "cv", "kl_uniform", "entropy", "entropy_normalized", "effective_experts"):
        expected = obvious_bootstrap(getattr(load, key), counts[:, 0], 2000, seed=0)
        np.testing.assert_allclose([found[key][0][1, 0], found[key][1][1, 0]], expected, atol=0.13 * np.ptp(expected), err_msg=key)
    expected = obvious_bootstrap(lambda n_E: n_E / n_E.sum(), counts[:, 0], 2000, seed=0)
    low, high = share_interval(counts, domain, 1, 1)
    np.testing.assert_allclose([low[1, 0], high[1, 0]], expected, atol=0.13 * np.ptp(expected, axis=0).max())
    low, high = ratio_interval(counts[:, :, 0], counts.sum(-1), domain, 1)
    np.testing.assert_allclose([low[1, 0], high[1, 0]], expected[:, 0], atol=0.13 * np.ptp(expected[:, 0]))


@pytest.mark.parametrize("kind", ["even", "skewed"])
def test_tested_interval_is_what_one_test_at_a_time_finds(kind):
    counts = simulate(true_shares(8, 1, kind), 30, 1, 1.0, np.random.default_rng(8))[:, 0]
    weights = resample_weights(30, 400)
    low, high = (bound[1, 0] for bound in load_intervals(counts[:, None], np.zeros(30, np.int64), 1, 1, weights)["cv"])
    r = counts.sum(0) * 8 / counts.sum()
    noise_RE = np.array([(w - 1) @ (counts * 8 - counts.sum(1, keepdims=True) * r) for w in weights]) / counts.sum() * np.sqrt(30 / 29)
    tail = NormalDist().cdf(-2.0452)  # Student's t of 29 degrees
    accepted = [
        t * np.std(r)
        for t in np.linspace(0, 3, 301)
        if tail <= np.mean([np.sqrt(np.mean((t * (r - 1) + noise_RE) ** 2, axis=1)) <= np.std(r)]) <= 1 - tail
    ]
    assert [low, high] == pytest.approx([min(accepted), max(accepted)], abs=0.03 * np.std(r))


@pytest.fixture(scope="module")
def sample():
    """Three domains of 20, 9 and 30 blocks, five layers of eight experts, two slots."""
    rng = np.random.default_rng(9)
    counts = np.concatenate([simulate(true_shares(8, 2, "skewed"), n, 5, 2.0, rng) for n in (20, 9, 30)])
    return counts, np.repeat(np.arange(3), (20, 9, 30))


def all_intervals(counts, domain, n_domains=3, top_k=2, n_resamples=100):
    found = load_intervals(counts, domain, n_domains, top_k, resample_weights(len(domain), n_resamples))
    return {**found, "share": share_interval(counts, domain, n_domains, top_k)}


def test_shapes_and_order(sample):
    found = all_intervals(*sample)
    assert found.keys() == {*LOAD_KEYS, "share"}
    for key, (low, high) in found.items():
        assert low.shape == high.shape == ((4, 5, 8) if key == "share" else (4, 5))
        assert (low <= high).all(), key
    metrics = load.max_vio(sample[0][sample[1] == 1].sum(0))
    assert (found["max_vio"][0][2] <= metrics).all()
    assert (metrics <= found["max_vio"][1][2]).all()


def test_a_domain_alone_has_the_same_interval(sample):
    counts, domain = sample
    together = share_interval(counts, domain, 3, 2)
    alone = share_interval(counts[domain == 1], np.zeros(9, np.int64), 1, 2)
    for bound in (0, 1):
        np.testing.assert_allclose(together[bound][2], alone[bound][1], rtol=1e-12)
        np.testing.assert_allclose(alone[bound][0], alone[bound][1], rtol=1e-12)


def test_equal_seeds_give_equal_bits(sample):
    first, second = all_intervals(*sample), all_intervals(*sample)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert np.array_equal(resample_weights(7, 5, 3), resample_weights(7, 5, 3))
    assert not np.array_equal(resample_weights(7, 5, 3), resample_weights(7, 5, 4))


def test_chunks_change_nothing(sample, monkeypatch):
    whole = all_intervals(*sample)
    monkeypatch.setattr(intervals, "_CHUNK", 1)  # a layer at a time
    for key, interval in all_intervals(*sample).items():
        np.testing.assert_allclose(interval, whole[key], rtol=1e-9, atol=1e-12, err_msg=key)


def test_order_of_experts_changes_nothing(sample):
    counts, domain = sample
    order = np.random.default_rng(0).permutation(8)
    whole, shuffled = all_intervals(counts, domain), all_intervals(counts[..., order], domain)
    for key in LOAD_KEYS:
        np.testing.assert_allclose(shuffled[key], whole[key], rtol=1e-9, atol=1e-12, err_msg=key)
    np.testing.assert_allclose(shuffled["share"], np.array(whole["share"])[..., order], rtol=1e-9)


def test_more_text_means_narrower():
    counts = simulate(true_shares(8, 1, "skewed"), 64, 20, 1.0, np.random.default_rng(2))
    few, many = (all_intervals(counts[:n], np.zeros(n, np.int64), 1, 1) for n in (10, 64))
    for key in set(LOAD_KEYS) - {"dead_experts", "cold_experts", "chi2"}:
        assert np.mean(many[key][1][1] - many[key][0][1]) < 0.8 * np.mean(few[key][1][1] - few[key][0][1]), key


def test_an_even_router_may_be_balanced():
    counts = np.full((30, 1, 8), 40) + np.random.default_rng(0).integers(-9, 10, (30, 1, 8))
    found = all_intervals(counts, np.zeros(30, np.int64), 1, 1)
    for key in ("max_vio", "cv", "kl_uniform", "gini", "tv_uniform", "chi2", "top_quarter_share"):
        low, high = found[key][0][1, 0], found[key][1][1, 0]
        even = 0.25 if key == "top_quarter_share" else 0
        assert low == pytest.approx(even, abs=1e-12), key
        assert high > even, key
    assert found["entropy_normalized"][1][1, 0] == pytest.approx(1)
    assert found["min_over_mean"][1][1, 0] == 1


def test_luckily_equal_counts_are_not_certainly_even():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 80, (10, 1, 8))
    counts = np.concatenate([counts, 80 - counts])  # every expert 800 times, the blocks far from even
    found = all_intervals(counts, np.zeros(20, np.int64), 1, 1)
    for key in ("max_vio", "cv", "kl_uniform", "gini", "tv_uniform"):
        assert found[key][0][1, 0] == pytest.approx(0, abs=1e-12)
        assert found[key][1][1, 0] > 0.005, key
    assert found["top_quarter_share"][0][1, 0] == pytest.approx(0.25, abs=1e-12)
    assert found["top_quarter_share"][1][1, 0] > 0.255
    counts[0, 0, :2] += [1, -1]
    nearly = all_intervals(counts, np.zeros(20, np.int64), 1, 1)
    for key in ("cv", "kl_uniform"):
        assert nearly[key][1][1, 0] > 0.2 * found[key][1][1, 0], key


def test_an_unseen_expert_may_live_and_a_seen_one_is_not_dead():
    counts = np.full((20, 1, 4), 50) + np.random.default_rng(0).integers(-20, 20, (20, 1, 4))
    counts[:, :, 2] = 0
    found = all_intervals(counts, np.zeros(20, np.int64), 1, 1)
    low, high = (bound[1, 0] for bound in found["share"])
    assert low[2] == 0
    assert 0 < high[2] < 0.01
    assert [bound[1, 0] for bound in found["dead_experts"]] == [0, 1]
    assert [bound[1, 0] for bound in found["cold_experts"]] == [1, 1]
    assert found["min_over_mean"][0][1, 0] == 0
    assert 0 < found["min_over_mean"][1][1, 0] < 0.1


def test_all_experts_always_leave_nothing_to_chance():
    counts = np.repeat(np.random.default_rng(0).integers(20, 90, (12, 2, 1)), 4, axis=2)
    found = all_intervals(counts, np.zeros(12, np.int64), 1, 4)
    for key in ("max_vio", "cv", "kl_uniform", "gini", "tv_uniform", "chi2", "dead_experts", "cold_experts"):
        np.testing.assert_allclose(found[key], 0, atol=1e-9, err_msg=key)
    np.testing.assert_allclose(found["share"], 0.25, atol=1e-12)
    np.testing.assert_allclose(found["top_quarter_share"], 0.25, atol=1e-12)


def test_a_ratio_at_its_edge_is_not_certain():
    pairs = np.full((20, 1), 100)
    low, high = ratio_interval(pairs * 0, pairs, np.zeros(20, np.int64), 1, proportion=True)
    assert low[1, 0] == 0
    assert high[1, 0] == pytest.approx(1.96**2 / 2000, rel=0.01)
    low, high = ratio_interval(pairs, pairs, np.zeros(20, np.int64), 1, proportion=True)
    assert high[1, 0] == 1
    assert low[1, 0] == pytest.approx(1 - 1.96**2 / 2000, rel=0.01)


@pytest.mark.parametrize("blocks", [0, 1])
def test_too_little_has_no_interval(blocks):
    counts, domain = np.ones((blocks, 2, 4), np.int64), np.zeros(blocks, np.int64)
    for interval in (*all_intervals(counts, domain, 2, 1).values(), ratio_interval(counts, counts, domain, 2)):
        assert np.isnan(interval).all()


def test_rows_without_load_or_with_one_block_are_nan_and_touch_no_other(sample):
    counts, domain = sample
    counts = np.concatenate([counts, counts[:1]])
    domain = np.concatenate([domain, [4]])  # domain 3 is empty, domain 4 has one block
    counts[:, 2] = 0  # a layer that ran nothing
    whole, found = all_intervals(*sample), all_intervals(counts, domain, 5)
    for key in (*LOAD_KEYS, "share"):
        interval = np.array(found[key])
        assert np.isnan(interval[:, 4:]).all(), key
        assert np.isnan(interval[:, :, 2]).all(), key
        assert np.isfinite(np.delete(interval[:, :4], 2, axis=2)).all(), key
    expected = np.delete(np.array(whole["share"])[:, 1:], 2, axis=2)
    np.testing.assert_allclose(np.delete(np.array(found["share"])[:, 1:4], 2, axis=2), expected, rtol=1e-12)
    low, high = ratio_interval(counts[..., 0], counts.sum(-1), domain, 5)
    assert np.isnan(low[4:]).all()
    assert np.isnan(high[:, 2]).all()


def test_domains_of_one_block_are_not_taken_for_certain():
    """Five texts of five domains: nothing says how much each varies, so their differences have to."""
    counts = simulate(true_shares(8, 1, "even"), 5, 1, 1.0, np.random.default_rng(0))
    each = share_interval(counts, np.arange(5), 5, 1)
    as_one = share_interval(counts, np.zeros(5, np.int64), 1, 1)
    np.testing.assert_allclose([each[0][0], each[1][0]], [as_one[0][0], as_one[1][0]], rtol=1e-12)
    assert np.isnan(each[0][1:]).all()


def test_few_blocks_have_no_resampled_interval_but_the_others():
    counts = simulate(true_shares(8, 1, "skewed"), 4, 1, 1.0, np.random.default_rng(0))
    found = all_intervals(counts, np.zeros(4, np.int64), 1, 1)
    without = {key for key in found if np.isnan(found[key]).any()}
    assert without == {"cv", "chi2", "kl_uniform", "entropy", "entropy_normalized", "effective_experts"}


# Abramowitz and Stegun, table 26.10.
@pytest.mark.parametrize(
    ("tail", "n", "t"),
    [
        (0.025, 1, 12.706),
        (0.025, 2, 4.303),
        (0.025, 3, 3.182),
        (0.025, 9, 2.262),
        (0.025, 63, 1.998),
        (0.0005, 5, 6.869),
        (0.01, 19, 2.539),
    ],
)
def test_students_t(tail, n, t):
    assert limits._student(tail, n) == pytest.approx(t, abs=6e-4)
