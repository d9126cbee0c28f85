"""The loss of a micro-batch against direct statements: position by position, all at once or in parts, recomputed or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from training_runs import END, SEQ_LEN, VOCAB_SIZE, make_domain, make_model

from moectl.data.batching import micro_batches
from moectl.model.decoder import Model
from moectl.training.balance import BalanceOptions, auxiliary_loss
from moectl.training.evaluate import DomainLoss, evaluate, mean_loss
from moectl.training.forward import IGNORED, Losses, Normalizers, ahead_targets, batch_losses, count_targets, next_targets

NO_BALANCE = BalanceOptions()
BALANCE = BalanceOptions(sequence_alpha=0.3, z_alpha=0.2)
B, S, ENDS = 4, SEQ_LEN, frozenset({END, 5})


def ids_with_ends(*, n_sequences: int = B, length: int = S, seed: int = 0) -> torch.Tensor:
    """Random ids with a document's end about every eighth token."""
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(6, VOCAB_SIZE, (n_sequences, length), generator=generator)
    ends_BS = torch.rand(ids_BS.shape, generator=generator) < 1 / 8
    return ids_BS.where(~ends_BS, torch.where(ids_BS % 2 == 0, END, 5))


def trainable(*, n_mtp: int = 1, dtype: torch.dtype = torch.float32) -> Model:
    return make_model(dtype=dtype, num_nextn_predict_layers=n_mtp).requires_grad_()


def gradients(model: Model, parts: list[Losses]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for part in parts:
        part.total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def direct_ahead_loss(model: Model, ids_BS: torch.Tensor, hidden_BSH: torch.Tensor, n: int) -> tuple[float, int]:
    """Sum over what MTP module n predicts, and over how many: the token n + 2 on, unless a document ends before it."""
    log_p_BSV = (hidden_BSH @ model.head.T).log_softmax(-1)
    total, count = 0.0, 0
    for b, row in enumerate(ids_BS.tolist()):
        for i in range(len(row) - n - 2):
            if not ENDS & set(row[i : i + n + 2]):
                total, count = total - float(log_p_BSV[b, i, row[i + n + 2]]), count + 1
    return total, count


@pytest.mark.parametrize("length", [S, 3, 2])
def test_losses_are_their_direct_statements(length: int) -> None:
    model, ids_BS = make_model(num_nextn_predict_layers=2), ids_with_ends(length=length)
    per_step = count_targets(ids_BS, 2, ENDS)
    losses = batch_losses(model, ids_BS, per_step, balance=BALANCE, mtp_weight=0.3, boundary_ids=ENDS)
    hidden_BSH = model.hidden(ids_BS)
    log_p_BSV = (hidden_BSH @ model.head.T).log_softmax(-1)
    main = -sum(float(log_p_BSV[b, i, ids_BS[b, i + 1]]) for b in range(B) for i in range(length - 1)) / (B * (length - 1))
    assert float(losses.main) == pytest.approx(main, rel=1e-5)
    ahead = []
    for n in range(2):
        following_BS = torch.tensor([[row[i + n + 1] if i + n + 1 < length else 7 for i in range(length)] for row in ids_BS.tolist()])
        hidden_BSH = model.predict_ahead(n, hidden_BSH, following_BS)
        total, count = direct_ahead_loss(model, ids_BS, hidden_BSH, n)
        assert per_step.ahead[n] == count
        assert count < B * (length - n - 2) or not count
        ahead.append(total / count if count else 0.0)
        assert float(losses.ahead[n]) == pytest.approx(ahead[n], rel=1e-5)
    assert [index for index, _ in losses.routings] == [1, 2, 3, 4]
    auxiliary = sum(
        float(auxiliary_loss(BALANCE, r.logits_TE.view(B, length, 8), r.expert_ids_TK, model.spec.layer(1).ffn.router))
        for _, r in losses.routings
    )
    assert float(losses.auxiliary) == pytest.approx(auxiliary, rel=1e-5)
    assert float(losses.total) == pytest.approx(main + 0.3 * sum(ahead) / 2 + auxiliary, rel=1e-5)


def test_gradients_are_those_of_the_plain_statement() -> None:
    model, ids_BS = trainable(n_mtp=2), ids_with_ends()
    per_step = count_targets(ids_BS, 2, ENDS)
    got = gradients(model, [batch_losses(model, ids_BS, per_step, balance=NO_BALANCE, mtp_weight=0.6, boundary_ids=ENDS)])
    hidden_BSH = model.hidden(ids_BS)
    total = cross_entropy((hidden_BSH @ model.head.T).flatten(0, 1), next_targets(ids_BS).flatten())
    for n in range(2):
        # Each prediction layer goes on from the one before, and all train the main model.
        hidden_BSH = model.predict_ahead(n, hidden_BSH, torch.nn.functional.pad(ids_BS[:, n + 1 :], (0, n + 1)))
        targets_T = ahead_targets(ids_BS, n, ENDS).flatten()
        total = total + 0.6 / 2 * cross_entropy((hidden_BSH @ model.head.T).flatten(0, 1), targets_T)
    model.zero_grad()
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got.get(name), parameter.grad, rtol=1e-4, atol=1e-6)


def test_targets_by_example() -> None:
    ids_BS = torch.tensor([[9, 8, END, 7, 6, 9], [8, 7, 6, 5, 9, END]])
    x = IGNORED
    assert next_targets(ids_BS).tolist() == [[8, END, 7, 6, 9, x], [7, 6, 5, 9, END, x]]
    assert ahead_targets(ids_BS, 0, ENDS).tolist() == [[END, x, x, 9, x, x], [6, 5, x, x, x, x]]
    assert ahead_targets(ids_BS, 1, ENDS).tolist() == [[x, x, x, x, x, x], [5, x, x, x, x, x]]
    assert ahead_targets(ids_BS, 0, ()).tolist() == [[END, 7, 6, 9, x, x], [6, 5, 9, END, x, x]]
    assert ahead_targets(ids_BS, 9, ()).tolist() == [[x] * 6] * 2
    assert count_targets(ids_BS, 2, ENDS) == Normalizers(tokens=12, targets=10, ahead=(4, 1))


def test_micro_batches_add_up_to_the_whole_step() -> None:
    model, ids_BS = trainable(n_mtp=2), ids_with_ends()
    per_step = count_targets(ids_BS, 2, ENDS)
    assert len({count_targets(part, 1, ENDS).ahead for part in ids_BS.split(1)}) > 1  # uneven, or a mean of means would pass
    whole, *parts = (
        batch_losses(model, part, per_step, balance=BALANCE, mtp_weight=0.3, boundary_ids=ENDS) for part in (ids_BS, *ids_BS.split(1))
    )
    for name in ("main", "auxiliary", "total"):
        assert float(sum(getattr(part, name).detach() for part in parts)) == pytest.approx(float(getattr(whole, name).detach()), rel=1e-6)
    torch.testing.assert_close(torch.stack([torch.stack(part.ahead) for part in parts]).sum(0), torch.stack(whole.ahead))
    for i, (layer, routing) in enumerate(whole.routings):
        assert [part.routings[i][0] for part in parts] == [layer] * 4
        together_TK = torch.cat([part.routings[i][1].expert_ids_TK for part in parts])
        assert torch.equal(together_TK.sort(-1).values, routing.expert_ids_TK.sort(-1).values)
    got, expected = gradients(model, parts), gradients(model, [whole])
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_gives_the_same_bits_and_notes_each_routing_once(dtype: torch.dtype) -> None:
    model, ids_BS = trainable(n_mtp=2, dtype=dtype), ids_with_ends()
    per_step = count_targets(ids_BS, 2, ENDS)
    plain, again = (
        batch_losses(model, ids_BS, per_step, balance=BALANCE, mtp_weight=0.3, boundary_ids=ENDS, recompute=recompute)
        for recompute in (False, True)
    )
    assert torch.equal(again.total, plain.total)
    expected = gradients(model, [plain])
    got = gradients(model, [again])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    # After the backward pass, in which every layer ran a second time.
    assert [layer for layer, _ in again.routings] == [1, 2, 3, 4]
    for (_, routing), (_, other) in zip(again.routings, plain.routings, strict=True):
        assert torch.equal(routing.expert_ids_TK, other.expert_ids_TK)


def test_recomputation_does_run_layers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BS, runs = trainable(), ids_with_ends(), []
    run = Model.run
    monkeypatch.setattr(Model, "run", lambda model, layer, *args, **kwargs: (runs.append(layer.index), run(model, layer, *args, **kwargs)))
    per_step = count_targets(ids_BS, 1, ENDS)
    batch_losses(model, ids_BS, per_step, balance=NO_BALANCE, mtp_weight=0.3, recompute=True).total.backward()
    assert sorted(runs) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_without_prediction_layers_or_with_weight_zero_nothing_lies_ahead() -> None:
    ids_BS = ids_with_ends()
    without = batch_losses(make_model(mtp=False), ids_BS, count_targets(ids_BS, 0, ENDS), balance=NO_BALANCE, mtp_weight=0.3)
    assert without.ahead == ()
    assert [layer for layer, _ in without.routings] == [1, 2]
    model = trainable()
    weightless = batch_losses(model, ids_BS, count_targets(ids_BS, 1, ENDS), balance=NO_BALANCE, mtp_weight=0.0)
    assert torch.equal(weightless.total.detach(), without.total)
    assert float(weightless.ahead[0]) > 1


def test_every_parameter_that_took_part_has_a_gradient_and_no_bias_has() -> None:
    model, ids_BS = trainable(), ids_with_ends()
    losses = batch_losses(model, ids_BS, count_targets(ids_BS, 1, ENDS), balance=BALANCE, mtp_weight=0.3, boundary_ids=ENDS)
    losses.total.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    biases = {name for name, _ in model.named_parameters() if "correction_bias" in name}
    assert len(biases) == 3
    assert without >= biases
    assert all(".experts." in name for name in without - biases)
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if name not in without)


def test_evaluation_is_the_mean_over_all_targets_of_a_domain() -> None:
    model, ids = make_model(), np.random.default_rng(4).integers(VOCAB_SIZE, size=4 * S + 5)
    domains = [make_domain("a", ids[: 2 * S + 3]), make_domain("one token", ids[:1]), make_domain("b", ids[2 * S + 3 :])]
    found = evaluate(model, micro_batches(domains, 2 * S), [domain.name for domain in domains])
    sums = {}
    for domain in (domains[0], domains[2]):
        total, count = 0.0, 0
        for start, stop in zip(domain.offsets, domain.offsets[1:], strict=False):
            row = torch.from_numpy(domain.token_ids[start:stop].astype(np.int64))
            log_p_SV = model(row[None])[0].log_softmax(-1)
            total -= sum(float(log_p_SV[i, row[i + 1]]) for i in range(len(row) - 1))
            count += len(row) - 1
        sums[domain.name] = (total, count)
    assert list(found) == ["a", "b"]
    for name, (total, count) in sums.items():
        assert found[name].tokens == count
        assert found[name].loss == pytest.approx(total / count, rel=1e-5)
    assert mean_loss(found) == pytest.approx(sum(t for t, _ in sums.values()) / sum(n for _, n in sums.values()), rel=1e-5)
    assert mean_loss({"x": DomainLoss(1.0, 3), "y": DomainLoss(5.0, 1)}) == 2.0
