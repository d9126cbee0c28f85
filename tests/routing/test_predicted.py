"""Experts by predicted id: what is kept, and the tables, against loops over tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from moectl.model.events import MoELayerInfo
from moectl.model.head import Prediction
from moectl.routing.counters import Counters
from moectl.routing.counting import predicted
from moectl.routing.counting.predicted import KeptExperts, planned_bytes
from moectl.routing.frames import layer_frame
from moectl.routing.perplexity import Losses


@pytest.mark.parametrize(("counted", "empty"), [(1.0, 0.0), (0.8, 0.3)])
def test_tables_equal_loops_over_tokens(run_of, counted, empty):
    run = run_of(shapes=((0, 5, 9), (0, 1, 4), (1, 6, 7)), counted=counted, empty=empty)
    counters, kept = Counters(run.layers, 2, run.batches), KeptExperts(run.layers, run.batches)
    for event in reversed(run.events):
        counters.record(event)
        kept.record(event)
    n_tokens = sum(batch.ids_BS.size for batch in run.batches)
    ids_T = np.random.default_rng(0).integers(0, 6, n_tokens).astype(np.int32)
    counters.count_predicted(kept, run.batches, ids_T, vocab_size=50)

    start = np.cumsum([0, *(batch.ids_BS.size for batch in run.batches)])
    expected, tokens = Counter(), Counter()
    for event in run.events:
        l = [info.layer for info in run.layers].index(event.layer)
        for t, (ids, weights) in enumerate(zip(event.expert_ids_TK.tolist(), event.weights_TK.tolist(), strict=True)):
            if event.batch.counted_BS.reshape(-1)[t]:
                x = int(ids_T[start[event.batch.index] + t])
                tokens[x] += l == 0
                for rank, (_, e) in enumerate(sorted((-w, e) for e, w in zip(ids, weights, strict=True) if e >= 0)):
                    expected["predicted_LME", l, x, e] += 1
                    expected["predicted_first_choice_LME", l, x, e] += rank == 0
    tracked, found = counters.tracked["predicted"], Counter()
    assert dict(zip(tracked.ids_M.tolist(), tracked.tokens_M.tolist(), strict=True)) == {x: n for x, n in tokens.items() if n >= 10}
    for name in ("predicted_LME", "predicted_first_choice_LME"):
        for (l, m, e), count in np.ndenumerate(counters.arrays()[name]):
            found[name, l, int(tracked.ids_M[m]), e] = int(count)
    assert +found == Counter({key: n for key, n in expected.items() if n and key[2] in set(tracked.ids_M.tolist())})
    rows = layer_frame(counters, run.names)
    assert rows.loc[rows["domain"] == "all", "vocabulary_predicted"].between(0, 1).all()


def test_no_more_ids_than_the_tables_have_room_for(run_of, monkeypatch):
    run = run_of(shapes=((0, 20, 20),))
    monkeypatch.setattr(predicted, "TABLE_BYTES", 3 * 8 * 4 * 2 * 2)  # two ids
    counters, kept = Counters(run.layers, 1, run.batches), KeptExperts(run.layers, run.batches)
    for event in run.events:
        kept.record(event)
    counters.count_predicted(kept, run.batches, np.arange(400) % 5, vocab_size=5)
    assert counters.tracked["predicted"].ids_M.tolist() == [0, 1]


@pytest.mark.parametrize(("n_experts", "itemsize"), [(255, 1), (256, 2)])
def test_experts_are_kept_in_as_few_bytes_as_they_need(batches_of, n_experts, itemsize):
    layers, batches = [MoELayerInfo(0, n_experts, 3)], batches_of([(0, 2, 5)])
    assert sum(ids.nbytes for ids in KeptExperts(layers, batches)._ids) == 10 * 3 * itemsize
    assert planned_bytes(layers, 10) == predicted.TABLE_BYTES + 10 * 3 * itemsize


def test_losses_do_not_depend_on_the_order_of_micro_batches(batches_of):
    batches = batches_of(((0, 70, 5), (0, 3, 2), (1, 4, 1), (1, 9, 3)), counted=0.7)
    generator = torch.Generator().manual_seed(0)
    predictions = [Prediction(torch.rand(b.ids_BS.size, generator=generator).double(), torch.zeros(b.ids_BS.size)) for b in batches]
    found = []
    for order in (range(4), (2, 0, 3, 1)):
        losses = Losses(Counters([MoELayerInfo(0, 4, 1)], 2, batches).blocks, batches)
        for i in order:
            losses.add(batches[i], predictions[i])
        found.append(losses.summary(["a", "b"]))
    assert found[0] == found[1]
    kept = [(batch.counted_BS[:, 1:], prediction.loss_T.view(batch.ids_BS.shape)[:, :-1].numpy())
            for batch, prediction in zip(batches, predictions, strict=True)]  # fmt: skip
    assert found[0]["all"]["tokens"] == sum(mask.sum() for mask, _ in kept)
    assert found[0]["all"]["loss"] == pytest.approx(sum((loss * mask).sum() for mask, loss in kept) / found[0]["all"]["tokens"], abs=1e-6)
