"""How sure a router is of its choices. Means over tokens, out of their sums; NaN where there is no such token.

    router_entropy(entropy_sum, tokens, n_experts)      # 1: all experts score alike, 0: one has it all

p_t: a token's scores, normalised to sum 1 over all experts (softmax, or sigmoids divided by their sum); S_t: the K experts it ran;
g_t: their combine weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def router_entropy(entropy_sum: FloatArray, tokens: IntArray, n_experts: int) -> FloatArray:
    """Mean of H(p_t) / ln E. NaN for a single expert."""
    return _ratio(entropy_sum, tokens) / (np.log(n_experts) if n_experts > 1 else np.nan)


def captured_mass(captured_sum: FloatArray, tokens: IntArray) -> FloatArray:
    """Mean of the sum of p_t over S_t: the part of the scores that takes effect. K / E if they are even."""
    return _ratio(captured_sum, tokens)


def margin(margin_sum: FloatArray, tokens: IntArray) -> FloatArray:
    """Mean of z_(K) - z_(K+1): what the weakest selected expert was ahead of the strongest other one by.

    Measured on what the router selects by: the logits, or, with a correction bias or groups, score + bias inside the allowed groups. The
    two scales do not compare. `tokens` are those whose K slots all ran and that could have selected another expert.
    """
    return _ratio(margin_sum, tokens)


def fragile_tokens(fragile: IntArray, tokens: IntArray) -> FloatArray:
    """Share of those tokens whose margin is below 2^-6: a rounding to bfloat16 may change what they select."""
    return _ratio(fragile, tokens)


def effective_used_experts(used_sum: FloatArray, tokens: IntArray) -> FloatArray:
    """Mean of exp H(g_t / sum g_t), 1 to K: how many evenly weighted experts have the same entropy. `tokens`: those with weights."""
    return _ratio(used_sum, tokens)


def bias_effect(agreed: IntArray, tokens: IntArray, top_k: int) -> FloatArray:
    """Mean of 1 - |S_t & topK(p_t)| / K: the part of the selection that the scores alone would not have made.

    For routers with a correction bias. Where they also limit the choice to groups, that is part of the effect.
    """
    return 1.0 - _ratio(agreed, tokens * top_k)


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    result: FloatArray = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return result
