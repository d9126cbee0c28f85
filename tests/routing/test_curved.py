"""Intervals of curved functions against loops that delete a block at a time, and against routers whose truth is known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from simulated_routers import simulate_sequences, to_blocks, true_shares

from moectl.routing import curved
from moectl.routing.curved import any_overlap_load_aware_interval, balance_loss_interval, domain_intervals
from moectl.routing.intervals import ratio_interval
from moectl.routing.limits import student_t
from moectl.routing.metrics import conditional_poisson, domains, load, losses, temporal

BITS = ("domain_information_bits", "domain_jsd_bits")
MIX = 0.3  # the part of a token's scores that its own picks have


# Known truth.


def skewed_scores(E):
    return true_shares(E, 1, "skewed").ravel()[::-1]


def simulate_scored(shares, scores_E, n_sequences, L, topics, rng):
    """counts and score sums [X, L, E], tokens [X, L]. Scores follow the loads, or have their own mean `scores_E`."""
    K = len(shares)
    counts_NLE, chances_NLE, tokens_N = simulate_sequences(shares, n_sequences, L, topics, rng)
    own_NLE = chances_NLE / K
    if scores_E is not None:
        own_NLE = rng.dirichlet(8.0 * len(scores_E) * scores_E, (n_sequences, L))
    scores_NLE = (1 - MIX) * own_NLE * tokens_N[:, None, None] + MIX * counts_NLE / K
    return to_blocks(counts_NLE), to_blocks(scores_NLE), to_blocks(np.repeat(tokens_N[:, None], L, axis=1))


def misses(truth, interval):
    """Percent of runs with the truth below the interval, above it."""
    low, high = interval
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    return 100 * np.array([np.mean(truth < low - 1e-9), np.mean(truth > high + 1e-9)])


def missed(runs, n_sequences, E, K, topics, seed):
    """{(metric, router): [percent below, above]}."""
    rng, found = np.random.default_rng(seed), {}
    for loads, scores in (("even", "as loads"), ("even", "skewed"), ("skewed", "as loads"), ("skewed", "skewed")):
        shares, scores_E = true_shares(E, K, loads), None if scores == "as loads" else skewed_scores(E)
        counts, sums, tokens = simulate_scored(shares, scores_E, n_sequences, runs, topics, rng)
        domain_X, f_E = np.zeros(len(counts), np.int64), shares.ravel() / K
        p_E = f_E if scores_E is None else (1 - MIX) * scores_E + MIX * f_E
        low, high = balance_loss_interval(counts, sums, tokens, domain_X, 1, K)
        found["balance_loss", f"{loads}, scores {scores}"] = misses(E * (f_E * p_E).sum(), (low[1], high[1]))
        if scores == "as loads":
            low, high = any_overlap_load_aware_interval(counts, tokens, domain_X, 1, K)
            truth = 1 - np.exp(-conditional_poisson.surprise_of_disjoint(shares.ravel()[None], K)[0][0])
            found["any_overlap_load_aware", loads] = misses(truth, (low[1], high[1]))
    for differ in ("alike", "differ"):
        step = 0 if differ == "alike" else max(1, E // K // 4)
        three = [np.roll(true_shares(E, K, "skewed"), step * d, axis=1) for d in range(3)]
        counts = np.concatenate([simulate_scored(shares, None, n_sequences, runs, topics, rng)[0] for shares in three])
        exact_DE = np.round(np.stack([shares.ravel() for shares in three]) / K * 2**52).astype(np.int64)
        intervals = domain_intervals(counts, np.repeat(np.arange(3), len(counts) // 3), 3, K)
        for key in BITS:
            found[key, differ] = misses(float(getattr(domains, key)(exact_DE)), intervals[key])
    return found


# One side misses 2.5 % if all is right; 200 runs have a standard error of 1.1 %.
@pytest.mark.parametrize("topics", [None, 1.0])
@pytest.mark.parametrize(("n_sequences", "E", "K"), [(20, 8, 1), (64, 8, 4), (20, 64, 4)])
def test_coverage(n_sequences, E, K, topics):
    found = missed(100 if E == 64 else 200, n_sequences, E, K, topics, seed=1)
    for key, both in found.items():
        assert both.max() <= 8, key
        assert both.sum() <= 10, key
    if topics is None:  # far from flat they have no reason to be wider than they need to be
        assert sum(both.sum() for key, both in found.items() if "even" not in key[1] and "alike" not in key[1]) > 5


@pytest.mark.soak
@pytest.mark.parametrize("topics", [None, 4.0, 1.0])
@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("E", [8, 64])
@pytest.mark.parametrize("n_sequences", [6, 20, 64, 200])
def test_coverage_in_full(n_sequences, E, K, topics):
    for key, both in missed(500, n_sequences, E, K, topics, seed=2).items():
        assert both.sum() <= 8.5, key


def test_the_mean_max_vio_of_micro_batches_is_covered():
    """Of even and of skewed routers; `ratio_interval` on a mean of few, skewed numbers."""
    rng, runs = np.random.default_rng(7), 1000
    for kind in ("even", "skewed"):
        vio_R = load.max_vio(simulate_sequences(true_shares(8, 1, kind), 60000, 1, 1.0, rng)[0].reshape(20000, 3, 8).sum(1))
        for n in (6, 20):
            vio_NL = rng.choice(vio_R, (n, runs))
            interval = ratio_interval(vio_NL, np.ones((n, runs), np.int64), np.zeros(n, np.int64), 1)
            assert 0.93 <= np.mean((interval[0][1] <= vio_R.mean()) & (vio_R.mean() <= interval[1][1])) <= 0.97


# Definitions as loops.


def obvious_interval(value, sums_X, size_X, domain_X, deleted=True):
    """Of `value(sums)`, with the text of each domain given. Second derivatives by differences; [low, high]."""
    X, total = len(sums_X), size_X.sum()
    sums = sums_X.sum(0) / total
    moves, influence, estimate = np.zeros(sums_X.shape), np.zeros(X), value(sums)
    for domain in np.unique(domain_X):
        inside = np.flatnonzero(domain_X == domain)
        n, size = len(inside), size_X[inside].sum()
        without = np.zeros(n)
        for i, block in enumerate(inside):
            others = np.setdiff1d(inside, [block])
            scaled = sums_X[others].sum(0) * size / size_X[others].sum()
            without[i] = value((sums_X[domain_X != domain].sum(0) + scaled) / total)
            moves[block] = (sums_X[block] - sums_X[inside].sum(0) / size * size_X[block]) / total * np.sqrt(n / (n - 1))
        estimate -= (n - 1) * (without.mean() - value(sums))
        influence[inside] = (without.mean() - without) * np.sqrt((n - 1) / n)
    second = hessian(value, sums)
    pairs = np.array([[0.0 if a == b else moves[a].ravel() @ second @ moves[b].ravel() for b in range(X)] for a in range(X)])
    squares, variance = (pairs**2).sum(), (influence**2).sum()
    growth = 2 * influence @ pairs @ influence / variance
    (t,) = student_t(0.025, np.array([degrees(influence, domain_X)]))
    # x with (x - estimate)^2 = t^2 (variance + growth (x - estimate)), by bisection; why so is in `jackknife`.
    near, least = t * np.sqrt(max(variance, squares / 2)), max(variance - squares / 2, squares / 2)
    far_low, far_high = near, 1e9
    for _ in range(200):
        middle = (far_low + far_high) / 2
        if middle**2 < t**2 * (least + abs(growth) * middle):
            far_low = middle
        else:
            far_high = middle
    return [estimate - (far_low if growth < 0 else near), estimate + (far_low if growth > 0 else near)]


def hessian(value, at, h=1e-4):
    flat = at.ravel()
    result = np.zeros((len(flat), len(flat)))
    for i in range(len(flat)):
        for j in range(len(flat)):
            e, d = np.zeros(len(flat)), np.zeros(len(flat))
            e[i], d[j] = h * flat[i], h * flat[j]
            four = [value((flat + a * e + b * d).reshape(at.shape)) * a * b for a in (1, -1) for b in (1, -1)]
            result[i, j] = sum(four) / (4 * e[i] * d[j]) if flat[i] * flat[j] > 0 else 0.0
    return result


def degrees(influence, domain_X):
    groups = [(influence[domain_X == domain] ** 2).sum() for domain in np.unique(domain_X)]
    sizes = [(domain_X == domain).sum() - 1 for domain in np.unique(domain_X)]
    return int(sum(groups) ** 2 / sum(v**2 / n for v, n in zip(groups, sizes, strict=True)) + 1e-9)


@pytest.fixture(scope="module")
def sample():
    """Three domains of 9, 5 and 12 blocks of unequal size, four layers of four experts, two slots; loads and scores differ."""
    rng = np.random.default_rng(9)
    parts = [simulate_scored(np.roll(true_shares(4, 2, "skewed"), d, 1), None, n, 4, 2.0, rng) for d, n in enumerate((9, 5, 12))]
    counts, sums, tokens = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return counts, sums, tokens, np.repeat(np.arange(3), (9, 5, 12))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]], ids=["as loads", "against them"])
def test_balance_loss_is_what_a_loop_finds(sample, order):
    """Scores against the loads have their limit of the growing variance below."""
    counts, sums, tokens, domain_X = sample
    sums = sums[..., order]
    low, high = balance_loss_interval(counts, sums, tokens, domain_X, 3, 2)
    for row, inside in enumerate([domain_X >= 0, *(domain_X == domain for domain in range(3))]):
        for layer in range(4):
            blocks = np.stack([counts[inside, layer] / 2, sums[inside, layer]], axis=1)
            expected = obvious_interval(lambda v: 4 * (v[0] * v[1]).sum(), blocks, tokens[inside, layer], domain_X[inside])
            expected = np.clip(expected, 0, 2)
            assert [low[row, layer], high[row, layer]] == pytest.approx(expected, rel=1e-6)
            value = losses.balance_loss(counts[inside, layer].sum(0), sums[inside, layer].sum(0), tokens[inside, layer].sum(), 2)
            assert low[row, layer] < value < high[row, layer]


def entropy(p):
    p = p[p > 0]
    return -(p * np.log2(p)).sum()


def information(p_DE):
    p_DE = p_DE / p_DE.sum(1, keepdims=True)
    return entropy(p_DE.mean(0)) - np.mean([entropy(p) for p in p_DE])


def jsd(p_DE):
    return np.mean([information(p_DE[list(pair)]) for pair in combinations(range(len(p_DE)), 2)])


def test_domain_figures_are_what_a_loop_finds(sample):
    counts, _, _, domain_X = sample
    found = domain_intervals(counts, domain_X, 3, 2)
    for key, value in zip(BITS, (information, jsd), strict=True):
        for layer in range(4):
            slots = counts[:, layer].sum(1)
            by_domain = np.zeros((len(counts), 3, 4))
            by_domain[np.arange(len(counts)), domain_X] = counts[:, layer]
            expected = np.clip(obvious_interval(value, by_domain, slots, domain_X), 0, 1)
            assert [bound[layer] for bound in found[key]] == pytest.approx(expected, rel=1e-4, abs=1e-7), key


def test_any_overlap_is_near_what_deleting_finds():
    rng = np.random.default_rng(3)
    counts_NLE, _, _ = simulate_sequences(true_shares(12, 3, "skewed"), 64, 1, 4.0, rng)
    tokens = counts_NLE.sum(-1) // 3

    def surprise(counts_E):
        return -np.log1p(-temporal.any_overlap_load_aware(counts_E, counts_E.sum() // 3, 3))

    without = np.array([surprise(counts_NLE[np.arange(64) != block, 0].sum(0)) for block in range(64)])
    estimate = surprise(counts_NLE[:, 0].sum(0)) - 63 * (without.mean() - surprise(counts_NLE[:, 0].sum(0)))
    half = student_t(0.025, np.array([63]))[0] * np.sqrt(63 * np.var(without))
    low, high = any_overlap_load_aware_interval(counts_NLE, tokens, np.zeros(64, np.int64), 1, 3)
    low, high = -np.log1p(-low[1, 0]), -np.log1p(-high[1, 0])
    assert low == pytest.approx(estimate - half, abs=0.05 * half)
    assert estimate + half < high < estimate + 1.2 * half


# Edges.


def all_intervals(counts, sums, tokens, domain_X, n_domains=3, top_k=2):
    return {
        "balance_loss": balance_loss_interval(counts, sums, tokens, domain_X, n_domains, top_k),
        "any_overlap_load_aware": any_overlap_load_aware_interval(counts, tokens, domain_X, n_domains, top_k),
        **domain_intervals(counts, domain_X, n_domains, top_k),
    }


def test_chunks_change_nothing(sample, monkeypatch):
    whole = all_intervals(*sample)
    monkeypatch.setattr(curved, "_CHUNK", 1)
    monkeypatch.setattr(conditional_poisson, "_PRODUCT_NUMBERS", 1)
    monkeypatch.setattr(conditional_poisson, "_ROWS_AT_ONCE", 1)
    for key, interval in all_intervals(*sample).items():
        np.testing.assert_allclose(interval, whole[key], rtol=1e-6, err_msg=key)


def test_the_order_of_experts_and_the_unit_of_scores_change_nothing(sample):
    counts, sums, tokens, domain_X = sample
    whole, order = all_intervals(*sample), [2, 0, 3, 1]
    for key, interval in all_intervals(counts[..., order], sums[..., order], tokens, domain_X).items():
        np.testing.assert_allclose(interval, whole[key], rtol=1e-6, err_msg=key)
    in_units = balance_loss_interval(counts, sums * 1024, tokens, domain_X, 3, 2, unit=1 / 1024)
    np.testing.assert_allclose(in_units, whole["balance_loss"], rtol=1e-9)


def test_a_domain_alone_has_the_same_interval(sample):
    inside = sample[3] == 1
    alone = all_intervals(*(array[inside] for array in sample[:3]), np.zeros(5, np.int64), 1)
    whole = all_intervals(*sample)
    for key in ("balance_loss", "any_overlap_load_aware"):
        np.testing.assert_allclose(np.array(alone[key])[:, 1], np.array(whole[key])[:, 2], rtol=1e-6, err_msg=key)
    assert np.isnan([alone[key] for key in BITS]).all()


def test_more_of_one_domain_does_not_move_the_others(sample):
    """In `domain_*` every domain weighs the same, whatever its length."""
    counts, _, _, domain_X = sample
    longer = np.where(domain_X[:, None, None] == 2, 5, 1) * counts
    for key, interval in domain_intervals(longer, domain_X, 3, 2).items():
        np.testing.assert_allclose(interval, domain_intervals(counts, domain_X, 3, 2)[key], rtol=1e-9)


def test_equal_blocks_are_certain():
    counts, tokens, domain_X = np.tile([[30, 20, 30, 20]], (12, 1, 1)), np.full((12, 1), 50), np.repeat([0, 1, 2], 4)
    for key, interval in all_intervals(counts, counts / 2.0, tokens, domain_X).items():
        bounds = np.array(interval).reshape(2, -1)
        np.testing.assert_allclose(bounds[0], bounds[1], atol=1e-6, err_msg=key)


def test_luckily_flat_loads_are_not_certain():
    """Even in all, the same in both domains, though no two blocks are alike."""
    rng = np.random.default_rng(1)
    counts = rng.multinomial(80, np.full(8, 0.125), (10, 1))
    counts = np.concatenate([counts, 20 - counts, counts, 20 - counts])
    tokens, domain_X = counts.sum(-1), np.repeat([0, 1], 20)
    found = all_intervals(counts, counts / 1.0, tokens, domain_X, 2, 1)
    for row in range(3):
        low, high = (bound[row, 0] for bound in found["balance_loss"])
        assert low < 0.9998
        assert high > 1.0002
        low, high = (bound[row, 0] for bound in found["any_overlap_load_aware"])
        assert low == 0.125
        assert high > 0.1252
    for key in BITS:
        assert found[key][0][0] == 0
        assert found[key][1][0] > 1e-4, key


def test_too_few_blocks_have_none(sample):
    counts, sums, tokens, domain_X = sample
    for n, known in ((0, False), (1, False), (2, False), (3, True)):
        few = np.flatnonzero(domain_X == 0)[:n]
        found = all_intervals(counts[few], sums[few], tokens[few], np.zeros(n, np.int64), 1)
        for key in ("balance_loss", "any_overlap_load_aware"):
            assert np.isfinite(found[key]).all() == known, (key, n)
            assert np.isnan(found[key]).all() != known, (key, n)
    keep = (domain_X != 1) | (np.arange(len(domain_X)) == 9)  # one block of the second domain: nothing tells how much that varies
    found = all_intervals(*(array[keep] for array in sample))
    assert np.isnan([found[key] for key in BITS]).all()
    assert np.isfinite(np.array(found["balance_loss"])[:, [0, 1, 3]]).all()
    assert np.isnan(np.array(found["balance_loss"])[:, 2]).all()


def test_layers_without_load_are_nan_and_touch_no_other(sample):
    counts, sums, tokens, domain_X = (array.copy() for array in sample)
    counts[:, 1], sums[:, 1], tokens[:, 1] = 0, 0, 0
    counts[0, 2, 0] -= 1  # a slot that ran nothing
    counts[domain_X == 2, 3] = 0  # a domain without load
    whole, found = all_intervals(*sample), all_intervals(counts, sums, tokens, domain_X)
    for key, interval in found.items():
        bounds = np.array(interval).reshape(2, -1, 4)
        assert np.isnan(bounds[:, :, 1]).all(), key
        np.testing.assert_allclose(bounds[:, :, 0], np.array(whole[key]).reshape(2, -1, 4)[:, :, 0], rtol=1e-6, err_msg=key)
    assert np.isnan(np.array(found["any_overlap_load_aware"])[:, :2, 2]).all()
    assert np.isfinite(np.array(found["any_overlap_load_aware"])[:, 2:, 2]).all()
    assert np.isnan([np.array(found[key])[:, 3] for key in BITS]).all()
    # All load of a domain in one block: nothing is left without it.
    counts[domain_X == 1, 2] *= (np.arange(5) == 0)[:, None]
    assert np.isnan([np.array(domain_intervals(counts, domain_X, 3, 2)[key])[:, 2] for key in BITS]).all()


def test_a_domain_without_tokens_leaves_all_text_its_interval(sample):
    counts, sums, tokens, domain_X = (array.copy() for array in sample)
    for array in (counts, sums, tokens):
        array[domain_X == 1] = 0
    whole, keep = all_intervals(counts, sums, tokens, domain_X), domain_X != 1
    without = all_intervals(counts[keep], sums[keep], tokens[keep], domain_X[keep])
    for key in ("balance_loss", "any_overlap_load_aware"):
        np.testing.assert_allclose(np.array(whole[key])[:, [0, 1, 3]], np.array(without[key])[:, [0, 1, 3]], rtol=1e-6, err_msg=key)
        assert np.isnan(np.array(whole[key])[:, 2]).all()


def test_all_experts_always_leave_nothing_to_chance():
    tokens = np.random.default_rng(0).integers(20, 90, (12, 2))
    counts = np.repeat(tokens[..., None], 4, axis=2)
    scores = np.random.default_rng(1).dirichlet(np.ones(4), (12, 2)) * tokens[..., None]
    found = all_intervals(counts, scores, tokens, np.repeat([0, 1], 6), 2, 4)
    for key, expected in (("balance_loss", 1), ("any_overlap_load_aware", 1), *((key, 0) for key in BITS)):
        np.testing.assert_allclose(found[key], expected, atol=1e-9, err_msg=key)


def test_large_sets_always_meet(sample):
    counts, _, _, domain_X = sample
    most = counts.max(axis=-1, keepdims=True).repeat(4, axis=2) * 3  # three slots of four experts
    low, high = any_overlap_load_aware_interval(most, most.sum(-1) // 3, domain_X, 3, 3)
    assert (low == 1).all()
    assert (high == 1).all()
