"""`--perplexity`: the loss that transformers computes, in both schedules, and experts by the id that is predicted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from route_runs import route, same_files
from tiny_checkpoints import FAMILIES

from moectl.api import route_stats
from moectl.model import head
from moectl.routing import run as run_module
from moectl.routing.counting import vocabulary

# Shapes: T tokens, L MoE layers, K slots.


@pytest.fixture(scope="module", autouse=True)
def blocks():
    """Several blocks of the head and chunks of tokens, even in so small a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "BLOCK_ROWS", 128)
        patch.setattr(head, "CHUNK_TOKENS", 40)
        yield


@pytest.fixture(scope="module")
def predicted(checkpoints, standard, tmp_path_factory):
    root = tmp_path_factory.mktemp("perplexity")
    options = (*standard, "--perplexity", "--order", "resident")
    return {family: route(root / family, checkpoints[family].folder, *options) for family in FAMILIES}


def oracle_losses(checkpoint, trace):
    """Per domain: the losses of all predictions of transformers, and per token the id it predicts and the second best's distance."""
    losses, ids, margins = {}, [], []
    for start, stop, domain in zip(trace["sequence_offsets"][:-1], trace["sequence_offsets"][1:], trace["domain_ids"], strict=True):
        ids_S = torch.from_numpy(trace["token_ids"][start:stop].astype(np.int64))
        with torch.no_grad():
            logits_SV = checkpoint.oracle(ids_S[None], use_cache=False).logits[0]
        found = torch.nn.functional.cross_entropy(logits_SV[:-1], ids_S[1:], reduction="none") if len(ids_S) > 1 else torch.zeros(0)
        losses.setdefault(int(domain), []).extend(found.tolist())
        best = logits_SV.topk(2).values
        ids += logits_SV.argmax(-1).tolist()
        margins += (best[:, 0] - best[:, 1]).tolist()
    return losses, np.array(ids), np.array(margins)


def test_losses_are_those_of_transformers(checkpoints, predicted, family):
    losses, _, _ = oracle_losses(checkpoints[family], predicted[family].trace)
    found = predicted[family].summary["perplexity"]
    assert list(found) == ["all", "prose", "code"]
    expected = {"prose": losses[0], "code": losses[1], "all": losses[0] + losses[1]}
    for name, values in expected.items():
        assert found[name]["tokens"] == len(values)
        assert found[name]["loss"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found[name]["perplexity"] == pytest.approx(math.exp(np.mean(values)), rel=1e-4)
        assert found[name]["loss_low"] < found[name]["loss"] < found[name]["loss_high"]
        assert found[name]["perplexity_low"] == pytest.approx(math.exp(found[name]["loss_low"]))


def test_streamed_is_resident_bit_for_bit(checkpoints, standard, predicted, family, tmp_path):
    same_files(route(tmp_path / "out", checkpoints[family].folder, *standard, "--perplexity", "--order", "streamed"), predicted[family])


def test_bfloat16_streamed_is_resident(checkpoints, standard, tmp_path):
    folder, options = checkpoints["deepseek_v3"].folder, (*standard, "--perplexity", "--dtype", "bfloat16")
    same_files(*(route(tmp_path / order, folder, *options, "--order", order) for order in ("resident", "streamed")))


def test_the_rest_of_the_tables_is_that_of_a_run_without(predicted, runs, family):
    with_head, without = predicted[family], runs[family]
    assert with_head.experts.equals(without.experts)
    of_predicted = [key for key in without.layers.columns if key.startswith("vocabulary_predicted")]
    assert len(of_predicted) == 4
    assert with_head.layers.drop(columns=of_predicted).equals(without.layers.drop(columns=of_predicted))
    assert without.layers[of_predicted].isna().all(axis=None)
    assert without.summary["perplexity"] is None


def test_experts_are_counted_by_predicted_id(checkpoints, standard, predicted, monkeypatch):
    """Tables against a loop over the trace and the predictions of transformers."""
    monkeypatch.setattr(vocabulary, "MIN_OCCURRENCES", 3)
    kept = {}
    monkeypatch.setattr(run_module, "assemble", lambda counters, *_, **__: kept.update(counters=counters))
    data = [f"{name}={source}" for name, source in (("prose", standard[1]), ("code", standard[3]))]
    route_stats(
        checkpoints["qwen3_moe"].folder, data=data, seq_len=33, batch_tokens=150, dtype="float32", order="streamed", perplexity=True
    )
    counters, trace = kept["counters"], predicted["qwen3_moe"].trace
    _, ids_T, margins_T = oracle_losses(checkpoints["qwen3_moe"], trace)
    assert margins_T.min() > 1e-6
    tracked = counters.tracked["predicted"]
    assert len(tracked.ids_M) > 5
    for row, (token_id, n) in enumerate(zip(tracked.ids_M, tracked.tokens_M, strict=True)):
        here_T = ids_T == token_id
        assert here_T.sum() == n
        for position in range(2):
            chosen_TK = trace["expert_ids"][here_T, position]
            counts = counters.arrays()["predicted_LME"][position, row]
            assert (counts == np.bincount(chosen_TK.ravel(), minlength=9)).all()
            first = counters.arrays()["predicted_first_choice_LME"][position, row]
            assert (first == np.bincount(chosen_TK[:, 0], minlength=9)).all()


def test_special_tokens_are_predicted_only_if_they_count(checkpoints, standard, predicted, tmp_path):
    output = route(tmp_path / "out", checkpoints["mixtral"].folder, *standard, "--perplexity", "--skip-special")
    trace = output.trace
    assert (trace["counted"] == ~np.isin(trace["token_ids"], (0, 1))).all()
    first_T = np.isin(np.arange(len(trace["token_ids"])), trace["sequence_offsets"])
    assert output.summary["perplexity"]["all"]["tokens"] == (trace["counted"].astype(bool) & ~first_T).sum()
    assert output.summary["perplexity"]["all"]["tokens"] < predicted["mixtral"].summary["perplexity"]["all"]["tokens"]


def test_sequences_of_one_token_predict_nothing(checkpoints, tmp_path):
    np.save(tmp_path / "one.npy", np.arange(5)[:, None])
    output = route(tmp_path / "out", checkpoints["mixtral"].folder, "--data", tmp_path / "one.npy", "--perplexity")
    nothing = dict.fromkeys(("loss", "loss_low", "loss_high", "perplexity", "perplexity_low", "perplexity_high"))
    assert output.summary["perplexity"] == {key: {**nothing, "tokens": 0} for key in ("all", "one")}


def test_the_plan_accounts_for_it(checkpoints, standard, moectl):
    def plan(*options):
        result = moectl("route-stats", checkpoints["mixtral"].folder, *standard[:4], "--dry-run", "--format", "json", *options)
        return json.loads(result.out)

    usual, whole = plan("--order", "streamed"), plan("--order", "streamed", "--perplexity")
    assert (usual["perplexity"], usual["predicted_ids"]) == (False, False)
    assert (whole["perplexity"], whole["predicted_ids"]) == (True, True)
    assert whole["flops"] > usual["flops"]
    # The tables (48 MB) and the experts of all tokens; the process's own memory, in both, moves by some MB between the two.
    assert whole["peak_bytes"] - usual["peak_bytes"] > 24e6 + whole["tokens"] * 3 * 2
    assert "all layers and the head" in moectl("route-stats", checkpoints["mixtral"].folder, *standard[:4], "--dry-run", "--perplexity").out


def test_without_memory_to_keep_experts_only_that_is_left_out(checkpoints, standard, predicted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("moectl.routing.counting.predicted.planned_bytes", lambda layers, n_tokens: 10**18)
    output = route(tmp_path / "out", checkpoints["mixtral"].folder, *standard, "--perplexity")
    assert "warning: there is not enough memory to count experts by predicted id" in capsys.readouterr().err
    assert output.summary["perplexity"] == predicted["mixtral"].summary["perplexity"]
    assert output.layers["vocabulary_predicted"].isna().all()
    assert output.summary["provenance"]["predicted_ids"] is False


def test_a_damaged_head_is_the_models_fault(checkpoints, standard, moectl, tmp_path, monkeypatch):
    broken = torch.full((307, 48), 3e38)
    from moectl.model.weights import WeightReader

    read = WeightReader.read
    is_head = lambda ref: "lm_head" in ref.name  # noqa: E731
    monkeypatch.setattr(WeightReader, "read", lambda self, ref: broken[: ref.part_shape[0]] if is_head(ref) else read(self, ref))
    for order in ("resident", "streamed"):
        result = moectl("route-stats", checkpoints["mixtral"].folder, *standard[:4], "--perplexity", "--order", order)
        assert result.code == 3
        assert "the head gave logits that are not finite" in result.err
