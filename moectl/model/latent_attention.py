"""Multi-head latent attention (MLA) of one layer with keys and values expanded from the latent (arXiv 2405.04434, eq. 9-19).

Shapes: B sequences, S positions, H hidden, N heads, D head size, R rotated part, V value size, L latent, X whatever a projection gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moectl.arch.parts import LatentAttention
from moectl.model.causal import causal_narrow_values
from moectl.model.norm import normalize
from moectl.model.projection import Weights, project
from moectl.model.rope import rotate


def latent_attention(spec: LatentAttention, x_BSH: Tensor, weights: Weights, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Attention output `[B, S, H]`: right for whole sequences, each starting at position 0."""
    B, S, _ = x_BSH.shape
    if spec.q_lora_rank is None:
        q_BSX = project(x_BSH, weights, "q")
    else:
        q_BSX = project(normalize(spec.lora_norm, project(x_BSH, weights, "q_a"), weights, "q_a_norm"), weights, "q_b")
    q_BNSD = q_BSX.view(B, S, spec.n_heads, spec.nope_dim + spec.rope.dim).transpose(1, 2)
    q_nope_BNSD, q_rope_BNSR = q_BNSD[..., : spec.nope_dim], q_BNSD[..., spec.nope_dim :]

    compressed_BSX = project(x_BSH, weights, "kv_a")
    latent_BSL, k_rope_BSR = compressed_BSX[..., : spec.kv_lora_rank], compressed_BSX[..., spec.kv_lora_rank :]
    kv_BSX = project(normalize(spec.lora_norm, latent_BSL, weights, "kv_a_norm"), weights, "kv_b")
    kv_BNSX = kv_BSX.view(B, S, spec.n_heads, spec.nope_dim + spec.value_dim).transpose(1, 2)
    k_nope_BNSD, v_BNSV = kv_BNSX[..., : spec.nope_dim], kv_BNSX[..., spec.nope_dim :]

    q_rope_BNSR = rotate(q_rope_BNSR, *tables, layout=spec.rope.layout)
    # One rotated key part serves all heads.
    k_rope_B1SR = rotate(k_rope_BSR[:, None], *tables, layout=spec.rope.layout)
    q_BNSD = torch.cat((q_nope_BNSD, q_rope_BNSR), dim=-1)
    k_BNSD = torch.cat((k_nope_BNSD, k_rope_B1SR.expand(-1, spec.n_heads, -1, -1)), dim=-1)
    out_BNSV = causal_narrow_values(q_BNSD, k_BNSD, v_BNSV, scale=spec.scale)
    return project(out_BNSV.transpose(1, 2).reshape(B, S, -1), weights, "o")
