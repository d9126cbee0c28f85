"""The losses that training would put on a router, measured on text.

    balance_loss(counts_E, score_sums_E, tokens, top_k)      # 1 if even

The formulas are those of training; nothing is multiplied by a coefficient. Scores are normalised: a softmax, or sigmoids divided by their
sum over all experts. NaN where nothing counts.
"""

# Shapes: E experts; "..." any leading axes (domains, layers).

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def balance_loss(counts_E: IntArray, score_sums_E: FloatArray, tokens: IntArray, top_k: int) -> FloatArray:
    """E sum_e f_e P_e (Switch Transformer, arXiv 2101.03961, eq. 4-6, for K slots): 1 if either is even, E at worst.

    f_e = n_e / (T K) with n_e tokens that ran expert e; P_e = `score_sums_E` / T its mean score. Common libraries report K times this.
    """
    E = counts_E.shape[-1]
    products_E = np.sort(counts_E * score_sums_E, axis=-1)  # the order of the experts changes no bit
    return _ratio(E * products_E.sum(-1), tokens.astype(np.float64) ** 2 * top_k)


def sequence_balance_loss(loss_sum: FloatArray, sequences: IntArray) -> FloatArray:
    """Mean over sequences of sum_e f_e P_e (DeepSeek-V3, arXiv 2412.19437, eq. 17-20): 1 if either is even.

    Within a sequence of S tokens f_e = E / (K S) times those with e among the top K of the scores alone, without bias or groups.
    """
    return _ratio(loss_sum, sequences)


def z_loss(z_squared_sum: FloatArray, tokens: IntArray) -> FloatArray:
    """Mean of (ln sum_e exp z_e)^2 (ST-MoE, arXiv 2202.08906, eq. 5), z the raw logits."""
    return _ratio(z_squared_sum, tokens)


def _ratio(top: NDArray[Any], bottom: NDArray[Any]) -> FloatArray:
    result: FloatArray = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return result
