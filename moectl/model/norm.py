"""RMSNorm (arXiv 1910.07467) in the orders of rounding that families use, and LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import Norm


def normalize(norm: Norm, x: Tensor, weights: Mapping[str, Tensor], slot: str) -> Tensor:
    """The norm of any `[..., H]` with the weight `[H]` in `slot` (and the bias in `slot_bias`), in x's dtype."""
    weight = weights[slot]
    match norm.kind:
        case "rms":
            return rms_norm(x, weight, eps=norm.eps)
        case "rms_float32":
            return (weight * _unit_rms(x, norm.eps)).to(x.dtype)
        case "rms_zero_centred":
            return (_unit_rms(x, norm.eps) * (1.0 + weight.float())).to(x.dtype)
        case "layer":
            return F.layer_norm(x, x.shape[-1:], weight, weights[f"{slot}_bias"], norm.eps)


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """weight * (x / rms(x)) in llama's order: the quotient in float32, rounded to x's dtype, then times the weight, if there is one."""
    normed = _unit_rms(x, eps).to(x.dtype)
    return normed if weight is None else weight * normed


def _unit_rms(x: Tensor, eps: float) -> Tensor:
    x32 = x.to(torch.float32)
    return x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
