"""RMSNorm (arXiv 1910.07467) in llama's order of rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """weight * (x / rms(x)): the quotient in float32, rounded to x's dtype, then times the weight. Any leading dims, `[..., H]`."""
    x32 = x.to(torch.float32)
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
