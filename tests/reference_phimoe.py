"""Phi-3.5-MoE in float32 from its formulas, token by token where that is clearer, on tensors under the Hub's names.

transformers 5.23 takes the short factors of longrope at any length; this follows Microsoft's code: one rule for the whole sequence, by its
length. Names: x residual stream `[S, H]`, one sequence.
"""

from __future__ import annotations

import math
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Keys = dict[str, Any]


def logits(config: Keys, tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
    """`[B, S, V]` of ids `[B, S]`; `config` has the Hub's keys."""
    return torch.stack([_sequence(config, tensors, row) for row in ids])


def _sequence(config: Keys, tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
    x = tensors["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        x = x + _attention(config, tensors, layer + "self_attn.", _norm(config, tensors, layer + "input_layernorm", x))
        normed = _norm(config, tensors, layer + "post_attention_layernorm", x)
        x = x + torch.stack([_experts(config, tensors, layer + "block_sparse_moe.", token) for token in normed])
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return _norm(config, tensors, "model.norm", x) @ head.T + tensors.get("lm_head.bias", torch.zeros(()))


def _norm(config: Keys, tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()
    return centred / scale * tensors[name + ".weight"] + tensors[name + ".bias"]


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", torch.zeros(()))


def _attention(config: Keys, tensors: Tensors, prefix: str, x: torch.Tensor) -> torch.Tensor:
    S, nq, nkv = len(x), config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // nq
    q, k, v = (_linear(tensors, prefix + name, x).view(S, -1, d) for name in ("q_proj", "k_proj", "v_proj"))
    cos, sin = _rotary(config, S, d)
    out = torch.zeros(S, nq, d)
    for head in range(nq):
        q_head, k_head = _rotated(q[:, head], cos, sin), _rotated(k[:, head // (nq // nkv)], cos, sin)
        for t in range(S):
            first = 0 if config["sliding_window"] is None else max(0, t - config["sliding_window"] + 1)
            weights = (q_head[t] @ k_head[first : t + 1].T / math.sqrt(d)).softmax(-1)
            out[t, head] = weights @ v[first : t + 1, head // (nq // nkv)]
    return _linear(tensors, prefix + "o_proj", out.flatten(1))


def _rotary(config: Keys, S: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    scaling = config["rope_scaling"]
    inverse = [config["rope_theta"] ** (-2 * j / d) for j in range(d // 2)]
    scale = 1.0
    if scaling:
        which = "long" if scaling["original_max_position_embeddings"] < S else "short"
        scale = scaling[f"{which}_mscale"]
        inverse = [value / factor for value, factor in zip(inverse, scaling[f"{which}_factor"], strict=True)]
    angle = torch.arange(S)[:, None] * torch.tensor(inverse + inverse)
    return scale * angle.cos(), scale * angle.sin()


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _experts(config: Keys, tensors: Tensors, prefix: str, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for expert, weight in sparsemixer((tensors[prefix + "gate.weight"] @ x).tolist(), config["router_jitter_noise"]).items():
        w1, w2, w3 = (tensors[f"{prefix}experts.{expert}.{name}.weight"] for name in ("w1", "w2", "w3"))
        out += weight * (w2 @ (torch.nn.functional.silu(w1 @ x) * (w3 @ x)))
    return out


def sparsemixer(z: list[float], jitter: float) -> dict[int, float]:
    """Two picks: the best of what is left, weighted by a softmax over what is left and near (arXiv 2409.12136, section 2)."""
    picks: dict[int, float] = {}
    for _ in range(2):
        left = [e for e in range(len(z)) if e not in picks]
        best = max(left, key=lambda e: z[e])
        near = [e for e in left if (z[best] - z[e]) / max(abs(z[e]), z[best]) <= 2 * jitter]
        picks[best] = 1 / sum(math.exp(z[e] - z[best]) for e in near)
    return picks
