"""What the experts of a layer read: how far a token's id decides its expert, and which tokens and classes an expert is for.

    mean_specialisation(first_choice_ME, tokens_M)      # OLMoE's figure of a layer
    top_tokens(counts_ME, tokens_M, expert_tokens_E, tokens, expert=3)[0]      # TokenLift(row=17, count=40, share=0.8, lift=9.1)

Definitions: N_{x,e} tokens of id x that ran expert e, N_x tokens of it, x the token's own id or that of the one after it. With first
choices instead, the same for k = 1. Only ids that occur often enough are counted at all (`counting.vocabulary`). NaN without any.
"""

# Shapes: M ids, C classes, E experts; "..." any leading axes (layers).

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def specialisation(counts_ME: IntArray, tokens_M: IntArray) -> FloatArray:
    """[..., M, E] VS(e, x) = N_{x,e} / N_x (OLMoE, arXiv 2409.02060, eq. 8)."""
    return _ratio(counts_ME, tokens_M[:, None])


def mean_specialisation(counts_ME: IntArray, tokens_M: IntArray) -> FloatArray:
    """[...] the share of an id's tokens that ran its most frequent expert, mean over the ids: 1 if the id decides, however rare it is."""
    modal_M = np.sort(_ratio(_most(counts_ME), tokens_M), axis=-1)
    return np.asarray(modal_M.mean(-1)) if modal_M.shape[-1] else np.full(modal_M.shape[:-1], np.nan)


def weighted_specialisation(counts_ME: IntArray, tokens_M: IntArray) -> FloatArray:
    """[...] the same, mean over the tokens of those ids: frequent ids count more."""
    return _ratio(_most(counts_ME).sum(-1), np.asarray(tokens_M.sum()))


@dataclass(frozen=True, slots=True)
class TokenLift:
    """`row`: place of the id among those counted; `count` = N_{x,e}; `share` = N_{x,e} / N_x, `lift` times that of all text."""

    row: int
    count: int
    share: float
    lift: float


def top_tokens(
    counts_ME: IntArray, tokens_M: IntArray, expert_tokens_E: IntArray, tokens: int, *, expert: int, n: int = 15, min_count: int = 10
) -> list[TokenLift]:
    """The `n` ids an expert is most for, by lift (N_{x,e} / N_x) / (N_e / T), among those with at least `min_count` tokens in it.

    By lift and not by count, since frequent ids are frequent in every expert. Ties go to the larger count, then the lower row.
    """
    count_M = counts_ME[:, expert].astype(np.int64)
    rows = np.flatnonzero(count_M >= max(min_count, 1))
    share = count_M[rows] / tokens_M[rows]
    lift = share * (tokens / int(expert_tokens_E[expert])) if len(rows) else share
    best = np.lexsort((rows, -count_M[rows], -lift))[:n]
    return [TokenLift(int(rows[i]), int(count_M[rows[i]]), float(share[i]), float(lift[i])) for i in best]


def class_lift(counts_CE: IntArray, expert_tokens_E: IntArray, class_tokens_C: IntArray, tokens: IntArray) -> FloatArray:
    """[..., C, E] the part of a class' tokens that ran the expert, divided by that of all text; 1 if the class makes no difference."""
    return _ratio(_ratio(counts_CE, class_tokens_C[..., None]), _ratio(expert_tokens_E, np.asarray(tokens)[..., None])[..., None, :])


def _most(counts_ME: IntArray) -> IntArray:
    """[..., M] the tokens of each id that ran its most frequent expert."""
    return np.asarray(counts_ME.max(-1, initial=0), np.int64)


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
