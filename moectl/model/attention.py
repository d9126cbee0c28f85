"""Attention of one layer: grouped-query and latent (MLA), causal, over whole sequences.

Shapes: B sequences, S positions, H hidden, N query heads, M key-value heads, D head size, R rotated part, V value size, L latent.
Computes out(attention(x)) of normed x; residual and norm belong to the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.spec import GroupedQueryAttention, LatentAttention
from moectl.model.norm import rms_norm
from moectl.model.rope import rotate

Weights = Mapping[str, Tensor]
# Scores written out at once where no fused kernel applies: small enough for the cache, which is what makes it fast.
_SCORE_BYTES = 4 * 2**20


def project(x: Tensor, weights: Weights, slot: str) -> Tensor:
    """x W^T + b of one slot; b if the checkpoint has one."""
    return F.linear(x, weights[slot], weights.get(f"{slot}_bias"))


def attend(spec: GroupedQueryAttention | LatentAttention, x_BSH: Tensor, weights: Weights, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Attention output `[B, S, H]`; `tables` are cos and sin `[S, R/2]` of the spec's rope."""
    if isinstance(spec, LatentAttention):
        return _latent(spec, x_BSH, weights, tables)
    return _grouped_query(spec, x_BSH, weights, tables)


def _grouped_query(spec: GroupedQueryAttention, x_BSH: Tensor, weights: Weights, tables: tuple[Tensor, Tensor]) -> Tensor:
    B, S, _ = x_BSH.shape
    q_BSND = project(x_BSH, weights, "q").view(B, S, spec.n_heads, spec.head_dim)
    k_BSMD = project(x_BSH, weights, "k").view(B, S, spec.n_kv_heads, spec.head_dim)
    v_BSMD = project(x_BSH, weights, "v").view(B, S, spec.n_kv_heads, spec.head_dim)
    if spec.qk_norm is not None:
        q_BSND = rms_norm(q_BSND, weights["q_norm"], eps=spec.qk_norm.eps)
        k_BSMD = rms_norm(k_BSMD, weights["k_norm"], eps=spec.qk_norm.eps)
    q_BNSD = rotate(q_BSND.transpose(1, 2), *tables, layout=spec.rope.layout)
    k_BMSD = rotate(k_BSMD.transpose(1, 2), *tables, layout=spec.rope.layout)
    out_BNSD = _causal(q_BNSD, k_BMSD, v_BSMD.transpose(1, 2), scale=spec.scale, window=spec.window)
    return project(out_BNSD.transpose(1, 2).reshape(B, S, -1), weights, "o")


def _latent(spec: LatentAttention, x_BSH: Tensor, weights: Weights, tables: tuple[Tensor, Tensor]) -> Tensor:
    """MLA with keys and values expanded from the latent (arXiv 2405.04434, eq. 9-19): right for whole sequences."""
    B, S, _ = x_BSH.shape
    rotary = spec.rope.dim
    if spec.q_lora_rank is None:
        q_BSX = project(x_BSH, weights, "q")
    else:
        q_BSX = project(rms_norm(project(x_BSH, weights, "q_a"), weights["q_a_norm"], eps=spec.lora_norm.eps), weights, "q_b")
    q_BNSD = q_BSX.view(B, S, spec.n_heads, spec.nope_dim + rotary).transpose(1, 2)
    q_nope_BNSD, q_rope_BNSR = q_BNSD[..., : spec.nope_dim], q_BNSD[..., spec.nope_dim :]

    compressed_BSX = project(x_BSH, weights, "kv_a")
    latent_BSL, k_rope_BSR = compressed_BSX[..., : spec.kv_lora_rank], compressed_BSX[..., spec.kv_lora_rank :]
    kv_BSX = project(rms_norm(latent_BSL, weights["kv_a_norm"], eps=spec.lora_norm.eps), weights, "kv_b")
    kv_BNSX = kv_BSX.view(B, S, spec.n_heads, spec.nope_dim + spec.value_dim).transpose(1, 2)
    k_nope_BNSD, v_BNSV = kv_BNSX[..., : spec.nope_dim], kv_BNSX[..., spec.nope_dim :]

    q_rope_BNSR = rotate(q_rope_BNSR, *tables, layout=spec.rope.layout)
    # One rotated key part serves all heads.
    k_rope_B1SR = rotate(k_rope_BSR[:, None], *tables, layout=spec.rope.layout)
    q_BNSD = torch.cat((q_nope_BNSD, q_rope_BNSR), dim=-1)
    k_BNSD = torch.cat((k_nope_BNSD, k_rope_B1SR.expand(-1, spec.n_heads, -1, -1)), dim=-1)
    out_BNSV = _causal_narrow_values(q_BNSD, k_BNSD, v_BNSV, scale=spec.scale)
    return project(out_BNSV.transpose(1, 2).reshape(B, S, -1), weights, "o")


def _causal(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, window: int | None) -> Tensor:
    """softmax(q k^T scale) v over keys up to the query, and no further back than `window` (which counts the query's own token)."""
    if window is None or window >= q_BNSD.shape[2]:
        grouped = q_BNSD.shape[1] != k_BMSD.shape[1]
        return F.scaled_dot_product_attention(q_BNSD, k_BMSD, v_BMSV, is_causal=True, scale=scale, enable_gqa=grouped)
    return _masked(q_BNSD, k_BMSD, v_BMSV, scale=scale, window=window)


def _masked(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, window: int) -> Tensor:
    """The same with the mask written out, a block of queries at a time where all at once would be too large."""
    S = q_BNSD.shape[2]
    rows = max(1, _SCORE_BYTES // (4 * S))
    grouped = q_BNSD.shape[1] != k_BMSD.shape[1]
    position_S = torch.arange(S, device=q_BNSD.device)
    out = []
    for start in range(0, S, rows):
        stop = min(S, start + rows)
        # Keys that no query of the block sees are left out, but not where all fit: there the bits should be those of one call.
        first = max(0, start - window + 1) if rows < S else 0
        back = position_S[start:stop, None] - position_S[None, first:stop]
        out.append(
            F.scaled_dot_product_attention(
                q_BNSD[:, :, start:stop],
                k_BMSD[:, :, first:stop],
                v_BMSV[:, :, first:stop],
                attn_mask=(back >= 0) & (back < window),
                scale=scale,
                enable_gqa=grouped,
            )
        )
    return torch.cat(out, dim=2)


def _causal_narrow_values(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSV: Tensor, *, scale: float) -> Tensor:
    """Causal attention whose values are narrower than its keys, as in MLA.

    torch's CPU kernel wants equal widths and else writes out all scores. In float32, padding the values gets the fused kernel, 4x faster
    and without S^2 memory. In bfloat16 the two round differently, which changes selected experts at near ties; there the written-out form
    is kept, because the reference implementations take it, but only some heads, or some queries of one head, at a time.
    """
    value_dim = v_BNSV.shape[-1]
    if q_BNSD.is_cuda or q_BNSD.shape[-1] <= value_dim:
        return _causal(q_BNSD, k_BNSD, v_BNSV, scale=scale, window=None)
    if q_BNSD.dtype == torch.float32:
        padded_BNSD = F.pad(v_BNSV, (0, q_BNSD.shape[-1] - value_dim))
        return _causal(q_BNSD, k_BNSD, padded_BNSD, scale=scale, window=None)[..., :value_dim]
    n_heads, S = q_BNSD.shape[1:3]
    heads = _SCORE_BYTES // (4 * S * S)

    def some(b: int, n: int) -> Tensor:
        q_11SD, k_11SD, v_11SV = (x[b : b + 1, n : n + max(1, heads)] for x in (q_BNSD, k_BNSD, v_BNSV))
        if heads:
            return _causal(q_11SD, k_11SD, v_11SV, scale=scale, window=None)
        return _masked(q_11SD, k_11SD, v_11SV, scale=scale, window=S)

    return torch.cat([torch.cat([some(b, n) for n in range(0, n_heads, max(1, heads))], dim=1) for b in range(q_BNSD.shape[0])])


def causal_reference(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, window: int | None) -> Tensor:
    """The obvious version of the attention above, for tests."""
    n_repeat, S = q_BNSD.shape[1] // k_BMSD.shape[1], q_BNSD.shape[2]
    k_BNSD, v_BNSV = k_BMSD.repeat_interleave(n_repeat, 1), v_BMSV.repeat_interleave(n_repeat, 1)
    scores_BNSS = (q_BNSD @ k_BNSD.transpose(-1, -2)).float() * scale
    for i in range(S):
        for j in range(S):
            if j > i or (window is not None and i - j >= window):
                scores_BNSS[:, :, i, j] = float("-inf")
    return scores_BNSS.softmax(-1).to(v_BNSV.dtype) @ v_BNSV
