"""What experts are for: domains, tasks, tokens and classes of tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moectl.routing.metrics import vocabulary
from moectl.routing.metrics.load import top_share
from moectl.routing.metrics.specialisation import (
    domain_lift,
    domain_specialisation,
    expert_domain_entropy,
    expert_set,
    expert_set_overlap,
    gate_score,
    in_expert_set,
    task_sets,
    token_score,
)


def picks(n_domains=3, n_experts=6, top_k=2, seed=0):
    """Counts [D, E] and tokens [D] of random sets of K."""
    rng = np.random.default_rng(seed)
    tokens_D = rng.integers(5, 40, n_domains)
    counts_DE = np.zeros((n_domains, n_experts), np.int64)
    for d, T in enumerate(tokens_D):
        for _ in range(T):
            counts_DE[d, rng.choice(n_experts, top_k, replace=False)] += 1
    return counts_DE, tokens_D


def test_domain_specialisation_sums_to_k_and_lift_averages_to_1():
    counts_DE, tokens_D = picks()
    ds_DE, lift_DE = domain_specialisation(counts_DE, tokens_D), domain_lift(counts_DE, tokens_D)
    assert ds_DE.sum(1) == pytest.approx(2)
    for d, T in enumerate(tokens_D):
        for e in range(6):
            assert ds_DE[d, e] == counts_DE[d, e] / T
            assert lift_DE[d, e] == pytest.approx((counts_DE[d, e] / T) / (counts_DE[:, e].sum() / tokens_D.sum()))
    assert (lift_DE * tokens_D[:, None]).sum(0) / tokens_D.sum() == pytest.approx(1)
    assert domain_lift(np.stack([counts_DE, counts_DE[:, ::-1]]), tokens_D)[0] == pytest.approx(lift_DE)


def test_domains_weigh_the_same_in_the_entropy_of_an_expert():
    counts_DE, tokens_D = np.array([[30, 0, 60, 0], [1, 2, 0, 0]]), np.array([60, 2])
    entropy_E = expert_domain_entropy(counts_DE, tokens_D)
    assert entropy_E[:3].tolist() == [1, 0, 0]  # half of the tokens of either domain; then one domain each
    assert math.isnan(entropy_E[3])
    counts_DE, tokens_D = picks()
    for e, found in enumerate(expert_domain_entropy(counts_DE, tokens_D)):
        q = [n / T for n, T in zip(counts_DE[:, e], tokens_D, strict=True)]
        q = [x / sum(q) for x in q if x]
        assert found == pytest.approx(-sum(x * math.log(x) for x in q) / math.log(3))


def test_what_cannot_be_compared_is_nan():
    counts_DE, tokens_D = np.array([[3, 1], [0, 0]]), np.array([2, 0])
    assert np.isnan(domain_specialisation(counts_DE, tokens_D)[1]).all()
    assert np.isnan(domain_lift(counts_DE, tokens_D)[1]).all()
    assert np.isnan(expert_domain_entropy(counts_DE, tokens_D)).all()
    assert np.isnan(expert_domain_entropy(counts_DE[:1], tokens_D[:1])).all()
    assert np.isnan(token_score(np.zeros(3, np.int64), np.array(0), 2)).all()


def test_scores_of_a_task():
    counts_LE, tokens = np.array([[6, 2, 0], [4, 0, 4]]), 4
    assert token_score(counts_LE, np.array(tokens), 2).tolist() == [[0.75, 0.25, 0], [0.5, 0, 0.5]]
    assert token_score(counts_LE, np.array([4, 4]), 2).sum(1).tolist() == [1, 1]
    assert gate_score(np.array([2.0, 1.0, 0.0]), np.array(tokens)).tolist() == [0.5, 0.25, 0]


def test_the_smallest_set_that_reaches_its_share():
    scores_E = np.array([0.125, 0.5, 0.0, 0.25, 0.125])
    for top_p, expected in ((0.2, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3, 0]), (1.0, [1, 3, 0, 4]), (1.5, [1, 3, 0, 4, 2])):
        assert expert_set(scores_E, top_p=top_p).tolist() == expected
    assert expert_set(np.full(3, np.nan), top_p=0.2).tolist() == []


@pytest.mark.parametrize("values", [[0.0, 0.125], [0.0, 0.03, 0.07, 0.5], [0.3, np.nan]])
def test_being_in_a_set_is_the_set(values):
    scores_RE = np.random.default_rng(0).choice(values, (200, 7))
    for top_p in (0.1, 0.125, 0.3, 0.5, 2.0):
        members_RE = in_expert_set(scores_RE, top_p=top_p)
        assert [set(np.flatnonzero(row)) for row in members_RE] == [set(expert_set(row, top_p=top_p).tolist()) for row in scores_RE]
        assert (in_expert_set(scores_RE, top_p=np.full(200, top_p)) == members_RE).all()


@pytest.mark.parametrize("n_experts", [5, 10, 50, 160, 1000])
def test_no_rounding_decides_where_even_loads_reach_the_sum_exactly(n_experts):
    counts_E = np.full(n_experts, 7)
    by_token_E, by_gate_E = task_sets(counts_E, np.zeros(n_experts))
    assert np.flatnonzero(by_token_E).tolist() == list(range(n_experts // 5))
    assert by_gate_E.all(), "all of them where the sum is out of reach"
    assert not np.any(task_sets(0 * counts_E, np.zeros(n_experts)))


def test_sets_overlap_by_what_either_has():
    members_DE = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    found_P = expert_set_overlap(members_DE)
    assert found_P[[0, 2, 4]].tolist() == [2 / 3, 0, 0]
    assert np.isnan(found_P[[1, 3, 5]]).all(), "an empty set"
    assert expert_set_overlap(members_DE[:1]).shape == (0,)


def test_a_published_set():
    """ESFT on DeepSeek-V2-Lite, law, layer 13, p = 0.2: deepseek-ai/ESFT, results/expert_scores/law and expert_configs/law.json."""
    counts_E = np.array([
        465, 921, 1314, 629, 62, 1100, 1281, 801, 1776, 296, 725, 1185, 390, 429, 1113, 783, 1312, 593, 652, 99, 343, 1005, 530, 356, 877,
        3709, 523, 283, 781, 833, 261, 707, 249, 653, 1435, 735, 740, 450, 525, 1219, 866, 178, 530, 366, 522, 791, 651, 877, 795, 156,
        51, 2444, 906, 350, 413, 567, 1866, 573, 1177, 730, 431, 1381, 848, 353,
    ])  # fmt: skip
    scores_E = token_score(counts_E, np.array(8327), 6)
    assert scores_E.sum() == pytest.approx(1)
    assert expert_set(scores_E, top_p=0.2).tolist() == [25, 51, 56, 8, 34]
    assert domain_specialisation(counts_E[None], np.array([8327])).max() == pytest.approx(4.751 * 6 / 64, abs=1e-4)


def test_share_of_the_busiest():
    counts_LE = np.array([[5, 1, 3, 1], [0, 0, 0, 0]])
    for n, expected in ((0, 0.0), (1, 0.5), (2, 0.8), (4, 1.0), (9, 1.0)):
        assert top_share(counts_LE, n)[0] == pytest.approx(expected)
    assert np.isnan(top_share(counts_LE, 1)[1])


def test_vocabulary_specialisation_by_id_and_by_token():
    counts_ME, tokens_M = np.array([[9, 1, 0], [2, 2, 1], [0, 0, 10]]), np.array([10, 5, 10])
    assert vocabulary.specialisation(counts_ME, tokens_M).tolist() == [[0.9, 0.1, 0], [0.4, 0.4, 0.2], [0, 0, 1]]
    assert vocabulary.mean_specialisation(counts_ME, tokens_M) == pytest.approx((0.9 + 0.4 + 1) / 3)
    assert vocabulary.weighted_specialisation(counts_ME, tokens_M) == pytest.approx(21 / 25)
    assert vocabulary.mean_specialisation(np.stack([counts_ME, 0 * counts_ME]), tokens_M)[1] == 0
    for metric in (vocabulary.mean_specialisation, vocabulary.weighted_specialisation):
        assert np.isnan(metric(np.zeros((4, 0, 3), np.int32), np.zeros(0, np.int64))).tolist() == [True] * 4
    big = np.full((2, 1, 2), 2**31 - 1, np.int32)  # sums of int32 counts must not wrap
    assert vocabulary.weighted_specialisation(np.repeat(big, 2, axis=1), np.array([2**31 - 1] * 2)).tolist() == [1, 1]


def test_top_tokens_by_lift():
    counts_ME = np.array([[40, 10], [20, 0], [30, 60], [1, 0], [10, 10]], np.int32)
    tokens_M, expert_tokens_E, tokens = np.array([50, 20, 90, 1, 20]), np.array([120, 80]), 200
    top = vocabulary.top_tokens(counts_ME, tokens_M, expert_tokens_E, tokens, expert=0, n=3)
    assert [(t.row, t.count, t.share) for t in top] == [(1, 20, 1.0), (0, 40, 0.8), (4, 10, 0.5)]
    assert [t.lift for t in top] == pytest.approx([1 / 0.6, 0.8 / 0.6, 0.5 / 0.6])
    assert [t.row for t in vocabulary.top_tokens(counts_ME, tokens_M, expert_tokens_E, tokens, expert=0, min_count=1)] == [1, 3, 0, 4, 2]
    assert vocabulary.top_tokens(0 * counts_ME, tokens_M, 0 * expert_tokens_E, 0, expert=0, min_count=0) == []


def test_classes_weigh_against_all_text():
    counts_CE = np.array([[6, 2], [2, 6], [0, 0]])
    found_CE = vocabulary.class_lift(counts_CE, np.array([8, 8]), np.array([8, 8, 0]), np.array(16))
    assert found_CE[:2].tolist() == [[1.5, 0.5], [0.5, 1.5]]
    assert np.isnan(found_CE[2]).all()
