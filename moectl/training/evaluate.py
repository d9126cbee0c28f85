"""Loss on held-out text, domain by domain.

    losses = evaluate(model, micro_batches(heldout, 4096), names)
    losses["code"].loss  # nats a token

Every position that has a next token in its own sequence counts once. Shapes: B sequences, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moectl.data.batching import MicroBatch
from moectl.model.decoder import Model
from moectl.training.forward import IGNORED, head_loss, next_targets


@dataclass(frozen=True, slots=True)
class DomainLoss:
    """Mean cross entropy in nats a token over `tokens` predicted tokens."""

    loss: float
    tokens: int


@torch.no_grad()
def evaluate(model: Model, batches: Sequence[MicroBatch], domain_names: Sequence[str]) -> dict[str, DomainLoss]:
    """The loss of each domain. Domains without a token to predict are left out."""
    sums = [0.0] * len(domain_names)
    counts = [0] * len(domain_names)
    for batch in batches:
        ids_BS = torch.from_numpy(batch.ids_BS).to(model.embed.device)
        targets_BS = next_targets(ids_BS)
        sums[batch.domain] += float(head_loss(model, model.hidden(ids_BS), targets_BS))
        counts[batch.domain] += int((targets_BS != IGNORED).sum())
    return {name: DomainLoss(total / count, count) for name, total, count in zip(domain_names, sums, counts, strict=True) if count}


def mean_loss(losses: dict[str, DomainLoss]) -> float:
    """Over all tokens of all domains."""
    return sum(item.loss * item.tokens for item in losses.values()) / sum(item.tokens for item in losses.values())
