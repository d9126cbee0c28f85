"""Balance without a loss: a bias on the selection, moved against the load after every optimiser step (arXiv 2408.15664).

    loads = LoadCounts({layer.index: layer.ffn.router.n_experts for layer in moe_layers})
    loads.add(layer_index, routing.expert_ids_TK)                              # every micro-batch of the step
    update_bias(weights["correction_bias"], loads.load(layer_index), gamma)    # once, after the optimiser's step

Shapes: T tokens, E experts, K slots per token. The load of an expert is the number of tokens that ran it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypedDict

import torch
from torch import Tensor

from moectl.errors import ModelError


def expert_load(expert_ids_TK: Tensor, n_experts: int, valid_T: Tensor | None = None) -> Tensor:
    """Tokens per expert, int64 `[E]`. An id of -1 ran nothing; tokens outside the mask `valid_T` do not count."""
    if valid_T is not None:
        expert_ids_TK = expert_ids_TK[valid_T]
    return (expert_ids_TK.flatten() + 1).bincount(minlength=n_experts + 1)[1:]


class LoadCounts:
    """The load of every MoE layer, layers of multi-token prediction included, over all micro-batches of one optimiser step."""

    def __init__(self, n_experts: Mapping[int, int]) -> None:
        """`n_experts` by layer index: every layer whose bias is to be updated."""
        self._n_experts = dict(n_experts)
        self.reset()

    def reset(self) -> None:
        """Start a new optimiser step."""
        self._load = {layer: torch.zeros(n, dtype=torch.int64) for layer, n in self._n_experts.items()}

    def add(self, layer_index: int, expert_ids_TK: Tensor, valid_T: Tensor | None = None) -> None:
        """Count the executed selection of one layer and one micro-batch, once: activation recomputation routes every micro-batch twice.

        Raises KeyError for a layer that the constructor was not told of.
        """
        here = expert_load(expert_ids_TK.detach(), self._n_experts[layer_index], valid_T)
        self._load[layer_index] = self._load[layer_index].to(here.device) + here

    def load(self, layer_index: int) -> Tensor:
        """Tokens per expert so far, int64 `[E]`; zeros for a layer that has not run."""
        return self._load[layer_index]


@torch.no_grad()
def update_bias(bias_E: Tensor, load_E: Tensor, gamma: float, rule: Literal["sign", "proportional"] = "sign") -> None:
    """Raise the bias of underloaded experts and lower that of overloaded ones, in place.

    delta = gamma sign(mean load - load), or gamma (mean load - load) / mean load if `rule` is "proportional"; then delta -= mean(delta):
    a common shift selects nothing else, and left in it drifts without end. A layer that did not run keeps its bias.
    Raises ModelError for a bias that is not float32.
    """
    if bias_E.dtype != torch.float32:
        raise ModelError(
            f"a correction bias in {str(bias_E.dtype).removeprefix('torch.')} cannot be updated: steps of {gamma:g} would be rounded away",
            hint="keep correction biases in float32",
        )
    total = load_E.sum()
    if gamma == 0 or not total:
        return
    # E (mean - load), in integers: an expert at exactly the mean stays where it is.
    missing_E = total - load_E.numel() * load_E
    delta_E = missing_E.sign().double() if rule == "sign" else missing_E.double() / total
    bias_E += (gamma * (delta_E - delta_E.mean())).to(bias_E)


class LoadSummary(TypedDict):
    """What a training log says of one layer's load. `load_fractions`: shares of all slots, by expert."""

    max_vio: float
    entropy_normalized: float
    load_fractions: list[float]


def load_summary(load_E: Tensor) -> LoadSummary:
    """MaxVio = max load / mean load - 1, the load's entropy / ln E, and the shares. NaN throughout if nothing ran."""
    load, n_experts = load_E.tolist(), load_E.numel()
    total = sum(load)
    shares = [n / total if total else math.nan for n in load]
    entropy = 0.0 - sum(f * math.log(f) for f in shares if f != 0)
    return LoadSummary(
        max_vio=max(load) * n_experts / total - 1 if total else math.nan,
        entropy_normalized=entropy / math.log(n_experts) if n_experts > 1 else math.nan,
        load_fractions=shares,
    )
