"""Losses and confidence: what is counted against loops in float64, against training, and against what must hold."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from moectl.arch.parts import Router
from moectl.data.batching import MicroBatch
from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.model.router import route
from moectl.routing.counters import Counters
from moectl.routing.counting.scores import FRAGILE_MARGIN, LOGIT_UNIT, SCORE_UNIT
from moectl.routing.frames import layer_frame
from moectl.training import balance

SHAPES = ((0, 3, 6), (0, 70, 2), (1, 4, 5), (1, 1, 2))
KEYS = (
    "balance_loss", "sequence_balance_loss", "z_loss", "router_entropy", "captured_mass", "margin", "fragile_tokens",
    "effective_used_experts", "bias_effect",
)  # fmt: skip


def count(run, events=None):
    counters = Counters(run.layers, len(run.names), run.batches)
    for event in run.events if events is None else events:
        counters.record(event)
    return counters


def scores(z, score):
    q = [math.exp(x - max(z)) for x in z] if score == "softmax" else [1 / (1 + math.exp(-x)) for x in z]
    return [x / sum(q) for x in q]


def obvious(run, layer, domain):
    """The metrics of one layer and domain (None: all), token by token."""
    info = next(info for info in run.layers if info.layer == layer)
    E, K = info.n_experts, info.top_k
    values, losses, f_sum, p_sum, T = defaultdict(list), [], np.zeros(E), np.zeros(E), 0
    for event in run.events:
        batch = event.batch
        if event.layer != layer or domain not in (None, batch.domain):
            continue
        B, S = batch.ids_BS.shape
        for b in range(B):
            chosen, p_here, n = np.zeros(E), np.zeros(E), 0
            for s in range(S):
                if not batch.counted_BS[b, s]:
                    continue
                t = b * S + s
                z = event.logits_TE[t].double().tolist()
                p = scores(z, info.score)
                key = z if event.choice_TE is None else event.choice_TE[t].tolist()
                ran = {e: g for e, g in zip(event.expert_ids_TK[t].tolist(), event.weights_TK[t].tolist(), strict=True) if e >= 0}
                n, p_here = n + 1, p_here + p
                alone = sorted(range(E), key=lambda e: -z[e])[:K]
                chosen[alone] += 1
                f_sum[list(ran)] += 1
                values["router_entropy"].append(-sum(x * math.log(x) for x in p if x) / math.log(E))
                values["captured_mass"].append(sum(p[e] for e in ran))
                values["z_loss"].append(math.log(sum(map(math.exp, z))) ** 2)
                if ran:
                    g = [x / sum(ran.values()) for x in ran.values()]
                    values["effective_used_experts"].append(math.exp(-sum(x * math.log(x) for x in g)))
                if len(ran) == K:
                    values["bias_effect"].append(1 - len(set(ran) & set(alone)) / K)
                    if K < E:
                        margin = min(key[e] for e in ran) - max(key[e] for e in range(E) if e not in ran)
                        values["margin"].append(margin)
                        values["fragile_tokens"].append(margin < FRAGILE_MARGIN)
            p_sum, T = p_sum + p_here, T + n
            if n:
                losses.append(E / (K * n) * chosen @ p_here / n)
    values["sequence_balance_loss"] = losses
    values["balance_loss"] = [E * (f_sum / (T * K)) @ (p_sum / T)] if T else []
    if not info.correction_bias:
        values["bias_effect"] = []
    return {key: np.mean(values[key]) if values[key] else np.nan for key in KEYS}


@pytest.mark.parametrize(("counted", "empty"), [(1.0, 0.0), (0.6, 0.0), (0.7, 0.3), (1.0, 1.0), (0.0, 0.0)])
def test_metrics_equal_their_definitions(run_of, counted, empty):
    run = run_of(sizes=((3, 8, 2), (4, 8, 3), (7, 5, 5)), shapes=SHAPES, biased=(4,), spread=2.0, counted=counted, empty=empty, seed=4)
    frame = layer_frame(count(run), run.names).set_index(["domain", "layer"])
    for (domain, name), layer in itertools.product([(None, "all"), (0, "wiki"), (1, "code")], (3, 4, 7)):
        expected = obvious(run, layer, domain)
        found = frame.loc[(name, layer), list(KEYS)].astype(float).to_dict()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


def test_the_bias_changes_what_the_test_run_selects(run_of):
    """The runs above must tell biased routers from others."""
    run = run_of(biased=(4,), spread=2.0)
    frame = layer_frame(count(run), run.names).set_index(["domain", "layer"])
    assert 0.05 < frame.loc[("all", 4), "bias_effect"] < 0.95


def test_losses_are_those_of_training(run_of):
    run = run_of(sizes=((0, 8, 2), (1, 8, 3)), shapes=((0, 5, 9),), biased=(1,), counted=0.7)
    frame = layer_frame(count(run), run.names)
    (batch,) = run.batches
    valid_BS = torch.from_numpy(batch.counted_BS)
    for row, (event, info) in enumerate(zip(run.events, run.layers, strict=True)):
        options = {"score": info.score}
        switch = balance.switch_loss(event.logits_TE, event.expert_ids_TK, valid_T=valid_BS.flatten(), **options)
        logits_BSE = event.logits_TE.view(5, 9, 8)
        sequence = balance.sequence_balance_loss(logits_BSE, top_k=info.top_k, valid_BS=valid_BS, **options)
        z = balance.z_loss(event.logits_TE, valid_BS.flatten())
        found = frame.loc[row, ["balance_loss", "sequence_balance_loss", "z_loss"]].tolist()
        assert found == pytest.approx([float(switch), float(sequence), float(z)], rel=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_router_says_what_it_selected_by(groups):
    spec = Router(
        n_experts=16, top_k=3, score="sigmoid", logits_dtype="float32", weight_dtype="float32", renormalize=True, correction_bias=True,
        n_group=groups, topk_group=max(1, groups // 2),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    bias_E = torch.randn(16, generator=generator) * 0.2
    routing = route(
        spec, torch.randn(50, 6, generator=generator), {"router": torch.randn(16, 6, generator=generator), "correction_bias": bias_E}
    )
    assert torch.equal(routing.choice_TE.topk(3).indices.sort(1).values, routing.expert_ids_TK.sort(1).values)
    assert routing.choice_TE.isfinite().sum(1).tolist() == [16 if groups == 1 else 8] * 50
    batch = MicroBatch(0, 0, 0, np.zeros((1, 50), np.int64), np.ones((1, 50), bool))
    counters = Counters([MoELayerInfo(0, 16, 3, "sigmoid", True)], 1, [batch])
    counters.record(RoutingEvent(0, batch, *routing))
    row = layer_frame(counters, ["x"]).iloc[0]
    ordered_TE = routing.choice_TE.sort(1, descending=True).values
    assert row["margin"] == pytest.approx(float((ordered_TE[:, 2] - ordered_TE[:, 3]).mean()), rel=1e-4)
    assert row["margin"] > 0


def test_a_plain_router_selects_by_its_logits():
    spec = Router(
        n_experts=8, top_k=2, score="softmax", logits_dtype="float32", weight_dtype="float32", renormalize=True
    )  # fmt: skip
    assert route(spec, torch.ones(3, 4), {"router": torch.rand(8, 4)}).choice_TE is None


def one_event(logits, ids, weights=None, *, score="softmax", choice=None):
    logits_TE, ids_TK = torch.tensor(logits), torch.tensor(ids)
    weights_TK = torch.ones(ids_TK.shape) if weights is None else torch.tensor(weights)
    T, E = logits_TE.shape
    batch = MicroBatch(0, 0, 0, np.zeros((1, T), np.int64), np.ones((1, T), bool))
    info = MoELayerInfo(0, E, ids_TK.shape[1], score, choice is not None)
    counters = Counters([info], 1, [batch])
    counters.record(RoutingEvent(0, batch, ids_TK, weights_TK, logits_TE, None if choice is None else torch.tensor(choice)))
    return layer_frame(counters, ["x"]).iloc[0]


def test_even_scores_and_one_expert_for_all():
    even = one_event([[0.5] * 4] * 4, [[0, 1], [2, 3], [0, 1], [2, 3]])
    assert even["balance_loss"] == even["sequence_balance_loss"] == pytest.approx(1, abs=1e-9)
    assert even["router_entropy"] == pytest.approx(1, abs=1e-7)
    assert even["captured_mass"] == pytest.approx(0.5, abs=1e-9)
    assert even["z_loss"] == pytest.approx((0.5 + math.log(4)) ** 2, rel=1e-6)
    assert (even["margin"], even["fragile_tokens"], even["effective_used_experts"]) == (0, 1, pytest.approx(2))
    sure = one_event([[50.0, 0.0, -1.0, -2.0]] * 3, [[0]] * 3)
    assert sure["balance_loss"] == sure["sequence_balance_loss"] == pytest.approx(4)
    assert sure["router_entropy"] == pytest.approx(0, abs=1e-9)
    assert (sure["captured_mass"], sure["margin"], sure["fragile_tokens"], sure["effective_used_experts"]) == (1, 50, 0, 1)
    assert math.isnan(sure["bias_effect"])


def test_a_single_expert_a_single_token():
    row = one_event([[2.0]], [[0]])
    assert row["balance_loss"] == row["sequence_balance_loss"] == row["captured_mass"] == row["effective_used_experts"] == 1
    assert row["z_loss"] == pytest.approx(4)
    assert row[["router_entropy", "margin", "fragile_tokens", "bias_effect"]].isna().all()


@pytest.mark.parametrize(("score", "sure"), [("softmax", 0), ("sigmoid", (math.log(3) - math.log(4) / 3) / math.log(3))])
def test_absurd_logits_give_finite_sums(score, sure):
    row = one_event([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38]], [[0], [1]], score=score)
    assert np.isfinite(row[[key for key in KEYS if key != "bias_effect"]].astype(float)).all()
    assert row["router_entropy"] == pytest.approx((sure + 1) / 2, abs=1e-6)


def test_weights_that_say_nothing_are_left_out():
    row = one_event([[1.0, 0.0, 0.0]] * 4, [[0, 1], [0, 1], [-1, -1], [0, 1]], [[0.0, 0.0], [0.25, 0.75], [1.0, 1.0], [-0.5, 0.9]])
    assert row["effective_used_experts"] == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))


def test_the_effect_of_a_bias():
    row = one_event([[3.0, 2.0, 1.0]] * 2, [[0, 1], [2, 1]], choice=[[3.0, 2.0, 1.0], [0.0, 2.0, 3.0]], score="sigmoid")
    assert row["bias_effect"] == 0.25
    assert row["margin"] == 1.5
    groups = one_event([[3.0, 2.0, 1.0, 0.0]], [[2, 3]], choice=[[-math.inf, -math.inf, 1.0, 0.0]], score="sigmoid")
    assert groups["bias_effect"] == 1.0
    assert math.isnan(groups["margin"])  # the groups left nothing else to select


def test_units_are_fine_enough_and_sums_are_multiples_of_them(run_of):
    run = run_of(biased=(4,))
    counts = count(run).counts
    assert SCORE_UNIT <= 1e-9
    for sums_XL in (counts.margin_XL, counts.z_squared_XL):
        assert (sums_XL / LOGIT_UNIT == np.round(sums_XL / LOGIT_UNIT)).all()
    assert counts.scores_XLE.sum((0, 2)) * SCORE_UNIT == pytest.approx(counts.counted_XL.sum(0), rel=1e-6)
