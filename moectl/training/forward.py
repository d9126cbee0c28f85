"""The loss of one micro-batch: next token, tokens further ahead (MTP), and the balance of the routers.

Parts are sums over tokens divided by what the whole optimiser step holds, so that micro-batches simply add up: accumulation changes no
weight of any token. The auxiliary losses are means over a micro-batch, weighted by its share of the step's tokens.

Shapes: B sequences, S positions, T = B x S tokens, H hidden, K slots per token, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moectl.arch.parts import MoE
from moectl.arch.spec import Layer
from moectl.model.decoder import Model, OnRouting
from moectl.model.router import Routing
from moectl.training.balance import BalanceOptions, auxiliary_loss
from moectl.training.losses import linear_cross_entropy

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Normalizers:
    """What the losses of a whole optimiser step are divided by: its tokens, and its valid targets next and 2, 3, ... ahead."""

    tokens: int
    targets: int
    ahead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Losses:
    """`total` is differentiable; the parts are for the log, each already divided, so those of a step's micro-batches add up."""

    total: Tensor
    main: Tensor
    ahead: tuple[Tensor, ...]
    auxiliary: Tensor
    routings: tuple[tuple[int, Routing], ...]
    """Index and routing of every MoE layer that ran, MTP layers included, once each."""


def next_targets(ids_BS: Tensor) -> Tensor:
    """What position i should predict: the token at i + 1, ignored at the end."""
    return F.pad(ids_BS[:, 1:], (0, 1), value=IGNORED)


def ahead_targets(ids_BS: Tensor, n: int, boundary_ids: Collection[int]) -> Tensor:
    """What position i of MTP module n should predict: the token at i + n + 2, ignored where that lies beyond the sequence or in another
    document, that is where a token from i to i + n + 1 ends one (`boundary_ids`)."""
    target_BS = F.pad(ids_BS[:, n + 2 :], (0, min(n + 2, ids_BS.shape[1])), value=IGNORED)
    ends_BS = torch.isin(ids_BS, torch.tensor(sorted(boundary_ids), dtype=ids_BS.dtype, device=ids_BS.device))
    for back in range(n + 2):
        shifted_BS = F.pad(ends_BS[:, back:], (0, min(back, ids_BS.shape[1])), value=False)
        target_BS = target_BS.masked_fill(shifted_BS, IGNORED)
    return target_BS


def count_targets(ids_BS: Tensor, n_ahead: int, boundary_ids: Collection[int]) -> Normalizers:
    """The normalizers of these sequences as one step."""
    ahead = tuple(int((ahead_targets(ids_BS, n, boundary_ids) != IGNORED).sum()) for n in range(n_ahead))
    return Normalizers(ids_BS.numel(), int((next_targets(ids_BS) != IGNORED).sum()), ahead)


def batch_losses(
    model: Model,
    ids_BS: Tensor,
    per_step: Normalizers,
    *,
    balance: BalanceOptions,
    mtp_weight: float,
    boundary_ids: Collection[int] = (),
    recompute: bool = False,
) -> Losses:
    """Run a micro-batch. MTP modules take part if the model was loaded with them; their losses are averaged and weighted by `mtp_weight`
    (arXiv 2412.19437, eq. 25). `recompute` keeps only each layer's input and runs the layer again in the backward pass."""
    routings: list[tuple[int, Routing]] = []
    hidden_BSH = model.embedding(ids_BS)
    for layer in model.spec.layers:
        hidden_BSH = _observed(_layer(model, layer), hidden_BSH, routings, recompute=recompute)
    hidden_BSH = model.final_norm(hidden_BSH)
    main = _cross_entropy(model, hidden_BSH, next_targets(ids_BS), per_step.targets)
    ahead: list[Tensor] = []
    for n in range(len(model.mtp)):
        # The last n + 1 positions have no token that far ahead; their targets are ignored, so any id will do.
        following_BS = F.pad(ids_BS[:, n + 1 :], (0, min(n + 1, ids_BS.shape[1])))
        hidden_BSH = _observed(_module(model, n, following_BS), hidden_BSH, routings, recompute=recompute)
        ahead.append(_cross_entropy(model, hidden_BSH, ahead_targets(ids_BS, n, boundary_ids), per_step.ahead[n]))
    auxiliary = main.new_zeros(())
    share = ids_BS.numel() / per_step.tokens
    for index, routing in routings:
        ffn = model.spec.layer(index).ffn
        assert isinstance(ffn, MoE)
        logits_BSE = routing.logits_TE.view(*ids_BS.shape, -1)
        auxiliary = auxiliary + share * auxiliary_loss(balance, logits_BSE, routing.expert_ids_TK, ffn.router)
    total = main + auxiliary
    if ahead:
        total = total + mtp_weight * torch.stack(ahead).mean()
    return Losses(total, main.detach(), tuple(loss.detach() for loss in ahead), auxiliary.detach(), tuple(routings))


_Block = Callable[[Tensor, OnRouting], Tensor]


def _layer(model: Model, layer: Layer) -> _Block:
    def block(x_BSH: Tensor, on_routing: OnRouting) -> Tensor:
        hidden = [x_BSH]
        model.run(layer, hidden, on_routing=on_routing)
        return hidden[0]

    return block


def _module(model: Model, n: int, following_BS: Tensor) -> _Block:
    def block(x_BSH: Tensor, on_routing: OnRouting) -> Tensor:
        return model.predict_ahead(n, x_BSH, following_BS, on_routing=on_routing)

    return block


def _observed(block: _Block, x_BSH: Tensor, routings: list[tuple[int, Routing]], *, recompute: bool) -> Tensor:
    """Run a block and note its routing, if it routes, exactly once: a recomputed block would report a second time, so what it decided
    leaves it as a result, which recomputation does not return again."""
    index: list[int] = []

    def run(x_BSH: Tensor) -> tuple[Tensor, ...]:
        seen: list[Routing] = []

        def note(_: int, layer: int, routing: Routing) -> None:
            index[:] = [layer]
            seen.append(routing)

        y_BSH = block(x_BSH, note)
        return (y_BSH, *(seen[0] if seen else ()))

    y_BSH, *routing = checkpoint(run, x_BSH, use_reentrant=False) if recompute else run(x_BSH)
    if routing:
        routings.append((index[0], Routing(*routing)))
    return y_BSH


def head_loss(model: Model, hidden_BSH: Tensor, targets_BS: Tensor) -> Tensor:
    """The summed cross entropy of the head's logits of hidden states `[B, S, H]`, in nats; targets of IGNORED count nothing."""
    return linear_cross_entropy(
        model.head_input(hidden_BSH).flatten(0, 1),
        model.head,
        targets_BS.flatten(),
        ignore_index=IGNORED,
        bias_V=model.head_bias,
        head=model.spec.head,
    )


def _cross_entropy(model: Model, hidden_BSH: Tensor, targets_BS: Tensor, n_targets: int) -> Tensor:
    return head_loss(model, hidden_BSH, targets_BS) / max(1, n_targets)
