"""Multi-token-prediction layers (arXiv 2412.19437, section 2.2) in memory.

Layer n sees the hidden states of the step before it and the embeddings of the tokens n + 1 further on, and predicts the token n + 2 further
on; `Model.predict_ahead` runs it. Embedding and head are the main model's. Shapes: B sequences, S positions, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from moectl.arch.spec import MTPLayer
from moectl.model.norm import rms_norm
from moectl.model.projection import project
from moectl.model.weights import ResidentLayer, WeightSource


class ResidentMTP(nn.Module):
    """The weights of one multi-token-prediction layer as parameters: `enorm hnorm eh_proj norm`, and `block`, the decoder layer inside.

    `norm` may be missing: then the main model's final norm takes its place.
    """

    def __init__(self, mtp: MTPLayer, source: WeightSource) -> None:
        super().__init__()
        self.eps = mtp.layer.norm.eps
        self.weights = nn.ParameterDict(
            {slot: nn.Parameter(source.read(ref), requires_grad=False) for slot, ref in mtp.own_tensors.items()}
        )
        self.block = ResidentLayer(mtp.layer, source)

    def enter(self, embedded_BSH: Tensor, hidden_BSH: Tensor) -> Tensor:
        """What goes into the block, `[B, S, H]`: embedding first, hidden state second."""
        normed = (rms_norm(embedded_BSH, self.weights["enorm"], eps=self.eps), rms_norm(hidden_BSH, self.weights["hnorm"], eps=self.eps))
        return project(torch.cat(normed, dim=-1), cast(Mapping[str, Tensor], self.weights), "eh_proj")

    def leave(self, x_BSH: Tensor, final_norm: Callable[[Tensor], Tensor]) -> Tensor:
        """What comes out of the block, normed: input of the head and of the next prediction layer. `final_norm` is the main model's."""
        return rms_norm(x_BSH, self.weights["norm"], eps=self.eps) if "norm" in self.weights else final_norm(x_BSH)
