"""Measurements of models that do not exist, as large as real ones: skewed loads, domains with favourites, groups of experts, dead ones.

    stats = page_stats(n_layers=61, n_experts=256, top_k=8)

The tables are put together here, not by the routing package: the page reads tables, and these have every column it can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moectl.routing.metrics import load
from moectl.routing.result import RouteStats

# Shapes: D domains with all text first, L MoE layers, E experts.

WORDS = [
    "the",
    " of",
    "def",
    " self",
    "\n",
    "    ",
    "(",
    ")",
    "0",
    "42",
    " Wörter",
    "的",
    "ing",
    " import",
    '","',
    "</td>",
    "é",
    " =>",
    "|",
    "LOAD_FAST",
]


@dataclass(frozen=True, slots=True, eq=False)
class FullStats(RouteStats):
    """With the optional frame `vocabulary`."""

    vocabulary: pd.DataFrame | None = None


def page_stats(
    *,
    n_layers: int = 6,
    n_experts: int = 16,
    top_k: int = 4,
    tokens: int = 20_000,
    domains: tuple[str, ...] = ("code", "prose", "tables", "arithmetic", "bytecode"),
    name: str = "made-up/moe",
    words: list[str] = WORDS,
    extras: bool = True,
    first_layer: int = 1,
    seed: int = 0,
) -> RouteStats:
    """`tokens` of each domain. `extras`: intervals, information between domains, lags and vocabulary."""
    rng = np.random.default_rng(seed)
    L, E, D = n_layers, n_experts, len(domains)
    layers = tuple(range(first_layer, first_layer + L))
    depth_L1 = np.linspace(0.35, 0.75, L)[:, None]
    base_LE = rng.normal(0, depth_L1, (L, E))
    base_LE[rng.random((L, E)) < 1.5 / E / L] = -np.inf
    own_DLE = rng.normal(0, 0.25, (D, L, E)) + (rng.random((D, L, E)) < 2 / E) * np.minimum(rng.exponential(0.7, (D, L, E)), 2.5)
    p_DLE = np.exp(base_LE + own_DLE)
    p_DLE /= p_DLE.sum(-1, keepdims=True)
    # No expert can have more than one pick of each token.
    p_DLE = np.minimum(p_DLE, 0.9 / top_k)
    p_DLE /= p_DLE.sum(-1, keepdims=True)
    counts_DLE = np.stack([rng.multinomial(tokens * top_k, p_DLE[d]) for d in range(D)]).astype(np.int64)
    counts_DLE = np.concatenate([counts_DLE.sum(0, keepdims=True), counts_DLE])
    names = ["all", *domains]
    tokens_D = np.array([tokens * D, *[tokens] * D])

    slots_DL1 = np.maximum(counts_DLE.sum(-1, keepdims=True), 1)
    share_DLE = counts_DLE / slots_DL1
    mean_DLE = np.where(counts_DLE > 0, np.clip(rng.normal(1 / top_k, 0.15 / top_k, counts_DLE.shape), 0.01, 1), np.nan)
    experts = pd.DataFrame(
        {
            "domain": np.array(names, dtype=object).repeat(L * E),
            "layer": np.tile(np.array(layers, np.int32).repeat(E), D + 1),
            "expert": np.tile(np.arange(E, dtype=np.int32), (D + 1) * L),
            "tokens": counts_DLE.reshape(-1),
            "share": share_DLE.reshape(-1),
            "relative_load": (counts_DLE * E / slots_DL1).reshape(-1),
            "weight_sum": np.nan_to_num(counts_DLE * mean_DLE).reshape(-1),
            "mean_weight": mean_DLE.reshape(-1),
        }
    )
    metrics = _metrics(rng, counts_DLE, tokens_D, top_k)
    if extras:
        error = (2 * np.sqrt(experts["share"] / np.maximum(slots_DL1, 1).repeat(E, -1).reshape(-1))).to_numpy()
        experts["share_low"], experts["share_high"] = np.maximum(experts["share"] - error, 0), experts["share"] + error
        metrics |= _extras(rng, metrics, counts_DLE)
    layer_table = pd.DataFrame(
        {
            "domain": np.array(names, dtype=object).repeat(L),
            "layer": np.tile(np.array(layers, np.int32), D + 1),
            "n_experts": np.full((D + 1) * L, E, np.int32),
            "top_k": np.full((D + 1) * L, top_k, np.int32),
            "tokens": tokens_D.repeat(L),
            **{key: np.broadcast_to(values, (D + 1, L)).reshape(-1).astype(np.float64) for key, values in metrics.items()},
        }
    )
    vocabulary = _vocabulary(rng, layers, counts_DLE, words, domains) if extras else None
    return FullStats(
        _summary(name, layers, E, top_k, domains, tokens),
        experts,
        layer_table,
        _together(rng, counts_DLE[0], tokens * D),
        layers,
        vocabulary,
    )


def _metrics(rng: np.random.Generator, counts_DLE: np.ndarray, tokens_D: np.ndarray, top_k: int) -> dict[str, np.ndarray]:
    E, shape = counts_DLE.shape[-1], counts_DLE.shape[:2]
    aware = (counts_DLE / tokens_D[:, None, None]) ** 2
    metrics: dict[str, Any] = {
        key: getattr(load, key)(counts_DLE)
        for key in ("max_over_mean", "min_over_mean", "max_vio", "cv", "gini", "entropy", "entropy_normalized", "effective_experts",
                    "kl_uniform", "tv_uniform", "chi2", "dead_experts", "cold_experts")
    }  # fmt: skip
    metrics["max_vio_noise_floor"] = load.max_vio_noise_floor(counts_DLE, top_k)
    metrics["max_vio_batch"] = metrics["max_vio"] * rng.uniform(1.1, 1.3, shape)
    metrics["max_vio_sequence"] = metrics["max_vio"] * rng.uniform(1.5, 2.0, shape)
    metrics["next_token_overlap_uniform"] = np.full(shape, top_k / E)
    metrics["next_token_overlap_load_aware"] = aware.sum(-1) / top_k
    metrics["next_token_overlap"] = (
        metrics["next_token_overlap_load_aware"] + np.linspace(0.02, 0.12, shape[1]) + rng.normal(0, 0.005, shape)
    )
    metrics["any_overlap"], metrics["first_choice_repeat"] = (
        1 - (1 - metrics["next_token_overlap"]) ** top_k,
        metrics["next_token_overlap"] * 0.8,
    )
    for base in ("uniform", "load_aware"):
        metrics[f"any_overlap_{base}"] = 1 - (1 - metrics[f"next_token_overlap_{base}"]) ** top_k
        metrics[f"first_choice_repeat_{base}"] = metrics[f"next_token_overlap_{base}"] / top_k * 1.2
    return metrics


def _extras(rng: np.random.Generator, metrics: dict[str, np.ndarray], counts_DLE: np.ndarray) -> dict[str, np.ndarray]:
    shape, none_D = counts_DLE.shape[:2], np.full((counts_DLE.shape[0] - 1, counts_DLE.shape[1]), np.nan)
    found: dict[str, np.ndarray] = {}
    p_DLE = counts_DLE[1:] / counts_DLE[1:].sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits_L = np.nan_to_num(p_DLE * np.log2(p_DLE / p_DLE.mean(0))).sum(-1).mean(0)
    for key, factor in (("domain_information_bits", 1.0), ("domain_jsd_bits", 0.6)):
        found[key] = np.concatenate([factor * bits_L[None], none_D])
    for key in ("max_vio", "max_vio_sequence", "max_vio_batch", "domain_information_bits", "next_token_overlap", "any_overlap"):
        values = {**metrics, **found}[key]
        found[f"{key}_low"], found[f"{key}_high"] = values * 0.93, values * 1.08
    for lag in (2, 4, 8, 16, 32, 64):
        found[f"overlap_lag_{lag}"] = (
            metrics["next_token_overlap_load_aware"] + (metrics["next_token_overlap"] - metrics["next_token_overlap_load_aware"]) / lag**0.5
        )
    found |= {
        "router_entropy": rng.uniform(0.4, 0.8, shape),
        "captured_mass": rng.uniform(0.5, 0.9, shape),
        "margin": rng.uniform(0, 0.05, shape),
    }
    return found | {"balance_loss": rng.uniform(1, 1.4, shape), "bias_effect": np.full(shape, np.nan)}


def _together(rng: np.random.Generator, counts_LE: np.ndarray, tokens: int) -> np.ndarray:
    """Co-activation with groups of experts that go together; its rows need not add up."""
    L, E = counts_LE.shape
    pairs_LEE = np.empty((L, E, E), np.int64)
    for l in range(L):
        group_E = rng.integers(0, max(2, E // 12), E)
        taste = np.where(group_E[:, None] == group_E, 0.7, -0.15) + rng.normal(0, 0.35, (E, E))
        taste = np.exp((taste + taste.T) / 2)
        n_E = counts_LE[l].astype(np.float64)
        drawn = rng.poisson(np.minimum(n_E[:, None] * n_E / tokens * taste, n_E[:, None] * 0.9))
        upper = np.triu(np.minimum(drawn, np.minimum(counts_LE[l][:, None], counts_LE[l])), 1)
        pairs_LEE[l] = upper + upper.T + np.diag(counts_LE[l])
    return pairs_LEE


def _vocabulary(
    rng: np.random.Generator, layers: tuple[int, ...], counts_DLE: np.ndarray, words: list[str], domains: tuple[str, ...]
) -> pd.DataFrame:
    """Ten tokens of every expert, and of the three of each layer that gain most in a domain."""
    n_experts, share_DLE = counts_DLE.shape[2], counts_DLE / np.maximum(counts_DLE.sum(-1, keepdims=True), 1)
    gaining_DLG = np.argsort(share_DLE[0] - share_DLE[1:], axis=-1, kind="stable")[..., :3]
    every_L = np.array(layers, np.int32)
    everything = _tokens(rng, every_L.repeat(n_experts), np.tile(np.arange(n_experts), len(layers)), words)
    of_domains = [
        _tokens(rng, every_L.repeat(gaining_DLG.shape[2]), gaining_LG.reshape(-1), words).assign(domain=name)
        for name, gaining_LG in zip(domains, gaining_DLG, strict=True)
    ]
    return pd.concat([everything, everything.assign(kind="next"), *of_domains], ignore_index=True)


def _tokens(rng: np.random.Generator, layers: np.ndarray, experts: np.ndarray, words: list[str]) -> pd.DataFrame:
    """Ten tokens of each of some experts, of all text."""
    top, n = 10, len(layers)
    ids = rng.integers(0, len(words), n * top)
    return pd.DataFrame(
        {
            "layer": layers.repeat(top),
            "expert": experts.repeat(top).astype(np.int32),
            "kind": "input",
            "domain": "all",
            "rank": np.tile(np.arange(1, top + 1, dtype=np.int32), n),
            "token_id": ids,
            "token": [words[i] for i in ids],
            "count": 40,
            "lift": np.tile(np.linspace(9, 2, top), n),
        }
    )


def _summary(name: str, layers: tuple[int, ...], n_experts: int, top_k: int, domains: tuple[str, ...], tokens: int) -> dict[str, Any]:
    return {
        "provenance": {
            "moectl_version": "0.1.0", "torch_version": "2.13.0", "command": "route-stats", "model": name, "revision": None,
            "config_sha256": "0" * 64, "data_hash": dict.fromkeys(domains, "1" * 64), "dtype": "bfloat16", "device": "cpu",
            "batch_tokens": 4096, "skip_special": False, "seed": None, "order": "streamed", "threads": 2, "tokens": tokens, "seq_len": 512,
            "sources": ["demo"], "arguments": ["route-stats", name, "--tokens", str(tokens), "--output", "stats"],
            "python_version": "3.11.7", "machine": "Linux x86_64", "created": "2026-01-01T00:00:00+00:00",
        },
        "model": {
            "name": name, "model_type": "deepseek_v3", "layers": len(layers) + layers[0], "moe_layers": list(layers), "hidden_size": 7168,
            "vocab_size": 129280, "experts": n_experts, "top_k": top_k, "shared_experts": 1,
            "routing": f"top-{top_k} of {n_experts} by sigmoid(x W) + bias; weights sigmoid(x W), normalised over the selected",
            "mtp_layers_skipped": 1,
        },
        "data": {domain: {"documents": 12, "sequences": -(-tokens // 512), "tokens": tokens, "hash": "1" * 64} for domain in domains},
        "throughput": {"tokens_per_s": 612.3, "forward_seconds": 160.1, "seconds": 163.4, "read_gb": 13.3, "peak_rss_gb": 4.2},
    }  # fmt: skip
