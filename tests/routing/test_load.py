"""Load metrics against their definitions written as loops."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.routing.metrics import load

METRICS = {
    "max_over_mean": lambda n, m: max(n) / m,
    "min_over_mean": lambda n, m: min(n) / m,
    "max_vio": lambda n, m: (max(n) - m) / m,
    "cv": lambda n, m: pstdev(n) / m,
    "gini": lambda n, m: sum(abs(a - b) for a in n for b in n) / (2 * len(n) ** 2 * m),
    "entropy": lambda n, m: -sum(x / sum(n) * math.log(x / sum(n)) for x in n if x),
    "effective_experts": lambda n, m: math.exp(METRICS["entropy"](n, m)),
    "kl_uniform": lambda n, m: sum(x / sum(n) * math.log(x / m) for x in n if x),
    "tv_uniform": lambda n, m: sum(max(x - m, 0) for x in n) / sum(n),
    "top_quarter_share": lambda n, m: sum(sorted(n, reverse=True)[: math.ceil(len(n) / 4)]) / sum(n),
    "chi2": lambda n, m: sum((x - m) ** 2 / m for x in n),
    "dead_experts": lambda n, m: sum(x == 0 for x in n),
    "cold_experts": lambda n, m: sum(10 * x * len(n) < sum(n) for x in n),
}
counts = st.one_of(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=40),
    st.integers(1, 40).flatmap(lambda n: st.permutations([1] + [0] * (n - 1))),
    st.lists(st.sampled_from([0, 1, 9, 10, 10**6]), min_size=1, max_size=512),
).filter(any)


@pytest.mark.parametrize("name", METRICS)
@given(n=counts)
def test_equals_its_definition(name, n):
    found = getattr(load, name)(np.array(n))
    assert found == pytest.approx(METRICS[name](n, fmean(n)), rel=1e-9, abs=1e-9)


@given(n=counts)
def test_normalised_entropy(n):
    found = load.entropy_normalized(np.array(n))
    if len(n) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(METRICS["entropy"](n, fmean(n)) / math.log(len(n)))


@pytest.mark.parametrize("name", [*METRICS, "entropy_normalized"])
@given(n=counts, seed=st.integers(0, 100))
def test_the_order_of_experts_changes_no_bit(name, n, seed):
    shuffled = np.random.default_rng(seed).permutation(np.array(n))
    assert getattr(load, name)(np.array(n)).tobytes() == getattr(load, name)(shuffled).tobytes()


@pytest.mark.parametrize("name", [*METRICS, "entropy_normalized"])
def test_no_load_is_nan_and_rows_do_not_mix(name):
    metric = getattr(load, name)
    table = metric(np.array([[0, 0, 0], [4, 4, 4], [9, 1, 2]]))
    assert np.isnan(table[0])
    assert table[1] == metric(np.array([4, 4, 4]))
    assert table[2] == metric(np.array([9, 1, 2]))


def test_even_load_is_exact():
    even = np.full(7, 3)
    assert load.max_vio(even) == load.gini(even) == load.cv(even) == load.chi2(even) == load.cold_experts(even) == 0
    assert load.entropy_normalized(even) == pytest.approx(1, abs=1e-15)


def test_one_expert_alone_has_no_negative_zero():
    assert math.copysign(1, load.entropy(np.array([5, 0]))) == 1
    assert load.gini(np.array([5, 0])) == 0.5


# Published figures: OLMoE (E = 64, K = 8), ESFT (64, 6), E = 256 with K = 8.
@pytest.mark.parametrize(
    ("tokens", "n_experts", "top_k", "published"),
    [(208_896, 64, 8, 0.017), (8_222, 64, 6, 0.099), (100_000, 256, 8, 0.059), (1_000_000, 256, 8, 0.019)],
)
def test_noise_floor(tokens, n_experts, top_k, published):
    counts_E = np.full(n_experts, tokens * top_k // n_experts)
    assert round(float(load.max_vio_noise_floor(counts_E, top_k)), 3) == published


def test_noise_floor_is_near_what_an_even_router_shows():
    rng = np.random.default_rng(0)
    ids_TE = rng.random((4000, 32)).argsort(1)[:, :4]
    counts_E = np.bincount(ids_TE.ravel(), minlength=32)
    assert 0.4 < load.max_vio(counts_E) / load.max_vio_noise_floor(counts_E, 4) < 1.4


def test_noise_floor_does_not_apply_to_a_dense_layer_or_without_load():
    assert np.isnan(load.max_vio_noise_floor(np.array([3, 3]), 2))
    assert np.isnan(load.max_vio_noise_floor(np.array([0, 0]), 1))


# OLMoE-1B-7B-0924 on three texts of 208,896 tokens, layers 0, 7 and 15: allenai/OLMoE, scripts/routing_output/olmoe/expert_counts.
PUBLISHED = {
    "arxiv 0": [
        204013, 19281, 19395, 32186, 38809, 15252, 33964, 22825, 17669, 9092, 13971, 27390, 5475, 21321, 15299, 21842, 13629,
        47071, 18908, 27504, 7180, 35201, 13615, 10046, 17635, 16972, 18879, 22882, 5808, 37005, 18028, 20460, 25503, 17463,
        23593, 15841, 35815, 20106, 24042, 12945, 65604, 41740, 23936, 22940, 25631, 25972, 22732, 32738, 16440, 23309, 22736,
        29853, 18138, 34480, 48977, 36394, 21597, 13097, 24601, 14312, 24823, 23899, 23081, 10223,
    ],
    "c4 7": [
        33614, 69402, 5232, 16547, 18407, 39519, 20771, 10923, 19187, 19969, 20388, 19820, 16514, 33695, 22703, 33556, 24080,
        10990, 55941, 29873, 27706, 15059, 26146, 33641, 27067, 43673, 33269, 18021, 15655, 27960, 29476, 31832, 24485, 31229,
        20392, 14140, 25469, 26366, 32023, 20448, 23217, 31045, 16209, 20788, 25985, 12965, 43770, 34276, 34785, 18858, 20600,
        16185, 28327, 39100, 19808, 20383, 31948, 27193, 13853, 37476, 29847, 29569, 24771, 25022,
    ],
    "wikipedia 15": [
        111533, 62459, 3640, 41260, 945, 2918, 98282, 24946, 49278, 10194, 2656, 5512, 51999, 2729, 5719, 2880, 14400, 24635,
        2608, 2231, 4412, 4677, 2778, 7286, 31742, 2606, 8018, 7960, 2380, 23883, 24124, 88820, 3056, 4178, 4092, 59357, 121440,
        3755, 3526, 1801, 17154, 92803, 8612, 91207, 6280, 2883, 2410, 13947, 10086, 33523, 1567, 1325, 25517, 42345, 2998,
        5163, 3664, 113309, 97604, 19084, 79099, 3377, 2353, 64143,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "max_over_mean", "busiest", "entropy_normalized", "cv"),
    [("arxiv 0", 7.813, 0, 0.9428, 0.951), ("c4 7", 2.658, 1, 0.9817, 0.402), ("wikipedia 15", 4.651, 36, 0.8293, 1.301)],
)
def test_published_counts(text, max_over_mean, busiest, entropy_normalized, cv):
    counts_E = np.array(PUBLISHED[text])
    assert counts_E.sum() == 208_896 * 8
    assert counts_E.argmax() == busiest
    assert round(float(load.max_over_mean(counts_E)), 3) == max_over_mean
    assert round(float(load.entropy_normalized(counts_E)), 4) == entropy_normalized
    assert round(float(load.cv(counts_E)), 3) == cv
    assert load.top_share(counts_E, 1) == pytest.approx(max_over_mean / 64, abs=1e-5)


def test_published_gini_and_max_vio():
    counts_E = np.array(PUBLISHED["c4 7"])
    assert round(float(load.gini(counts_E)), 3) == 0.212
    assert round(float(load.max_vio(counts_E)), 3) == 1.658
