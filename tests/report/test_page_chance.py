"""The band of ordered loads against routers that draw blindly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moectl.report.page.chance import ordered_band


@pytest.mark.parametrize(("n_experts", "top_k", "tokens"), [(8, 2, 4000), (64, 8, 2000)])
def test_the_band_holds_about_95_percent_of_what_an_even_router_gives(n_experts, top_k, tokens):
    rng = np.random.default_rng(0)
    low, high = ordered_band(n_experts)
    spread = math.sqrt((n_experts / top_k - 1) / tokens)
    # Counts of tokens that pick K of E without repetition.
    trials = 300
    mean, variance = tokens * top_k / n_experts, tokens * top_k / n_experts * (1 - top_k / n_experts)
    drawn = rng.normal(0, 1, (trials, n_experts)) * math.sqrt(variance * n_experts / (n_experts - 1))
    loads = np.sort(1 + (drawn - drawn.mean(1, keepdims=True)) / mean, axis=1)[:, ::-1]
    inside = ((loads >= 1 + low * spread) & (loads <= 1 + high * spread)).mean(0)
    assert inside.min() > 0.85
    assert 0.93 < inside.mean() <= 1.0


def test_the_band_is_ordered_and_symmetric():
    low, high = ordered_band(33)
    assert (low < high).all()
    assert (np.diff(low) < 0).all()
    assert (np.diff(high) < 0).all()
    np.testing.assert_allclose(low, -high[::-1], atol=1e-6)
    one_low, one_high = ordered_band(1)
    assert one_low[0] == pytest.approx(-1.96, abs=0.1)
    assert one_high[0] == pytest.approx(1.96, abs=0.1)


def test_drawing_for_real_agrees():
    rng = np.random.default_rng(1)
    n_experts, top_k, tokens = 16, 4, 3000
    low, high = ordered_band(n_experts)
    spread = math.sqrt((n_experts / top_k - 1) / tokens)
    inside = []
    for _ in range(40):
        picks = np.argpartition(rng.random((tokens, n_experts)), top_k, axis=1)[:, :top_k]
        loads = np.sort(np.bincount(picks.reshape(-1), minlength=n_experts))[::-1] * n_experts / (tokens * top_k)
        inside.append((loads >= 1 + low * spread) & (loads <= 1 + high * spread))
    assert 0.92 < np.mean(inside) <= 1.0
