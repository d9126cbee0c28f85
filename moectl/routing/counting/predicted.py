"""Which experts each token ran, kept until it is known what the model predicted there.

    kept = KeptExperts(layers, batches)          # a recorder
    kept.experts(position, batch)                # [T, K] the experts of a micro-batch in one layer, once it is recorded

Routers are at work before the head is, so the experts of all tokens wait for it: a byte or two a slot.
"""

# Shapes: T tokens of a micro-batch, K slots of a token, E experts.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moectl.routing.counting import selection

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch
    from moectl.model.events import MoELayerInfo, RoutingEvent

TABLE_BYTES = 48_000_000
"""Memory of the tables of predicted ids, both together."""
N_TABLES = 2


class KeptExperts:
    """A recorder that keeps the experts of every token that counts, the first choice in slot 0; E stands for a slot that does not count."""

    def __init__(self, layers: Sequence[MoELayerInfo], batches: Sequence[MicroBatch]) -> None:
        n_tokens = sum(batch.ids_BS.size for batch in batches)
        self._start_N = np.cumsum([0, *(batch.ids_BS.size for batch in batches)]).tolist()
        self._layers = tuple(layers)
        self._position = {info.layer: position for position, info in enumerate(layers)}
        self._ids = [np.empty((n_tokens, info.top_k), _dtype(info.n_experts)) for info in layers]

    def record(self, event: RoutingEvent) -> None:
        """Keep one event."""
        position, batch = self._position[event.layer], event.batch
        E = self._layers[position].n_experts
        counted_T = torch.tensor(batch.counted_BS.reshape(-1), device=event.expert_ids_TK.device)
        bins_TK = event.expert_ids_TK.masked_fill(~((event.expert_ids_TK >= 0) & counted_T[:, None]), E)
        first_T1 = selection.first_choice(bins_TK, event.weights_TK.float(), E)[:, None]
        place_T1 = (bins_TK == first_T1).int().argmax(1, keepdim=True)
        bins_TK = bins_TK.scatter(1, place_T1, bins_TK[:, :1])
        bins_TK[:, :1] = first_T1
        self._ids[position][self._rows(batch)] = bins_TK.cpu().numpy()

    def experts(self, position: int, batch: MicroBatch) -> NDArray[np.int64]:
        """[T, K] of the layer at `position`."""
        return self._ids[position][self._rows(batch)].astype(np.int64)

    def _rows(self, batch: MicroBatch) -> slice:
        return slice(self._start_N[batch.index], self._start_N[batch.index + 1])


def planned_bytes(layers: Sequence[MoELayerInfo], n_tokens: int) -> int:
    """Memory for counting by predicted ids: what is kept, and the tables."""
    return TABLE_BYTES + n_tokens * sum(info.top_k * np.dtype(_dtype(info.n_experts)).itemsize for info in layers)


def most_ids(n_layers: int, n_experts: int) -> int:
    """How many ids there is room for in the tables."""
    return TABLE_BYTES // (4 * N_TABLES * n_layers * n_experts)


def _dtype(n_experts: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if n_experts < 256 else np.uint16
