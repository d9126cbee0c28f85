"""Causal softmax attention over whole sequences: fused kernels where they apply, scores written out a block at a time where not.

Shapes: B sequences, S positions, N query heads, M key-value heads, D head size, V value size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import GroupedQueryAttention

# Scores written out at once where no fused kernel applies: small enough for the cache, which is what makes it fast.
_SCORE_BYTES = 4 * 2**20
# With a narrow window fewer queries at once would cost more in calls than in keys that only some of them see.
_LEAST_ROWS = 64
# Sums over keys take 16 at a time: left out in whole steps, keys that weigh nothing leave the bits as they are.
_KEY_ALIGNMENT = 16
# Torch's CPU matmul keeps code and buffers for each shape it meets: keys begin and end at few places, so many to a window.
_KEY_ENDS = 8


def causal(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, window: int | None = None) -> Tensor:
    """softmax(q k^T scale) v over keys up to the query, and no further back than `window` (which counts the query's own token)."""
    if window is None or window >= q_BNSD.shape[2]:
        grouped = q_BNSD.shape[1] != k_BMSD.shape[1]
        return F.scaled_dot_product_attention(q_BNSD, k_BMSD, v_BMSV, is_causal=True, scale=scale, enable_gqa=grouped)
    return _masked(q_BNSD, k_BMSD, v_BMSV, scale=scale, window=window)


def causal_in_chunks(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, chunk: int) -> Tensor:
    """Each stretch of `chunk` positions attends within itself only, as if it were a sequence of its own."""
    parts = zip(*(torch.split(x, chunk, dim=2) for x in (q_BNSD, k_BMSD, v_BMSV)), strict=True)
    return torch.cat([causal(q, k, v, scale=scale) for q, k, v in parts], dim=2)


def causal_with_sinks(spec: GroupedQueryAttention, q_BNSD: Tensor, k_BMSD: Tensor, v_BMSD: Tensor, sinks_N: Tensor) -> Tensor:
    """Causal attention with one more logit per head, its sink, that joins the softmax and has no value.

    In float32 on a CPU, without a window, by the fused kernel: the sink is the score of a key of value zero in front of all others. One
    more dimension carries it from query to key, and a query in front keeps the mask square (E = D + 1, R = S + 1).
    """
    S, D = q_BNSD.shape[2:]
    if q_BNSD.is_cuda or q_BNSD.dtype != torch.float32 or spec.softcap is not None or (spec.window is not None and spec.window < S):
        return causal_written_out(spec, q_BNSD, k_BMSD, v_BMSD, sinks_N)
    B, M, n = len(q_BNSD), k_BMSD.shape[1], q_BNSD.shape[1] // k_BMSD.shape[1]
    trains = _trains(q_BNSD, k_BMSD, v_BMSD, sinks_N)
    # One key-value head at a time, and without gradients each result at once in its place: the copies are those of one head.
    of_heads, out_BNSD = [], q_BNSD.new_empty(0 if trains else B, *q_BNSD.shape[1:])
    for m in range(M):
        heads = slice(m * n, (m + 1) * n)
        sink_BnS1 = (sinks_N[heads] / spec.scale)[:, None, None].expand(B, n, S, 1)
        q_BnRE = F.pad(torch.cat((q_BNSD[:, heads], sink_BnS1), dim=-1), (0, 0, 1, 0))
        k_B1RE, v_B1RE = (F.pad(x[:, m : m + 1], (0, 1, 1, 0)) for x in (k_BMSD, v_BMSD))
        k_B1RE[:, :, 0, D] = 1
        k_BnRE, v_BnRE = (x.expand(-1, n, -1, -1) for x in (k_B1RE, v_B1RE))
        out_BnSD = causal(q_BnRE, k_BnRE, v_BnRE, scale=spec.scale)[:, :, 1:, :D]
        if trains:
            of_heads.append(out_BnSD)
        else:
            out_BNSD[:, heads] = out_BnSD
    return torch.cat(of_heads, dim=1) if trains else out_BNSD


def causal_written_out(
    spec: GroupedQueryAttention, q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, sinks_N: Tensor | None = None
) -> Tensor:
    """What no fused kernel does: scores with a softcap, and sinks, one more logit per head that joins the softmax and has no value.

    Scores stay in the model's dtype up to the softmax, as in the reference implementations. One sequence and one key-value head at a
    time, as many queries as fit, and with a window only the keys that some of them see (R queries, K keys).
    """
    B, N, S, D = q_BNSD.shape
    M = k_BMSD.shape[1]
    n, window = N // M, spec.window or S
    rows = max(1, min(_SCORE_BYTES // (4 * n * min(S, 2 * window)), max(window, _LEAST_ROWS)))
    step = -(-min(S, window) // (_KEY_ENDS * _KEY_ALIGNMENT)) * _KEY_ALIGNMENT
    position_S = torch.arange(S, device=q_BNSD.device)
    trains = _trains(q_BNSD, k_BMSD, v_BMSV, sinks_N)
    # Lying about one by one, small results would hold the places of the scores that they came from, in sum all S^2 of them.
    out_BNSV = q_BNSD.new_empty(0 if trains else B, N, S, v_BMSV.shape[-1])
    blocks: list[list[Tensor]] = [[] for _ in range(B * M)]
    for start in range(0, S, rows):
        stop = min(S, start + rows)
        last = min(S, -(-stop // step) * step)
        first = max(0, start - window + 1) // step * step
        back_RK = position_S[start:stop, None] - position_S[None, first:last]
        # All queries of the block see the keys between the two edges.
        edges = slice(0, max(0, stop - window - first)), slice(start - first, last - first)
        for i in range(B * M):
            b, m = divmod(i, M)
            heads = slice(m * n, (m + 1) * n)
            q_XD = q_BNSD[b, heads, start:stop].reshape(-1, D)
            scores_nRK = (q_XD @ k_BMSD[b, m, first:last].t()).mul_(spec.scale).view(n, *back_RK.shape)
            if spec.softcap is not None:
                scores_nRK = torch.tanh(scores_nRK / spec.softcap) * spec.softcap
            for edge in edges:
                scores_nRK[..., edge].masked_fill_((back_RK[:, edge] < 0) | (back_RK[:, edge] >= window), float("-inf"))
            if sinks_N is not None:
                scores_nRK = torch.cat((scores_nRK, sinks_N[heads, None, None].expand(-1, stop - start, 1)), dim=-1)
            if spec.softmax_dtype == "model":
                weights_nRK = (scores_nRK - scores_nRK.amax(-1, keepdim=True).detach()).softmax(-1)
            else:
                weights_nRK = scores_nRK.softmax(-1, dtype=torch.float32).to(v_BMSV.dtype)
            block_nRV = weights_nRK[..., : last - first] @ v_BMSV[b, m, first:last]
            if trains:
                blocks[i].append(block_nRV)
            else:
                out_BNSV[b, heads, start:stop] = block_nRV
    if not trains:
        return out_BNSV
    return torch.cat([torch.cat(of_heads, dim=1) for of_heads in blocks]).view(B, N, S, -1)


def causal_narrow_values(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSV: Tensor, *, scale: float) -> Tensor:
    """Causal attention whose values are narrower than its keys, as in MLA.

    torch's CPU kernel wants equal widths and else writes out all scores. In float32, padding the values gets the fused kernel, 4x faster
    and without S^2 memory. In bfloat16 the two round differently, which changes selected experts at near ties; there the written-out form
    is kept, because the reference implementations take it, but only some heads, or some queries of one head, at a time.
    """
    value_dim = v_BNSV.shape[-1]
    if q_BNSD.is_cuda or q_BNSD.shape[-1] <= value_dim:
        return causal(q_BNSD, k_BNSD, v_BNSV, scale=scale)
    if q_BNSD.dtype == torch.float32:
        padded_BNSD = F.pad(v_BNSV, (0, q_BNSD.shape[-1] - value_dim))
        return causal(q_BNSD, k_BNSD, padded_BNSD, scale=scale)[..., :value_dim]
    n_heads, S = q_BNSD.shape[1:3]
    heads = _SCORE_BYTES // (4 * S * S)

    def some(b: int, n: int) -> Tensor:
        q_11SD, k_11SD, v_11SV = (x[b : b + 1, n : n + max(1, heads)] for x in (q_BNSD, k_BNSD, v_BNSV))
        if heads:
            return causal(q_11SD, k_11SD, v_11SV, scale=scale)
        return _masked(q_11SD, k_11SD, v_11SV, scale=scale, window=S)

    return torch.cat([torch.cat([some(b, n) for n in range(0, n_heads, max(1, heads))], dim=1) for b in range(q_BNSD.shape[0])])


def causal_reference(spec: GroupedQueryAttention, q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, sinks_N: Tensor | None = None) -> Tensor:
    """The obvious version of all of the above, for tests."""
    n_repeat, S = q_BNSD.shape[1] // k_BMSD.shape[1], q_BNSD.shape[2]
    k_BNSD, v_BNSV = k_BMSD.repeat_interleave(n_repeat, 1), v_BMSV.repeat_interleave(n_repeat, 1)
    scores_BNSS = (q_BNSD @ k_BNSD.transpose(-1, -2)).float() * spec.scale
    if spec.softcap is not None:
        scores_BNSS = torch.tanh(scores_BNSS / spec.softcap) * spec.softcap
    for i in range(S):
        for j in range(S):
            too_far = spec.window is not None and i - j >= spec.window
            if j > i or too_far or (spec.chunk is not None and i // spec.chunk != j // spec.chunk):
                scores_BNSS[:, :, i, j] = float("-inf")
    if sinks_N is not None:
        scores_BNSS = torch.cat((scores_BNSS, sinks_N.float()[None, :, None, None].expand(*scores_BNSS.shape[:3], 1)), -1)
    return scores_BNSS.softmax(-1)[..., :S].to(v_BNSV.dtype) @ v_BNSV


def _trains(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _masked(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSV: Tensor, *, scale: float, window: int) -> Tensor:
    """`causal` with the mask written out, a block of queries at a time where all at once would be too large."""
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
