"""AdamW over masters: torch's own arithmetic in float32, no update lost in bfloat16, and a state that is all there is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moectl.errors import ModelError
from moectl.training.optimizer import MasterAdamW
from moectl.training.options import TrainOptions

SHAPES = {"matrix": (5, 3), "norm": (4,), "idle": (2, 2)}


def make_options(**changes: Any) -> TrainOptions:
    return TrainOptions(
        **{"steps": 10, "lr": 1e-2, "weight_decay": 0.3, "clip": math.inf, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, **changes}
    )


def make_parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def loss_of(parameters: dict[str, nn.Parameter], step: int) -> Tensor:
    """A loss that `idle` has no part in."""
    return (parameters["matrix"] ** 2).sum() * (step + 1) + (parameters["norm"] - step).square().sum()


def run(parameters: dict[str, nn.Parameter], optimizer: MasterAdamW, steps: range, *, lr: float = 1e-2) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(parameters, step).backward()
        optimizer.collect()
        optimizer.clip()
        optimizer.step(lr * (step + 1))


def test_float32_is_torchs_adamw_with_decay_for_matrices_only() -> None:
    options, mine, theirs = make_options(clip=2.0), make_parameters(), make_parameters()
    optimizer = MasterAdamW(mine, options)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["matrix"], theirs["idle"]], "weight_decay": 0.3},
            {"params": [theirs["norm"]], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
        eps=1e-6,
        foreach=False,
    )
    theirs["idle"].grad = torch.zeros(2, 2)
    for step in range(5):
        reference.zero_grad(set_to_none=False)
        loss_of(theirs, step).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        for group in reference.param_groups:
            group["lr"] = 1e-2 * (step + 1)
        reference.step()
        optimizer.zero_grad()
        loss_of(mine, step).backward()
        optimizer.collect()
        assert optimizer.clip() == pytest.approx(float(norm), rel=1e-6)
        optimizer.step(1e-2 * (step + 1))
        for name in SHAPES:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-7)
    # What got no gradient at all still decays.
    expected = make_parameters()["idle"] * math.prod(1 - 0.3 * 1e-2 * (step + 1) for step in range(5))
    torch.testing.assert_close(mine["idle"], expected)


def test_clipping_scales_the_whole_gradient_and_tells_its_norm() -> None:
    parameters = make_parameters()
    optimizer = MasterAdamW(parameters, make_options(clip=0.5))
    loss_of(parameters, 1).backward()
    before = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in before.values()))
    assert norm > 1
    assert optimizer.clip() == pytest.approx(norm, rel=1e-6)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, before[name] * 0.5 / norm, rtol=1e-4, atol=1e-8)
    parameters["norm"].grad[2] = math.nan
    assert math.isnan(optimizer.clip())
    small = MasterAdamW(make_parameters(), make_options(clip=0.5))
    assert small.clip() == 0.0


def test_steps_too_small_for_bfloat16_add_up() -> None:
    weights = {"w": nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(weights, make_options(weight_decay=0.0))
    for _ in range(100):
        optimizer.zero_grad()
        weights["w"].sum().backward()
        optimizer.collect()
        optimizer.step(1e-4)
        plain = weights["w"].detach() - 1e-4
    # Each step is below half of the last place, and would be lost; a hundred are worth 0.01.
    assert torch.equal((torch.ones((), dtype=torch.bfloat16) - 1e-4), torch.ones((), dtype=torch.bfloat16))
    assert plain.dtype == torch.bfloat16
    assert torch.equal(weights["w"], torch.full((2, 2), 0.99).to(torch.bfloat16))
    assert optimizer.state()["master.w"].flatten().tolist() == pytest.approx([0.99] * 4, abs=1e-5)


def test_micro_batches_of_bfloat16_are_added_in_float32() -> None:
    weights = {"w": nn.Parameter(torch.zeros(1, 1, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(weights, make_options())
    for grad in (256.0, 1.0, 1.0, 1.0):  # 257 is no bfloat16 number
        (weights["w"] * grad).sum().backward()
        optimizer.collect()
        assert weights["w"].grad is None
    assert optimizer.clip() == 259.0
    optimizer.zero_grad()
    assert optimizer.clip() == 0.0


def test_bfloat16_follows_its_float32_twin() -> None:
    mine, wide = make_parameters(torch.bfloat16), make_parameters()
    with torch.no_grad():
        for name in SHAPES:
            wide[name].copy_(mine[name])
    twins = MasterAdamW(mine, make_options()), MasterAdamW(wide, make_options())
    run(mine, twins[0], range(3))
    run(wide, twins[1], range(3))
    for name in SHAPES:
        torch.testing.assert_close(twins[0].state()[f"master.{name}"], wide[name].detach(), rtol=0.02, atol=0.02)
        assert torch.equal(mine[name], twins[0].state()[f"master.{name}"].to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_state_are_all_there_is_to_go_on_from(dtype: torch.dtype) -> None:
    whole, first, second = (make_parameters(dtype) for _ in range(3))
    optimizers = [MasterAdamW(parameters, make_options()) for parameters in (whole, first)]
    assert not [name for name in optimizers[1].state() if not name.startswith("master.")]
    run(whole, optimizers[0], range(6))
    run(first, optimizers[1], range(3))
    with torch.no_grad():
        for name in SHAPES:
            second[name].copy_(first[name])
    resumed = MasterAdamW(second, make_options())
    resumed.load_state(optimizers[1].state())
    run(first, optimizers[1], range(3, 4))  # must not reach into what was handed over
    run(second, resumed, range(3, 6))
    assert all(torch.equal(second[name], whole[name]) for name in SHAPES)
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in optimizers[0].state().items())


@pytest.mark.parametrize(
    ("dtype", "change", "named"),
    [
        (torch.float32, lambda state: state.pop("exp_avg.norm"), "exp_avg.norm"),
        (torch.float32, lambda state: state.pop("step.idle"), "step.idle"),
        (torch.bfloat16, lambda state: state.pop("master.matrix"), "master.matrix"),
        (torch.float32, lambda state: state.update({"exp_avg_sq.matrix": torch.zeros(3, 5)}), "exp_avg_sq.matrix"),
        (torch.float32, lambda state: state.update({"step.norm": torch.zeros(2)}), "step.norm"),
        (torch.float32, lambda state: state.update({"exp_avg.other": torch.zeros(1)}), "exp_avg.other"),
        (torch.bfloat16, lambda state: state.clear(), "exp_avg.idle"),
    ],
    ids=["moment", "step", "master", "shape", "step-shape", "surplus", "empty"],
)
def test_a_state_of_something_else_is_refused(dtype: torch.dtype, change: Any, named: str) -> None:
    parameters = make_parameters(dtype)
    optimizer = MasterAdamW(parameters, make_options())
    run(parameters, optimizer, range(2))
    state = dict(optimizer.state())
    change(state)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    fresh = MasterAdamW(parameters, make_options())
    with pytest.raises(ModelError, match=f"does not fit the model: .* such as `{named}`") as caught:
        fresh.load_state(state)
    assert caught.value.hint
    assert all(torch.equal(parameters[name], before[name]) for name in SHAPES)
