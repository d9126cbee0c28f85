"""Routers: which experts each token gets, and with which weights.

Shapes: T tokens, H hidden, E experts, K experts per token, G groups. One parametrised rule serves the families (moectl.arch.parts.Router).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import Router


class Routing(NamedTuple):
    """What a router decided: experts and combine weights per token, and the raw logits they came from.

    `choice_TE`: what the top K was taken of, where that is not the order of the logits; no gradient flows through it.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    logits_TE: Tensor
    choice_TE: Tensor | None = None


def route(spec: Router, x_TH: Tensor, weights: Mapping[str, Tensor]) -> Routing:
    """Select experts for each token. `weights` holds `router` `[E, H]` and, if the spec says so, `router_bias`, `correction_bias` `[E]`.

    The weights are gathered from the unbiased scores: the correction bias only selects (arXiv 2408.15664). Gradients flow through them.
    """
    matmul_dtype = torch.float32 if spec.logits_dtype == "float32" else x_TH.dtype
    bias_E = weights["router_bias"].to(matmul_dtype) if spec.bias else None
    logits_TE = F.linear(x_TH.to(matmul_dtype), weights["router"].to(matmul_dtype), bias_E)
    choice_TE = None
    if spec.score == "sparsemixer":
        ids_TK, weights_TK = _sparsemixer(logits_TE, spec)
    elif spec.score == "softmax_of_selected":
        values_TK, ids_TK = logits_TE.topk(spec.top_k, dim=-1)
        weights_TK = values_TK.softmax(-1, dtype=_score_dtype(spec, logits_TE))
    else:
        ids_TK, weights_TK, choice_TE = _by_score(spec, logits_TE, weights)
    if spec.scale != 1.0:
        weights_TK = weights_TK * spec.scale
    if spec.weight_dtype == "model":
        weights_TK = weights_TK.to(x_TH.dtype)
    return Routing(ids_TK, weights_TK, logits_TE, choice_TE)


def _by_score(spec: Router, logits_TE: Tensor, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The top K of a score of all experts: ids, weights, and the choice where a bias or groups took part in it."""
    wide_TE = logits_TE.to(_score_dtype(spec, logits_TE))
    scores_TE = wide_TE.softmax(-1) if spec.score == "softmax" else wide_TE.sigmoid()
    choice_TE = (logits_TE if spec.selects_by == "logits" else scores_TE).detach()
    if spec.correction_bias:
        choice_TE = choice_TE + weights["correction_bias"]
    if spec.n_group > 1:
        choice_TE = _limit_to_groups(spec, choice_TE)
    ids_TK = choice_TE.topk(spec.top_k, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if spec.renormalizes:
        sums_T1 = weights_TK.sum(-1, keepdim=True) + spec.renormalize_eps
        weights_TK = weights_TK / (sums_T1.clamp(min=spec.renormalize_floor) if spec.renormalize_floor else sums_T1)
    return ids_TK, weights_TK, choice_TE if spec.correction_bias or spec.n_group > 1 else None


def _limit_to_groups(spec: Router, choice_TE: Tensor) -> Tensor:
    """`group_fill` outside the best groups (arXiv 2405.04434, section 2.1.2: by their best; 2412.19437: by their two best)."""
    choice_TGX = choice_TE.view(choice_TE.shape[0], spec.n_group, -1)
    score_TG = choice_TGX.amax(-1) if spec.group_score == "max" else choice_TGX.topk(2, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool).scatter_(1, score_TG.topk(spec.topk_group, dim=-1).indices, value=True)
    return choice_TGX.masked_fill(~kept_TG[..., None], spec.group_fill).view_as(choice_TE)


def _sparsemixer(logits_TE: Tensor, spec: Router) -> tuple[Tensor, Tensor]:
    """Pick by pick the largest logit left, weighted by a softmax over those left that lie within 2 jitter of it, relative to the larger
    magnitude (Phi-3.5-MoE at inference; arXiv 2409.12136, whose estimator for training is not taken)."""
    left_TE, ids, weights = logits_TE, [], []
    for _ in range(spec.top_k):
        best_T1, id_T1 = left_TE.detach().max(-1, keepdim=True)
        distance_TE = (best_T1 - left_TE.detach()) / logits_TE.detach().abs().clamp(min=best_T1)
        near_TE = left_TE.masked_fill(distance_TE > 2 * spec.jitter, float("-inf"))
        ids.append(id_T1)
        weights.append(near_TE.softmax(-1).gather(1, id_T1))
        left_TE = left_TE.scatter(1, id_T1, float("-inf"))
    return torch.cat(ids, 1), torch.cat(weights, 1)


def _score_dtype(spec: Router, logits_TE: Tensor) -> torch.dtype:
    return torch.float32 if spec.score_dtype == "float32" else logits_TE.dtype


def route_reference(spec: Router, x_TH: Tensor, weights: Mapping[str, Tensor]) -> list[dict[int, float]]:
    """The obvious version of the softmax and sigmoid routers in float32, token by token: `[{expert: weight}, ...]`, for tests."""
    result = []
    for x_H in x_TH.float():
        z = [float(x_H @ w_H) for w_H in weights["router"].float()]
        p = torch.tensor(z).softmax(0).tolist() if spec.score == "softmax" else torch.tensor(z).sigmoid().tolist()
        key = [a + float(b) for a, b in zip(p, weights["correction_bias"], strict=True)] if spec.correction_bias else p
        size = spec.n_experts // spec.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(spec.n_group)]
        if spec.n_group > 1:
            best = 2 if spec.group_score == "top2_sum" else 1
            groups = sorted(groups, key=lambda g: -sum(sorted((key[e] for e in g), reverse=True)[:best]))[: spec.topk_group]
        chosen = sorted((e for g in groups for e in g), key=lambda e: -key[e])[: spec.top_k]
        total = max(sum(p[e] for e in chosen) + spec.renormalize_eps, spec.renormalize_floor) if spec.renormalizes else 1.0
        result.append({e: p[e] / total * spec.scale for e in chosen})
    return result
