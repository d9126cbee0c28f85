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

from moectl.arch.spec import Layer, ModelSpec, MoE, Rope
from moectl.errors import DataError
from moectl.model.attention import attend
from moectl.model.experts import ExpertSource, MoEInput, dense_ffn, dispatch, run_experts
from moectl.model.norm import rms_norm
from moectl.model.rope import rope_tables
from moectl.model.router import Routing, route
from moectl.model.weights import ResidentExperts, WeightReader

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
    for i, x_BSH in enumerate(hidden):
        tables = _tables(layer.attention.rope, x_BSH.shape[1], x_BSH.dtype, x_BSH.device)
        normed_BSH = rms_norm(x_BSH, weights["attention_norm"], eps=layer.norm.eps)
        x_BSH = x_BSH + attend(layer.attention, normed_BSH, weights, tables)
        normed_BSH = rms_norm(x_BSH, weights["ffn_norm"], eps=layer.norm.eps)
        if not isinstance(layer.ffn, MoE):
            hidden[i] = x_BSH + dense_ffn(normed_BSH, weights, act=layer.ffn.act)
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
    run_experts(layer.index, moe, source, act=layer.ffn.act)
    for i, item in enumerate(moe):
        out_TH = item.out_TH.to(item.x_TH.dtype)
        if layer.ffn.shared_width:
            out_TH = out_TH + dense_ffn(item.x_TH, weights, act=layer.ffn.act, slot_prefix="shared_")
        hidden[i] = hidden[i] + out_TH.view_as(hidden[i])


class ResidentLayer(nn.Module):
    """The weights of one layer as parameters."""

    def __init__(self, weights: dict[str, Tensor], experts: ResidentExperts | None) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({slot: nn.Parameter(w, requires_grad=False) for slot, w in weights.items()})
        self.experts = experts


class Model(nn.Module):
    """A checkpoint in memory, differentiable. Parameters start frozen; `model.requires_grad_()` makes them trainable."""

    def __init__(self, spec: ModelSpec, weights: WeightReader, *, on_layer: Callable[[int], None] | None = None) -> None:
        """Read every weight of `spec`; `on_layer` hears the index of each layer read. Raises ModelError."""
        super().__init__()
        self.spec = spec
        self.embed = nn.Parameter(weights.read(spec.tensors["embed"]), requires_grad=False)
        self.norm = nn.Parameter(weights.read(spec.tensors["norm"]), requires_grad=False)
        self.head = self.embed if spec.tied else nn.Parameter(weights.read(spec.tensors["head"]), requires_grad=False)
        self.layers = nn.ModuleList()
        for layer in spec.layers:
            experts = None
            if isinstance(layer.ffn, MoE):
                experts = ResidentExperts([weights.get(layer.index, e) for e in range(layer.ffn.router.n_experts)])
            self.layers.append(ResidentLayer(weights.layer(layer), experts))
            if on_layer is not None:
                on_layer(layer.index)

    def forward(self, token_ids_BS: Tensor, *, on_routing: OnRouting | None = None) -> Tensor:
        """Logits `[B, S, V]` of whole sequences, each starting at position 0. Raises DataError for ids outside the vocabulary."""
        low, high = int(token_ids_BS.min()), int(token_ids_BS.max())
        if low < 0 or high >= self.spec.vocab_size:
            raise DataError(
                f"token id `{low if low < 0 else high}` is outside the vocabulary of {self.spec.vocab_size}",
                hint="the text was tokenised for another model",
            )
        hidden = [F.embedding(token_ids_BS.to(self.embed.device), self.embed)]
        for layer in self.spec.layers:
            self.run(layer, hidden, on_routing=on_routing)
        return F.linear(rms_norm(hidden[0], self.norm, eps=self.spec.norm.eps), self.head)

    def run(self, layer: Layer, hidden: list[Tensor], *, on_routing: OnRouting | None = None, routing_only: bool = False) -> None:
        """`run_layer` with this model's weights."""
        resident = self.layers[layer.index]
        assert isinstance(resident, ResidentLayer)
        weights = cast(Mapping[str, Tensor], resident.weights)
        run_layer(layer, hidden, weights, resident.experts, on_routing=on_routing, routing_only=routing_only)
