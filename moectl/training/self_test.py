"""A test at the start of training: does every auxiliary loss reach every router?

    check_auxiliary_gradient(model, token_ids_BS, options.balance)

Losses that were computed, logged and changed nothing are a known failure of training code: a result that was discarded, logits that were
detached, activation checkpointing that hides the graph. Shapes: B sequences, S positions, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moectl.arch.parts import MoE
from moectl.errors import ModelError, UsageError
from moectl.model.decoder import Model
from moectl.model.router import Routing
from moectl.training.balance import BalanceOptions, auxiliary_loss

_Key = tuple[int, str]  # layer index, name of the loss
_LOSSES = {
    "Switch loss": ("switch_alpha", BalanceOptions(switch_alpha=1.0)),
    "sequence-wise balance loss": ("sequence_alpha", BalanceOptions(sequence_alpha=1.0)),
    "z-loss": ("z_alpha", BalanceOptions(z_alpha=1.0)),
}
# Losses are evaluated in float64 here: rounding leaves 1e-17 of a gradient that cancels; with 128 experts an ordinary one is 1e-2.
_ZERO = 1e-12
_N_POINTS = 4


def check_auxiliary_gradient(model: Model, token_ids_BS: Tensor, options: BalanceOptions) -> None:
    """Raise ModelError unless each loss that `options` turns on has, alone, a finite gradient on every trainable router, not zero.

    One gradient of zero proves nothing: a balance loss has none where the load happens to be exactly even. Where a router got none, the
    pass is repeated with random routers, up to three times; zero in all of them is a graph that is cut, or a loss that is constant, as it
    is with as many slots as experts. Routers frozen on purpose are passed over; UsageError if all are. The model, its gradients and the
    random state stay as they are. Costs a forward pass, with the memory of one in training.
    """
    alone = {name: only for name, (field, only) in _LOSSES.items() if getattr(options, field)}
    weights = {layer: model.get_parameter(name) for layer, name in _router_names(model).items()}
    pending = [(layer, loss) for layer, weight_EH in weights.items() if weight_EH.requires_grad for loss in alone]
    if alone and not pending:
        raise UsageError(
            f"the {' and the '.join(alone)} can change nothing: no router is trained",
            hint="train the routers too, or set the weights of these losses to 0",
        )
    for point in range(_N_POINTS):
        if not pending:
            return
        leaves = {layer: _router_at(weight_EH, point=point).requires_grad_() for layer, weight_EH in weights.items()}
        sizes = _gradient_sizes(model, token_ids_BS, leaves, {key: alone[key[1]] for key in pending})
        # Written so that NaN is caught as well.
        infinite = [key for key, size in sizes.items() if not size < float("inf")]
        if point == 0 and infinite:
            layer, loss = infinite[0]
            raise ModelError(
                f"layer {layer}: the gradient of the {loss} on the router is not finite", hint="look at the router's weights and its inputs"
            )
        pending = [key for key, size in sizes.items() if not _ZERO < size < float("inf")]
    if pending:
        layer, loss = pending[0]
        raise ModelError(
            f"layer {layer}: the {loss} does not train the router: its gradient on the router is zero, so it would be computed and "
            "change nothing",
            hint="set its weight to 0 if every token runs every expert; else look for a detached router or reentrant checkpointing",
        )


def _router_names(model: Model) -> dict[int, str]:
    """Parameter name of every router by layer index, layers of multi-token prediction included if they are loaded."""
    blocks = [(layer, f"layers.{n}") for n, layer in enumerate(model.spec.layers)]
    blocks += [(ahead.layer, f"mtp.{n}.block") for n, ahead in enumerate(model.spec.mtp[: len(model.mtp)])]
    return {layer.index: f"{name}.weights.router" for layer, name in blocks if isinstance(layer.ffn, MoE)}


def _router_at(weight_EH: Tensor, *, point: int) -> Tensor:
    """The router's weights at point 0, then random ones of the same size. All zero needs no other point: every token selects the same."""
    weight_EH = weight_EH.detach()
    if point == 0:
        return weight_EH.clone()
    size = weight_EH.float().square().mean().sqrt()
    noise_EH = torch.randn(weight_EH.shape, generator=torch.Generator().manual_seed(point))
    return (size * noise_EH.to(size)).to(weight_EH)


class _Step(nn.Module):
    """The forward pass of a training step without the head, and what is measured on it: a module, so that `functional_call` can run it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids_BS: Tensor, measure: Callable[[dict[int, Routing]], dict[_Key, float]]) -> dict[_Key, float]:
        routings: dict[int, Routing] = {}

        def keep(_micro_batch: int, layer_index: int, routing: Routing) -> None:
            # Recomputation calls a second time, with a graph of its own.
            routings.setdefault(layer_index, routing)

        with torch.enable_grad():
            hidden_BSH = self.model.hidden(token_ids_BS, on_routing=keep)
            for n in range(len(self.model.mtp)):
                # Which tokens come next does not matter here, only that there are some.
                hidden_BSH = self.model.predict_ahead(n, hidden_BSH, token_ids_BS.roll(-n - 1, dims=1), on_routing=keep)
            # In here, because recomputation must see the same routers.
            return measure(routings)


def _gradient_sizes(model: Model, token_ids_BS: Tensor, leaves: dict[int, Tensor], wanted: dict[_Key, BalanceOptions]) -> dict[_Key, float]:
    """The largest entry of each wanted gradient on its router, with `leaves` in place of the routers; 0 if nothing connects them."""

    def size(layer_index: int, options: BalanceOptions, routing: Routing | None) -> float:
        ffn = model.spec.layer(layer_index).ffn
        assert isinstance(ffn, MoE)
        if routing is None or not routing.logits_TE.requires_grad:
            return 0.0
        logits_BSE = routing.logits_TE.double().view(*token_ids_BS.shape, -1)
        loss = auxiliary_loss(options, logits_BSE, routing.expert_ids_TK, ffn.router)
        (grad_EH,) = torch.autograd.grad(loss, leaves[layer_index], retain_graph=True, allow_unused=True)
        return 0.0 if grad_EH is None else float(grad_EH.abs().max())

    def measure(routings: dict[int, Routing]) -> dict[_Key, float]:
        return {key: size(key[0], options, routings.get(key[0])) for key, options in wanted.items()}

    names = _router_names(model)
    swapped = {f"model.{names[layer]}": leaf_EH for layer, leaf_EH in leaves.items()}
    sizes: dict[_Key, float] = functional_call(_Step(model), swapped, (token_ids_BS, measure))
    return sizes
