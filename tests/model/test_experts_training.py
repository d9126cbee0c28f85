"""Experts with a backward pass of their own against run_experts under autograd, the obvious loop, and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from oracle_cases import CASES as CHECKPOINTS
from oracle_models import make_oracle, save
from torch import Tensor

from moectl.api import load_model
from moectl.arch.parts import Activation
from moectl.model import activation, decoder
from moectl.model.activation import ACTIVATIONS
from moectl.model.experts import ExpertWeights, MoEInput, dispatch, run_experts, run_experts_reference
from moectl.model.experts_training import needs_gradients, run_experts_with_gradients
from moectl.model.weights import ResidentExperts

HIDDEN, WIDTH = 6, 5
Run = Callable[..., None]
SILU = Activation()
CLAMPED = Activation(name="clamped_swiglu", alpha=1.7, limit=1.5)


def resident(n_experts: int, *, dtype: torch.dtype = torch.float32, seed: int = 0, biases: bool = False) -> ResidentExperts:
    g = torch.Generator().manual_seed(seed)
    shapes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH), *(((WIDTH,), (WIDTH,), (HIDDEN,)) if biases else ()))
    source = ResidentExperts([ExpertWeights(*(torch.randn(s, generator=g).to(dtype) for s in shapes)) for _ in range(n_experts)])
    return source.requires_grad_()


def batch(ids: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids_TK = torch.tensor(ids)
    x_TH = torch.randn(len(ids), HIDDEN, generator=g).to(dtype).requires_grad_()
    return x_TH, ids_TK, torch.rand(ids_TK.shape, generator=g).to(dtype).requires_grad_()


def gradients(
    run: Run, batches: list[tuple[Tensor, Tensor, Tensor]], source: ResidentExperts, act: Activation = SILU, *, weighs_input: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of all tokens, weights and matrices, of a loss that weighs every output differently."""
    moe = [MoEInput(x, dispatch(ids, weights), torch.zeros_like(x, dtype=torch.float32)) for x, ids, weights in batches]
    run(0, moe, source, act=act, weighs_input=weighs_input)
    return [m.out_TH.detach() for m in moe], backward([m.out_TH for m in moe], batches, source)


def backward(outputs: list[Tensor], batches: list[tuple[Tensor, Tensor, Tensor]], source: ResidentExperts) -> list[Tensor]:
    loss = sum((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum() for out in outputs)
    leaves = [leaf for x, _, weights in batches for leaf in (x, weights)] + list(source.parameters())
    assert isinstance(loss, Tensor)
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


CASES = {
    "an expert without tokens": (4, [[[0, 3], [3, 1], [1, 0]]]),
    "dropped slots": (3, [[[0, -1], [-1, -1], [2, 0], [-1, 1]]]),
    "nothing but dropped slots": (2, [[[-1], [-1]]]),
    "one token": (3, [[[2, 0]]]),
    "every expert for every token": (3, [[[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]]]),
    "several micro-batches": (4, [[[0, 3], [3, 1]], [[2, 3]], [[1, 0], [-1, 2], [0, 1]]]),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_both_recorded_versions(case: str) -> None:
    n_experts, ids = CASES[case]
    source, batches = resident(n_experts), [batch(i, seed=n) for n, i in enumerate(ids)]
    outputs, grads = gradients(run_experts_with_gradients, batches, source)
    expected_outputs, expected = gradients(run_experts, batches, source)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected_outputs, strict=True))
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-5)
    obvious = [run_experts_reference(0, x, ids_TK, weights, source, act=SILU) for x, ids_TK, weights in batches]
    torch.testing.assert_close(outputs, [o.detach() for o in obvious], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, backward(obvious, batches, source), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighs_input", [False, True], ids=["weighs output", "weighs input"])
@pytest.mark.parametrize("act", [SILU, CLAMPED], ids=["silu", "clamped"])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_biases_clamps_and_weights_on_the_input(biases: bool, act: Activation, weighs_input: bool) -> None:
    """In both dtypes: in bfloat16 rows are padded with token 0, which must not reach any gradient."""
    ids = [[0, -1], [0, 2], [2, 0], [1, 2], [-1, 0]]
    source, batches = resident(3, biases=biases), [batch(ids)]
    outputs, grads = gradients(run_experts_with_gradients, batches, source, act, weighs_input=weighs_input)
    expected_outputs, expected = gradients(run_experts, batches, source, act, weighs_input=weighs_input)
    assert torch.equal(outputs[0], expected_outputs[0])
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-5)
    x_TH, ids_TK, weights_TK = batches[0]
    obvious = run_experts_reference(0, x_TH, ids_TK, weights_TK, source, act=act, weighs_input=weighs_input)
    torch.testing.assert_close(outputs[0], obvious.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, backward([obvious], batches, source), rtol=1e-5, atol=1e-5)

    narrow = resident(3, biases=biases).to(torch.bfloat16)
    narrow_batches = [tuple(x.detach().to(torch.bfloat16).requires_grad_() if x.is_floating_point() else x for x in batches[0])]
    _, rounded = gradients(run_experts_with_gradients, narrow_batches, narrow, act, weighs_input=weighs_input)
    _, recorded = gradients(run_experts, narrow_batches, narrow, act, weighs_input=weighs_input)
    for got, same in zip(rounded, recorded, strict=True):
        assert (got.float() - same.float()).norm() <= 0.06 * same.float().norm() + 1e-3


@pytest.mark.parametrize("act", [*(Activation(name=name) for name in ACTIVATIONS), CLAMPED], ids=lambda act: act.name)
def test_finite_differences_confirm_every_activation(act: Activation) -> None:
    source = resident(3, dtype=torch.float64)
    x_TH, ids_TK, weights_TK = batch([[0, 2], [2, -1], [0, 2]], dtype=torch.float64)

    def layer(x_TH: Tensor, weights_TK: Tensor, *matrices: Tensor) -> Tensor:
        # As many matrices as the source has, in the order of its parameters: all gates, ups, downs.
        table = [ExpertWeights(*matrices[e::3]) for e in range(3)]
        item = MoEInput(x_TH, dispatch(ids_TK, weights_TK), torch.zeros_like(x_TH))
        run_experts_with_gradients(0, [item], Held(table), act=act)
        return item.out_TH

    matrices = [p.detach().requires_grad_() for p in source.parameters()]
    torch.autograd.gradcheck(layer, (x_TH, weights_TK, *matrices))


class Held:
    """An ExpertSource over a list."""

    def __init__(self, table: list[ExpertWeights]) -> None:
        self.table = table

    def get(self, layer: int, expert: int) -> ExpertWeights:
        return self.table[expert]


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_has_the_same_values_and_gradients_within_its_rounding(weights_dtype: torch.dtype) -> None:
    # 70 tokens: one expert above and one below a block of padded rows. Token 0, which stands in for padding, visits one expert only.
    ids = [[0, -1], *[[0, 2]] * 30, *[[0, -1]] * 39]
    source, (x_TH, ids_TK, weights_TK) = resident(3, dtype=torch.bfloat16), batch(ids, dtype=torch.bfloat16)
    batches = [(x_TH, ids_TK, weights_TK.detach().to(weights_dtype).requires_grad_())]
    outputs, grads = gradients(run_experts_with_gradients, batches, source)
    expected_outputs, _ = gradients(run_experts, batches, source)
    assert torch.equal(outputs[0], expected_outputs[0])
    assert [g.dtype for g in grads] == [torch.bfloat16, weights_dtype, *[torch.bfloat16] * 9]
    exact = resident(3)
    exact.load_state_dict(source.float().state_dict())
    wide = [(x_TH.detach().float().requires_grad_(), ids_TK, batches[0][2].detach().float().requires_grad_())]
    for got, true in zip(grads, gradients(run_experts, wide, exact)[1], strict=True):
        assert (got.float() - true).norm() <= 0.01 * true.norm()


def test_frozen_parts_get_no_gradient_and_change_no_other() -> None:
    source, (x_TH, ids_TK, weights_TK) = resident(3), batch([[0, 1], [2, 0]])
    _, everything = gradients(run_experts_with_gradients, [(x_TH, ids_TK, weights_TK)], source)

    def grads_of(x_TH: Tensor, weights_TK: Tensor, source: ResidentExperts) -> list[Tensor | None]:
        item = MoEInput(x_TH, dispatch(ids_TK, weights_TK), torch.zeros_like(x_TH))
        run_experts_with_gradients(0, [item], source, act=SILU)
        (item.out_TH * torch.linspace(-1, 2, item.out_TH.numel()).view_as(item.out_TH)).sum().backward()
        return [x_TH.grad, weights_TK.grad, *(p.grad for p in source.parameters())]

    only_weights = grads_of(x_TH.detach(), weights_TK.detach().requires_grad_(), resident(3).requires_grad_(False))
    assert only_weights[0] is None
    assert only_weights[2:] == [None] * 9
    torch.testing.assert_close(only_weights[1], everything[1])
    only_matrices = grads_of(x_TH.detach(), weights_TK.detach(), resident(3))
    assert only_matrices[:2] == [None, None]
    torch.testing.assert_close(only_matrices[2:], everything[2:])


def test_a_second_run_gives_the_same_bits() -> None:
    g = torch.Generator().manual_seed(3)
    ids = torch.stack([torch.randperm(8, generator=g)[:3] for _ in range(200)]).tolist()
    source, batches = resident(8), [batch(ids)]
    first, second = (gradients(run_experts_with_gradients, batches, source)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_are_needed_where_autograd_is_on_and_something_is_trained() -> None:
    x_TH, ids_TK, weights_TK = batch([[0, 1]])

    def needed(*, x: bool = False, weights: bool = False, source: bool = False) -> bool:
        item = MoEInput(
            x_TH.detach().requires_grad_(x), dispatch(ids_TK, weights_TK.detach().requires_grad_(weights)), torch.zeros(1, HIDDEN)
        )
        return needs_gradients([item], resident(2).requires_grad_(source))

    assert not needed()
    assert needed(x=True)
    assert needed(weights=True)
    assert needed(source=True)
    with torch.no_grad():
        assert not needed(x=True, weights=True, source=True)


def test_the_decoder_chooses_by_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(save(make_oracle(*CHECKPOINTS["mixtral-window"]), tmp_path, hub_style=True))
    ids_BS = torch.tensor([[1, 2, 3]])
    frozen = model(ids_BS)
    monkeypatch.setattr(decoder, "run_experts", None)
    trained = model.requires_grad_()(ids_BS)
    assert torch.equal(trained, frozen)
    trained.sum().backward()
    monkeypatch.undo()
    monkeypatch.setattr(decoder, "run_experts_with_gradients", None)
    with torch.no_grad():
        assert torch.equal(model(ids_BS), frozen)


def test_every_activation_has_a_derivative() -> None:
    assert activation._DERIVATIVES.keys() == ACTIVATIONS.keys()
