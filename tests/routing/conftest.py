"""A made-up run: micro-batches and routing events without a model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from moectl.data.batching import MicroBatch
from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing.counters import Counters


@dataclass
class Run:
    layers: list[MoELayerInfo]
    batches: list[MicroBatch]
    events: list[RoutingEvent]  # layer-outer
    names: list[str]

    @property
    def batch_outer(self):
        return sorted(self.events, key=lambda event: (event.batch.index, event.layer))


def make_batches(shapes, *, counted=1.0, seed=0, vocabulary=1000):
    """`shapes`: (domain, B, S) of each micro-batch."""
    rng = np.random.default_rng(seed)
    batches, first = [], 0
    for index, (domain, B, S) in enumerate(shapes):
        ids_BS = rng.integers(0, vocabulary, (B, S))
        batches.append(MicroBatch(index, domain, first, ids_BS, rng.random((B, S)) < counted))
        first += B
    return batches


def make_run(
    *,
    sizes=((3, 8, 2), (4, 8, 2), (7, 5, 3)),
    shapes=((0, 3, 6), (0, 2, 6), (0, 1, 4), (1, 4, 5), (1, 1, 2)),
    counted=1.0,
    empty=0.0,
    seed=0,
    dtype=torch.float32,
    biased=(),
    spread=1.0,
    vocabulary=1000,
):
    """`sizes`: (layer, E, K). `empty`: chance that a slot ran no expert. Weights have few values, so ties are common. `biased`: the layers
    that select by sigmoid + bias; `spread` of their logits."""
    generator = torch.Generator().manual_seed(seed)
    layers = [MoELayerInfo(*size, *(("sigmoid", True) if size[0] in biased else ())) for size in sizes]
    batches = make_batches(shapes, counted=counted, seed=seed, vocabulary=vocabulary)
    events = []
    for info, batch in itertools.product(layers, batches):
        T = batch.ids_BS.size
        scores_TE = torch.rand(T, info.n_experts, generator=generator) + 0.1 * torch.arange(info.n_experts)
        choice_TE = None
        if info.correction_bias:
            scores_TE = spread * torch.randn(scores_TE.shape, generator=generator)
            choice_TE = scores_TE.sigmoid() + 0.1 * torch.arange(info.n_experts)
        ids_TK = (scores_TE if choice_TE is None else choice_TE).topk(info.top_k, dim=1, sorted=False).indices
        ids_TK = ids_TK.masked_fill(torch.rand(ids_TK.shape, generator=generator) < empty, -1)
        weights_TK = torch.randint(1, 5, ids_TK.shape, generator=generator) * 0.1
        events.append(RoutingEvent(info.layer, batch, ids_TK, weights_TK.to(dtype), scores_TE, choice_TE))
    names = ["wiki", "code", "math"][: max(domain for domain, _, _ in shapes) + 1]
    return Run(layers, batches, events, names)


@pytest.fixture(scope="session")
def run_of():
    return make_run


@pytest.fixture(scope="session")
def batches_of():
    return make_batches


@pytest.fixture
def counters_of():
    """The counters of a run, fed with its events or others."""

    def make(run, events=None, **options):
        counters = Counters(run.layers, len(run.names), run.batches, **options)
        for event in run.events if events is None else events:
            counters.record(event)
        return counters

    return make
