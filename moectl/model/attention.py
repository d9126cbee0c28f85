"""Attention of one layer, causal, over whole sequences: grouped-query here, latent (MLA) in `latent_attention.py`.

Shapes: B sequences, S positions, H hidden, N query heads, M key-value heads, D head size, R rotated part, X all heads together.
Computes out(attention(x)) of normed x; residual and norm belong to the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moectl.arch.parts import GroupedQueryAttention, LatentAttention, QKNorm, Temperature
from moectl.model.causal import causal, causal_in_chunks, causal_with_sinks, causal_written_out
from moectl.model.latent_attention import latent_attention
from moectl.model.norm import normalize, rms_norm
from moectl.model.projection import Weights, project
from moectl.model.rope import rotate

Tables = tuple[Tensor, Tensor]


def attend(spec: GroupedQueryAttention | LatentAttention, x_BSH: Tensor, weights: Weights, tables: Tables | None) -> Tensor:
    """Attention output `[B, S, H]`; `tables` are cos and sin `[S, R/2]` of the spec's rope, None without one."""
    if isinstance(spec, LatentAttention):
        assert tables is not None
        return latent_attention(spec, x_BSH, weights, tables)
    return _grouped_query(spec, x_BSH, weights, tables)


def _grouped_query(spec: GroupedQueryAttention, x_BSH: Tensor, weights: Weights, tables: Tables | None) -> Tensor:
    B, S, _ = x_BSH.shape
    q_BNSD = _heads(spec, x_BSH, weights, tables, slot="q", n_heads=spec.n_heads)
    k_BMSD = _heads(spec, x_BSH, weights, tables, slot="k", n_heads=spec.n_kv_heads)
    v_BSX = project(x_BSH, weights, "v")
    if spec.clip is not None:
        v_BSX = v_BSX.clamp(-spec.clip, spec.clip)
    v_BMSD = v_BSX.view(B, S, spec.n_kv_heads, spec.head_dim).transpose(1, 2)
    if spec.temperature is not None:
        q_BNSD = _tempered(spec.temperature, q_BNSD)
    if spec.sinks:
        out_BNSD = causal_with_sinks(spec, q_BNSD, k_BMSD, v_BMSD, weights["sinks"])
    elif spec.softcap is not None:
        out_BNSD = causal_written_out(spec, q_BNSD, k_BMSD, v_BMSD)
    elif spec.chunk is not None:
        out_BNSD = causal_in_chunks(q_BNSD, k_BMSD, v_BMSD, scale=spec.scale, chunk=spec.chunk)
    else:
        out_BNSD = causal(q_BNSD, k_BMSD, v_BMSD, scale=spec.scale, window=spec.window)
    return project(out_BNSD.transpose(1, 2).reshape(B, S, -1), weights, "o")


def _heads(spec: GroupedQueryAttention, x_BSH: Tensor, weights: Weights, tables: Tables | None, *, slot: str, n_heads: int) -> Tensor:
    """Queries or keys `[B, n_heads, S, D]`, normed, clipped and rotated as the spec says."""
    B, S, _ = x_BSH.shape
    qk_norm = spec.qk_norm
    x_BSX = project(x_BSH, weights, slot)
    if qk_norm is not None and qk_norm.over == "all_heads":
        x_BSX = _normed(qk_norm, x_BSX, weights, slot)
    if spec.clip is not None:
        x_BSX = x_BSX.clamp(-spec.clip, spec.clip)
    x_BSND = x_BSX.view(B, S, n_heads, spec.head_dim)
    per_head = qk_norm if qk_norm is not None and qk_norm.over == "head" else None
    if per_head is not None and not per_head.after_rope:
        x_BSND = _normed(per_head, x_BSND, weights, slot)
    x_BNSD = x_BSND.transpose(1, 2)
    if spec.rope is not None:
        assert tables is not None
        x_BNSD = rotate(x_BNSD, *tables, layout=spec.rope.layout)
    if per_head is not None and per_head.after_rope:
        x_BNSD = _normed(per_head, x_BNSD, weights, slot)
    return x_BNSD


def _normed(qk_norm: QKNorm, x: Tensor, weights: Weights, slot: str) -> Tensor:
    if not qk_norm.weighted:
        return rms_norm(x, None, eps=qk_norm.norm.eps)
    return normalize(qk_norm.norm, x, weights, f"{slot}_norm")


def _tempered(temperature: Temperature, q_BNSD: Tensor) -> Tensor:
    position_S1 = torch.arange(q_BNSD.shape[2], device=q_BNSD.device, dtype=torch.float32)[:, None]
    factor_S1 = 1.0 + temperature.scale * torch.log1p(torch.floor((position_S1 + 1.0) / temperature.floor_scale))
    return (q_BNSD * factor_S1).to(q_BNSD.dtype)
