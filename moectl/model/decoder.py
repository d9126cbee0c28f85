"""The decoder: one layer over any number of micro-batches, and Model, the resident whole.

    model = load_model("path/to/checkpoint")
    logits_BSV = model(token_ids_BS)

`run_layer` is the only statement of what a layer does; both schedules and Model call it.
Shapes: B sequences, S positions, T = B x S tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moectl.arch.parts import MoE, Rope
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.errors import DataError, UsageError
from moectl.model.attention import attend
from moectl.model.ends import divide_by_norms, finish_logits, scale_embedding
from moectl.model.experts import ExpertSource, MoEInput, dense_ffn, dispatch, run_experts
from moectl.model.experts_training import needs_gradients, run_experts_with_gradients
from moectl.model.mtp import ResidentMTP
from moectl.model.norm import normalize
from moectl.model.rope import rope_tables
from moectl.model.router import Routing, route
from moectl.model.weights import ResidentLayer, WeightSource

OnRouting = Callable[[int, int, Routing], None]
"""Called with the position of the micro-batch, the layer's index and what its router decided."""


@lru_cache(maxsize=16)
def _tables(rope: Rope, n_positions: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept for runs of either kind, and a tensor made in inference mode could never take part in training.
    with torch.inference_mode(False):
        return rope_tables(rope, n_positions, dtype=dtype, device=device)


def run_layer(
    layer: Layer,
    hidden: list[Tensor],
    weights: Mapping[str, Tensor],
    source: ExpertSource | None,
    *,
    on_routing: OnRouting | None = None,
    routing_only: bool = False,
) -> None:
    """Move the residual streams `[B, S, H]` in `hidden` through one layer, replacing them.

    Attention, router and shared experts run micro-batch by micro-batch; then each routed expert of `source` visits all micro-batches.
    `routing_only` stops after the router, for the last MoE layer of a run that wants no logits.
    """
    moe: list[MoEInput] = []
    rope = layer.attention.rope
    for i, x_BSH in enumerate(hidden):
        tables = None if rope is None else _tables(rope, x_BSH.shape[1], x_BSH.dtype, x_BSH.device)
        normed_BSH = normalize(layer.norm, x_BSH, weights, "attention_norm")
        x_BSH = _add(layer, x_BSH, attend(layer.attention, normed_BSH, weights, tables), weights, "attention_out_norm")
        normed_BSH = normalize(layer.norm, x_BSH, weights, "ffn_norm")
        if not isinstance(layer.ffn, MoE):
            hidden[i] = _add(layer, x_BSH, dense_ffn(normed_BSH, weights, act=layer.ffn.act), weights, "ffn_out_norm")
            continue
        normed_TH = normed_BSH.flatten(0, 1)
        routing = route(layer.ffn.router, normed_TH, weights)
        if on_routing is not None:
            on_routing(i, layer.index, routing)
        hidden[i] = x_BSH
        if not routing_only:
            sums_TH = torch.zeros_like(normed_TH, dtype=torch.float32)
            moe.append(MoEInput(normed_TH, dispatch(routing.expert_ids_TK, routing.weights_TK), sums_TH))
    if not moe:
        return
    assert isinstance(layer.ffn, MoE)
    assert source is not None
    run = run_experts_with_gradients if needs_gradients(moe, source) else run_experts
    run(layer.index, moe, source, act=layer.ffn.act, weighs_input=layer.ffn.router.weighs_input)
    for i, item in enumerate(moe):
        out_TH = item.out_TH.to(item.x_TH.dtype)
        if layer.ffn.shared_width:
            out_TH = out_TH + _shared(layer.ffn, item.x_TH, weights)
        hidden[i] = _add(layer, hidden[i], out_TH.view_as(hidden[i]), weights, "ffn_out_norm")


def _shared(ffn: MoE, x_TH: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """What the always-active block adds, `[T, H]`."""
    out_TH = dense_ffn(x_TH, weights, act=ffn.act, slot_prefix="shared_")
    return torch.sigmoid(F.linear(x_TH, weights["shared_expert_gate"])) * out_TH if ffn.gated_shared else out_TH


def _add(layer: Layer, x_BSH: Tensor, update_BSH: Tensor, weights: Mapping[str, Tensor], out_norm: str) -> Tensor:
    """The residual stream after a block."""
    if layer.out_norms:
        update_BSH = normalize(layer.norm, update_BSH, weights, out_norm)
    return x_BSH + (update_BSH * layer.residual_scale if layer.residual_scale != 1.0 else update_BSH)


class Model(nn.Module):
    """A model in memory, differentiable. Parameters start frozen; `model.requires_grad_()` makes them trainable."""

    def __init__(self, spec: ModelSpec, weights: WeightSource, *, mtp: bool = False, on_layer: Callable[[int], None] | None = None) -> None:
        """Take every weight of `spec`, those of its multi-token-prediction layers with `mtp`; `on_layer` hears each layer's index.

        Raises ModelError.
        """
        super().__init__()
        self.spec = spec
        self.embed = nn.Parameter(weights.read(spec.tensors["embed"]), requires_grad=False)
        self.norm = nn.Parameter(weights.read(spec.tensors["norm"]), requires_grad=False)
        self.head = self.embed if spec.tied else nn.Parameter(weights.read(spec.tensors["head"]), requires_grad=False)
        self.norm_bias, self.head_bias = (_optional(spec.tensors.get(slot), weights) for slot in ("norm_bias", "head_bias"))
        self.layers, self.mtp = nn.ModuleList(), nn.ModuleList()
        for layer in spec.layers:
            self.layers.append(ResidentLayer(layer, weights))
            if on_layer is not None:
                on_layer(layer.index)
        for ahead in spec.mtp if mtp else ():
            self.mtp.append(ResidentMTP(ahead, weights))
            if on_layer is not None:
                on_layer(ahead.layer.index)

    def forward(self, token_ids_BS: Tensor, *, on_routing: OnRouting | None = None) -> Tensor:
        """Logits `[B, S, V]` of whole sequences, each starting at position 0. Raises DataError for ids outside the vocabulary."""
        return self.logits(self.hidden(token_ids_BS, on_routing=on_routing))

    def hidden(self, token_ids_BS: Tensor, *, on_routing: OnRouting | None = None) -> Tensor:
        """Hidden states `[B, S, H]` after the final norm, which `logits` takes. Raises as forward."""
        hidden = [self._checked_embedding(token_ids_BS)]
        for layer in self.spec.layers:
            self.run(layer, hidden, on_routing=on_routing)
        return self.final_norm(hidden[0])

    def embedding(self, token_ids_BS: Tensor) -> Tensor:
        """What enters the first layer, `[B, S, H]`; ids must be within the vocabulary."""
        return scale_embedding(self.spec.embedding, F.embedding(token_ids_BS.to(self.embed.device), self.embed))

    def final_norm(self, x_BSH: Tensor) -> Tensor:
        """Hidden states `[B, S, H]` from what leaves the last layer."""
        return normalize(self.spec.norm, x_BSH, cast(dict[str, Tensor], {"norm": self.norm, "norm_bias": self.norm_bias}), "norm")

    def logits(self, hidden_BSH: Tensor) -> Tensor:
        """Logits `[B, S, V]` of hidden states."""
        return finish_logits(self.spec.head, F.linear(self.head_input(hidden_BSH), self.head, self.head_bias))

    def head_input(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., H]` as they meet the matrix `head`: columns of norm 1 divide them instead of it."""
        return divide_by_norms(hidden, self.head.float().norm(dim=0)) if self.spec.head.unit_columns else hidden

    def predict_ahead(self, n: int, hidden_BSH: Tensor, next_ids_BS: Tensor, *, on_routing: OnRouting | None = None) -> Tensor:
        """Hidden states `[B, S, H]` of multi-token-prediction layer `n`, normed: `logits` makes of them those of token i + n + 2.

        `hidden_BSH` is what `hidden` returned, or for n > 0 the call with n - 1; `next_ids_BS` are the tokens i + n + 1 (DeepSeek-V3,
        arXiv 2412.19437, eq. 21-23). Raises UsageError if the model was loaded without this layer, DataError as forward.
        """
        if not 0 <= n < len(self.mtp):
            raise UsageError(
                f"multi-token-prediction layer {n} is not loaded; this model has {len(self.mtp)} of {self.spec.n_mtp_layers}",
                hint="load the model with mtp=True" if n < self.spec.n_mtp_layers else "ask for fewer tokens ahead",
            )
        resident = self.mtp[n]
        assert isinstance(resident, ResidentMTP)
        hidden = [resident.enter(self._checked_embedding(next_ids_BS), hidden_BSH)]
        self.run(self.spec.mtp[n].layer, hidden, on_routing=on_routing)
        return resident.leave(hidden[0], self.final_norm)

    def run(self, layer: Layer, hidden: list[Tensor], *, on_routing: OnRouting | None = None, routing_only: bool = False) -> None:
        """`run_layer` with this model's weights; `layer` may be that of a multi-token-prediction layer."""
        n = layer.index - len(self.layers)
        resident = self.layers[layer.index] if n < 0 else self.mtp[n].block
        assert isinstance(resident, ResidentLayer)
        weights = cast(Mapping[str, Tensor], resident.weights)
        run_layer(layer, hidden, weights, resident.experts, on_routing=on_routing, routing_only=routing_only)

    def _checked_embedding(self, token_ids_BS: Tensor) -> Tensor:
        low, high = int(token_ids_BS.min()), int(token_ids_BS.max())
        if low < 0 or high >= self.spec.vocab_size:
            raise DataError(
                f"token id `{low if low < 0 else high}` is outside the vocabulary of {self.spec.vocab_size}",
                hint="the text was tokenised for another model",
            )
        return self.embedding(token_ids_BS)


def _optional(ref: TensorRef | None, weights: WeightSource) -> nn.Parameter | None:
    return None if ref is None else nn.Parameter(weights.read(ref), requires_grad=False)
