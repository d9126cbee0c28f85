"""Losses that keep the experts of a layer evenly loaded, and the options of everything that does.

    options = BalanceOptions(sequence_alpha=1e-4, bias_gamma=1e-3, bias_freeze_fraction=0.034)      # DeepSeek-V3
    loss += auxiliary_loss(options, routing.logits_TE.view(B, S, E), routing.expert_ids_TK, router)

Shapes: B sequences, S positions, T = B x S tokens, E experts, K slots per token. Masks `valid` are True for tokens that count.
Every loss is computed in float32 (float64 stays), differentiable through the router's scores only, a mean over the valid tokens it is
given, and zero if there are none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import Router
from moectl.errors import UsageError
from moectl.training.bias import expert_load

Score = Literal["softmax", "sigmoid"]
GammaSchedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceOptions:
    """Weights of the auxiliary losses, and the step of the selection bias. All off by default.

    `bias_gamma` falls from its value to 0 by `bias_gamma_schedule`, and is 0 in the last `bias_freeze_fraction` of the run
    (0.034 in DeepSeek-V3). Raises UsageError.
    """

    switch_alpha: float = 0.0
    sequence_alpha: float = 0.0
    z_alpha: float = 0.0
    bias_gamma: float = 0.0
    bias_gamma_schedule: GammaSchedule = "constant"
    bias_freeze_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("switch_alpha", "sequence_alpha", "z_alpha", "bias_gamma"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"`{name}` is {value:g}", hint="give 0 or a positive number")
        if self.bias_gamma_schedule not in get_args(GammaSchedule):
            raise UsageError(
                f"`bias_gamma_schedule` is `{self.bias_gamma_schedule}`", hint=f"choose one of {', '.join(get_args(GammaSchedule))}"
            )
        if not 0 <= self.bias_freeze_fraction <= 1:
            raise UsageError(f"`bias_freeze_fraction` is {self.bias_freeze_fraction:g}", hint="give a share of the run between 0 and 1")


def gamma_at(options: BalanceOptions, step: int, n_steps: int) -> float:
    """The bias step after optimiser step `step` of `n_steps`, counted from 0. Any freeze freezes at least the last step."""
    # In floating point 0.07 x 100 is a little more than 7.
    n_frozen = math.ceil(n_steps * options.bias_freeze_fraction - 1e-9)
    n_active = n_steps - n_frozen
    if step >= n_active:
        return 0.0
    if options.bias_gamma_schedule == "linear":
        return options.bias_gamma * (1 - step / n_active)
    if options.bias_gamma_schedule == "cosine":
        return options.bias_gamma * (1 + math.cos(math.pi * step / n_active)) / 2
    return options.bias_gamma


def auxiliary_loss(
    options: BalanceOptions, logits_BSE: Tensor, expert_ids_TK: Tensor, router: Router, valid_BS: Tensor | None = None
) -> Tensor:
    """The weighted sum of all auxiliary losses for one MoE layer and one micro-batch.

    Under gradient accumulation the caller weighs each micro-batch by its share of the step's valid tokens, once. With sequences of one
    length the sequence-wise and the z-loss are then those of the whole step; the Switch loss, a product of two means, is balance within
    the micro-batch.
    """
    total = _wide(logits_BSE).new_zeros(())
    logits_TE, valid_T = logits_BSE.flatten(0, 1), None if valid_BS is None else valid_BS.flatten()
    if options.switch_alpha:
        total = total + options.switch_alpha * switch_loss(logits_TE, expert_ids_TK, score=router.probability, valid_T=valid_T)
    if options.sequence_alpha:
        loss = sequence_balance_loss(logits_BSE, score=router.probability, top_k=router.top_k, valid_BS=valid_BS)
        total = total + options.sequence_alpha * loss
    if options.z_alpha:
        total = total + options.z_alpha * z_loss(logits_TE, valid_T)
    return total


def switch_loss(logits_TE: Tensor, expert_ids_TK: Tensor, *, score: Score, valid_T: Tensor | None = None) -> Tensor:
    """E sum_e f_e P_e (Switch Transformer, arXiv 2101.03961, eq. 4-6, for K slots): 1 if either is even, E at worst.

    f_e is the share of slots that ran expert e, from the executed selection (-1: none ran); P_e the mean normalised score.
    """
    if valid_T is not None:
        logits_TE, expert_ids_TK = logits_TE[valid_T], expert_ids_TK[valid_T]
    p_TE = normalized_scores(logits_TE, score=score)
    T, E = p_TE.shape
    f_E = expert_load(expert_ids_TK, E).to(p_TE) / max(expert_ids_TK.numel(), 1)
    return E * (f_E * p_TE.sum(0) / max(T, 1)).sum()


def sequence_balance_loss(logits_BSE: Tensor, *, score: Score, top_k: int, valid_BS: Tensor | None = None) -> Tensor:
    """sum_e f_e P_e of each sequence, averaged over the sequences that have valid tokens (DeepSeek-V3, arXiv 2412.19437, eq. 17-20).

    f_e = E / (K S) times the tokens with e in the top K of the scores alone, without bias or groups; P_e the mean normalised score.
    """
    E = logits_BSE.shape[-1]
    valid_BS1 = torch.ones_like(logits_BSE[..., :1], dtype=torch.bool) if valid_BS is None else valid_BS[..., None]
    # Filled before the scores: whatever padding holds, NaN included, must not reach the gradient.
    logits_BSE = logits_BSE.masked_fill(~valid_BS1, 0.0)
    p_BSE = normalized_scores(logits_BSE, score=score) * valid_BS1
    # Scores grow with their logits, and in sigmoid's flat ends only the logits still tell experts apart.
    chosen_BSE = torch.zeros_like(p_BSE).scatter_(-1, logits_BSE.detach().topk(top_k, dim=-1).indices, 1.0) * valid_BS1
    n_valid_B1 = valid_BS1.sum(1).clamp(min=1)
    f_BE = chosen_BSE.sum(1) * (E / top_k) / n_valid_B1
    loss_B = (f_BE * p_BSE.sum(1) / n_valid_B1).sum(-1)
    return loss_B.sum() / valid_BS1.any(1).sum().clamp(min=1)


def z_loss(logits_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """Mean of (ln sum_e exp z_e)^2, which keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    if valid_T is not None:
        logits_TE = logits_TE[valid_T]
    return _wide(logits_TE).logsumexp(-1).square().sum() / max(logits_TE.shape[0], 1)


def normalized_scores(logits: Tensor, *, score: Score) -> Tensor:
    """Scores of raw logits `[..., E]` that sum to 1 over all experts.

    s / sum(s) of a sigmoid router is softmax(ln s): exact without an epsilon, which a router could exploit by shrinking every score.
    """
    logits = _wide(logits)
    return (logits if score == "softmax" else F.logsigmoid(logits)).softmax(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
