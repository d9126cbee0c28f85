"""What every table is made of: counts per (domain, MoE layer, expert), kept in memory that does not grow with the tokens.

    counters = Counters(layers, n_domains=len(domains), batches=micro_batches(domains, 4096))
    counters.record(event)

Everything kept is an integer that adds, or a float owned by one (micro-batch, layer), so the result has the same bits in any order of
events and after any split of the micro-batches over counters that are merged. It computes no metric of a table (see `frames.py`).
"""

# Shapes: D domains, L MoE layers (by position, not by decoder index), E experts (padded to the largest layer), N micro-batches,
# B sequences of a micro-batch, S tokens of each, T = B x S tokens, K slots of a token, P = K (K - 1) / 2 pairs of slots.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moectl.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from moectl.data.batching import MicroBatch
    from moectl.model.events import MoELayerInfo, RoutingEvent

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Weights are summed as multiples of 2^-30, finer than float32 near 1, so that sums do not depend on their order.
WEIGHT_UNIT = 2.0**-30
_MAX_WEIGHT = 2.0**20  # no router is near it; above, sums could leave int64
_MAX_PAIR_KEYS = 2**22  # slot pairs looked at in one go: 32 MB of keys


class Counters:
    """A recorder that counts what the routers executed.

    A token counts if `counted_BS` of its micro-batch says so; a slot counts if it ran an expert (id not -1). Two tokens make a pair
    if they are neighbours in one sequence and both count; a token that ran no expert repeats nothing.

    State, all of it in `arrays()`:
    `tokens_DLE`, `first_choice_DLE` (largest weight, ties to the lowest expert id), `weight_DLE` (in WEIGHT_UNIT);
    `counted_DL` tokens, `pairs_DL`, `repeats_DL` (same first choice), `any_overlap_DL` (pairs sharing an expert),
    `overlap_DL` (experts shared, summed over pairs); `slot_pairs_LEE` (each pair of a token's experts once, in slot order);
    `sequence_vio_NL`, `sequences_NL`, `batch_vio_NL`, `batches_NL`: sums of MaxVio, and how many values are in each sum.
    """

    def __init__(self, layers: Sequence[MoELayerInfo], n_domains: int, batches: Sequence[MicroBatch]) -> None:
        assert [batch.index for batch in batches] == list(range(len(batches))), "counters need every micro-batch, in order"
        self.layers = tuple(layers)
        self.n_domains = n_domains
        self.domain_N: IntArray = np.array([batch.domain for batch in batches], dtype=np.int64)
        self._position = {info.layer: position for position, info in enumerate(self.layers)}
        self._full_batch_N = _largest_of_domain(self.domain_N, [batch.ids_BS.size for batch in batches])

        D, L, N = n_domains, len(self.layers), len(batches)
        E = max(info.n_experts for info in self.layers)
        self.tokens_DLE: IntArray = np.zeros((D, L, E), np.int64)
        self.first_choice_DLE: IntArray = np.zeros((D, L, E), np.int64)
        self.weight_DLE: IntArray = np.zeros((D, L, E), np.int64)
        self.counted_DL: IntArray = np.zeros((D, L), np.int64)
        self.pairs_DL: IntArray = np.zeros((D, L), np.int64)
        self.repeats_DL: IntArray = np.zeros((D, L), np.int64)
        self.any_overlap_DL: IntArray = np.zeros((D, L), np.int64)
        self.overlap_DL: IntArray = np.zeros((D, L), np.int64)
        self.slot_pairs_LEE: IntArray = np.zeros((L, E, E), np.int64)
        self.sequence_vio_NL: FloatArray = np.zeros((N, L), np.float64)
        self.sequences_NL: IntArray = np.zeros((N, L), np.int64)
        self.batch_vio_NL: FloatArray = np.zeros((N, L), np.float64)
        self.batches_NL: IntArray = np.zeros((N, L), np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state by name; the arrays themselves, not copies."""
        names = (
            "tokens_DLE", "first_choice_DLE", "weight_DLE", "counted_DL", "pairs_DL", "repeats_DL", "any_overlap_DL", "overlap_DL",
            "slot_pairs_LEE", "sequence_vio_NL", "sequences_NL", "batch_vio_NL", "batches_NL",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def merge(self, other: Counters) -> None:
        """Add the counts of `other`, made from the same layers and micro-batches but fed with other (layer, micro-batch) events."""
        theirs = other.arrays()
        for name, array in self.arrays().items():
            array += theirs[name]

    def record(self, event: RoutingEvent) -> None:
        """Count one event. Raises ModelError if a combine weight is not finite or absurdly large."""
        position = self._position[event.layer]
        E = self.layers[position].n_experts
        batch, domain = event.batch, event.batch.domain
        B, S = batch.ids_BS.shape
        ran_TK = event.expert_ids_TK >= 0
        weights_TK = event.weights_TK.float().masked_fill(~ran_TK, 0.0)
        if not bool((weights_TK.abs() < _MAX_WEIGHT).all()):  # false for NaN too
            raise ModelError(
                f"the router of layer `{event.layer}` gave a combine weight that is not finite or not below 2^20",
                hint="check that layer's weights for NaN or infinity, or try `--dtype float32`",
            )

        # Slots that count nowhere go to bin E, which is dropped after counting: no row is ever selected or moved.
        counted_T = torch.tensor(batch.counted_BS.reshape(-1), device=weights_TK.device)
        bins_TK = event.expert_ids_TK.masked_fill(~(ran_TK & counted_T[:, None]), E)
        first_T = _first_choice(bins_TK, weights_TK, E)

        counts_BE = _counts_per_sequence(bins_TK, B, E)
        counts_E = counts_BE.sum(0)
        self.tokens_DLE[domain, position, :E] += counts_E
        self.first_choice_DLE[domain, position, :E] += torch.bincount(first_T, minlength=E + 1)[:E].cpu().numpy()
        self.weight_DLE[domain, position, :E] += _weight_sums(bins_TK, weights_TK, E)
        self.slot_pairs_LEE[position, :E, :E] += _slot_pairs(bins_TK, E)

        counted_BS = batch.counted_BS
        self.counted_DL[domain, position] += np.count_nonzero(counted_BS)
        self.pairs_DL[domain, position] += np.count_nonzero(counted_BS[:, 1:] & counted_BS[:, :-1])
        repeats, any_overlap, overlap = _neighbours(bins_TK.view(B, S, -1), first_T.view(B, S), E)
        self.repeats_DL[domain, position] += repeats
        self.any_overlap_DL[domain, position] += any_overlap
        self.overlap_DL[domain, position] += overlap

        vio, n = _max_vio_sum(counts_BE)
        self.sequence_vio_NL[batch.index, position] += vio
        self.sequences_NL[batch.index, position] += n
        if self._full_batch_N[batch.index]:
            vio, n = _max_vio_sum(counts_E[None])
            self.batch_vio_NL[batch.index, position] += vio
            self.batches_NL[batch.index, position] += n

    def coactivation_LEE(self) -> IntArray:
        """int64 [L, E, E]: tokens that ran both experts, over all domains; the diagonal is the tokens of the expert."""
        counts_LEE = self.slot_pairs_LEE + self.slot_pairs_LEE.transpose(0, 2, 1)
        diagonal = np.arange(counts_LEE.shape[1])
        counts_LEE[:, diagonal, diagonal] = self.tokens_DLE.sum(0)
        return counts_LEE

    def max_vio_sequence_DL(self) -> FloatArray:
        """[D + 1, L] mean MaxVio of one sequence, tails included; row 0 is all domains. NaN where no sequence ran an expert."""
        return self._mean_by_domain(self.sequence_vio_NL, self.sequences_NL)

    def max_vio_batch_DL(self) -> FloatArray:
        """[D + 1, L] mean MaxVio of one micro-batch. Only those with as many tokens as the domain's largest are windows of B tokens."""
        return self._mean_by_domain(self.batch_vio_NL, self.batches_NL)

    def _mean_by_domain(self, sums_NL: FloatArray, n_NL: IntArray) -> FloatArray:
        rows = [np.ones_like(self.domain_N, dtype=bool), *(self.domain_N == domain for domain in range(self.n_domains))]
        sums_DL = np.stack([sums_NL[row_N].sum(0) for row_N in rows])
        n_DL = np.stack([n_NL[row_N].sum(0) for row_N in rows])
        result: FloatArray = np.divide(sums_DL, n_DL, out=np.full_like(sums_DL, np.nan), where=n_DL > 0)
        return result


def _largest_of_domain(domain_N: IntArray, sizes: list[int]) -> NDArray[np.bool_]:
    size_N = np.array(sizes, dtype=np.int64)
    largest = {domain: size_N[domain_N == domain].max() for domain in np.unique(domain_N)}
    return np.array([size == largest[domain] for domain, size in zip(domain_N, size_N, strict=True)], dtype=np.bool_)


def _first_choice(bins_TK: Tensor, weights_TK: Tensor, E: int) -> Tensor:
    """[T] expert of the largest weight, E where none ran. Routers may leave their top-k unsorted, so slot 0 means nothing."""
    in_play_TK = weights_TK.masked_fill(bins_TK == E, float("-inf"))
    best_TK = in_play_TK == in_play_TK.amax(1, keepdim=True)
    return bins_TK.masked_fill(~best_TK, E).amin(1)


def _counts_per_sequence(bins_TK: Tensor, B: int, E: int) -> IntArray:
    sequence_T = torch.arange(B, device=bins_TK.device).repeat_interleave(bins_TK.shape[0] // B)
    keys_TK = bins_TK + sequence_T[:, None] * (E + 1)
    counts: IntArray = torch.bincount(keys_TK.flatten(), minlength=B * (E + 1)).view(B, E + 1)[:, :E].cpu().numpy()
    return counts


def _weight_sums(bins_TK: Tensor, weights_TK: Tensor, E: int) -> IntArray:
    fixed_TK = (weights_TK.double() / WEIGHT_UNIT).round().long()
    sums_E = torch.zeros(E + 1, dtype=torch.int64, device=bins_TK.device).index_add_(0, bins_TK.flatten(), fixed_TK.flatten())
    result: IntArray = sums_E[:E].cpu().numpy()
    return result


def _slot_pairs(bins_TK: Tensor, E: int) -> IntArray:
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
    result: IntArray = total.view(E + 1, E + 1)[:E, :E].cpu().numpy()
    return result


def _neighbours(bins_BSK: Tensor, first_BS: Tensor, E: int) -> tuple[int, int, int]:
    """Over pairs of neighbours inside a sequence: same first choice, any expert shared, experts shared in total."""
    slots_KBS = bins_BSK.permute(2, 0, 1).contiguous()
    left_KBS, right_KBS = slots_KBS[:, :, :-1], slots_KBS[:, :, 1:]
    right_KBS = right_KBS.masked_fill(right_KBS == E, -1)  # a slot that counts nowhere equals no other
    shared_BS = torch.zeros(left_KBS.shape[1:], dtype=torch.int64, device=bins_BSK.device)
    for right_BS in right_KBS:
        shared_BS += (left_KBS == right_BS).sum(0)
    repeats = ((first_BS[:, :-1] == first_BS[:, 1:]) & (first_BS[:, 1:] < E)).sum()
    a, b, c = torch.stack([repeats, (shared_BS > 0).sum(), shared_BS.sum()]).tolist()
    return a, b, c


def _max_vio_sum(counts_XE: IntArray) -> tuple[float, int]:
    """Sum of max_e n_e / mean_e n_e - 1 over the rows in which any expert ran, and the number of those rows."""
    total_X = counts_XE.sum(1)
    ran_X = total_X > 0
    vio_X = counts_XE[ran_X].max(1, initial=0) * counts_XE.shape[1] / total_X[ran_X] - 1.0
    return float(vio_X.sum()), int(ran_X.sum())
