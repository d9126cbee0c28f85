"""Routers: which experts each token gets, and with which weights.

Shapes: T tokens, H hidden, E experts, K experts per token, G groups. One parametrised rule serves the families (moectl.arch.spec.Router).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.spec import Router


class Routing(NamedTuple):
    """What a router decided: experts and combine weights per token, and the raw logits they came from.

    `choice_TE`: what the top K was taken of, where that is not the order of the logits; no gradient flows through it.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    logits_TE: Tensor
    choice_TE: Tensor | None = None


def route(spec: Router, x_TH: Tensor, weights: Mapping[str, Tensor]) -> Routing:
    """Select experts for each token. `weights` holds `router` `[E, H]` and, if the spec says so, `correction_bias` `[E]`.

    The weights are gathered from the unbiased scores: the bias only selects (arXiv 2408.15664). Gradients flow through them.
    """
    matmul_dtype = torch.float32 if spec.logits_dtype == "float32" else x_TH.dtype
    logits_TE = F.linear(x_TH.to(matmul_dtype), weights["router"].to(matmul_dtype))
    logits32_TE = logits_TE.to(torch.float32)
    scores_TE = logits32_TE.softmax(-1) if spec.score == "softmax" else logits32_TE.sigmoid()
    choice_TE = scores_TE.detach()
    if spec.correction_bias:
        choice_TE = choice_TE + weights["correction_bias"]
    if spec.n_group > 1:
        choice_TE = _limit_to_groups(choice_TE, n_group=spec.n_group, topk_group=spec.topk_group)
    ids_TK = choice_TE.topk(spec.top_k, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if spec.renormalize:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + spec.renormalize_eps)
    if spec.scale != 1.0:
        weights_TK = weights_TK * spec.scale
    if spec.weight_dtype == "model":
        weights_TK = weights_TK.to(x_TH.dtype)
    return Routing(ids_TK, weights_TK, logits_TE, choice_TE if spec.correction_bias or spec.n_group > 1 else None)


def _limit_to_groups(choice_TE: Tensor, *, n_group: int, topk_group: int) -> Tensor:
    """Minus infinity outside the groups whose two best experts sum highest (arXiv 2412.19437, section 2.1.2)."""
    choice_TGX = choice_TE.view(choice_TE.shape[0], n_group, -1)
    score_TG = choice_TGX.topk(2, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(score_TG, dtype=torch.bool).scatter_(1, score_TG.topk(topk_group, dim=-1).indices, value=True)
    return choice_TGX.masked_fill(~kept_TG[..., None], float("-inf")).view_as(choice_TE)


def route_reference(spec: Router, x_TH: Tensor, weights: Mapping[str, Tensor]) -> list[dict[int, float]]:
    """The obvious version in float32, token by token: `[{expert: weight}, ...]`, for tests."""
    result = []
    for x_H in x_TH.float():
        z = [float(x_H @ w_H) for w_H in weights["router"].float()]
        p = torch.tensor(z).softmax(0).tolist() if spec.score == "softmax" else torch.tensor(z).sigmoid().tolist()
        key = [a + float(b) for a, b in zip(p, weights["correction_bias"], strict=True)] if spec.correction_bias else p
        size = spec.n_experts // spec.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(spec.n_group)]
        if spec.n_group > 1:
            groups = sorted(groups, key=lambda g: -sum(sorted((key[e] for e in g), reverse=True)[:2]))[: spec.topk_group]
        chosen = sorted((e for g in groups for e in g), key=lambda e: -key[e])[: spec.top_k]
        total = sum(p[e] for e in chosen) + spec.renormalize_eps if spec.renormalize else 1.0
        result.append({e: p[e] / total * spec.scale for e in chosen})
    return result
