"""Linear projections by slot."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
"""The weights of one layer by slot (see `moectl.arch.spec.Layer`)."""


def project(x: Tensor, weights: Weights, slot: str) -> Tensor:
    """x W^T + b of one slot; b if the checkpoint has one."""
    return F.linear(x, weights[slot], weights.get(f"{slot}_bias"))
