"""Sums of one event that its router's scores decide, per sequence: what losses and confidence are made of.

Scores p are normalised: the softmax, or sigmoids divided by their sum over all experts. Each token's value is rounded to a multiple of a
power of two before it is added, so sums do not depend on order: in int64 (SCORE_UNIT) what has a bound, in float64 (LOGIT_UNIT) what has
none, since logits do not. The latter are exact while a sum stays below 2^33, and near that only lose last bits.
"""

# Shapes: B sequences, S tokens of each, T = B x S tokens, K slots of a token, E experts.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing.counting.selection import counts_per_sequence

SCORE_UNIT = 2.0**-30
LOGIT_UNIT = 2.0**-20
FRAGILE_MARGIN = 2.0**-6
"""A selection whose margin is below this is called fragile: bfloat16 keeps no finer steps of numbers from 2 to 4."""


class ScoreSums(NamedTuple):
    """Sums over the counted tokens of each sequence, in SCORE_UNIT but for token counts and where LOGIT_UNIT is said."""

    scores_BE: Tensor
    """Normalised scores p."""
    entropy_B: Tensor
    """H(p), in nats."""
    captured_B: Tensor
    """p of the executed experts."""
    used_experts_B: Tensor
    """exp H(g / sum g)."""
    used_tokens_B: Tensor
    """Tokens that have it: weights above 0 and none below."""
    agreed_B: Tensor
    """Executed experts that the scores alone would select too."""
    full_tokens_B: Tensor
    """Tokens that they are of: those whose K slots all ran."""
    margin_B: Tensor
    """Key of the weakest executed expert less that of the strongest other one, in multiples of LOGIT_UNIT."""
    margin_tokens_B: Tensor
    """Tokens that have it: full ones that could have selected another expert."""
    fragile_B: Tensor
    """Tokens of those with a margin below FRAGILE_MARGIN."""
    z_squared_B: Tensor
    """(ln sum_e exp z_e)^2, in multiples of LOGIT_UNIT."""
    sequence_loss_B: Tensor
    """The balance loss of the sequence; 0 without counted tokens."""


def score_sums(info: MoELayerInfo, event: RoutingEvent, weights_TK: Tensor, counted_T: Tensor, counts_BE: Tensor) -> ScoreSums:
    """`weights_TK` float32, 0 where nothing ran; `counts_BE` counted slots of each sequence.

    With a correction bias or groups the key is what the router selected by, inside the allowed groups; else it is the logits.
    """
    assert event.logits_TE is not None
    ids_TK, logits_TE = event.expert_ids_TK, event.logits_TE.float()
    B, E, K = counts_BE.shape[0], info.n_experts, info.top_k
    ran_TK = ids_TK >= 0
    ids_TK, full_T = ids_TK.clamp(min=0), ran_TK.all(1)

    u_TE = logits_TE if info.score == "softmax" else F.logsigmoid(logits_TE)
    top_T1 = u_TE.amax(1, keepdim=True)
    v_TE = (u_TE - top_T1).clamp_(min=-1e4)  # finite, so that 0 ln 0 is 0
    p_TE = v_TE.exp()
    total_T1 = p_TE.sum(1, keepdim=True)
    p_TE /= total_T1
    entropy_T = (total_T1.squeeze(1).log() - torch.linalg.vecdot(p_TE, v_TE)).clamp_(min=0.0)
    captured_T = (p_TE.gather(1, ids_TK) * ran_TK).sum(1)
    z_T = (top_T1 + total_T1.log()).squeeze(1) if info.score == "softmax" else logits_TE.logsumexp(1)
    used_T, is_used_T = _used_experts(weights_TK)
    # From here on v is scratch: a new matrix of this size costs more to come by than to fill.
    margin_T = _margin(logits_TE if event.choice_TE is None else event.choice_TE, ids_TK, v_TE)
    has_margin_T = full_T & margin_T.isfinite()
    margin_T = margin_T.masked_fill(~has_margin_T, 0.0)

    if event.choice_TE is None and bool(full_T.all()):
        agreed_T, chosen_BE = torch.full_like(full_T, K, dtype=torch.int64), counts_BE
    else:
        alone_TK = logits_TE.topk(K, dim=1, sorted=False).indices
        agreed_T = v_TE.zero_().scatter_(1, ids_TK, 1.0).gather(1, alone_TK).sum(1).long().masked_fill(~full_T, 0)
        chosen_BE = counts_per_sequence(alone_TK.masked_fill(~counted_T[:, None], E), B, E)

    if not event.batch.counted_BS.all():
        p_TE *= counted_T[:, None]
    scores_BE = p_TE.div_(SCORE_UNIT).round_().int().view(B, -1, E).sum(1, dtype=torch.int64)
    tokens_B = counted_T.view(B, -1).sum(1)
    whole = (_fixed(entropy_T), _fixed(captured_T), _fixed(used_T), is_used_T, agreed_T, full_T, has_margin_T,
             has_margin_T & (margin_T < FRAGILE_MARGIN))  # fmt: skip
    entropy_B, captured_B, used_B, is_used_B, agreed_B, full_B, has_margin_B, fragile_B = (
        torch.stack([sums_T.long() for sums_T in whole]).mul_(counted_T).view(len(whole), B, -1).sum(2)
    )
    real_2T = torch.stack([margin_T, z_T]).double()
    real_2T = torch.stack([real_2T[0], real_2T[1] ** 2])
    margin_B, z_squared_B = ((real_2T / LOGIT_UNIT).round_() * LOGIT_UNIT).mul_(counted_T).view(2, B, -1).sum(2)
    n_B = tokens_B.clamp(min=1).double()
    loss_B = (chosen_BE.double() * scores_BE.double()).sum(1) * (E / K) / n_B**2
    return ScoreSums(scores_BE, entropy_B, captured_B, used_B, is_used_B, agreed_B, full_B, margin_B, has_margin_B, fragile_B,
                     z_squared_B, loss_B.round().long())  # fmt: skip


def used_expert_sums(weights_TK: Tensor, counted_T: Tensor, n_sequences: int) -> dict[str, Tensor]:
    """What the weights alone decide: `used_experts_B` and `used_tokens_B` of ScoreSums."""
    used_T, is_used_T = _used_experts(weights_TK)
    sums_2B = torch.stack([_fixed(used_T), is_used_T.long()]).mul_(counted_T).view(2, n_sequences, -1).sum(2)
    return {"used_experts_B": sums_2B[0], "used_tokens_B": sums_2B[1]}


def _used_experts(weights_TK: Tensor) -> tuple[Tensor, Tensor]:
    """exp H(g / sum g) of each token, and where that is defined: weights of which none is negative and not all are 0."""
    total_T1 = weights_TK.sum(1, keepdim=True)
    q_TK = weights_TK / total_T1
    used_T = torch.special.entr(q_TK).sum(1).exp()
    is_used_T = (total_T1.squeeze(1) > 0) & (weights_TK >= 0).all(1)
    return used_T.masked_fill(~is_used_T, 0.0), is_used_T


def _margin(key_TE: Tensor, ids_TK: Tensor, scratch_TE: Tensor) -> Tensor:
    """Key of the weakest selected expert less that of the strongest other one; infinite where there is no other."""
    others_TE = scratch_TE.copy_(key_TE).scatter_(1, ids_TK, float("-inf"))
    return key_TE.gather(1, ids_TK).amin(1) - others_TE.amax(1)


def _fixed(x: Tensor) -> Tensor:
    return (x.double() / SCORE_UNIT).round_().long()
