"""Counts -> tables of pairs: experts of a layer that run together or avoid each other, and domains that are routed differently.

    pairs = expert_pair_frame(layers, counts_LEE, tokens_L)
    pairs[pairs["layer"] == 3].head()            # the strongest pairs of layer 3

Of large layers only the ends are listed: `coactivation.safetensors` has every pair. `layer` is the decoder layer's own index.
"""

# Shapes: D domains, L MoE layers, G layers of one size, E experts, P pairs.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moectl.model.events import MoELayerInfo
from moectl.routing.counters import Counters
from moectl.routing.counting.selection import WEIGHT_UNIT
from moectl.routing.metrics import coactivation, domains, specialisation

STRONGEST_PAIRS, WEAKEST_PAIRS = 128, 32
"""A layer of at most STRONGEST_PAIRS pairs is listed whole, of others so many at either end."""
LEAST_TOKENS = 30  # that a pair met on, or would have if independent, to be listed from a large layer: the report's `ENOUGH_TOKENS`

EXPERT_PAIR_DTYPES = {
    "layer": "int32", "expert": "int32", "other": "int32", "tokens": "int64",
    **dict.fromkeys(("expected", "lift", "pmi", "jaccard", "conditional", "conditional_other"), "float64"),
}  # fmt: skip
DOMAIN_PAIR_DTYPES = {
    "layer": "int32", "domain": "object", "other": "object",
    **dict.fromkeys(("jsd_bits", "expert_set_overlap", "expert_set_overlap_gate"), "float64"),
}  # fmt: skip


def expert_pair_frame(layers: Sequence[MoELayerInfo], counts_LEE: NDArray[np.int64], tokens_L: NDArray[np.int64]) -> pd.DataFrame:
    """A row per (layer, pair of experts), `expert` < `other`, by lift, the largest first, then by ids; all domains together.

    All pairs of a layer if they are at most 128; else the 128 of largest lift among those that 30 tokens ran, and the 32 of smallest lift
    among those that 30 tokens would run if independent. `tokens` that ran both, and the measures of `metrics.coactivation`; `conditional`
    is the part of the tokens of `expert` that ran `other` too, `conditional_other` the reverse. NaN beside an expert that never ran;
    `pmi` too where a pair never met, as it is minus infinity there and files hold no infinities.
    """
    columns: dict[str, list[NDArray[Any]]] = {name: [np.empty(0, dtype)] for name, dtype in EXPERT_PAIR_DTYPES.items()}
    for info, padded_EE, tokens in zip(layers, counts_LEE, tokens_L.tolist(), strict=True):
        counts_EE = padded_EE[: info.n_experts, : info.n_experts]
        first_P, second_P = _listed(counts_EE, tokens)
        lift_P = coactivation.lift(counts_EE, tokens)[first_P, second_P]
        order = np.lexsort((second_P, first_P, -lift_P))  # NaN comes last
        first_P, second_P, lift_P = first_P[order], second_P[order], lift_P[order]
        pmi_P = coactivation.pmi(counts_EE, tokens)[first_P, second_P]
        conditional_EE = coactivation.conditional(counts_EE)
        columns["layer"].append(np.full(len(order), info.layer))
        columns["expert"].append(first_P)
        columns["other"].append(second_P)
        columns["tokens"].append(counts_EE[first_P, second_P])
        columns["expected"].append(coactivation.expected(counts_EE, tokens)[first_P, second_P])
        columns["lift"].append(lift_P)
        columns["pmi"].append(np.where(np.isinf(pmi_P), np.nan, pmi_P))
        columns["jaccard"].append(coactivation.jaccard(counts_EE)[first_P, second_P])
        columns["conditional"].append(conditional_EE[first_P, second_P])
        columns["conditional_other"].append(conditional_EE[second_P, first_P])
    return _frame(columns, EXPERT_PAIR_DTYPES)


def domain_pair_frame(counters: Counters, domain_names: Sequence[str]) -> pd.DataFrame:
    """A row per (layer, pair of domains), each before the other in the order given; none for a single domain.

    `jsd_bits`: Jensen-Shannon divergence of their loads. `expert_set_overlap` and `expert_set_overlap_gate`: of the experts that are in
    either's ESFT set, by token score and by gate score, the part in both (see `metrics.specialisation`). NaN where a domain has no load.
    """
    assert len(domain_names) == counters.n_domains
    tokens_DLE, counted_DL = counters.by_domain(counters.counts.tokens_XLE), counters.by_domain(counters.counts.counted_XL)
    scores_DLE = specialisation.gate_score((counters.counts.weight_DLE * WEIGHT_UNIT).astype(np.float64), counted_DL)
    first_P, second_P = np.triu_indices(counters.n_domains, k=1)
    jsd_LP, overlap_LP, overlap_gate_LP = (np.empty((len(counters.layers), len(first_P))) for _ in range(3))
    n_experts_L = np.array([info.n_experts for info in counters.layers])
    for n_experts in np.unique(n_experts_L):  # padding would change the last bits of a sum
        group_G = n_experts_L == n_experts
        tokens_GDE = tokens_DLE[:, group_G, :n_experts].swapaxes(0, 1)
        by_token_GDE, by_gate_GDE = specialisation.task_sets(tokens_GDE, scores_DLE[:, group_G, :n_experts].swapaxes(0, 1))
        jsd_LP[group_G] = domains.domain_pair_jsd_bits(tokens_GDE)
        overlap_LP[group_G] = specialisation.expert_set_overlap(by_token_GDE)
        overlap_gate_LP[group_G] = specialisation.expert_set_overlap(by_gate_GDE)
    names, L, P = np.array(domain_names, dtype=object), len(counters.layers), len(first_P)
    columns = {
        "layer": [np.array([info.layer for info in counters.layers]).repeat(P)],
        "domain": [np.tile(names[first_P], L)],
        "other": [np.tile(names[second_P], L)],
        "jsd_bits": [jsd_LP.reshape(-1)],
        "expert_set_overlap": [overlap_LP.reshape(-1)],
        "expert_set_overlap_gate": [overlap_gate_LP.reshape(-1)],
    }
    return _frame(columns, DOMAIN_PAIR_DTYPES)


def _listed(counts_EE: NDArray[np.int64], tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P] each: the pairs of a layer that have a row."""
    E = counts_EE.shape[0]
    if E * (E - 1) // 2 <= STRONGEST_PAIRS:
        first_P, second_P = np.triu_indices(E, k=1)
        return first_P, second_P
    strongest = coactivation.strongest_pairs(counts_EE, tokens, n=STRONGEST_PAIRS, min_count=LEAST_TOKENS)
    weakest = coactivation.weakest_pairs(counts_EE, tokens, n=WEAKEST_PAIRS, min_expected=LEAST_TOKENS)
    listed_P2 = np.array(sorted({(pair.first, pair.second) for pair in (*strongest, *weakest)}), np.int64).reshape(-1, 2)
    return listed_P2[:, 0], listed_P2[:, 1]


def _frame(columns: dict[str, list[NDArray[Any]]], dtypes: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame({name: np.concatenate(parts).astype(dtypes[name]) for name, parts in columns.items()})
