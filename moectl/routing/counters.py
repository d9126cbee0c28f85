"""What every table is made of: counts per (block of a domain, MoE layer, expert), in memory that does not grow with the tokens.

    counters = Counters(layers, n_domains=len(domains), batches=micro_batches(domains, 4096))
    counters.record(event)
    counters.by_domain(counters.counts.tokens_XLE)       # [D, L, E]

Everything kept is an integer that adds, a float that adds exactly, or a float owned by one (micro-batch, layer), so the result has the
same bits in any order of events and after any split of the micro-batches over counters that are merged. It computes no metric of a table
(see `frames.py`); the arithmetic of one event is in `counting/`.
"""

# Shapes: D domains, X blocks of all domains, L MoE layers (by position, not by decoder index), E experts (padded to the largest layer),
# G lags, C token classes, N micro-batches, B sequences of a micro-batch, S tokens of each, T = B x S tokens, K slots of a token.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moectl.errors import ModelError
from moectl.routing.counting import arrays, predicted, selection, vocabulary
from moectl.routing.counting.arrays import CountArrays
from moectl.routing.counting.blocks import Blocks
from moectl.routing.counting.scores import SCORE_UNIT, score_sums, used_expert_sums
from moectl.routing.token_classes import CLASSES

if TYPE_CHECKING:
    from torch import Tensor

    from moectl.data.batching import MicroBatch
    from moectl.model.events import MoELayerInfo, RoutingEvent
    from moectl.routing.counting.predicted import KeptExperts

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_MAX_WEIGHT = 2.0**20  # no router is near it; above, sums could leave int64
_MAX_INT32 = 2**31 - 1

# What `record` finds for each sequence, by the array that it is added to.
_SUMS = {
    "tokens_XLE": "counts_BE", "first_choice_XLE": "first_BE", "scores_XLE": "scores_BE", "repeats_XL": "repeats_B",
    "any_overlap_XL": "any_overlap_B", "overlap_XLG": "overlap_BG", "entropy_XL": "entropy_B", "captured_XL": "captured_B",
    "used_experts_XL": "used_experts_B", "used_tokens_XL": "used_tokens_B", "agreed_XL": "agreed_B", "full_tokens_XL": "full_tokens_B",
    "margin_XL": "margin_B", "margin_tokens_XL": "margin_tokens_B", "fragile_XL": "fragile_B", "z_squared_XL": "z_squared_B",
    "sequence_loss_XL": "sequence_loss_B", "counted_XL": "counted_B", "counted_sequences_XL": "any_counted_B", "pairs_XLG": "pairs_BG",
    "block_vio_XL": "vio_B", "vio_sequences_XL": "ran_B",
}  # fmt: skip


class Counters:
    """A recorder that counts what the routers executed.

    `counts`: the arrays, see CountArrays. `blocks`: sequence i of a domain is in its block i mod 64, of domain `blocks.domain_X`.
    `tracked`: the ids that are counted by themselves ("input") and by the token before them ("next"); the rows of `counts.*_LME` beyond
    them stay 0. After `count_predicted` it also has those the model predicts ("predicted"). `input_home_M`: the domain that most tokens of
    each id of "input" lie in (see `vocabulary.home_domains`). `class_of_id_V`: the class of every token id
    (see `token_classes`); without it classes are not counted, else `class_tokens_C` is how many counted tokens have each. `scored` is
    false once an event came without logits: what they decide is not counted then.
    """

    def __init__(
        self,
        layers: Sequence[MoELayerInfo],
        n_domains: int,
        batches: Sequence[MicroBatch],
        *,
        class_of_id_V: NDArray[np.int8] | None = None,
    ) -> None:
        assert [batch.index for batch in batches] == list(range(len(batches))), "counters need every micro-batch, in order"
        assert max(info.top_k for info in layers) < 256, "shared experts are summed in bytes"
        self.layers = tuple(layers)
        self.n_domains = n_domains
        self.blocks = Blocks(n_domains, batches)
        self.domain_N: IntArray = np.array([batch.domain for batch in batches], dtype=np.int64)
        self._position = {info.layer: position for position, info in enumerate(self.layers)}
        self._full_batch_N = _largest_of_domain(self.domain_N, [batch.ids_BS.size for batch in batches])
        self._class_of_id_V = class_of_id_V

        self.class_tokens_C: IntArray = np.zeros(0 if class_of_id_V is None else len(CLASSES), np.int64)
        if class_of_id_V is not None:
            for batch in batches:
                self.class_tokens_C += np.bincount(class_of_id_V[batch.ids_BS[batch.counted_BS]], minlength=len(CLASSES))

        axes = arrays.sizes(layers, n_domains, batches, classes=class_of_id_V is not None)
        self.tracked = {kind: vocabulary.track_ids(batches, kind, limit=axes["M"]) for kind in vocabulary.KINDS}
        self.input_home_M = vocabulary.home_domains(self.tracked["input"], batches, n_domains)
        axes["M"] = max(len(ids.ids_M) for ids in self.tracked.values())
        self._wide = sum(batch.ids_BS.size for batch in batches) > _MAX_INT32
        self.counts = CountArrays.zeros(axes, wide=self._wide)
        self._predicted: dict[str, NDArray[Any]] = {}
        self.scored = True

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state by name; the arrays themselves, not copies."""
        return self.counts.by_name() | self._predicted

    def merge(self, other: Counters) -> None:
        """Add the counts of `other`, made from the same layers and micro-batches but fed with other (layer, micro-batch) events.

        To be done before `count_predicted`.
        """
        self.scored &= other.scored
        theirs = other.arrays()
        for name, array in self.arrays().items():
            array += theirs[name]

    def record(self, event: RoutingEvent) -> None:
        """Count one event. Raises ModelError if a combine weight is not finite or absurdly large."""
        position, batch = self._position[event.layer], event.batch
        info = self.layers[position]
        E, B = info.n_experts, batch.ids_BS.shape[0]
        ran_TK = event.expert_ids_TK >= 0
        weights_TK = event.weights_TK.float().masked_fill(~ran_TK, 0.0)
        counted_T = torch.tensor(batch.counted_BS.reshape(-1), device=weights_TK.device)
        bins_TK = event.expert_ids_TK.masked_fill(~(ran_TK & counted_T[:, None]), E)
        first_T = selection.first_choice(bins_TK, weights_TK, E)
        counts_BE = selection.counts_per_sequence(bins_TK, B, E)
        found = _to_host(
            {
                "sound": (weights_TK.abs() < _MAX_WEIGHT).all().long(),  # false for NaN too
                "bins_TK": bins_TK,
                "first_T": first_T,
                "counts_BE": counts_BE,
                "first_BE": selection.counts_per_sequence(first_T[:, None], B, E),
                "weight_E": selection.weight_sums(bins_TK, weights_TK, E),
                "slot_pairs_EE": selection.slot_pairs(bins_TK, E),
                **selection.repetition(bins_TK, first_T, B, E)._asdict(),
                **self._score_sums(info, event, weights_TK, counted_T, counts_BE),
            }
        )
        if not found["sound"]:
            raise ModelError(
                f"the router of layer `{event.layer}` gave a combine weight that is not finite or not below 2^20",
                hint="check that layer's weights for NaN or infinity, or try `--dtype float32`",
            )
        found |= _of_batch(batch, found["counts_BE"])
        by_name = self.counts.by_name()
        for name, source in _SUMS.items():
            if source not in found:
                continue
            total_X = by_name[name][:, position]
            self.blocks.add(total_X[:, :E] if name.endswith("E") else total_X, batch, found[source])
        self._add_to_batch(position, batch, found)
        self._add_to_layer(position, batch, found, E)

    def count_predicted(self, kept: KeptExperts, batches: Sequence[MicroBatch], ids_T: NDArray[Any], *, vocab_size: int) -> None:
        """Count the experts of each token by the id that the model predicts there, `ids_T` of all micro-batches in order."""
        ends = np.cumsum([batch.ids_BS.size for batch in batches])
        of_batch = np.split(ids_T, ends[:-1])
        counted = (ids[batch.counted_BS.reshape(-1)] for ids, batch in zip(of_batch, batches, strict=True))
        L, E = len(self.layers), max(info.n_experts for info in self.layers)
        tracked = vocabulary.track("predicted", counted, n_ids=vocab_size, limit=predicted.most_ids(L, E))
        table_LME, first_LME = (np.zeros((L, len(tracked.ids_M), E), np.int64 if self._wide else np.int32) for _ in range(2))
        for ids, batch in zip(of_batch, batches, strict=True):
            rows_T = tracked.rows_of(ids)
            for position, info in enumerate(self.layers):
                bins_TK = kept.experts(position, batch)
                vocabulary.add_tokens(table_LME[position], rows_T[:, None], bins_TK, info.n_experts)
                vocabulary.add_tokens(first_LME[position], rows_T, bins_TK[:, 0], info.n_experts)
        self.tracked["predicted"] = tracked
        self._predicted = {"predicted_LME": table_LME, "predicted_first_choice_LME": first_LME}

    def coactivation_LEE(self) -> IntArray:
        """int64 [L, E, E]: tokens that ran both experts, over all domains; the diagonal is the tokens of the expert."""
        counts_LEE = self.counts.slot_pairs_LEE + self.counts.slot_pairs_LEE.transpose(0, 2, 1)
        diagonal = np.arange(counts_LEE.shape[1])
        counts_LEE[:, diagonal, diagonal] = self.counts.tokens_XLE.sum(0)
        return counts_LEE

    def by_domain(self, total_X: NDArray[Any]) -> NDArray[Any]:
        """[D, ...] an array of `counts` that leads with X, summed over the blocks of each domain."""
        return self.blocks.by_domain(total_X)

    def max_vio_sequence_DL(self) -> FloatArray:
        """[D + 1, L] mean MaxVio of one sequence, tails included; row 0 is all domains. NaN where no sequence ran an expert."""
        return self._mean_by_domain(self.counts.sequence_vio_NL, self.counts.sequences_NL)

    def max_vio_batch_DL(self) -> FloatArray:
        """[D + 1, L] mean MaxVio of one micro-batch. Only those with as many tokens as the domain's largest are windows of B tokens."""
        return self._mean_by_domain(self.counts.batch_vio_NL, self.counts.batches_NL)

    def _score_sums(
        self, info: MoELayerInfo, event: RoutingEvent, weights_TK: Tensor, counted_T: Tensor, counts_BE: Tensor
    ) -> dict[str, Tensor]:
        if event.logits_TE is None:
            self.scored = False
            return used_expert_sums(weights_TK, counted_T, counts_BE.shape[0])
        return score_sums(info, event, weights_TK, counted_T, counts_BE)._asdict()

    def _add_to_batch(self, position: int, batch: MicroBatch, found: dict[str, NDArray[Any]]) -> None:
        counts, at, ran_B = self.counts, (batch.index, position), found["ran_B"]
        counts.sequence_vio_NL[at] += float(found["max_vio_B"][ran_B].sum())
        counts.sequences_NL[at] += np.count_nonzero(ran_B)
        if self._full_batch_N[batch.index]:
            vio_1, ran_1 = _max_vio(found["counts_BE"].sum(0, keepdims=True))
            counts.batch_vio_NL[at] += float(vio_1[0])
            counts.batches_NL[at] += int(ran_1[0])

    def _add_to_layer(self, position: int, batch: MicroBatch, found: dict[str, NDArray[Any]], E: int) -> None:
        counts, bins_TK, first_T = self.counts, found["bins_TK"], found["first_T"]
        counts.weight_DLE[batch.domain, position, :E] += found["weight_E"]
        counts.slot_pairs_LEE[position, :E, :E] += found["slot_pairs_EE"]
        input_T, next_T = self.tracked["input"].rows(batch), self.tracked["next"].rows(batch)
        vocabulary.add_tokens(counts.input_LME[position], input_T[:, None], bins_TK, E)
        vocabulary.add_tokens(counts.input_first_choice_LME[position], input_T, first_T, E)
        vocabulary.add_tokens(counts.next_LME[position], next_T[:, None], bins_TK, E)
        vocabulary.add_tokens(counts.next_first_choice_LME[position], next_T, first_T, E)
        if self._class_of_id_V is not None:
            class_T = self._class_of_id_V[batch.ids_BS.reshape(-1)].astype(np.int64)
            vocabulary.add_tokens(counts.classes_LCE[position], class_T[:, None], bins_TK, E)

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


def _of_batch(batch: MicroBatch, counts_BE: IntArray) -> dict[str, NDArray[Any]]:
    """Per sequence: what the micro-batch alone decides, and MaxVio."""
    counted_BS = batch.counted_BS
    S = counted_BS.shape[1]
    pairs_BG = np.stack([(counted_BS[:, lag:] & counted_BS[:, : max(0, S - lag)]).sum(1) for lag in selection.LAGS], axis=1)
    max_vio_B, ran_B = _max_vio(counts_BE)
    return {
        "counted_B": counted_BS.sum(1),
        "any_counted_B": counted_BS.any(1),
        "pairs_BG": pairs_BG,
        "max_vio_B": max_vio_B,
        "vio_B": np.round(max_vio_B / SCORE_UNIT).astype(np.int64),
        "ran_B": ran_B,
    }


def _max_vio(counts_RE: IntArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """[R] max_e n_e / mean_e n_e - 1 of each row, 0 where no expert ran, and whether any did."""
    total_R = counts_RE.sum(1)
    ran_R = total_R > 0
    vio_R = np.divide(counts_RE.max(1) * counts_RE.shape[1], total_R, out=np.ones(len(total_R)), where=ran_R) - 1.0
    return vio_R, ran_R


def _to_host(found: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors of 8-byte numbers as arrays, from a device in one copy: each copy would wait for it."""
    if all(tensor.device.type == "cpu" for tensor in found.values()):
        return {name: tensor.numpy() for name, tensor in found.items()}
    flat = torch.cat([tensor.reshape(-1).view(torch.int64) for tensor in found.values()]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in found.values()])
    return {name: part.view(tensor.dtype).view(tensor.shape).numpy() for (name, tensor), part in zip(found.items(), parts, strict=True)}
