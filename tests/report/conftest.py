from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

BASE_METRICS = {
    "router_entropy": 0.83, "captured_mass": 0.61, "margin": 0.12, "bias_effect": None, "next_token_overlap": 0.31,
    "next_token_overlap_load_aware": 0.16, "next_token_overlap_uniform": 0.125,
}  # fmt: skip


def make_stats(
    *, n_layers=4, n_experts=16, top_k=2, tokens=6000, domains=("code", "prose"), skew=0.2, dead=(), seed=0, metrics=None, **overrides
):
    """A RouteStats of plausible numbers. `dead`: (layer, expert) pairs that never run; `skew`: spread of the log loads;
    `metrics`: {key: {layer: value}} put over the table."""
    rng = np.random.default_rng(seed)
    expert_rows, layer_rows = [], []
    names = [*domains, "all"]
    for layer in range(n_layers):
        base_E = np.exp(rng.normal(0, skew, n_experts))
        counts = {}
        for name in domains:
            p_E = base_E * np.exp(rng.normal(0, skew, n_experts))
            for dead_layer, expert in dead:
                if dead_layer == layer:
                    p_E[expert] = 0.0
            counts[name] = rng.multinomial(tokens // len(domains) * top_k, p_E / p_E.sum())
        counts["all"] = sum(counts[name] for name in domains)
        for name in names:
            n_E = counts[name]
            share_E = n_E / n_E.sum()
            load_E = share_E * n_experts
            for expert in range(n_experts):
                expert_rows.append((name, layer, expert, int(n_E[expert]), share_E[expert], load_E[expert], float(n_E[expert]) / 2, 0.5))
            entropy = -sum(p * math.log(p) for p in share_E if p > 0)
            row = {
                "domain": name, "layer": layer, "tokens": int(n_E.sum()) // top_k, "max_vio": load_E.max() - 1,
                "max_vio_noise_floor": math.sqrt(2 * math.log(n_experts) * (1 - top_k / n_experts) / n_E.mean()),
                "effective_experts": math.exp(entropy), "cv": float(np.std(load_E)), "gini": 0.2,
                "dead_experts": int((n_E == 0).sum()), "cold_experts": int((load_E < 0.1).sum()),
                "domain_information_bits": 0.01 * (layer + 1) if name == "all" and len(domains) > 1 else None,
                **BASE_METRICS, **overrides,
            }  # fmt: skip
            for key, values in (metrics or {}).items():
                if layer in values:
                    row[key] = values[layer]
            layer_rows.append(row)
    per_domain = tokens // len(domains)
    summary = {
        "provenance": {"dtype": "float32", "device": "cpu"},
        "model": {"name": "tiny-moe", "model_type": "mixtral", "layers": n_layers + 1, "moe_layers": n_layers, "experts": n_experts,
                  "top_k": top_k, "routing": "softmax", "shared_experts": 0},
        "data": [{"name": name, "documents": 3, "sequences": 5, "tokens": per_domain, "sha256": "0" * 64} for name in domains],
        "layers": [], "overall": {},
        "throughput": {"tokens_per_s": 812.3, "read_gb": 13.8, "peak_rss_gb": 3.9, "seconds": 42.0, "forward_seconds": 30.0},
    }  # fmt: skip
    columns = ["domain", "layer", "expert", "tokens", "share", "relative_load", "weight_sum", "mean_weight"]
    return SimpleNamespace(
        summary=summary,
        experts=pd.DataFrame(expert_rows, columns=columns),
        layers=pd.DataFrame(layer_rows),
        coactivation_LEE=np.zeros((n_layers, n_experts, n_experts), np.int64),
        moe_layers=tuple(range(n_layers)),
    )


@pytest.fixture
def stats_of():
    return make_stats
