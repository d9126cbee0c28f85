"""Counts of one event that its expert ids and combine weights decide, per sequence.

The micro-batch is seen as bins_TK: the expert of each slot, or bin E where the slot ran nothing or its token does not count. Bin E is
dropped after counting, so no row is ever selected or moved. Everything is int64 on the event's device; nothing waits for the device.
"""

# Shapes: B sequences, S tokens of each, T = B x S tokens, K slots of a token, P = K (K - 1) / 2 pairs of slots, E experts,
# W = ceil((E + 1) / 8) words of 8 experts, one byte each.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Weights are summed as multiples of 2^-30, finer than float32 near 1, so that sums do not depend on their order.
WEIGHT_UNIT = 2.0**-30
LAGS = (1, 2, 4, 8, 16, 32, 64)
_MAX_PAIR_KEYS = 2**22  # slot pairs looked at in one go: 32 MB of keys
_EVERY_BYTE = 0x0101010101010101


def first_choice(bins_TK: Tensor, weights_TK: Tensor, E: int) -> Tensor:
    """[T] expert of the largest weight, E where none ran. Routers may leave their top-k unsorted, so slot 0 means nothing."""
    in_play_TK = weights_TK.masked_fill(bins_TK == E, float("-inf"))
    best_TK = in_play_TK == in_play_TK.amax(1, keepdim=True)
    return bins_TK.masked_fill(~best_TK, E).amin(1)


def counts_per_sequence(bins_TK: Tensor, B: int, E: int) -> Tensor:
    """[B, E] slots (or first choices, for K = 1) of each expert."""
    sequence_T = torch.arange(B, device=bins_TK.device).repeat_interleave(bins_TK.shape[0] // B)
    keys_TK = bins_TK + sequence_T[:, None] * (E + 1)
    return torch.bincount(keys_TK.flatten(), minlength=B * (E + 1)).view(B, E + 1)[:, :E]


def weight_sums(bins_TK: Tensor, weights_TK: Tensor, E: int) -> Tensor:
    """[E] sum of the combine weights, in WEIGHT_UNIT."""
    fixed_TK = (weights_TK.double() / WEIGHT_UNIT).round().long()
    sums_E = torch.zeros(E + 1, dtype=torch.int64, device=bins_TK.device)
    return sums_E.index_add_(0, bins_TK.flatten(), fixed_TK.flatten())[:E]


def slot_pairs(bins_TK: Tensor, E: int) -> Tensor:
    """[E, E] pairs of experts of one token, each once, in slot order.

    The same counts as the strict upper half of M^T M for the 0/1 matrix M [T, E], but K^2 / 2 steps a token instead of E^2.
    """
    K = bins_TK.shape[1]
    first_P, second_P = torch.triu_indices(K, K, offset=1, device=bins_TK.device)
    total = torch.zeros((E + 1) ** 2, dtype=torch.int64, device=bins_TK.device)
    for rows_TK in torch.split(bins_TK, max(1, _MAX_PAIR_KEYS // max(1, len(first_P)))):
        slots_KT = rows_TK.t().contiguous()  # whole rows are gathered twice as fast as columns
        keys_PT = torch.add(slots_KT[second_P], slots_KT[first_P], alpha=E + 1)
        total += torch.bincount(keys_PT.flatten(), minlength=(E + 1) ** 2)
    return total.view(E + 1, E + 1)[:E, :E]


class Repetition(NamedTuple):
    """Over the pairs of neighbours of each sequence: same first choice, any expert shared; and experts shared at each of LAGS."""

    repeats_B: Tensor
    any_overlap_B: Tensor
    overlap_BG: Tensor


def repetition(bins_TK: Tensor, first_T: Tensor, B: int, E: int) -> Repetition:
    """What the tokens of a sequence have in common with those before them. A token that ran nothing repeats nothing."""
    first_BS = first_T.view(B, -1)
    repeats_B = ((first_BS[:, :-1] == first_BS[:, 1:]) & (first_BS[:, 1:] < E)).sum(1)
    words_BSW = _words(bins_TK, E).view(B, first_BS.shape[1], -1)
    shared = [_shared(words_BSW, lag) for lag in LAGS]
    return Repetition(repeats_B, (shared[0] > 0).sum(1), torch.stack([shared_BS.sum(1) for shared_BS in shared], dim=1))


def _words(bins_TK: Tensor, E: int) -> Tensor:
    """int64 [T, W]: the 0/1 matrix of which token ran which expert, in bytes, read eight at a time."""
    ran_TE = torch.zeros(bins_TK.shape[0], (E + 8) // 8 * 8, dtype=torch.uint8, device=bins_TK.device)
    ran_TE.scatter_(1, bins_TK, 1)
    ran_TE[:, E] = 0
    return ran_TE.view(torch.int64)


def _shared(words_BSW: Tensor, lag: int) -> Tensor:
    """[B, S - lag] experts that both tokens ran. No byte of the sum exceeds K < 256, and the product's top byte is the sum of all."""
    sums_BS = (words_BSW[:, lag:] & words_BSW[:, : max(0, words_BSW.shape[1] - lag)]).sum(2)
    return (sums_BS * _EVERY_BYTE >> 56) & 0xFF
