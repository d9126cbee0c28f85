"""Domain metrics against their definitions written as loops, published counts, and what they must not depend on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.routing.metrics.domains import domain_information_bits, domain_information_floor, domain_jsd_bits, domain_pair_jsd_bits

METRICS = [domain_information_bits, domain_jsd_bits]


def information_bits(counts):
    """H(expert) - H(expert | domain), every domain equally likely."""

    def entropy(p):
        return -sum(x * math.log2(x) for x in p if x)

    loads = [[n / sum(row) for n in row] for row in counts]
    mean = [sum(column) / len(loads) for column in zip(*loads, strict=True)]
    return entropy(mean) - sum(map(entropy, loads)) / len(loads)


def jsd_bits(counts):
    pairs = list(itertools.combinations(counts, 2))
    return sum(map(information_bits, pairs)) / len(pairs)


@st.composite
def tables(draw):
    n_domains, n_experts = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    cell = st.one_of(st.integers(0, 30), st.sampled_from([0, 0, 1, 10**9]))
    row = st.lists(cell, min_size=n_experts, max_size=n_experts).filter(any)
    return np.array(draw(st.lists(row, min_size=n_domains, max_size=n_domains)), np.int64)


@given(counts_DE=tables())
def test_equal_their_definitions(counts_DE):
    assert domain_information_bits(counts_DE) == pytest.approx(information_bits(counts_DE.tolist()), abs=1e-12)
    assert domain_jsd_bits(counts_DE) == pytest.approx(jsd_bits(counts_DE.tolist()), abs=1e-12)
    of_pairs = [information_bits(pair) for pair in itertools.combinations(counts_DE.tolist(), 2)]
    assert domain_pair_jsd_bits(counts_DE) == pytest.approx(of_pairs, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@given(counts_DE=tables(), seed=st.integers(0, 100))
def test_the_order_of_experts_changes_no_bit(metric, counts_DE, seed):
    shuffled_DE = np.random.default_rng(seed).permutation(counts_DE, axis=1)
    assert metric(counts_DE).tobytes() == metric(shuffled_DE).tobytes()


@pytest.mark.parametrize("metric", METRICS)
@given(counts_DE=tables(), factor=st.integers(2, 1000), seed=st.integers(0, 100))
def test_neither_the_size_nor_the_order_of_domains_matters(metric, counts_DE, factor, seed):
    scaled_DE = counts_DE.copy()
    scaled_DE[seed % len(counts_DE)] *= factor
    assert metric(np.random.default_rng(seed).permutation(scaled_DE)) == pytest.approx(metric(counts_DE), abs=1e-12)


@pytest.mark.parametrize("n_domains", [2, 3, 5, 7])
def test_the_ends_of_the_scale(n_domains):
    alike_DE = np.arange(1, n_domains + 1)[:, None] * np.array([5, 0, 1, 9, 3])
    apart_DE = np.kron(np.eye(n_domains, dtype=np.int64), np.array([[4, 0, 1]]))
    assert 0 <= domain_information_bits(alike_DE) < 1e-15
    assert 0 <= domain_jsd_bits(alike_DE) < 1e-15
    assert domain_information_bits(apart_DE) == pytest.approx(math.log2(n_domains), rel=1e-14)
    assert domain_jsd_bits(apart_DE) == pytest.approx(1, rel=1e-14)


def test_picks_of_k_different_experts_tell_at_most_log2_of_e_over_k():
    # Every token of a domain runs the same 4 of 16 experts: as specialised as a router can be.
    counts_DE = np.kron(np.eye(4, dtype=np.int64), np.full((1, 4), 100))
    assert domain_information_bits(counts_DE) == math.log2(16 / 4)


@pytest.mark.parametrize("metric", METRICS)
def test_what_cannot_be_compared_is_nan_and_layers_do_not_mix(metric):
    assert np.isnan(metric(np.array([[3, 4]])))
    counts_LDE = np.array([[[1, 2], [0, 0], [2, 1]], [[1, 2], [3, 9], [2, 1]], [[0, 0], [0, 0], [0, 0]]])
    found_L = metric(counts_LDE)
    assert np.isnan(found_L).tolist() == [True, False, True]
    assert found_L[1] == metric(counts_LDE[1])


def test_a_domain_without_load_spoils_its_own_pairs_only():
    counts_LDE = np.array([[[1, 2], [0, 0], [2, 1]], [[1, 2], [3, 9], [2, 1]]])
    found_LP = domain_pair_jsd_bits(counts_LDE)
    assert np.isnan(found_LP).tolist() == [[True, False, True], [False] * 3]
    assert found_LP[0, 1] == found_LP[1, 1] == domain_jsd_bits(counts_LDE[1, ::2])
    assert domain_pair_jsd_bits(counts_LDE[:, :1]).shape == (2, 0)


def test_published_counts():
    # Mixtral-8x7B on arxiv, book, c4, github, wikipedia, layers 0, 7 and 15: allenai/OLMoE, scripts/routing_output/mistral.
    counts_LDE = np.array(
        [
            [
                [55713, 52019, 52619, 50522, 44401, 66285, 44770, 51463],
                [61757, 38476, 53272, 54508, 53206, 58897, 46027, 51649],
                [56947, 49733, 50426, 49453, 52127, 57956, 42632, 58518],
                [54849, 51938, 49502, 48693, 49404, 67714, 47790, 47902],
                [55572, 54544, 51270, 45513, 52827, 58134, 44526, 55406],
            ],
            [
                [51886, 50083, 56626, 44230, 52075, 54595, 49243, 59054],
                [52663, 51909, 47850, 57151, 53293, 44006, 56645, 54275],
                [50706, 54716, 51313, 50515, 56215, 49525, 53315, 51487],
                [46007, 55830, 65025, 43974, 49527, 50369, 57534, 49526],
                [50223, 50031, 58650, 47647, 51069, 55063, 49734, 55375],
            ],
            [
                [61212, 52639, 40083, 25549, 60053, 61162, 60951, 56143],
                [52928, 58049, 67604, 21046, 54795, 50104, 61478, 51788],
                [47396, 58718, 55366, 32510, 55049, 57385, 57170, 54198],
                [60067, 55928, 42926, 38592, 44435, 69374, 57189, 49281],
                [54575, 55396, 52142, 31960, 57664, 62114, 50943, 52998],
            ],
        ]
    )
    assert domain_information_bits(counts_LDE).round(4).tolist() == [0.0031, 0.0037, 0.0090]
    assert domain_jsd_bits(counts_LDE).round(4).tolist() == [0.0020, 0.0023, 0.0056]


def alike_sequences(n_sequences, *, seed, n_experts=8, tokens=200):
    """Each sequence picks by a preference of its own."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(tokens, rng.dirichlet(np.ones(n_experts))) for _ in range(n_sequences)])


def test_the_floor_is_an_average_over_all_deals():
    counts_QE = alike_sequences(6, seed=0)
    dealt = [
        information_bits([counts_QE[list(first)].sum(0), counts_QE[[q for q in range(6) if q not in first]].sum(0)])
        for first in itertools.combinations(range(6), 2)
    ]
    floor = domain_information_floor(counts_QE, np.array([9, 4, 9, 4, 9, 9]), permutations=4000)
    assert floor.mean == pytest.approx(np.mean(dealt), rel=0.03)
    assert floor.quantile_95 == pytest.approx(np.quantile(dealt, 0.95, method="inverted_cdf"))


def test_the_floor_deals_sequences_and_not_tokens():
    counts_QE, domain_Q = alike_sequences(60, seed=1), np.arange(60) % 3
    counts_DE = np.stack([counts_QE[domain_Q == d].sum(0) for d in range(3)])
    tokens = counts_DE.sum()
    by_token = (3 - 1) * (8 - 1) / (2 * math.log(2) * tokens)  # of independent tokens: chi-square / (2 N ln 2)
    floor = domain_information_floor(counts_QE, domain_Q)
    assert floor.mean > 5 * by_token
    assert floor.mean < floor.quantile_95
    assert domain_information_bits(counts_DE) < 1.5 * floor.quantile_95  # these domains are random


def test_the_floor_of_single_tokens_is_that_of_independent_ones():
    rng = np.random.default_rng(2)
    counts_QE = np.eye(8, dtype=np.int64)[rng.integers(0, 8, 3000)]
    floor = domain_information_floor(counts_QE, np.arange(3000) % 3, permutations=400)
    assert floor.mean == pytest.approx((3 - 1) * (8 - 1) / (2 * math.log(2) * 3000), rel=0.1)


def test_true_domains_stand_out_of_the_floor():
    counts_QE = alike_sequences(60, seed=3)
    domain_Q = np.arange(60) % 3
    counts_QE[np.arange(60), domain_Q] += 400
    counts_DE = np.stack([counts_QE[domain_Q == d].sum(0) for d in range(3)])
    assert domain_information_bits(counts_DE) > 5 * domain_information_floor(counts_QE, domain_Q).quantile_95


def test_the_floor_depends_on_its_seed_and_on_nothing_unseen():
    counts_QE, domain_Q = alike_sequences(30, seed=4), np.repeat([0, 1, 2], 10)
    floor = domain_information_floor(counts_QE, domain_Q, permutations=20, seed=5)
    assert floor == domain_information_floor(counts_QE[:, ::-1], domain_Q, permutations=20, seed=5)
    assert floor != domain_information_floor(counts_QE, domain_Q, permutations=20, seed=6)
    empty_QE, empty_Q = np.zeros((7, 8), np.int64), np.array([0, 1, 2, 0, 1, 2, 0])
    assert floor == domain_information_floor(np.vstack([counts_QE, empty_QE]), np.append(domain_Q, empty_Q), permutations=20, seed=5)


@pytest.mark.parametrize(
    ("counts_QE", "domain_Q"),
    [
        (np.empty((0, 4), np.int64), np.empty(0, np.int64)),
        (np.ones((3, 4), np.int64), np.zeros(3, np.int64)),
        (np.array([[1, 2], [3, 4], [0, 0]]), np.array([0, 1, 2])),
    ],
    ids=["no sequence", "one domain", "a domain without load"],
)
def test_the_floor_is_nan_where_the_information_is(counts_QE, domain_Q):
    floor = domain_information_floor(counts_QE, domain_Q)
    assert np.isnan([floor.mean, floor.quantile_95]).all()
