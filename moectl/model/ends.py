"""The two ends of a decoder: what families do to embeddings before the first layer and to logits after the head.

Shapes: H hidden, V vocabulary, R rows of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moectl.arch.spec import Embedding, Head

_LEAST_NORM = 1e-7


def scale_embedding(embedding: Embedding, x: Tensor) -> Tensor:
    """Rows of the table `[..., H]` times the embedding's scale, in their dtype."""
    if embedding.scale == 1.0:
        return x
    return x * (torch.tensor(embedding.scale, dtype=x.dtype, device=x.device) if embedding.rounded_scale else embedding.scale)


def finish_logits(head: Head, logits: Tensor) -> Tensor:
    """Logits `[..., R]` from the product of hidden states and head."""
    if head.divisor != 1.0:
        logits = logits / head.divisor
    return logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap


def divide_by_norms(hidden: Tensor, norms_H: Tensor) -> Tensor:
    """Hidden states `[..., H]` over the norms of the head's columns: x (W / n) = (x / n) W, so the matrix may stay as it is."""
    return (hidden / norms_H.clamp(min=_LEAST_NORM)).to(hidden.dtype)
