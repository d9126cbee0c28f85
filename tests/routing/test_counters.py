"""Counters against loops over tokens."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.errors import ModelError
from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing import counters as counters_module
from moectl.routing.counters import WEIGHT_UNIT, Counters


def count(run, events=None, into=None):
    counters = into or Counters(run.layers, len(run.names), run.batches)
    for event in run.events if events is None else events:
        counters.record(event)
    return counters


def obvious(run):
    """The same state from loops, as plain dictionaries."""
    found = SimpleNamespace(
        tokens=Counter(), first=Counter(), weight=Counter(), counted=Counter(), pairs=Counter(), repeats=Counter(), any=Counter(),
        overlap=Counter(), together=Counter(),
    )  # fmt: skip
    for event in run.events:
        batch, l = event.batch, [info.layer for info in run.layers].index(event.layer)
        B, S = batch.ids_BS.shape
        at = (batch.domain, l)
        for b in range(B):
            before = None
            for s in range(S):
                if not batch.counted_BS[b, s]:
                    before = None
                    continue
                ids = event.expert_ids_TK[b * S + s].tolist()
                weights = event.weights_TK[b * S + s].double().tolist()
                ran = {e: w for e, w in zip(ids, weights, strict=True) if e >= 0}
                found.counted[at] += 1
                for e, w in ran.items():
                    found.tokens[*at, e] += 1
                    found.weight[*at, e] += w
                    for other in ran:
                        found.together[l, e, other] += 1
                first = min((e for e in ran if ran[e] == max(ran.values())), default=None)
                if first is not None:
                    found.first[*at, first] += 1
                if before is not None:
                    shared = len(set(ran) & before[0])
                    found.pairs[at] += 1
                    found.repeats[at] += first is not None and first == before[1]
                    found.any[at] += shared > 0
                    found.overlap[at] += shared
                before = (set(ran), first)
    return found


def assert_equal(array, expected):
    assert {tuple(map(int, index)): array[tuple(index)] for index in np.argwhere(array)} == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("counted", [1.0, 0.6, 0.0])
def test_counts_equal_loops_over_tokens(run_of, counted, empty):
    run = run_of(counted=counted, empty=empty, seed=3)
    counters, expected = count(run), obvious(run)
    assert_equal(counters.tokens_DLE, expected.tokens)
    assert_equal(counters.first_choice_DLE, expected.first)
    assert_equal(counters.counted_DL, expected.counted)
    assert_equal(counters.pairs_DL, expected.pairs)
    assert_equal(counters.repeats_DL, expected.repeats)
    assert_equal(counters.any_overlap_DL, expected.any)
    assert_equal(counters.overlap_DL, expected.overlap)
    assert_equal(counters.coactivation_LEE(), expected.together)
    for index, weight in expected.weight.items():
        assert counters.weight_DLE[index] * WEIGHT_UNIT == pytest.approx(weight, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))
def test_identities(run_of, E, K, B, S, seed):
    K = min(E, K)
    run = run_of(sizes=((0, E, K),), shapes=((0, B, S), (1, 1, S)), seed=seed)
    counters = count(run)
    assert counters.tokens_DLE.sum() == (B + 1) * S * K
    assert counters.first_choice_DLE.sum() == (B + 1) * S
    together_EE = counters.coactivation_LEE()[0]
    tokens_E = counters.tokens_DLE.sum((0, 1))
    assert (together_EE == together_EE.T).all()
    assert (np.diagonal(together_EE) == tokens_E).all()
    assert (together_EE.sum(1) - tokens_E == (K - 1) * tokens_E).all()
    assert counters.pairs_DL.sum() == (B + 1) * (S - 1)


def test_order_of_events_and_merging_change_no_bit(run_of):
    run = run_of(counted=0.8, empty=0.1, dtype=torch.bfloat16)
    whole = count(run).arrays()
    others = [count(run, run.batch_outer), count(run, run.events[::-1])]
    parts = [count(run, [event for event in run.events if event.batch.index % 3 == part]) for part in (2, 0, 1)]
    for part in parts[1:]:
        parts[0].merge(part)
    for other in (*others, parts[0]):
        for name, array in other.arrays().items():
            assert array.tobytes() == whole[name].tobytes(), name
        assert other.max_vio_sequence_DL().tobytes() == count(run).max_vio_sequence_DL().tobytes()


def test_pairs_of_slots_are_counted_in_chunks(run_of, monkeypatch):
    run = run_of(empty=0.1)
    whole = count(run).slot_pairs_LEE
    monkeypatch.setattr(counters_module, "_MAX_PAIR_KEYS", 3)
    assert (count(run).slot_pairs_LEE == whole).all()


def test_pairs_never_cross_sequences(batches_of):
    """Each sequence keeps to one expert and its neighbour in the batch does too: crossing would show."""
    (batch,) = batches_of([(0, 2, 1)])
    counters = Counters([MoELayerInfo(0, 4, 1)], 1, [batch])
    counters.record(_event(batch, [[2], [2]], [[1.0], [1.0]]))
    assert counters.pairs_DL.sum() == counters.repeats_DL.sum() == counters.overlap_DL.sum() == 0


def test_first_choice_is_the_largest_weight_not_slot_0_and_ties_go_to_the_lowest_id(batches_of):
    (batch,) = batches_of([(0, 1, 3)])
    counters = Counters([MoELayerInfo(5, 4, 2)], 1, [batch])
    counters.record(_event(batch, [[0, 3], [2, 1], [-1, 0]], [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], layer=5))
    assert counters.first_choice_DLE[0, 0].tolist() == [1, 1, 0, 1]


def test_a_token_that_ran_nothing_repeats_nothing(batches_of):
    (batch,) = batches_of([(0, 1, 2)])
    counters = Counters([MoELayerInfo(0, 4, 1)], 1, [batch])
    counters.record(_event(batch, [[-1], [-1]], [[1.0], [1.0]]))
    assert counters.pairs_DL.tolist() == [[1]]
    assert counters.repeats_DL.tolist() == counters.any_overlap_DL.tolist() == [[0]]
    assert np.isnan(counters.max_vio_sequence_DL()).all()


def test_max_vio_takes_every_sequence_and_full_batches_only(batches_of):
    batches = batches_of([(0, 2, 4), (0, 1, 4), (0, 1, 2), (1, 1, 2)])
    counters = Counters([MoELayerInfo(0, 2, 1)], 2, batches)
    zeros = torch.zeros(8, 1, dtype=torch.int64)
    rows = [[[0], [0], [0], [1], [0], [0], [1], [1]], zeros[:4].tolist(), zeros[:2].tolist(), zeros[:2].tolist()]
    for batch, ids in zip(batches, rows, strict=True):
        counters.record(_event(batch, ids, torch.ones(len(ids), 1).tolist()))
    # Domain 0: its sequences have loads 3:1, 2:2, 4:0 and, the tail, 2:0, that is 0.5, 0, 1 and 1; its only full micro-batch 5:3.
    assert counters.max_vio_sequence_DL()[:, 0].tolist() == [(0.5 + 0 + 1 + 1 + 1) / 5, 0.625, 1.0]
    assert counters.max_vio_batch_DL()[:, 0].tolist() == [(0.25 + 1) / 2, 0.25, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -(2.0**20)])
def test_weights_no_sum_can_hold_are_refused_naming_the_layer(batches_of, bad):
    (batch,) = batches_of([(0, 1, 2)])
    counters = Counters([MoELayerInfo(11, 4, 1)], 1, [batch])
    with pytest.raises(ModelError, match=r"the router of layer `11` gave a combine weight that is not finite or not below 2\^20"):
        counters.record(_event(batch, [[0], [1]], [[0.5], [bad]], layer=11))
    counters.record(_event(batch, [[0], [-1]], [[0.5], [bad]], layer=11))  # a slot that ran nothing has no weight


@pytest.mark.gpu
def test_cuda_counts_the_same(run_of):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run = run_of(counted=0.8, empty=0.1)
    moved = [RoutingEvent(e.layer, e.batch, e.expert_ids_TK.cuda(), e.weights_TK.cuda(), e.logits_TE.cuda()) for e in run.events]
    expected = count(run).arrays()
    for name, array in count(run, moved).arrays().items():
        assert array.tobytes() == expected[name].tobytes(), name


def _event(batch, ids, weights, layer=0):
    return RoutingEvent(layer, batch, torch.tensor(ids), torch.tensor(weights), torch.zeros(len(ids), 4))
