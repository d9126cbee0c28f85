"""The 95 % intervals of a run's tables: which method of `intervals.py` or `curved.py` each metric takes, and on which counts.

    bounds = layer_bounds(counters)
    low_DL, high_DL = bounds["max_vio"]
    low_DLE, high_DLE = share_bounds(counters)

Row 0 is all domains. Without an interval are `_uniform` baselines and noise floors, which are not measured, and the vocabulary figures:
ids are counted over all text, so nothing says how the tokens of one id scatter from sequence to sequence, and a table of ids for every
block would take 64 times the memory. Taking them for independent would not do: a rare id comes several times in one text, or not at all.
"""

# Shapes: X blocks of all domains, D domain rows (all of them first), L MoE layers, G layers of one size, E experts, N micro-batches.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moectl.routing.counters import Counters
from moectl.routing.counting.scores import SCORE_UNIT
from moectl.routing.counting.selection import LAGS
from moectl.routing.curved import any_overlap_load_aware_interval, balance_loss_interval, domain_intervals
from moectl.routing.intervals import LOAD_KEYS, load_intervals, ratio_interval, resample_weights, share_interval
from moectl.routing.limits import Interval

FloatArray = NDArray[np.float64]

_LAGS = tuple(f"overlap_lag_{lag}" for lag in LAGS[1:])
_REPETITION = ("first_choice_repeat", "any_overlap", "next_token_overlap", *_LAGS)
BOUNDED_KEYS = (
    *LOAD_KEYS, "max_vio_sequence", "max_vio_batch", "balance_loss", "sequence_balance_loss", "z_loss", "router_entropy", "captured_mass",
    "margin", "fragile_tokens", "effective_used_experts", "bias_effect", *_REPETITION, "first_choice_repeat_load_aware",
    "any_overlap_load_aware", "next_token_overlap_load_aware", "domain_information_bits", "domain_jsd_bits",
)  # fmt: skip
"""The metrics with an interval."""


def share_bounds(counters: Counters) -> Interval:
    """[D, L, E] each: every expert's share of its layer's slots; NaN beyond a layer's own experts."""
    low_DLE, high_DLE = (np.full((counters.n_domains + 1, *counters.counts.tokens_XLE.shape[1:]), np.nan) for _ in range(2))
    for (n_experts, top_k), group_G in _sizes(counters).items():
        counts_XGE = counters.counts.tokens_XLE[:, group_G, :n_experts]
        low, high = share_interval(counts_XGE, counters.blocks.domain_X, counters.n_domains, top_k)
        low_DLE[:, group_G, :n_experts], high_DLE[:, group_G, :n_experts] = low, high
    return low_DLE, high_DLE


def layer_bounds(counters: Counters) -> dict[str, Interval]:
    """[D, L] each, for every one of BOUNDED_KEYS; NaN where the metric does not apply or the blocks are too few."""
    shape = (counters.n_domains + 1, len(counters.layers))
    bounds = {key: (np.full(shape, np.nan), np.full(shape, np.nan)) for key in BOUNDED_KEYS}
    weights_RX = resample_weights(len(counters.blocks.domain_X))
    for (n_experts, top_k), group_G in _sizes(counters).items():
        sums = {name: total[:, group_G] for name, total in counters.arrays().items() if name.split("_")[-1][0] == "X"}
        for name in ("tokens_XLE", "first_choice_XLE", "scores_XLE"):
            sums[name] = sums[name][..., :n_experts]
        found = _of_loads(counters, sums, top_k, weights_RX) | _of_ratios(counters, sums, n_experts, top_k)
        found |= _of_curves(counters, sums, top_k)
        for key, (low_DG, high_DG) in found.items():
            bounds[key][0][:, group_G], bounds[key][1][:, group_G] = low_DG, high_DG
        across = domain_intervals(sums["tokens_XLE"], counters.blocks.domain_X, counters.n_domains, top_k)
        for key, (low_G, high_G) in across.items():
            bounds[key][0][0, group_G], bounds[key][1][0, group_G] = low_G, high_G
    bounds["max_vio_batch"] = _of_batches(counters)
    return bounds


def _sizes(counters: Counters) -> dict[tuple[int, int], NDArray[np.bool_]]:
    sizes = [(info.n_experts, info.top_k) for info in counters.layers]
    return {size: np.array([other == size for other in sizes]) for size in dict.fromkeys(sizes)}


def _of_loads(counters: Counters, sums: dict[str, NDArray[Any]], top_k: int, weights_RX: FloatArray) -> dict[str, Interval]:
    domain_X, D = counters.blocks.domain_X, counters.n_domains
    found = load_intervals(sums["tokens_XLE"], domain_X, D, top_k, weights_RX)
    first = load_intervals(sums["first_choice_XLE"].astype(np.int64), domain_X, D, 1, weights_RX)
    E = sums["tokens_XLE"].shape[-1]
    # sum_e f_e^2 = (1 + cv^2) / E, and the load-aware baselines are that, of first choices, and K times that.
    found["first_choice_repeat_load_aware"] = _both(first["cv"], lambda cv: (1 + cv**2) / E)
    found["next_token_overlap_load_aware"] = _both(found["cv"], lambda cv: top_k * (1 + cv**2) / E)
    return found


def _of_curves(counters: Counters, sums: dict[str, NDArray[Any]], top_k: int) -> dict[str, Interval]:
    tokens, counted, blocks = sums["tokens_XLE"], sums["counted_XL"], (counters.blocks.domain_X, counters.n_domains)
    found = {"any_overlap_load_aware": any_overlap_load_aware_interval(tokens, counted, *blocks, top_k)}
    if counters.scored:
        found["balance_loss"] = balance_loss_interval(tokens, sums["scores_XLE"], counted, *blocks, top_k, unit=SCORE_UNIT)
    return found


def _of_batches(counters: Counters) -> Interval:
    """A mean over those micro-batches that count."""
    counts = counters.counts
    full_N = counts.batches_NL.any(1)
    return ratio_interval(counts.batch_vio_NL[full_N], counts.batches_NL[full_N], counters.domain_N[full_N], counters.n_domains)


def _of_ratios(counters: Counters, sums: dict[str, NDArray[Any]], n_experts: int, top_k: int) -> dict[str, Interval]:
    def ratio(top: NDArray[Any], bottom: NDArray[Any], *, proportion: bool = False) -> Interval:
        return ratio_interval(top, bottom, counters.blocks.domain_X, counters.n_domains, proportion=proportion)

    tokens, pairs, overlap = sums["counted_XL"], sums["pairs_XLG"], sums["overlap_XLG"]
    found = {"max_vio_sequence": ratio(sums["block_vio_XL"] * SCORE_UNIT, sums["vio_sequences_XL"])}
    if top_k < n_experts:  # where every token runs every expert there is nothing to be unsure of
        found["first_choice_repeat"] = ratio(sums["repeats_XL"], pairs[..., 0], proportion=True)
        found["any_overlap"] = ratio(sums["any_overlap_XL"], pairs[..., 0], proportion=True)
        for g, key in enumerate(("next_token_overlap", *_LAGS)):
            found[key] = ratio(overlap[..., g], pairs[..., g] * top_k, proportion=True)
    found["effective_used_experts"] = ratio(sums["used_experts_XL"] * SCORE_UNIT, sums["used_tokens_XL"])
    if not counters.scored:
        return found
    found["sequence_balance_loss"] = ratio(sums["sequence_loss_XL"] * SCORE_UNIT, sums["counted_sequences_XL"])
    found["z_loss"] = ratio(sums["z_squared_XL"], tokens)
    found["captured_mass"] = ratio(sums["captured_XL"] * SCORE_UNIT, tokens, proportion=True)
    found["margin"] = ratio(sums["margin_XL"], sums["margin_tokens_XL"])
    found["fragile_tokens"] = ratio(sums["fragile_XL"], sums["margin_tokens_XL"], proportion=True)
    if n_experts > 1:
        found["router_entropy"] = ratio(sums["entropy_XL"] * (SCORE_UNIT / np.log(n_experts)), tokens, proportion=True)
    low, high = ratio(sums["agreed_XL"], sums["full_tokens_XL"] * top_k, proportion=True)
    plain_G = np.array([not info.correction_bias for info in counters.layers if (info.n_experts, info.top_k) == (n_experts, top_k)])
    found["bias_effect"] = np.where(plain_G, np.nan, 1.0 - high), np.where(plain_G, np.nan, 1.0 - low)
    return found


def _both(interval: Interval, function: Any) -> Interval:
    return function(interval[0]), function(interval[1])
