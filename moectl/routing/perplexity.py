"""How well the model predicts the text: sums of losses while it runs, loss and perplexity per domain after it.

    losses = Losses(counters.blocks, batches)
    run(..., on_prediction=losses.add)
    losses.summary(["wiki", "code"])["all"]["perplexity"]

A prediction counts if the token it is of counts: the first token of a sequence is predicted by nothing.
"""

# Shapes: X blocks of all domains, B sequences of a micro-batch, S tokens of each, T tokens of all micro-batches in order, D domains.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moectl.routing.counting.blocks import Blocks
from moectl.routing.counting.scores import LOGIT_UNIT
from moectl.routing.frames import ALL
from moectl.routing.intervals import ratio_interval

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch
    from moectl.model.head import Prediction


class Losses:
    """Sums per block, exact in any order: losses in multiples of LOGIT_UNIT. `ids_T` int32 are the predicted ids."""

    def __init__(self, blocks: Blocks, batches: Sequence[MicroBatch]) -> None:
        self._blocks = blocks
        self._start_N = np.cumsum([0, *(batch.ids_BS.size for batch in batches)]).tolist()
        self.ids_T = np.zeros(self._start_N[-1], np.int32)
        self.loss_X = np.zeros(len(blocks.domain_X), np.float64)
        self.tokens_X = np.zeros(len(blocks.domain_X), np.int64)

    def add(self, batch: MicroBatch, prediction: Prediction) -> None:
        """Take in the predictions of one micro-batch."""
        self.ids_T[self._start_N[batch.index] : self._start_N[batch.index + 1]] = prediction.id_T.cpu().numpy()
        counted_BS = np.pad(batch.counted_BS[:, 1:], ((0, 0), (0, 1)))
        loss_BS = prediction.loss_T.cpu().numpy().reshape(counted_BS.shape)
        fixed_BS = np.round(loss_BS / LOGIT_UNIT) * LOGIT_UNIT * counted_BS
        self._blocks.add(self.loss_X, batch, fixed_BS.sum(1))
        self._blocks.add(self.tokens_X, batch, counted_BS.sum(1))

    def summary(self, domain_names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Per domain and over all tokens (`all`): `loss` in nats a token, `perplexity` = exp(loss), each with its 95 % interval, `tokens`.

        None where there is nothing to predict, and for intervals where sequences are too few.
        """
        blocks, D = self._blocks, len(domain_names)
        low_D, high_D = ratio_interval(self.loss_X, self.tokens_X, blocks.domain_X, D)
        tokens_D = blocks.by_domain(self.tokens_X)
        loss_D = blocks.by_domain(self.loss_X)
        result = {}
        for row, name in enumerate([ALL, *domain_names]):
            rows = slice(None) if row == 0 else slice(row - 1, row)
            tokens = int(tokens_D[rows].sum())
            loss = float(loss_D[rows].sum()) / tokens if tokens else math.nan
            values = {"": loss, "_low": max(float(low_D[row]), 0.0), "_high": float(high_D[row])}
            result[name] = {
                **{f"loss{end}": _known(value) for end, value in values.items()},
                **{f"perplexity{end}": _known(float(np.exp(np.minimum(value, 1e3)))) for end, value in values.items()},
                "tokens": tokens,
            }
        return result


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
