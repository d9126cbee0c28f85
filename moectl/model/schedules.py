"""Two orders of the same work, for runs that want what the routers did and no logits.

token-major: weights resident, one micro-batch goes through all layers, then the next.
layer-major: each layer's weights are read once and all micro-batches pass through them; memory follows the tokens, not the checkpoint.

Both emit the same events with the same bits. Neither runs the head, nor the experts of the last MoE layer, nor what follows it: no router
sees their results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from moectl.arch.spec import Layer, ModelSpec, MoE, Router
from moectl.data.batching import MicroBatch
from moectl.errors import ModelError
from moectl.model.decoder import Model, OnRouting, run_layer
from moectl.model.events import MoELayerInfo, Recorder, RoutingEvent
from moectl.model.router import Routing
from moectl.model.weights import WeightReader

Advance = Callable[[float], None]
"""Hears of work done, in tokens through the whole model."""


def moe_layer_infos(spec: ModelSpec) -> tuple[MoELayerInfo, ...]:
    """The MoE layers a run will report on. Raises ModelError if there are none."""
    infos = tuple(_info(layer.index, layer.ffn.router) for layer in spec.moe_layers if isinstance(layer.ffn, MoE))
    if not infos:
        raise ModelError(
            f"this `{spec.model_type}` model is dense: it has no routers to report on", hint="give a Mixture-of-Experts checkpoint"
        )
    return infos


@torch.inference_mode()
def run_token_major(model: Model, batches: Sequence[MicroBatch], recorder: Recorder, *, advance: Advance) -> None:
    """Every micro-batch through all layers of a resident model. Raises ModelError if a router's logits are not finite."""
    layers = _until_last_router(model.spec)
    for batch in batches:
        hidden = [F.embedding(torch.from_numpy(batch.ids_BS).to(model.embed.device), model.embed)]
        for layer in layers:
            model.run(layer, hidden, on_routing=_emitter([batch], recorder), routing_only=layer is layers[-1])
            advance(batch.ids_BS.size / len(layers))


@torch.inference_mode()
def run_layer_major(weights: WeightReader, batches: Sequence[MicroBatch], recorder: Recorder, *, advance: Advance) -> None:
    """Every layer once for all micro-batches, weights read as they are needed. Raises ModelError as run_token_major."""
    layers = _until_last_router(weights.spec)
    hidden = weights.embed([torch.from_numpy(batch.ids_BS).to(weights.device) for batch in batches])
    n_tokens = sum(batch.ids_BS.size for batch in batches)
    for layer in layers:
        run_layer(
            layer,
            hidden,
            weights.layer(layer),
            weights,
            on_routing=_emitter(batches, recorder),
            routing_only=layer is layers[-1],
        )
        advance(n_tokens / len(layers))


def _info(layer: int, router: Router) -> MoELayerInfo:
    return MoELayerInfo(
        layer=layer, n_experts=router.n_experts, top_k=router.top_k, score=router.score, correction_bias=router.correction_bias
    )


def _until_last_router(spec: ModelSpec) -> tuple[Layer, ...]:
    return spec.layers[: spec.moe_layers[-1].index + 1]


def _emitter(batches: Sequence[MicroBatch], recorder: Recorder) -> OnRouting:
    def emit(position: int, layer: int, routing: Routing) -> None:
        if not bool(routing.logits_TE.isfinite().all()):
            raise ModelError(
                f"the router of layer {layer} gave logits that are not finite",
                hint="the weights of this layer or one before it are damaged, or overflow in this dtype; try `--dtype float32`",
            )
        recorder.record(
            RoutingEvent(
                layer=layer,
                batch=batches[position],
                expert_ids_TK=routing.expert_ids_TK,
                weights_TK=routing.weights_TK,
                logits_TE=routing.logits_TE,
                choice_TE=routing.choice_TE,
            )
        )

    return emit
