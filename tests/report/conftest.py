"""A made-up measurement: counts without a model, made into the tables of a real run."""

from __future__ import annotations

import numpy as np
import pytest

from moectl.data.batching import MicroBatch
from moectl.model.events import MoELayerInfo
from moectl.routing.counters import Counters
from moectl.routing.counting.selection import WEIGHT_UNIT
from moectl.routing.frames import METRIC_KEYS, expert_frame, layer_frame, layer_records, overall
from moectl.routing.result import RouteStats


def make_stats(
    *,
    n_layers=4,
    n_experts=16,
    top_k=2,
    tokens=6000,
    domains=("code", "prose"),
    skew=0.2,
    dead=(),
    cold=(),
    pairs=None,
    overlap=0.31,
    seed=0,
    metrics=None,
):
    """`dead`, `cold`: (layer, expert) that never or hardly run; `skew`: spread of the log loads; `pairs`: {(layer, i, j): tokens that
    ran both}, on top of none; `overlap`: experts a token shares with the next, None for sequences of one token; `metrics`: {key: {layer:
    value}} put over the table, for all domains."""
    rng = np.random.default_rng(seed)
    layers = [MoELayerInfo(layer, n_experts, top_k) for layer in range(n_layers)]
    per_domain = tokens // len(domains)
    ones_1T = np.ones((1, per_domain), np.int64)
    batches = [MicroBatch(domain, domain, domain, ones_1T, ones_1T > 0) for domain in range(len(domains))]
    counters = Counters(layers, len(domains), batches)
    counts = counters.counts  # a domain of one sequence is one block
    counts.counted_XL[:] = per_domain
    for layer in range(n_layers):
        base_E = np.exp(rng.normal(0, skew, n_experts))
        for domain in range(len(domains)):
            p_E = base_E * np.exp(rng.normal(0, skew, n_experts))
            for faint, factor in ((dead, 0.0), (cold, 0.05)):
                p_E[[expert for where, expert in faint if where == layer]] *= factor
            p_E = p_E / p_E.sum()
            counts.tokens_XLE[domain, layer] = per_domain if top_k == n_experts else rng.multinomial(per_domain * top_k, p_E)
    counts.first_choice_XLE[:] = counts.tokens_XLE // top_k
    counts.weight_DLE[:] = counts.tokens_XLE * round(0.5 / WEIGHT_UNIT)
    if overlap is not None:
        counts.pairs_XLG[..., 0] = per_domain - 1
        counts.overlap_XLG[..., 0] = round(overlap * (per_domain - 1) * top_k)
    for (layer, i, j), count in (pairs or {}).items():
        counts.slot_pairs_LEE[layer, i, j] = count

    layer_table = layer_frame(counters, domains)
    for key, values in (metrics or {}).items():
        assert key in METRIC_KEYS
        for layer, value in values.items():
            layer_table.loc[(layer_table["domain"] == "all") & (layer_table["layer"] == layer), key] = value
    moe_layers = tuple(info.layer for info in layers)
    summary = {
        "provenance": {"dtype": "float32", "device": "cpu"},
        "model": {"name": "tiny-moe", "model_type": "mixtral", "layers": n_layers + 1, "moe_layers": list(moe_layers),
                  "experts": n_experts, "top_k": top_k, "routing": "softmax", "shared_experts": 0},
        "data": {name: {"documents": 3, "sequences": 5, "tokens": per_domain, "hash": "0" * 64} for name in domains},
        "layers": layer_records(layer_table), "overall": overall(layer_table),
        "throughput": {"tokens_per_s": 812.3, "read_gb": 13.8, "peak_rss_gb": 3.9, "seconds": 42.0, "forward_seconds": 30.0},
    }  # fmt: skip
    return RouteStats(summary, expert_frame(counters, domains), layer_table, counters.coactivation_LEE(), moe_layers)


@pytest.fixture
def stats_of():
    return make_stats
