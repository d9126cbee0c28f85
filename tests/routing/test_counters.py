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
from moectl.routing.counters import Counters
from moectl.routing.counting import arrays, selection
from moectl.routing.counting.scores import SCORE_UNIT
from moectl.routing.counting.selection import WEIGHT_UNIT


def count(run, events=None, into=None):
    counters = into or Counters(run.layers, len(run.names), run.batches)
    for event in run.events if events is None else events:
        counters.record(event)
    return counters


def obvious(run):
    """The same state from loops, as plain dictionaries."""
    found = SimpleNamespace(
        tokens=Counter(), first=Counter(), weight=Counter(), counted=Counter(), pairs=Counter(), repeats=Counter(), any=Counter(),
        overlap=Counter(), together=Counter(), sequences=Counter(), vio_sequences=Counter(), vio=Counter(),
    )  # fmt: skip
    domain_of_sequence = [batch.domain for batch in run.batches for _ in batch.ids_BS]
    block_of_sequence, first_block = {}, 0
    for domain in range(len(run.names)):
        sequences = [q for q, of in enumerate(domain_of_sequence) if of == domain]
        block_of_sequence |= {q: first_block + i % 64 for i, q in enumerate(sequences)}
        first_block += min(64, len(sequences))
    for event in run.events:
        batch, l = event.batch, [info.layer for info in run.layers].index(event.layer)
        B, S = batch.ids_BS.shape
        for b in range(B):
            at = (block_of_sequence[batch.first_sequence + b], l)
            before, load = [], Counter()
            for s in range(S):
                before.insert(0, None)
                if not batch.counted_BS[b, s]:
                    continue
                ids = event.expert_ids_TK[b * S + s].tolist()
                weights = event.weights_TK[b * S + s].double().tolist()
                ran = {e: w for e, w in zip(ids, weights, strict=True) if e >= 0}
                found.counted[at] += 1
                for e, w in ran.items():
                    load[e] += 1
                    found.tokens[*at, e] += 1
                    found.weight[batch.domain, l, e] += w
                    for other in ran:
                        found.together[l, e, other] += 1
                first = min((e for e in ran if ran[e] == max(ran.values())), default=None)
                if first is not None:
                    found.first[*at, first] += 1
                before[0] = (set(ran), first)
                for g, lag in enumerate((1, 2, 4, 8, 16, 32, 64)):
                    if lag < len(before) and before[lag] is not None:
                        found.pairs[*at, g] += 1
                        found.overlap[*at, g] += len(set(ran) & before[lag][0])
                if s > 0 and before[1] is not None:
                    found.repeats[at] += first is not None and first == before[1][1]
                    found.any[at] += bool(set(ran) & before[1][0])
            found.sequences[at] += any(batch.counted_BS[b])
            if load:
                found.vio_sequences[at] += 1
                found.vio[at] += max(load.values()) * run.layers[l].n_experts / load.total() - 1
    return found


def assert_equal(array, expected):
    assert {tuple(map(int, index)): array[tuple(index)] for index in np.argwhere(array)} == {k: v for k, v in expected.items() if v}


MANY = ((0, 3, 70), (1, 50, 3), (0, 90, 3), (1, 1, 66), (0, 1, 1), (1, 30, 3))


@pytest.mark.parametrize("shapes", [((0, 3, 6), (0, 2, 6), (0, 1, 4), (1, 4, 5), (1, 1, 2)), MANY], ids=["few", "many"])
@pytest.mark.parametrize("empty", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("counted", [1.0, 0.6, 0.0])
def test_counts_equal_loops_over_tokens(run_of, shapes, counted, empty):
    run = run_of(shapes=shapes, counted=counted, empty=empty, seed=3)
    counters, expected = count(run), obvious(run)
    counts = counters.counts
    assert counters.blocks.domain_X.tolist() == ([0] * 64 + [1] * 64 if shapes == MANY else [0] * 6 + [1] * 5)
    assert_equal(counts.tokens_XLE, expected.tokens)
    assert_equal(counts.first_choice_XLE, expected.first)
    assert_equal(counts.counted_XL, expected.counted)
    assert_equal(counts.pairs_XLG, expected.pairs)
    assert_equal(counts.overlap_XLG, expected.overlap)
    assert_equal(counts.repeats_XL, expected.repeats)
    assert_equal(counts.any_overlap_XL, expected.any)
    assert_equal(counts.counted_sequences_XL, expected.sequences)
    assert_equal(counts.vio_sequences_XL, expected.vio_sequences)
    assert_equal(counters.coactivation_LEE(), expected.together)
    for index, weight in expected.weight.items():
        assert counts.weight_DLE[index] * WEIGHT_UNIT == pytest.approx(weight, abs=1e-6)
    for index, vio in expected.vio.items():
        assert counts.block_vio_XL[index] * SCORE_UNIT == pytest.approx(vio, abs=1e-6)


def test_blocks_of_a_domain_add_up_to_it(run_of):
    run = run_of(shapes=MANY, sizes=((0, 5, 2),))
    counters = count(run)
    tokens_DLE = counters.by_domain(counters.counts.tokens_XLE)
    for domain in (0, 1):
        alone_E = sum(np.bincount(event.expert_ids_TK.flatten(), minlength=5) for event in run.events if event.batch.domain == domain)
        assert tokens_DLE[domain, 0].tolist() == alone_E.tolist()
    assert counters.by_domain(counters.counts.first_choice_XLE).dtype == np.int64


def test_a_domain_without_sequences_has_no_blocks(run_of):
    run = run_of(shapes=((0, 2, 3), (2, 1, 3)), sizes=((0, 4, 2),))
    counters = count(run)
    assert counters.blocks.domain_X.tolist() == [0, 0, 2]
    assert counters.by_domain(counters.counts.counted_XL).tolist() == [[6], [0], [3]]


def test_memory_of_large_runs_is_bounded(batches_of):
    layers = [MoELayerInfo(layer, 256, 8) for layer in range(61)]
    batches = batches_of([(domain, 200, 100) for domain in range(5)])
    axes = arrays.sizes(layers, 5, batches)
    assert (axes["X"], axes["L"], axes["E"]) == (320, 61, 256)
    without_ids = arrays.planned_bytes(axes | {"M": 0})
    assert without_ids < 150e6
    assert arrays.planned_bytes(axes) - without_ids < 96e6
    counts = arrays.CountArrays.zeros(axes | {"L": 1})
    assert sum(array.nbytes for array in counts.by_name().values()) == arrays.planned_bytes(axes | {"L": 1})


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))
def test_identities(run_of, E, K, B, S, seed):
    K = min(E, K)
    run = run_of(sizes=((0, E, K),), shapes=((0, B, S), (1, 1, S)), seed=seed)
    counters = count(run)
    assert counters.counts.tokens_XLE.sum() == (B + 1) * S * K
    assert counters.counts.first_choice_XLE.sum() == (B + 1) * S
    together_EE = counters.coactivation_LEE()[0]
    tokens_E = counters.counts.tokens_XLE.sum((0, 1))
    assert (together_EE == together_EE.T).all()
    assert (np.diagonal(together_EE) == tokens_E).all()
    assert (together_EE.sum(1) - tokens_E == (K - 1) * tokens_E).all()
    assert counters.counts.pairs_XLG[..., 0].sum() == (B + 1) * (S - 1)


def test_order_of_events_and_merging_change_no_bit(run_of):
    run = run_of(shapes=MANY, counted=0.8, empty=0.1, dtype=torch.bfloat16, biased=(4,))
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
    whole = count(run).counts.slot_pairs_LEE
    monkeypatch.setattr(selection, "_MAX_PAIR_KEYS", 3)
    assert (count(run).counts.slot_pairs_LEE == whole).all()


def test_pairs_never_cross_sequences(batches_of):
    """Each sequence keeps to one expert and its neighbour in the batch does too: crossing would show."""
    (batch,) = batches_of([(0, 2, 1)])
    counters = Counters([MoELayerInfo(0, 4, 1)], 1, [batch])
    counters.record(_event(batch, [[2], [2]], [[1.0], [1.0]]))
    counts = counters.counts
    assert counts.pairs_XLG.sum() == counts.repeats_XL.sum() == counts.overlap_XLG.sum() == 0


def test_first_choice_is_the_largest_weight_not_slot_0_and_ties_go_to_the_lowest_id(batches_of):
    (batch,) = batches_of([(0, 1, 3)])
    counters = Counters([MoELayerInfo(5, 4, 2)], 1, [batch])
    counters.record(_event(batch, [[0, 3], [2, 1], [-1, 0]], [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]], layer=5))
    assert counters.counts.first_choice_XLE[0, 0].tolist() == [1, 1, 0, 1]


def test_a_token_that_ran_nothing_repeats_nothing(batches_of):
    (batch,) = batches_of([(0, 1, 2)])
    counters = Counters([MoELayerInfo(0, 4, 1)], 1, [batch])
    counters.record(_event(batch, [[-1], [-1]], [[1.0], [1.0]]))
    counts = counters.counts
    assert counts.pairs_XLG[..., 0].tolist() == [[1]]
    assert counts.repeats_XL.tolist() == counts.any_overlap_XL.tolist() == [[0]]
    assert np.isnan(counters.max_vio_sequence_DL()).all()


def test_max_vio_takes_every_sequence_and_full_batches_only(batches_of):
    batches = batches_of([(0, 2, 4), (0, 1, 4), (0, 1, 2), (1, 1, 2)])
    counters = Counters([MoELayerInfo(0, 2, 1)], 2, batches)
    zeros = torch.zeros(8, 1, dtype=torch.int64)
    rows = [[[0], [0], [0], [1], [0], [0], [1], [1]], zeros[:4].tolist(), zeros[:2].tolist(), zeros[:2].tolist()]
    for batch, ids in zip(batches, rows, strict=True):
        counters.record(_event(batch, ids, torch.ones(len(ids), 1).tolist(), n_experts=2))
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
    run = run_of(counted=0.8, empty=0.1, biased=(4,))
    moved = [
        RoutingEvent(
            e.layer, e.batch, e.expert_ids_TK.cuda(), e.weights_TK.cuda(), e.logits_TE.cuda(),
            None if e.choice_TE is None else e.choice_TE.cuda(),
        )
        for e in run.events
    ]  # fmt: skip
    expected = count(run).arrays()
    for name, array in count(run, moved).arrays().items():
        if name in OF_SCORES:  # a device has an exponential of its own
            assert array / 2**20 == pytest.approx(expected[name] / 2**20, rel=1e-4, abs=1e-3), name
        else:
            assert array.tobytes() == expected[name].tobytes(), name


OF_SCORES = ("scores_XLE", "entropy_XL", "captured_XL", "used_experts_XL", "margin_XL", "z_squared_XL", "sequence_loss_XL")


def _event(batch, ids, weights, layer=0, n_experts=4):
    return RoutingEvent(layer, batch, torch.tensor(ids), torch.tensor(weights), torch.zeros(len(ids), n_experts))
