"""How often neighbouring tokens use the same experts, and how often they would by chance.

    first_choice_repeat(repeats, pairs) / first_choice_repeat_uniform(n_experts)

Two baselines for each: `_uniform` (every expert equally likely) and `_load_aware` (tokens independent, experts as busy as they were
measured). Only the excess over the load-aware one says that routing depends on the text's order. A baseline is NaN where its tokens ran
nothing, an observation where there is no pair.

K is always the configured number of slots. Where slots ran no expert (capacity overflow) the observations count them as shared with
nothing, and the loads q_e = n_e / T sum to less than K.
"""

# Shapes: E experts, R rows with a load, K slots; "..." any leading axes (domains, layers).

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from moectl.routing.metrics.conditional_poisson import disjoint

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def first_choice_repeat(repeats: IntArray, pairs: IntArray) -> FloatArray:
    """Share of pairs whose tokens have the same first choice, the expert of the largest weight (Mixtral, arXiv 2401.04088, table 5)."""
    return _ratio(repeats, pairs)


def first_choice_repeat_uniform(n_experts: int) -> float:
    """1 / E."""
    return 1.0 / n_experts


def first_choice_repeat_load_aware(first_choice_E: IntArray, tokens: IntArray) -> FloatArray:
    """sum_e p_e^2, p_e the share of tokens with first choice e."""
    return np.asarray((_ratio(np.sort(first_choice_E, axis=-1), tokens[..., None]) ** 2).sum(-1))


def any_overlap(any_overlap_pairs: IntArray, pairs: IntArray) -> FloatArray:
    """Share of pairs whose tokens share at least one expert."""
    return _ratio(any_overlap_pairs, pairs)


def any_overlap_uniform(n_experts: int, top_k: int) -> float:
    """1 - C(E - K, K) / C(E, K)."""
    return 1.0 - comb(n_experts - top_k, top_k) / comb(n_experts, top_k)


def any_overlap_load_aware(counts_E: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """Probability that two independent tokens share an expert, if each draws K experts that are as busy as measured.

    Loads alone do not fix the law of a set of K experts; the one that assumes nothing more has the largest entropy (see
    `conditional_poisson`). Even loads give `any_overlap_uniform`. NaN where slots ran no expert: then no law on sets of K has these loads.
    """
    full = (tokens > 0) & (counts_E.sum(-1) == tokens * top_k)
    q_RE = np.sort(counts_E[full], axis=-1) / tokens[full][:, None]
    result: FloatArray = np.full(tokens.shape, np.nan)
    result[full] = 1.0 - disjoint(q_RE, top_k)
    return result


def next_token_overlap(overlap: IntArray, pairs: IntArray, top_k: int) -> FloatArray:
    """Mean of |S_t & S_t+1| / K over pairs."""
    return _ratio(overlap, pairs * top_k)


def overlap_at_lag(overlap: IntArray, pairs: IntArray, top_k: int) -> FloatArray:
    """Mean of |S_t & S_t+lag| / K over the pairs at that lag; both baselines of `next_token_overlap` are those of every lag."""
    return _ratio(overlap, pairs * top_k)


def next_token_overlap_uniform(n_experts: int, top_k: int) -> float:
    """K / E."""
    return top_k / n_experts


def next_token_overlap_load_aware(counts_E: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """sum_e q_e^2 / K with q_e = n_e / T; K / E if the loads are even."""
    return np.asarray((_ratio(np.sort(counts_E, axis=-1), tokens[..., None]) ** 2).sum(-1) / top_k)


def _ratio(top: IntArray, bottom: IntArray) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
