"""Two optimiser steps per configuration: the loss falls and every weight that takes part moves, and no other."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, save

from moectl.api import load_model
from moectl.arch.parts import MoE
from moectl.training.balance import BalanceOptions
from moectl.training.forward import batch_losses, count_targets

IDS_BS = torch.randint(0, 103, (4, 33), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("case", CASES)
def test_two_steps_lower_the_loss_and_move_every_weight(case: str, tmp_path: Path) -> None:
    model = load_model(save(make_oracle(*CASES[case]), tmp_path, hub_style=True)).requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    executed: dict[int, set[int]] = defaultdict(set)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = batch_losses(model, IDS_BS, count_targets(IDS_BS, 0, ()), balance=BalanceOptions(sequence_alpha=1e-4), mtp_weight=0.0)
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.main))
        for layer, routing in loss.routings:
            executed[layer] |= set(routing.expert_ids_TK.flatten().tolist())
    assert losses[2] < losses[1] < losses[0]

    def takes_part(name: str) -> bool:
        """A correction bias only selects and has no gradient; nor has an expert that no token was sent to."""
        expert = re.fullmatch(r"layers\.(\d+)\.experts\.\w+\.(\d+)", name)
        return not name.endswith("correction_bias") if expert is None else int(expert[2]) in executed[int(expert[1])]

    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if takes_part(name)}
    # Random routers leave out an expert here and there; most of every layer must have been run for this to mean something.
    for layer in model.spec.moe_layers:
        assert isinstance(layer.ffn, MoE)
        assert len(executed[layer.index]) > layer.ffn.router.n_experts / 2
