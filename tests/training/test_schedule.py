"""Learning rate and loss weights at their corners, and the options that are refused."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.errors import UsageError
from moectl.training.options import TrainOptions
from moectl.training.schedule import learning_rate, mtp_weight

COSINE = TrainOptions(steps=110, lr=0.5, min_lr=0.1, warmup_steps=10)
WSD = TrainOptions(steps=100, lr=0.5, min_lr=0.1, warmup_steps=10, schedule="wsd", decay_fraction=0.2)


@pytest.mark.parametrize("options", [COSINE, WSD])
def test_warm_up_is_linear_and_ends_at_the_full_rate(options):
    assert [learning_rate(options, step) for step in (0, 4, 9, 10)] == pytest.approx([0.05, 0.25, 0.5, 0.5])


def test_cosine_falls_from_the_full_rate_to_the_least():
    rates = [learning_rate(COSINE, step) for step in range(10, 111)]
    assert [rates[0], rates[25], rates[50], rates[75], rates[100]] == pytest.approx(
        [0.5, 0.3 + 0.2 * math.sqrt(0.5), 0.3, 0.3 - 0.2 * math.sqrt(0.5), 0.1]
    )
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_wsd_is_stable_and_then_falls_linearly():
    assert [learning_rate(WSD, step) for step in (10, 50, 79, 80)] == [0.5] * 4
    assert [learning_rate(WSD, step) for step in (81, 90, 99, 100)] == pytest.approx([0.48, 0.3, 0.12, 0.1])


@given(
    steps=st.integers(1, 60),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "wsd"]),
    decay=st.floats(0.01, 1),
)
def test_rates_rise_once_and_fall_once_within_bounds(steps, warmup, schedule, decay):
    options = TrainOptions(steps=steps, lr=1.0, min_lr=0.0, warmup_steps=round(warmup * steps), schedule=schedule, decay_fraction=decay)
    rates = [learning_rate(options, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    peak = rates.index(1.0)
    assert all(a <= b for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[peak:]))
    # No jump where the decay meets the warm-up.
    falls = [a - b for a, b in itertools.pairwise(rates[peak:])]
    assert schedule == "cosine" or not falls or max(falls) <= 1.001 / max(1, min(round(decay * steps), steps - options.warmup_steps))


def test_the_weight_of_predictions_ahead_steps_down():
    options = TrainOptions(steps=9, mtp_weight=0.3, mtp_weight_late=0.1)
    assert [mtp_weight(options, step) for step in range(9)] == [0.3] * 6 + [0.1] * 3
    assert mtp_weight(TrainOptions(steps=9, mtp_late_fraction=1.0), 8) == 0.3
    assert mtp_weight(TrainOptions(steps=9, mtp_late_fraction=0.0), 0) == 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0}, {"accumulation": 0}, {"save_every": 0}, {"keep_last": 0}, {"eval_every": 0}, {"log_every": 0}, {"seq_len": 1},
        {"seq_len": 8, "batch_tokens": 7}, {"lr": 0.0}, {"lr": math.inf}, {"lr": math.nan}, {"min_lr": 1.0}, {"min_lr": -1e-9},
        {"warmup_steps": 6}, {"warmup_steps": -1}, {"decay_fraction": 0.0}, {"decay_fraction": 1.1}, {"beta1": 1.0}, {"beta2": -0.1},
        {"weight_decay": -0.1}, {"weight_decay": math.inf}, {"eps": -1e-8}, {"mtp_weight": -1.0}, {"mtp_weight_late": math.nan},
        {"mtp_late_fraction": 1.5}, {"mtp_late_fraction": math.nan}, {"clip": 0.0}, {"clip": math.nan}, {"schedule": "linear"},
        {"seed": -1},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_by_name(changes):
    TrainOptions(steps=5, clip=math.inf)
    with pytest.raises(UsageError, match=rf"`{list(changes)[-1]}` is .*; it must be"):
        TrainOptions(**{"steps": 5, **changes})
