"""Loss-free balancing: counts over an optimiser step, the update of the selection bias, and where the bias must not show."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moectl.arch.parts import Router
from moectl.errors import ModelError
from moectl.model.router import route
from moectl.routing.metrics import load as load_metrics
from moectl.training.bias import LoadCounts, expert_load, load_summary, update_bias

LOADS = st.lists(st.integers(0, 50), min_size=2, max_size=9)


@given(load=LOADS, gamma=st.sampled_from([1e-3, 0.25]), rule=st.sampled_from(["sign", "proportional"]))
def test_the_update_is_its_formula(load, gamma, rule):
    start_E = torch.linspace(-0.3, 0.3, len(load))
    bias_E = start_E.clone()
    update_bias(bias_E, torch.tensor(load), gamma, rule)
    mean = sum(load) / len(load)
    if not mean:
        assert torch.equal(bias_E, start_E)
        return
    if rule == "sign":
        # Python's integers: 3 x (1/3) is not always 1.
        delta = [gamma * ((sum(load) > n * len(load)) - (sum(load) < n * len(load))) for n in load]
    else:
        delta = [gamma * (mean - n) / mean for n in load]
    centre = sum(delta) / len(delta)
    expected = [float(b) + d - centre for b, d in zip(start_E, delta, strict=True)]
    assert bias_E.tolist() == pytest.approx(expected, abs=1e-6)
    assert bias_E.dtype == torch.float32


def test_the_bias_keeps_a_zero_mean_over_a_long_run():
    generator = torch.Generator().manual_seed(0)
    bias_E = torch.zeros(64)
    # Few experts far above the mean: without centring the bias would rise by almost gamma a step.
    popular_E = torch.ones(64)
    popular_E[:3] = 60.0
    for _ in range(2000):
        update_bias(bias_E, torch.poisson(popular_E * 5, generator=generator).long(), 1e-3)
    assert float(bias_E.abs().max()) > 1
    assert abs(float(bias_E.double().mean())) < 1e-5


def test_gamma_zero_and_even_load_leave_every_bit_alone():
    bias_E = torch.tensor([0.1, -0.7, 0.3])
    for load, gamma in (([1, 2, 3], 0.0), ([4, 4, 4], 1e-3), ([0, 0, 0], 1e-3)):
        before_E = bias_E.clone()
        update_bias(bias_E, torch.tensor(load), gamma)
        assert torch.equal(bias_E, before_E)


def test_a_trainable_bias_is_updated_outside_the_graph():
    bias_E = torch.nn.Parameter(torch.zeros(3))
    update_bias(bias_E, torch.tensor([9, 0, 0]), 0.3)
    assert bias_E.grad_fn is None
    assert bias_E.tolist() == pytest.approx([-0.4, 0.2, 0.2])


def test_a_bias_of_low_precision_is_refused():
    with pytest.raises(ModelError, match="a correction bias in bfloat16 cannot be updated") as caught:
        update_bias(torch.zeros(3, dtype=torch.bfloat16), torch.tensor([1, 2, 3]), 1e-3)
    assert caught.value.hint


def test_updates_even_the_load():
    generator = torch.Generator().manual_seed(1)
    spec = sigmoid_router(n_experts=8, top_k=2)
    weights = {"router": torch.randn(8, 12, generator=generator), "correction_bias": torch.zeros(8)}
    x_TH = torch.randn(512, 12, generator=generator) + 0.5
    history = []
    for _ in range(150):
        load_E = expert_load(route(spec, x_TH, weights).expert_ids_TK, 8)
        history.append(load_summary(load_E)["max_vio"])
        update_bias(weights["correction_bias"], load_E, 5e-3)
    assert history[0] > 0.8
    assert history[-1] < 0.1


def sigmoid_router(*, n_experts: int, top_k: int) -> Router:
    return Router(
        n_experts=n_experts,
        top_k=top_k,
        score="sigmoid",
        logits_dtype="float32",
        weight_dtype="float32",
        renormalize=True,
        correction_bias=True,
    )


def test_the_bias_selects_but_never_weighs():
    generator = torch.Generator().manual_seed(2)
    spec = sigmoid_router(n_experts=6, top_k=2)
    x_TH = torch.randn(20, 8, generator=generator)
    router_EH = torch.randn(6, 8, generator=generator)
    bias_E = torch.nn.Parameter(torch.tensor([5.0, 3.0, 0.0, 0.0, 0.0, 0.0]))
    routing = route(spec, x_TH, {"router": router_EH.requires_grad_(), "correction_bias": bias_E})
    assert routing.expert_ids_TK.sort().values.tolist() == [[0, 1]] * 20
    scores_TE = (x_TH @ router_EH.T).sigmoid()
    expected_TK = scores_TE.gather(1, routing.expert_ids_TK)
    torch.testing.assert_close(routing.weights_TK, expected_TK / expected_TK.sum(-1, keepdim=True))
    assert torch.autograd.grad(routing.weights_TK[:, 0].sum(), bias_E, allow_unused=True) == (None,)


def draw_ids(seed: int, n_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_tokens, 7, generator=generator).topk(3).indices


@given(cuts=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 1000))
def test_micro_batches_add_up_to_the_whole_batch(cuts, seed):
    ids_TK, valid_T = draw_ids(seed, 40), torch.rand(40, generator=torch.Generator().manual_seed(seed)) < 0.8
    whole, parts = LoadCounts({3: 7, 61: 7}), LoadCounts({3: 7, 61: 7})
    whole.add(3, ids_TK, valid_T)
    edges = [0, *sorted(cuts), 40]
    for start, stop in itertools.pairwise(edges):
        parts.add(3, ids_TK[start:stop], valid_T[start:stop])
    assert torch.equal(parts.load(3), whole.load(3))
    assert int(whole.load(3).sum()) == 3 * int(valid_T.sum())
    assert whole.load(3).dtype == torch.int64
    assert not whole.load(61).any()
    biases = [torch.zeros(7), torch.zeros(7)]
    for bias_E, counts in zip(biases, (whole, parts), strict=True):
        update_bias(bias_E, counts.load(3), 1e-3)
    assert torch.equal(*biases)


def test_a_new_step_counts_from_zero():
    counts = LoadCounts({0: 7, 1: 7})
    for number in range(3):
        for layer in (0, 1):
            counts.add(layer, draw_ids(number, 11))
    assert counts.load(0).sum() == counts.load(1).sum() == 3 * 11 * 3
    counts.reset()
    assert not counts.load(0).any()
    counts.add(0, draw_ids(0, 11))
    assert int(counts.load(0).sum()) == 33


def test_slots_that_ran_nothing_are_no_load():
    ids_TK = torch.tensor([[0, 2], [2, -1], [-1, -1]])
    assert expert_load(ids_TK, 4).tolist() == [1, 0, 2, 0]
    assert expert_load(ids_TK, 4, torch.tensor([False, True, True])).tolist() == [0, 0, 1, 0]
    assert expert_load(ids_TK[:0], 4).tolist() == [0, 0, 0, 0]


def test_a_layer_nobody_announced_is_not_lost():
    with pytest.raises(KeyError):
        LoadCounts({0: 7}).add(61, draw_ids(0, 5))


@given(load=LOADS)
def test_the_summary_agrees_with_the_routing_metrics(load):
    summary, counts_E = load_summary(torch.tensor(load)), np.array(load)
    assert summary["max_vio"] == pytest.approx(float(load_metrics.max_vio(counts_E)), nan_ok=True)
    assert summary["entropy_normalized"] == pytest.approx(float(load_metrics.entropy_normalized(counts_E)), nan_ok=True, abs=1e-12)
    if sum(load):
        assert summary["load_fractions"] == pytest.approx([n / sum(load) for n in load])
    else:
        assert all(math.isnan(f) for f in summary["load_fractions"])
