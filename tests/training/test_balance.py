"""Balance losses against their definitions, written out in loops, and the properties that known mistakes break."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moectl.arch.parts import Router
from moectl.errors import UsageError
from moectl.model.router import route
from moectl.training.balance import BalanceOptions, auxiliary_loss, gamma_at, normalized_scores, sequence_balance_loss, switch_loss, z_loss
from moectl.training.bias import expert_load

SCORES = ("softmax", "sigmoid")
B, S, E, K = 3, 7, 5, 2


def draw(seed: int = 0, *, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[B, S, E]`, an executed selection `[T, K]` that a bias has moved away from their top K, and a mask `[B, S]`."""
    generator = torch.Generator().manual_seed(seed)
    logits_BSE = torch.randn(B, S, E, generator=generator, dtype=torch.float64) * spread
    bias_E = torch.randn(E, generator=generator, dtype=torch.float64)
    valid_BS = torch.rand(B, S, generator=generator) < 0.7
    return logits_BSE, (logits_BSE + bias_E).topk(K).indices.flatten(0, 1), valid_BS


def scores_of(z: list[float], score: str) -> list[float]:
    s = [math.exp(v) for v in z] if score == "softmax" else [1 / (1 + math.exp(-v)) for v in z]
    return [v / sum(s) for v in s]


def switch_loop(logits, ids, valid, score):
    f, P, T = [0.0] * E, [0.0] * E, sum(valid)
    for z, chosen, counts in zip(logits, ids, valid, strict=True):
        if counts:
            for e, p in enumerate(scores_of(z, score)):
                P[e] += p / T
                f[e] += chosen.count(e) / (K * T)
    return E * sum(a * b for a, b in zip(f, P, strict=True))


def sequence_loop(logits, valid, score):
    losses = []
    for zs, counts in zip(logits, valid, strict=True):
        kept = [scores_of(z, score) for z, c in zip(zs, counts, strict=True) if c]
        top = [sorted(range(E), key=lambda e, p=p: -p[e])[:K] for p in kept]
        f = [E / (K * len(kept)) * sum(e in chosen for chosen in top) for e in range(E)]
        losses.append(sum(f[e] * sum(p[e] for p in kept) / len(kept) for e in range(E)))
    return sum(losses) / len(losses)


def z_loop(logits, valid):
    kept = [math.log(sum(math.exp(v) for v in z)) ** 2 for z, counts in zip(logits, valid, strict=True) if counts]
    return sum(kept) / len(kept)


def all_losses(logits_BSE, ids_TK, valid_BS, score):
    flat_TE, valid_T = logits_BSE.flatten(0, 1), None if valid_BS is None else valid_BS.flatten()
    return {
        "switch": switch_loss(flat_TE, ids_TK, score=score, valid_T=valid_T),
        "sequence": sequence_balance_loss(logits_BSE, score=score, top_k=K, valid_BS=valid_BS),
        "z": z_loss(flat_TE, valid_T),
    }


def loop_losses(logits_BSE, ids_TK, valid_BS, score):
    flat, valid = logits_BSE.flatten(0, 1).tolist(), valid_BS.flatten().tolist()
    return {
        "switch": switch_loop(flat, ids_TK.tolist(), valid, score),
        "sequence": sequence_loop(logits_BSE.tolist(), valid_BS.tolist(), score),
        "z": z_loop(flat, valid),
    }


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("padded", [False, True])
def test_losses_are_their_definitions(score, padded):
    logits_BSE, ids_TK, valid_BS = draw()
    expected = loop_losses(logits_BSE, ids_TK, valid_BS if padded else torch.ones_like(valid_BS), score)
    for name, loss in all_losses(logits_BSE, ids_TK, valid_BS if padded else None, score).items():
        assert float(loss) == pytest.approx(expected[name], rel=1e-12), name
    for name, loss in all_losses(logits_BSE.bfloat16(), ids_TK, valid_BS if padded else None, score).items():
        assert loss.dtype == torch.float32, name


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["switch", "sequence", "z"])
def test_gradients_are_those_of_finite_differences(score, name):
    # f stays: it is a count, and a step this small changes no selection.
    logits_BSE, ids_TK, valid_BS = draw(1)
    leaf = logits_BSE.clone().requires_grad_()
    all_losses(leaf, ids_TK, valid_BS, score)[name].backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) > 1e-3
    for index in [(b, s, e) for b in range(B) for s in range(0, S, 2) for e in range(E)]:
        step = torch.zeros_like(logits_BSE)
        step[index] = 1e-6
        up, down = (loop_losses(logits_BSE + sign * step, ids_TK, valid_BS, score)[name] for sign in (1, -1))
        assert float(leaf.grad[index]) == pytest.approx((up - down) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_normalised_once(score):
    logits_BSE, _, _ = draw()
    p_BSE = normalized_scores(logits_BSE, score=score)
    for z, p in zip(logits_BSE.flatten(0, 1).tolist(), p_BSE.flatten(0, 1).tolist(), strict=True):
        assert p == pytest.approx(scores_of(z, score))
    # Sigmoid scores of 1e-40 and less are still compared with each other, not with an epsilon.
    shrunk = normalized_scores(torch.tensor([-100.0, -101.0, -200.0]), score="sigmoid")
    assert shrunk.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0], abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_even_routing_costs_one(score):
    even_BSE = torch.full((B, E, E), 0.3)
    ids_TK = torch.stack([torch.arange(E), (torch.arange(E) + 1) % E], -1).repeat(B, 1)
    losses = all_losses(even_BSE, ids_TK, None, score)
    assert float(losses["switch"]) == pytest.approx(1, rel=1e-6)
    assert float(losses["sequence"]) == pytest.approx(1, rel=1e-6)
    assert float(losses["z"]) == pytest.approx((0.3 + math.log(E)) ** 2, rel=1e-6)
    # Even scores alone make both 1, whatever was selected.
    assert float(switch_loss(even_BSE.flatten(0, 1), torch.zeros_like(ids_TK), score=score)) == pytest.approx(1, rel=1e-6)


def test_collapse_costs_the_number_of_experts_over_top_k():
    logits_BSE = torch.zeros(B, S, E, dtype=torch.float64)
    logits_BSE[..., 3] = 50.0
    ids_T1 = torch.full((B * S, 1), 3)
    assert float(switch_loss(logits_BSE.flatten(0, 1), ids_T1, score="softmax")) == pytest.approx(E)
    assert float(sequence_balance_loss(logits_BSE, score="softmax", top_k=1)) == pytest.approx(E)
    logits_BSE[..., 1] = 50.0
    assert float(sequence_balance_loss(logits_BSE, score="softmax", top_k=2)) == pytest.approx(E / 2)


@given(seed=st.integers(0, 10**6))
def test_losses_are_at_least_one_where_load_and_scores_agree(seed):
    # Chebyshev's sum inequality: f and P in the same order.
    logits_E = torch.randn(E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits_BSE = logits_E.expand(B, S, E)
    ids_TK = logits_BSE.topk(K).indices.flatten(0, 1)
    for score in SCORES:
        losses = all_losses(logits_BSE, ids_TK, None, score)
        assert 1 - 1e-12 <= float(losses["switch"]) <= E + 1e-12
        assert 1 - 1e-12 <= float(losses["sequence"]) <= E / K + 1e-12
        # The router's own choice: both are the same number.
        assert float(losses["switch"]) == pytest.approx(float(losses["sequence"]))


@given(seed=st.integers(0, 10**6))
def test_the_order_of_experts_and_tokens_does_not_matter(seed):
    logits_BSE, ids_TK, valid_BS = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    experts, tokens = torch.randperm(E, generator=generator), torch.randperm(S, generator=generator)
    moved_TK = experts.argsort()[ids_TK].view(B, S, K)[:, tokens].flatten(0, 1)
    for score in SCORES:
        moved = all_losses(logits_BSE[..., experts][:, tokens], moved_TK, valid_BS[:, tokens], score)
        for name, loss in all_losses(logits_BSE, ids_TK, valid_BS, score).items():
            assert float(moved[name]) == pytest.approx(float(loss), rel=1e-12), name


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["switch", "sequence", "z"])
def test_padding_contributes_nothing(score, name):
    logits_BSE, ids_TK, valid_BS = draw(2)
    valid_BS[:, :2] = True
    clean = logits_BSE.clone().requires_grad_()
    loss = all_losses(clean, ids_TK, valid_BS, score)[name]
    loss.backward()
    for rubbish in (1e4, math.nan, math.inf):
        dirty = logits_BSE.masked_fill(~valid_BS[..., None], rubbish).requires_grad_()
        dirty_ids_TK = ids_TK.masked_fill(~valid_BS.flatten()[:, None], 0)
        again = all_losses(dirty, dirty_ids_TK, valid_BS, score)[name]
        again.backward()
        assert again.item() == loss.item()
        assert dirty.grad is not None
        assert clean.grad is not None
        assert torch.equal(dirty.grad, clean.grad)
        assert not dirty.grad[~valid_BS].any()
    # A batch that was never padded.
    single_BSE, single_TK = logits_BSE[:1][:, valid_BS[0]], ids_TK[:S][valid_BS[0]]
    alone = all_losses(single_BSE, single_TK, None, score)[name]
    masked = all_losses(logits_BSE[:1], ids_TK[:S], valid_BS[:1], score)[name]
    assert float(masked) == pytest.approx(float(alone), rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_no_valid_token_is_zero_and_not_nan(score):
    logits_BSE, ids_TK, valid_BS = draw()
    leaf = logits_BSE.clone().requires_grad_()
    for name, loss in all_losses(leaf, ids_TK, torch.zeros_like(valid_BS), score).items():
        assert loss.item() == 0, name
        (grad,) = torch.autograd.grad(loss, leaf)
        assert not grad.any(), name


def test_load_is_of_the_executed_selection_and_sequences_are_judged_by_their_own():
    logits_BSE, ids_TK, _ = draw(3)
    own_TK = logits_BSE.topk(K).indices.flatten(0, 1)
    assert not torch.equal(own_TK.sort().values, ids_TK.sort().values)
    executed, own = (all_losses(logits_BSE, ids, None, "sigmoid") for ids in (ids_TK, own_TK))
    assert executed["switch"] != own["switch"]
    assert executed["sequence"] == own["sequence"]
    # A slot that ran nothing adds no load, and its share is not given to others.
    dropped_TK = ids_TK.clone()
    dropped_TK[:, 1] = -1
    first = switch_loss(logits_BSE.flatten(0, 1), ids_TK[:, :1], score="softmax")
    assert float(switch_loss(logits_BSE.flatten(0, 1), dropped_TK, score="softmax")) == pytest.approx(float(first) / 2)


def test_saturated_sigmoids_keep_their_order():
    # In float32 all but the last score of the first token are 1; their logits still differ.
    for shift in range(4):
        high = torch.tensor([20.0, 24.0, 22.0, 21.0]).roll(shift).tolist()
        logits = [[[*high, -5.0], [-3.0, 3.0, -3.5, -4.0, 2.0]]]
        loss = sequence_balance_loss(torch.tensor(logits), score="sigmoid", top_k=K)
        assert float(loss) == pytest.approx(sequence_loop(logits, [[True, True]], "sigmoid"), rel=1e-6)


def test_a_sequence_without_valid_tokens_is_not_in_the_mean():
    logits_BSE, _, valid_BS = draw()
    valid_BS[1] = False
    loss = sequence_balance_loss(logits_BSE, score="softmax", top_k=K, valid_BS=valid_BS)
    others = sequence_balance_loss(logits_BSE[[0, 2]], score="softmax", top_k=K, valid_BS=valid_BS[[0, 2]])
    assert float(loss) == pytest.approx(float(others), rel=1e-12)


def router(score: str = "softmax", **keys) -> Router:
    return Router(n_experts=E, top_k=K, score=score, logits_dtype="float32", weight_dtype="float32", renormalize=True, **keys)


@pytest.mark.parametrize("score", SCORES)
def test_the_auxiliary_loss_is_the_weighted_sum(score):
    logits_BSE, ids_TK, valid_BS = draw(4)
    losses = all_losses(logits_BSE, ids_TK, valid_BS, score)
    for weights in ((0.3, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.1), (0.01, 0.02, 0.03), (0.0, 0.0, 0.0)):
        options = BalanceOptions(switch_alpha=weights[0], sequence_alpha=weights[1], z_alpha=weights[2])
        total = auxiliary_loss(options, logits_BSE, ids_TK, router(score), valid_BS)
        expected = sum(w * float(loss) for w, loss in zip(weights, losses.values(), strict=True))
        assert float(total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["sequence", "z"])
def test_micro_batches_weighted_by_their_tokens_are_the_whole_batch(name):
    # Sequences of one length; the last micro-batch is smaller. Dividing by the number of micro-batches would be wrong, twice worse.
    logits_BSE, ids_TK, _ = draw(5)
    options = BalanceOptions(**{f"{name}_alpha": 1.0})
    whole = auxiliary_loss(options, logits_BSE, ids_TK, router())
    parts = [slice(0, 2), slice(2, 3)]
    summed = sum(
        (part.stop - part.start) / B * float(auxiliary_loss(options, logits_BSE[part], ids_TK[part.start * S : part.stop * S], router()))
        for part in parts
    )
    assert summed == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_descending_the_loss_evens_the_load(score):
    generator = torch.Generator().manual_seed(0)
    x_TH = torch.randn(256, 16, generator=generator)
    x_TH[:, 0] = 1.0
    weight_EH = torch.randn(E, 16, generator=generator) * 0.1
    weight_EH[:2, 0] += 1.0
    weight_EH.requires_grad_()
    spec = router(score)
    history = []
    for _ in range(60):
        routing = route(spec, x_TH, {"router": weight_EH})
        loss = auxiliary_loss(BalanceOptions(switch_alpha=1.0), routing.logits_TE[None], routing.expert_ids_TK, spec)
        history.append(int(expert_load(routing.expert_ids_TK, E).max()))
        (grad_EH,) = torch.autograd.grad(loss, weight_EH)
        with torch.no_grad():
            weight_EH -= grad_EH
    assert history[0] > 200
    assert history[-1] < 130  # an even load is 102.4


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_gamma_never_rises_and_ends_at_zero(schedule):
    options = BalanceOptions(bias_gamma=1e-3, bias_gamma_schedule=schedule, bias_freeze_fraction=0.034)
    for n_steps in (1, 2, 10, 1000):
        gammas = [gamma_at(options, step, n_steps) for step in range(n_steps)]
        assert gammas[-1] == 0
        assert gammas == sorted(gammas, reverse=True)
        assert n_steps == 1 or gammas[0] == 1e-3
        assert sum(g == 0 for g in gammas) == math.ceil(0.034 * n_steps)


def test_gamma_values():
    def at(schedule, step, *, freeze=0.0, n_steps=100):
        options = BalanceOptions(bias_gamma=2.0, bias_gamma_schedule=schedule, bias_freeze_fraction=freeze)
        return gamma_at(options, step, n_steps)

    assert at("constant", 99) == 2.0
    assert at("constant", 89, freeze=0.1) == 2.0
    assert at("constant", 90, freeze=0.1) == 0.0
    assert at("constant", 92, freeze=0.07) == 2.0  # 0.07 x 100 > 7 in floating point
    assert at("constant", 0, freeze=1.0) == 0.0
    assert at("linear", 25) == 1.5
    assert at("linear", 40, freeze=0.2) == 1.0
    assert at("cosine", 40, freeze=0.2) == pytest.approx(1.0)
    assert at("cosine", 25) == pytest.approx(1 + math.sqrt(0.5))
    assert at("linear", 100) == at("cosine", 100) == 0.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"switch_alpha": -0.1}, "`switch_alpha` is -0.1"),
        ({"sequence_alpha": math.inf}, "`sequence_alpha` is inf"),
        ({"z_alpha": math.nan}, "`z_alpha` is nan"),
        ({"bias_gamma": -1.0}, "`bias_gamma` is -1"),
        ({"bias_gamma_schedule": "step"}, "`bias_gamma_schedule` is `step`"),
        ({"bias_freeze_fraction": 1.5}, "`bias_freeze_fraction` is 1.5"),
    ],
)
def test_options_out_of_range_are_refused(keys, words):
    with pytest.raises(UsageError, match=words) as caught:
        BalanceOptions(**keys)
    assert caught.value.hint
