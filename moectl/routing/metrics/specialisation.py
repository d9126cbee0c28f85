"""What single experts do: for which domain they work, and which of them a task needs.

    lift_DE = domain_lift(counts_DE, tokens_D)
    expert_set(token_score(counts_E, tokens, top_k), top_p=0.2)      # ids, the highest score first

Definitions: N_{e,d} tokens of domain d that ran expert e, T_d tokens of d. How different whole domains are is in `domains.py`.
NaN where nothing counts.
"""

# Shapes: D domains, P pairs of domains, E experts; "..." any leading axes (layers).

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

TOKEN_TOP_P, GATE_TOP_P = 0.2, 0.1
"""The sums of token scores and of gate scores that ESFT's sets of a task reach (arXiv 2407.01906)."""


def domain_specialisation(counts_DE: IntArray, tokens_D: IntArray) -> FloatArray:
    """[..., D, E] N_{e,d} / T_d: the part of a domain's tokens that ran the expert (OLMoE, arXiv 2409.02060, eq. 7).

    Sums to K over the experts; K / E if even.
    """
    return _ratio(counts_DE, tokens_D[..., None])


def domain_lift(counts_DE: IntArray, tokens_D: IntArray) -> FloatArray:
    """[..., D, E] the same divided by that of all text, sum_d N_{e,d} / sum_d T_d: the text as it was given, so a domain counts by its
    tokens. NaN for an expert that never ran."""
    everywhere_1E = _ratio(counts_DE.sum(-2, keepdims=True), tokens_D.sum(-1)[..., None, None])
    return _ratio(domain_specialisation(counts_DE, tokens_D), everywhere_1E)


def expert_domain_entropy(counts_DE: IntArray, tokens_D: IntArray) -> FloatArray:
    """[..., E] H(q_e) / ln D, q_{e,d} proportional to N_{e,d} / T_d, so that domains weigh the same however long they are.

    1: serves all domains alike, 0: one only. NaN for an expert that never ran, a domain without tokens, or a single domain.
    """
    rate_DE = np.sort(domain_specialisation(counts_DE, tokens_D), axis=-2)  # the order of the domains changes no bit
    q_DE = _ratio(rate_DE, rate_DE.sum(-2, keepdims=True))
    h_E = -(q_DE * np.log(np.where(q_DE > 0, q_DE, 1.0))).sum(-2)
    D = counts_DE.shape[-2]
    return np.asarray(np.maximum(h_E, 0.0) / np.log(D)) if D > 1 else np.full(h_E.shape, np.nan)


def token_score(counts_E: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """[..., E] n_e / (T K): the part of all picks that fell on the expert (ESFT, arXiv 2407.01906, token selection ratio)."""
    return _ratio(counts_E, np.asarray(tokens * top_k)[..., None])


def gate_score(weight_sums_E: FloatArray, tokens: IntArray) -> FloatArray:
    """[..., E] sum g / T: the expert's combine weight averaged over all tokens, 0 where it did not run (ESFT, average gate score)."""
    return _ratio(weight_sums_E, np.asarray(tokens)[..., None])


def expert_set(scores_E: FloatArray, *, top_p: float) -> IntArray:
    """The fewest experts [n] whose scores sum to at least `top_p`, the highest first, ties to the lowest id (ESFT, section 3.3).

    All of them if they do not reach it together; none if there is no score.
    """
    order_E = np.argsort(-scores_E, kind="stable")
    reached = np.searchsorted(np.cumsum(scores_E[order_E]), top_p, side="left")
    return order_E[: 0 if np.isnan(scores_E).any() else min(int(reached) + 1, len(order_E))]


def in_expert_set(scores_E: FloatArray, *, top_p: float | FloatArray) -> BoolArray:
    """[..., E] whether `expert_set` has the expert; `top_p` is a number or [...]: it is in if those ahead of it do not reach the sum."""
    order_E = np.argsort(-scores_E, axis=-1, kind="stable")
    ahead_E = np.zeros(scores_E.shape)
    ahead_E[..., 1:] = np.cumsum(np.take_along_axis(scores_E, order_E, -1), axis=-1)[..., :-1]
    chosen_E = (ahead_E < np.asarray(top_p)[..., None]) & ~np.isnan(scores_E).any(-1, keepdims=True)
    result_E = np.empty(scores_E.shape, np.bool_)
    np.put_along_axis(result_E, order_E, chosen_E, -1)
    return result_E


def task_sets(counts_E: IntArray, gate_scores_E: FloatArray) -> tuple[BoolArray, BoolArray]:
    """[..., E] each: whether the expert is in the set by token score, and in that by gate score. No expert is where none ran.

    Token scores are compared as whole counts, so that no rounding decides where even loads reach the sum exactly.
    """
    picks = counts_E.sum(-1)
    ran_1 = picks[..., None] > 0
    by_token_E = in_expert_set(np.where(ran_1, counts_E, np.nan), top_p=TOKEN_TOP_P * picks)
    return by_token_E, in_expert_set(np.where(ran_1, gate_scores_E, np.nan), top_p=GATE_TOP_P)


def expert_set_overlap(members_DE: BoolArray) -> FloatArray:
    """[..., P] experts in the sets of both domains over those in either (Jaccard). P = D (D - 1) / 2, the pairs in the order (0, 1),
    (0, 2), ..., (1, 2), ...; NaN beside an empty set."""
    member_DE = members_DE.astype(np.float64)  # sums of ones are exact
    both_DD = member_DE @ np.swapaxes(member_DE, -1, -2)
    size_D = member_DE.sum(-1)
    first_P, second_P = np.triu_indices(size_D.shape[-1], k=1)
    both_P, first_size_P, second_size_P = both_DD[..., first_P, second_P], size_D[..., first_P], size_D[..., second_P]
    either_P = np.where((first_size_P > 0) & (second_size_P > 0), first_size_P + second_size_P - both_P, 0)
    return _ratio(both_P, either_P)


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
