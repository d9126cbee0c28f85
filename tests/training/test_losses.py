"""The chunked cross entropy against the obvious one and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moectl.training import losses
from moectl.training.losses import linear_cross_entropy, linear_cross_entropy_reference

HIDDEN, VOCAB = 6, 11


def problem(n_tokens: int, *, dtype: torch.dtype = torch.float32, ignored: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    targets_T = torch.randint(VOCAB, (n_tokens,), generator=g)
    targets_T[torch.rand(n_tokens, generator=g) < ignored] = -100
    hidden_TH, head_VH = (torch.randn(n, HIDDEN, generator=g).to(dtype).requires_grad_() for n in (n_tokens, VOCAB))
    return hidden_TH, head_VH, targets_T


def value_and_gradients(loss: Tensor, *leaves: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss * scale, leaves)


@settings(max_examples=30, deadline=None)
@given(n_tokens=st.integers(1, 9), chunk=st.integers(1, 10), seed=st.integers(0, 99))
def test_chunks_change_neither_value_nor_gradients(n_tokens: int, chunk: int, seed: int) -> None:
    hidden_TH, head_VH, targets_T = problem(n_tokens, seed=seed)
    leaves = hidden_TH, head_VH
    expected = value_and_gradients(linear_cross_entropy_reference(*leaves, targets_T), *leaves, scale=0.3)
    whole = value_and_gradients(linear_cross_entropy(*leaves, targets_T), *leaves, scale=0.3)
    chunked = value_and_gradients(linear_cross_entropy(*leaves, targets_T, chunk_tokens=chunk), *leaves, scale=0.3)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def test_finite_differences_confirm_the_gradients() -> None:
    hidden_TH, head_VH, targets_T = problem(7, dtype=torch.float64)
    torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets_T, chunk_tokens=3), (hidden_TH, head_VH))


def test_ignored_targets_contribute_nothing() -> None:
    hidden_TH, head_VH, targets_T = problem(8)
    kept_T = targets_T != -100
    assert 0 < kept_T.sum() < 8
    loss, d_hidden_TH, d_head_VH = value_and_gradients(linear_cross_entropy(hidden_TH, head_VH, targets_T), hidden_TH, head_VH)
    assert torch.equal(d_hidden_TH[~kept_T], torch.zeros(int((~kept_T).sum()), HIDDEN))
    alone = hidden_TH.detach()[kept_T].requires_grad_()
    expected = value_and_gradients(linear_cross_entropy_reference(alone, head_VH, targets_T[kept_T]), alone, head_VH)
    torch.testing.assert_close((loss, d_hidden_TH[kept_T], d_head_VH), expected, rtol=1e-5, atol=1e-5)


def test_without_targets_the_loss_and_its_gradients_are_zero() -> None:
    hidden_TH, head_VH, targets_T = problem(5, ignored=1.1)
    for result in value_and_gradients(linear_cross_entropy(hidden_TH, head_VH, targets_T, chunk_tokens=2), hidden_TH, head_VH):
        assert torch.equal(result, torch.zeros_like(result))


def test_another_index_can_be_ignored() -> None:
    hidden_TH, head_VH, targets_T = problem(9, ignored=0.0)
    ignored = int(targets_T[0])
    got = value_and_gradients(linear_cross_entropy(hidden_TH, head_VH, targets_T, ignore_index=ignored), hidden_TH, head_VH)
    expected = linear_cross_entropy_reference(hidden_TH, head_VH, targets_T, ignore_index=ignored)
    torch.testing.assert_close(got, value_and_gradients(expected, hidden_TH, head_VH), rtol=1e-5, atol=1e-5)


def test_bfloat16_sums_in_float32() -> None:
    hidden_TH, head_VH, targets_T = problem(300, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden_TH, head_VH, targets_T, chunk_tokens=7)
    assert loss.dtype == torch.float32
    got = value_and_gradients(loss, hidden_TH, head_VH)
    assert [g.dtype for g in got[1:]] == [torch.bfloat16] * 2
    wide = [leaf.detach().float().requires_grad_() for leaf in (hidden_TH, head_VH)]
    expected = value_and_gradients(linear_cross_entropy_reference(*wide, targets_T), *wide)
    assert abs(got[0] - expected[0]) <= 1e-3 * expected[0]
    for mine, true in zip(got[1:], expected[1:], strict=True):
        assert (mine.float() - true).norm() <= 0.005 * true.norm()


def test_tied_weights_add_both_gradients() -> None:
    _, table_VH, targets_T = problem(VOCAB)
    got = value_and_gradients(linear_cross_entropy(table_VH.tanh(), table_VH, targets_T), table_VH)
    expected = value_and_gradients(linear_cross_entropy_reference(table_VH.tanh(), table_VH, targets_T), table_VH)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen: int) -> None:
    hidden_TH, head_VH, targets_T = problem(6)
    leaves = [hidden_TH, head_VH]
    expected = value_and_gradients(linear_cross_entropy_reference(*leaves, targets_T), *leaves)[2 - frozen]
    leaves[frozen] = leaves[frozen].detach()
    linear_cross_entropy(*leaves, targets_T).backward()
    assert leaves[frozen].grad is None
    torch.testing.assert_close(leaves[1 - frozen].grad, expected, rtol=1e-5, atol=1e-5)


def test_without_autograd_there_is_the_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_TH, head_VH, targets_T = problem(6)
    expected = linear_cross_entropy(hidden_TH, head_VH, targets_T)
    monkeypatch.setattr(Tensor, "scatter_add_", None)  # the one-hot of the gradient
    with torch.no_grad():
        loss = linear_cross_entropy(hidden_TH, head_VH, targets_T)
    assert not loss.requires_grad
    assert torch.equal(loss, expected.detach())


def test_the_default_chunk_follows_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_TH, head_VH, targets_T = problem(8)
    sizes: list[int] = []
    logsumexp = Tensor.logsumexp

    def recorded(logits_CV: Tensor, *args: int, **kwargs: bool) -> Tensor:
        sizes.append(len(logits_CV))
        return logsumexp(logits_CV, *args, **kwargs)

    monkeypatch.setattr(Tensor, "logsumexp", recorded)
    monkeypatch.setattr(losses, "_CHUNK_BYTES", 4 * VOCAB * 3 + 1)
    monkeypatch.setattr(losses, "_MIN_CHUNK_ROWS", 2)
    linear_cross_entropy(hidden_TH, head_VH, targets_T)
    assert sizes == [3, 3, 2]
    monkeypatch.setattr(losses, "_MIN_CHUNK_ROWS", 5)
    linear_cross_entropy(hidden_TH, head_VH, targets_T)
    assert sizes == [3, 3, 2, 5, 3]
