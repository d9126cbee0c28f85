"""What the model tells the world about its routers: one event per MoE layer and micro-batch.

Events carry the experts that were executed, not a selection derived again from logits. Nothing is hooked or patched: the decoder emits,
recorders subscribe.

Shapes: T tokens of the micro-batch (B x S, row-major over `batch.ids_BS`), K slots per token, E routed experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from moectl.data.batching import MicroBatch


@dataclass(frozen=True, slots=True)
class MoELayerInfo:
    """An MoE layer: `layer` is the decoder layer's own index in the checkpoint.

    `score` turns logits into scores; `correction_bias`: a bias takes part in the selection, but not in the weights.
    """

    layer: int
    n_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    correction_bias: bool = False


@dataclass(frozen=True, slots=True)
class RoutingEvent:
    """What one MoE layer did with one micro-batch.

    `expert_ids_TK` int64: the experts executed for each token, in no particular order; -1 where a slot ran no expert.
    `weights_TK`: combine weights as applied (after normalisation and scaling), float32 or the model's dtype.
    `logits_TE`: the router's raw logits, before any activation or correction bias; None if the event was read back from a trace, which
    does not hold them.
    `choice_TE`: what the top K was taken of, float32, where that is not the order of the logits: score + correction bias, minus infinity
    outside the groups allowed. None if the logits decide.
    """

    layer: int
    batch: MicroBatch
    expert_ids_TK: Tensor
    weights_TK: Tensor
    logits_TE: Tensor | None
    choice_TE: Tensor | None = None


class Recorder(Protocol):
    """Receives events. Those of one layer arrive in order of `batch.index`; layers may be the outer or the inner loop."""

    def record(self, event: RoutingEvent) -> None: ...
