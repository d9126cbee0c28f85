"""Every interval of the tables belongs to a metric, holds it where theory says so, and is null where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest

from moectl.routing.bounds import BOUNDED_KEYS, layer_bounds, share_bounds
from moectl.routing.counting.scores import SCORE_UNIT
from moectl.routing.curved import balance_loss_interval
from moectl.routing.frames import METRIC_KEYS, expert_frame, layer_frame
from moectl.routing.intervals import ratio_interval

# Metrics that hold the noise of the sample, which their interval does not, may lie outside it (see `intervals`).
RATIOS = ("captured_mass", "margin", "next_token_overlap", "any_overlap", "first_choice_repeat", "router_entropy", "max_vio_sequence")


@pytest.fixture
def many(run_of, counters_of):
    run = run_of(shapes=((0, 12, 20), (1, 9, 16)), biased=(4,), vocabulary=9)
    return run, counters_of(run)


def test_bounds_are_of_known_metrics():
    assert set(BOUNDED_KEYS) <= set(METRIC_KEYS)
    assert len(set(BOUNDED_KEYS)) == len(BOUNDED_KEYS)


def test_low_is_below_high_and_ratios_lie_between(many):
    run, counters = many
    frame = layer_frame(counters, run.names)
    for key in BOUNDED_KEYS:
        low, high = frame[f"{key}_low"], frame[f"{key}_high"]
        assert (low.isna() == high.isna()).all(), key
        assert (low.dropna() <= high.dropna()).all(), key
        if key in RATIOS:
            assert low.notna().all(), key
            assert ((low < frame[key]) & (frame[key] <= high)).all(), key
    assert frame["max_vio_low"].notna().all()


def test_bias_effect_only_of_biased_routers(many):
    run, counters = many
    frame = layer_frame(counters, run.names)
    assert (frame["bias_effect_low"].isna() == (frame["layer"] != 4)).all()


def test_a_ratio_is_the_interval_of_its_own_sums(many):
    _, counters = many
    counts, top_k = counters.counts, counters.layers[0].top_k
    low_DL, high_DL = layer_bounds(counters)["next_token_overlap"]
    expected = ratio_interval(
        counts.overlap_XLG[:, :1, 0], counts.pairs_XLG[:, :1, 0] * top_k, counters.blocks.domain_X, 2, proportion=True
    )
    np.testing.assert_allclose(low_DL[:, 0], expected[0][:, 0], rtol=1e-12)
    np.testing.assert_allclose(high_DL[:, 0], expected[1][:, 0], rtol=1e-12)


def test_every_measured_figure_has_an_interval_and_no_baseline_has(many):
    run, counters = many
    frame = layer_frame(counters, run.names)
    without = set(METRIC_KEYS) - set(BOUNDED_KEYS)
    assert {key for key in without if not key.startswith("vocabulary_")} == {
        "max_vio_noise_floor", "first_choice_repeat_uniform", "any_overlap_uniform", "next_token_overlap_uniform",
    }  # fmt: skip
    rows = frame[frame["domain"] == "all"]
    for key in BOUNDED_KEYS:
        assert (rows[f"{key}_low"].notna() == rows[key].notna()).all(), key


def test_a_balance_loss_is_the_jackknife_of_its_own_counts(many):
    _, counters = many
    counts, info = counters.counts, counters.layers[2]
    E = info.n_experts
    expected = balance_loss_interval(
        counts.tokens_XLE[:, 2:, :E],
        counts.scores_XLE[:, 2:, :E] * SCORE_UNIT,
        counts.counted_XL[:, 2:],
        counters.blocks.domain_X,
        2,
        info.top_k,
    )
    np.testing.assert_allclose(np.array(layer_bounds(counters)["balance_loss"])[..., 2:], expected, rtol=1e-9)


def test_domains_are_compared_on_the_rows_of_all_text_only(many):
    run, counters = many
    frame = layer_frame(counters, run.names)
    for key in ("domain_information_bits", "domain_jsd_bits"):
        assert (frame[f"{key}_low"].notna() == (frame["domain"] == "all")).all()
        assert (frame[f"{key}_low"] < frame[f"{key}_high"])[frame["domain"] == "all"].all()


def test_max_vio_batch_is_the_mean_of_full_micro_batches(run_of, counters_of):
    """A tail is no observation, however many there are."""
    run = run_of(shapes=((0, 2, 20), (0, 2, 20), (0, 2, 20), (0, 2, 20), (0, 1, 20), (1, 2, 9), (1, 1, 9), (1, 1, 4)))
    counters = counters_of(run)
    low_DL, high_DL = layer_bounds(counters)["max_vio_batch"]
    vio_NL = counters.counts.batch_vio_NL[[0, 1, 2, 3, 5]]
    expected = ratio_interval(vio_NL, np.ones(vio_NL.shape, np.int64), np.array([0, 0, 0, 0, 1]), 2)
    np.testing.assert_array_equal([low_DL, high_DL], expected)
    assert np.isfinite(low_DL[:2]).all()
    assert np.isnan(low_DL[2]).all()
    value_DL = counters.max_vio_batch_DL()
    assert ((low_DL < value_DL) & (value_DL < high_DL))[:2].all()


def test_shares_lie_in_their_intervals(many):
    run, counters = many
    frame = expert_frame(counters, run.names)
    assert ((frame["share_low"] <= frame["share"]) & (frame["share"] <= frame["share_high"])).all()
    low_DLE, _ = share_bounds(counters)
    n_experts = [info.n_experts for info in counters.layers]
    assert [int(np.isfinite(low_DLE[0, i]).sum()) for i in range(len(n_experts))] == n_experts


def test_one_sequence_tells_nothing_of_others(run_of, counters_of):
    run = run_of(shapes=((0, 1, 30),))
    frame = layer_frame(counters_of(run), run.names[:1])
    assert frame[[f"{key}_low" for key in BOUNDED_KEYS]].isna().all(axis=None)
