"""Counters -> the tables users see, and their digest for summary.json.

    layers = layer_frame(counters, ["wiki", "code"])
    overall(layers)["max_vio"]["median"]

Rows: all domains together (`domain="all"`) first, then the domains in order; within each, layers then experts ascending. It holds the names
and the order of columns; the formulas are in `metrics/`. `layer` is the decoder layer's own index.
"""

# Shapes: D domain rows (all domains first), L MoE layers, G layers of one size (as a last axis: lags), M token ids, E experts. Sums are
# named as the block arrays that they are sums of, with X, blocks, where they have D.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moectl.routing.bounds import BOUNDED_KEYS, layer_bounds, share_bounds
from moectl.routing.counters import Counters
from moectl.routing.counting.scores import SCORE_UNIT
from moectl.routing.counting.selection import LAGS, WEIGHT_UNIT
from moectl.routing.metrics import confidence, domains, load, losses, specialisation, temporal, vocabulary

ALL = "all"

METRIC_KEYS = (
    "max_over_mean", "min_over_mean", "max_vio", "max_vio_sequence", "max_vio_batch", "max_vio_noise_floor", "cv", "gini", "entropy",
    "entropy_normalized", "effective_experts", "kl_uniform", "tv_uniform", "top_quarter_share", "chi2", "dead_experts", "cold_experts",
    "balance_loss", "sequence_balance_loss", "z_loss",
    "router_entropy", "captured_mass", "margin", "fragile_tokens", "effective_used_experts", "bias_effect",
    "first_choice_repeat", "first_choice_repeat_uniform", "first_choice_repeat_load_aware",
    "any_overlap", "any_overlap_uniform", "any_overlap_load_aware",
    "next_token_overlap", "next_token_overlap_uniform", "next_token_overlap_load_aware",
    *(f"overlap_lag_{lag}" for lag in LAGS[1:]),
    "domain_information_bits", "domain_jsd_bits",
    *(f"vocabulary_{kind}{choice}{weighting}" for kind in ("input", "next", "predicted") for choice in ("", "_first_choice")
      for weighting in ("", "_weighted")),
)  # fmt: skip
BOUND_KEYS = tuple(f"{key}_{end}" for key in BOUNDED_KEYS for end in ("low", "high"))
"""Ends of the 95 % interval of each metric that has one."""
_OF_SCORES = (
    "balance_loss", "sequence_balance_loss", "z_loss", "router_entropy", "captured_mass", "margin", "fragile_tokens", "bias_effect",
)  # fmt: skip
_WHOLE = ("dead_experts", "cold_experts")


def expert_frame(counters: Counters, domain_names: Sequence[str]) -> pd.DataFrame:
    """A row per (domain, layer, expert).

    `tokens` that ran the expert, `share` of the layer's slots, `relative_load` = E share (1 if even), `weight_sum` of the combine weights,
    `mean_weight` = weight_sum / tokens (NaN without tokens), `first_choice_tokens` that weighted it highest; `share_low` and `share_high`,
    the 95 % interval of the share. Then what it is for: `domain_specialisation`, the part of the tokens that ran it, `lift`, that over the
    same of all text, `gate_score`, its weight averaged over all tokens, and on the rows of all domains `domain_entropy`. `expert_set` and
    `expert_set_gate` are 1 if it is one of the few that the row's text needs, by ESFT's token score (`share`) and by its gate score.
    """
    assert len(domain_names) == counters.n_domains
    counts = counters.counts
    tokens_DLE = _with_all(counters.by_domain(counts.tokens_XLE))
    counted_DL = _with_all(counters.by_domain(counts.counted_XL))
    share_low, share_high = share_bounds(counters)
    slots_DL1 = tokens_DLE.sum(-1, keepdims=True)
    n_experts_L1 = np.array([info.n_experts for info in counters.layers])[:, None]
    weight_DLE = _with_all(counts.weight_DLE) * WEIGHT_UNIT
    real_DLE = np.broadcast_to(np.arange(tokens_DLE.shape[2]) < n_experts_L1, tokens_DLE.shape)
    domain_X, position_X, expert_X = np.nonzero(real_DLE)
    return pd.DataFrame(
        {
            "domain": np.array([ALL, *domain_names], dtype=object)[domain_X],
            "layer": np.array([info.layer for info in counters.layers], np.int32)[position_X],
            "expert": expert_X.astype(np.int32),
            "tokens": tokens_DLE[real_DLE],
            "share": _divide(tokens_DLE, slots_DL1)[real_DLE],
            "relative_load": _divide(tokens_DLE * n_experts_L1, slots_DL1)[real_DLE],
            "weight_sum": weight_DLE[real_DLE],
            "mean_weight": _divide(weight_DLE, tokens_DLE)[real_DLE],
            "first_choice_tokens": _with_all(counters.by_domain(counts.first_choice_XLE))[real_DLE],
            "share_low": share_low[real_DLE],
            "share_high": share_high[real_DLE],
            **{name: value[real_DLE] for name, value in _specialisation(tokens_DLE, counted_DL, weight_DLE).items()},
        }
    )


def layer_frame(counters: Counters, domain_names: Sequence[str]) -> pd.DataFrame:
    """A row per (domain, layer): `n_experts`, `top_k`, `tokens` counted, then METRIC_KEYS and BOUND_KEYS as float64, NaN where one does
    not apply."""
    assert len(domain_names) == counters.n_domains
    D, L = counters.n_domains + 1, len(counters.layers)
    values: dict[str, NDArray[np.float64]] = {key: np.full((D, L), np.nan) for key in METRIC_KEYS}
    sums = {name: _with_all(counters.by_domain(total)) for name, total in counters.arrays().items() if name.split("_")[-1][0] == "X"}
    sizes = [(info.n_experts, info.top_k) for info in counters.layers]
    for n_experts, top_k in dict.fromkeys(sizes):
        group_G = np.array([size == (n_experts, top_k) for size in sizes])
        of_group = {name: total[:, group_G, :n_experts] if name.endswith("E") else total[:, group_G] for name, total in sums.items()}
        found = _load(of_group, n_experts, top_k) | _scores(of_group, n_experts, top_k) | _temporal(of_group, n_experts, top_k)
        for key, value in found.items():
            values[key][:, group_G] = value
        for key, value in _across_domains(of_group["tokens_XLE"]).items():
            values[key][0, group_G] = value
    values["max_vio_sequence"] = counters.max_vio_sequence_DL()
    values["max_vio_batch"] = counters.max_vio_batch_DL()
    values["bias_effect"][:, [not info.correction_bias for info in counters.layers]] = np.nan
    for key in () if counters.scored else _OF_SCORES:
        values[key][:] = np.nan
    for key, value in _vocabulary(counters).items():
        values[key][0] = value
    for key, ends in layer_bounds(counters).items():
        values[f"{key}_low"], values[f"{key}_high"] = ends
    return pd.DataFrame(
        {
            "domain": np.array([ALL, *domain_names], dtype=object).repeat(L),
            "layer": np.tile(np.array([info.layer for info in counters.layers], np.int32), D),
            "n_experts": np.tile(np.array([n_experts for n_experts, _ in sizes], np.int32), D),
            "top_k": np.tile(np.array([top_k for _, top_k in sizes], np.int32), D),
            "tokens": sums["counted_XL"].reshape(-1),
            **{key: values[key].reshape(-1) for key in (*METRIC_KEYS, *BOUND_KEYS)},
        }
    )


def layer_records(layers: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of all domains as plain objects, one per layer, None where a metric does not apply."""
    rows = layers[layers["domain"] == ALL].drop(columns="domain")
    return [{str(key): _plain(str(key), value) for key, value in row.items()} for row in rows.to_dict("records")]


def overall(layers: pd.DataFrame) -> dict[str, dict[str, float] | None]:
    """min, median, mean and max over the layers of every metric, all domains together; None where it applies to no layer."""
    rows = layers[layers["domain"] == ALL]
    result: dict[str, dict[str, float] | None] = {}
    for key in ("tokens", *METRIC_KEYS):
        applies = rows[key].to_numpy(np.float64)
        applies = applies[~np.isnan(applies)]
        if applies.size == 0:
            result[key] = None
            continue
        result[key] = {
            "min": float(applies.min()),
            "median": float(np.median(applies)),
            "mean": float(applies.mean()),
            "max": float(applies.max()),
        }
    return result


def _specialisation(tokens_DLE: NDArray[np.int64], counted_DL: NDArray[np.int64], weight_DLE: NDArray[Any]) -> dict[str, Any]:
    """[D, L, E] each; row 0 is all domains."""
    tokens_LDE, counted_LD = tokens_DLE.swapaxes(0, 1), counted_DL.T
    lift = specialisation.domain_lift(tokens_LDE[:, 1:], counted_LD[:, 1:]).swapaxes(0, 1)
    entropy = specialisation.expert_domain_entropy(tokens_LDE[:, 1:], counted_LD[:, 1:])
    gate_scores_DLE = specialisation.gate_score(weight_DLE, counted_DL)
    by_token_DLE, by_gate_DLE = specialisation.task_sets(tokens_DLE, gate_scores_DLE)
    return {
        "domain_specialisation": specialisation.domain_specialisation(tokens_LDE, counted_LD).swapaxes(0, 1),
        "lift": np.concatenate([np.full_like(lift[:1], np.nan), lift]),
        "gate_score": gate_scores_DLE,
        "domain_entropy": np.concatenate([entropy[None], np.full_like(lift, np.nan)]),
        "expert_set": by_token_DLE.astype(np.int32),
        "expert_set_gate": by_gate_DLE.astype(np.int32),
    }


def _load(sums: dict[str, NDArray[Any]], n_experts: int, top_k: int) -> dict[str, Any]:
    """The metrics of the layers of one size, [D, G] or a number for all; so too `_scores` and `_temporal`."""
    counts = sums["tokens_XLE"]
    return {
        "max_over_mean": load.max_over_mean(counts),
        "min_over_mean": load.min_over_mean(counts),
        "max_vio": load.max_vio(counts),
        "max_vio_noise_floor": load.max_vio_noise_floor(counts, top_k),
        "cv": load.cv(counts),
        "gini": load.gini(counts),
        "entropy": load.entropy(counts),
        "entropy_normalized": load.entropy_normalized(counts),
        "effective_experts": load.effective_experts(counts),
        "kl_uniform": load.kl_uniform(counts),
        "tv_uniform": load.tv_uniform(counts),
        "top_quarter_share": load.top_quarter_share(counts),
        "chi2": load.chi2(counts),
        "dead_experts": load.dead_experts(counts),
        "cold_experts": load.cold_experts(counts),
    }


def _scores(sums: dict[str, NDArray[Any]], n_experts: int, top_k: int) -> dict[str, Any]:
    tokens = sums["counted_XL"]
    return {
        "balance_loss": losses.balance_loss(sums["tokens_XLE"], sums["scores_XLE"] * SCORE_UNIT, tokens, top_k),
        "sequence_balance_loss": losses.sequence_balance_loss(sums["sequence_loss_XL"] * SCORE_UNIT, sums["counted_sequences_XL"]),
        "z_loss": losses.z_loss(sums["z_squared_XL"], tokens),
        "router_entropy": confidence.router_entropy(sums["entropy_XL"] * SCORE_UNIT, tokens, n_experts),
        "captured_mass": confidence.captured_mass(sums["captured_XL"] * SCORE_UNIT, tokens),
        "margin": confidence.margin(sums["margin_XL"], sums["margin_tokens_XL"]),
        "fragile_tokens": confidence.fragile_tokens(sums["fragile_XL"], sums["margin_tokens_XL"]),
        "effective_used_experts": confidence.effective_used_experts(sums["used_experts_XL"] * SCORE_UNIT, sums["used_tokens_XL"]),
        "bias_effect": confidence.bias_effect(sums["agreed_XL"], sums["full_tokens_XL"], top_k),
    }


def _temporal(sums: dict[str, NDArray[Any]], n_experts: int, top_k: int) -> dict[str, Any]:
    counts, tokens, first = sums["tokens_XLE"], sums["counted_XL"], sums["first_choice_XLE"]
    overlap_at = {lag: (sums["overlap_XLG"][..., g], sums["pairs_XLG"][..., g]) for g, lag in enumerate(LAGS)}
    overlap, pairs = overlap_at[1]
    return {
        "first_choice_repeat": temporal.first_choice_repeat(sums["repeats_XL"], pairs),
        "first_choice_repeat_uniform": temporal.first_choice_repeat_uniform(n_experts),
        "first_choice_repeat_load_aware": temporal.first_choice_repeat_load_aware(first, tokens),
        "any_overlap": temporal.any_overlap(sums["any_overlap_XL"], pairs),
        "any_overlap_uniform": temporal.any_overlap_uniform(n_experts, top_k),
        "any_overlap_load_aware": temporal.any_overlap_load_aware(counts, tokens, top_k),
        "next_token_overlap": temporal.next_token_overlap(overlap, pairs, top_k),
        "next_token_overlap_uniform": temporal.next_token_overlap_uniform(n_experts, top_k),
        "next_token_overlap_load_aware": temporal.next_token_overlap_load_aware(counts, tokens, top_k),
        **{f"overlap_lag_{lag}": temporal.overlap_at_lag(*overlap_at[lag], top_k) for lag in LAGS[1:]},
    }


def _across_domains(counts_DGE: NDArray[np.int64]) -> dict[str, Any]:
    """[G], for the rows of all domains together."""
    counts_GDE = counts_DGE[1:].swapaxes(0, 1)
    return {
        "domain_information_bits": domains.domain_information_bits(counts_GDE),
        "domain_jsd_bits": domains.domain_jsd_bits(counts_GDE),
    }


def _vocabulary(counters: Counters) -> dict[str, NDArray[np.float64]]:
    """[L], for the rows of all domains: ids are counted over all of them together."""
    found: dict[str, NDArray[np.float64]] = {}
    for kind, tracked in counters.tracked.items():
        for name in (kind, f"{kind}_first_choice"):
            counts_LME = counters.arrays()[f"{name}_LME"][:, : len(tracked.ids_M)]
            found[f"vocabulary_{name}"] = vocabulary.mean_specialisation(counts_LME, tracked.tokens_M)
            found[f"vocabulary_{name}_weighted"] = vocabulary.weighted_specialisation(counts_LME, tracked.tokens_M)
    return found


def _with_all(array_D: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array_D.sum(0, keepdims=True), array_D])


def _divide(top: NDArray[Any], bottom: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return result


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, float) and np.isnan(value):
        return None
    return int(value) if key in _WHOLE else value
