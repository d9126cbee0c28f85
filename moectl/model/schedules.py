"""Two orders of the same work, for runs that want what the routers did, and of the logits only what each token predicts.

token-major: weights resident, one micro-batch goes through all layers, then the next.
layer-major: each layer's weights are read once and all micro-batches pass through them; memory follows the tokens, not the checkpoint.

Both emit the same events with the same bits. Without `on_prediction` neither runs the head, nor the experts of the last MoE layer, nor
what follows it: no router sees their results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from moectl.arch.parts import MoE, Router
from moectl.arch.spec import Layer, ModelSpec
from moectl.data.batching import MicroBatch
from moectl.errors import ModelError
from moectl.model.decoder import Model, OnRouting, run_layer
from moectl.model.ends import divide_by_norms
from moectl.model.events import MoELayerInfo, Recorder, RoutingEvent
from moectl.model.head import Prediction, TokenScores, next_ids, row_blocks
from moectl.model.norm import normalize
from moectl.model.router import Routing
from moectl.model.weights import WeightReader

Advance = Callable[[float], None]
"""Hears of work done, in tokens through the whole model."""
OnPrediction = Callable[[MicroBatch, Prediction], None]
"""Called with each micro-batch, in order, and how well its next tokens are predicted."""


def moe_layer_infos(spec: ModelSpec) -> tuple[MoELayerInfo, ...]:
    """The MoE layers a run will report on. Raises ModelError if there are none."""
    infos = tuple(_info(layer.index, layer.ffn.router) for layer in spec.moe_layers if isinstance(layer.ffn, MoE))
    if not infos:
        raise ModelError(
            f"this `{spec.model_type}` model is dense: it has no routers to report on", hint="give a Mixture-of-Experts checkpoint"
        )
    return infos


@torch.inference_mode()
def run_token_major(
    model: Model, batches: Sequence[MicroBatch], recorder: Recorder, *, advance: Advance, on_prediction: OnPrediction | None = None
) -> None:
    """Every micro-batch through all layers of a resident model. Raises ModelError if logits of a router or the head are not finite."""
    layers = _layers_to_run(model.spec, whole=on_prediction is not None)
    steps = len(layers) + (on_prediction is not None)
    for batch in batches:
        ids_BS = torch.from_numpy(batch.ids_BS).to(model.embed.device)
        hidden = [model.embedding(ids_BS)]
        for layer in layers:
            routing_only = on_prediction is None and layer is layers[-1]
            model.run(layer, hidden, on_routing=_emitter([batch], recorder), routing_only=routing_only)
            advance(batch.ids_BS.size / steps)
        if on_prediction is not None:
            normed_TH = model.head_input(model.final_norm(hidden[0])).flatten(0, 1)
            scores = TokenScores(normed_TH, next_ids(ids_BS).flatten(), model.spec.head)
            bias_V = model.head_bias
            for start, stop in row_blocks(*model.head.shape):
                scores.add(model.head[start:stop], start, None if bias_V is None else bias_V[start:stop])
            on_prediction(batch, _require_finite(scores.finish()))
            advance(batch.ids_BS.size / steps)


@torch.inference_mode()
def run_layer_major(
    weights: WeightReader, batches: Sequence[MicroBatch], recorder: Recorder, *, advance: Advance, on_prediction: OnPrediction | None = None
) -> None:
    """Every layer once for all micro-batches, weights read as they are needed. Raises ModelError as run_token_major."""
    layers = _layers_to_run(weights.spec, whole=on_prediction is not None)
    steps = len(layers) + (on_prediction is not None)
    ids = [torch.from_numpy(batch.ids_BS).to(weights.device) for batch in batches]
    hidden = weights.embed(ids)
    n_tokens = sum(batch.ids_BS.size for batch in batches)
    for layer in layers:
        run_layer(
            layer,
            hidden,
            weights.layer(layer),
            weights,
            on_routing=_emitter(batches, recorder),
            routing_only=on_prediction is None and layer is layers[-1],
        )
        advance(n_tokens / steps)
    if on_prediction is None:
        return
    spec = weights.spec
    ends = {slot: weights.read(ref) for slot, ref in spec.tensors.items() if slot not in ("embed", "head")}
    norms_H = weights.head_column_norms() if spec.head.unit_columns else None
    scores = []
    for ids_BS in ids:
        # One micro-batch at a time loses its residual stream to its normed copy.
        normed_TH = normalize(spec.norm, hidden.pop(0), ends, "norm").flatten(0, 1)
        normed_TH = normed_TH if norms_H is None else divide_by_norms(normed_TH, norms_H)
        scores.append(TokenScores(normed_TH, next_ids(ids_BS).flatten(), spec.head))
    head, bias_V = spec.tensors["head"], ends.get("head_bias")
    for start, stop in row_blocks(*head.shape):
        head_RH = weights.read(replace(head, rows=(start, stop)))
        for of_batch in scores:
            of_batch.add(head_RH, start, None if bias_V is None else bias_V[start:stop])
        advance(n_tokens / steps * (stop - start) / head.shape[0])
    for batch, of_batch in zip(batches, scores, strict=True):
        on_prediction(batch, _require_finite(of_batch.finish()))


def _info(layer: int, router: Router) -> MoELayerInfo:
    return MoELayerInfo(
        layer=layer, n_experts=router.n_experts, top_k=router.top_k, score=router.probability, correction_bias=router.correction_bias
    )


def _layers_to_run(spec: ModelSpec, *, whole: bool) -> tuple[Layer, ...]:
    return spec.layers if whole else spec.layers[: spec.moe_layers[-1].index + 1]


def _require_finite(prediction: Prediction) -> Prediction:
    if not bool(prediction.loss_T.isfinite().all()):
        raise ModelError(
            "the head gave logits that are not finite",
            hint="the weights of the head or a layer before it are damaged, or overflow in this dtype; try `--dtype float32`",
        )
    return prediction


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
