"""The training loop: killed anywhere it ends with the same bytes, it learns, it balances, and it stops when numbers do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import snapshot
from safetensors.torch import load_file, save_file
from training_runs import CONFIG, END, SEQ_LEN, VOCAB_SIZE, files_of, log_of, make_domain, make_job, make_model, make_options, stack_experts

from moectl import staging
from moectl.api import load_model
from moectl.errors import DataError, ModelError, UsageError
from moectl.model.decoder import Model
from moectl.model.router import Routing
from moectl.model.save import save_model
from moectl.plan import Silence
from moectl.training import checkpoint as checkpoint_module
from moectl.training import loop
from moectl.training.balance import BalanceOptions
from moectl.training.bias import expert_load, update_bias
from moectl.training.checkpoint import checkpoints
from moectl.training.forward import batch_losses, count_targets
from moectl.training.loop import train
from moectl.training.metrics import MetricsLog
from moectl.training.order import DataOrder
from moectl.training.schedule import learning_rate

BIAS = "model.layers.{}.mlp.gate.e_score_correction_bias"


class Killed(BaseException):
    """The end of a process."""


class Fate:
    """Ends a process once at every point that it comes by."""

    def __init__(self, *, hard: bool) -> None:
        self.hard, self.dead, self.met = hard, False, []

    def meet(self, *point: object) -> None:
        if point not in self.met and not self.dead:
            self.met.append(point)
            self.dead = True
            raise Killed(point)


class Watched(Silence):
    """A Progress under which a process can end: after each evaluation and at the end of each step."""

    def __init__(self, fate: Fate) -> None:
        self.fate, self.position = fate, 0.0

    def advance(self, amount: float) -> None:
        self.position += amount
        self.fate.meet("advance", self.position)

    def notice(self, text: str) -> None:
        self.fate.meet("notice", text)


@pytest.fixture
def fatal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fate]:
    """Points of death inside a save: before it, between model and optimizer, with everything written and before the rename, before older
    checkpoints are deleted, and while one is. A `hard` death runs no clean-up, as SIGKILL."""

    def arm(*, hard: bool) -> Fate:
        fate = Fate(hard=hard)

        def around(module: Any, name: str, *, path_of: Callable[..., object]) -> None:
            original = getattr(module, name)

            def fatal_call(*args: Any, **kwargs: Any) -> Any:
                fate.meet(f"before {name}", path_of(*args))
                result = original(*args, **kwargs)
                fate.meet(f"after {name}", path_of(*args))
                return result

            monkeypatch.setattr(module, name, fatal_call)

        around(checkpoint_module, "save_model", path_of=lambda _model, _config, folder: folder.name.partition(".partial")[0])
        around(staging, "_replace", path_of=lambda _stage, path: path)
        rmtree = shutil.rmtree

        def fatal_rmtree(path: Path, **kwargs: Any) -> None:
            if fate.dead and fate.hard:
                return
            if path.name.endswith(".partial-old"):
                (path / "config.json").unlink(missing_ok=True)
                fate.meet("half deleted", path)
            rmtree(path, **kwargs)

        monkeypatch.setattr(shutil, "rmtree", fatal_rmtree)
        return fate

    return arm


@pytest.mark.parametrize(
    ("save_every", "dtype", "hard"),
    [(1, torch.float32, True), (2, torch.float32, False), (2, torch.bfloat16, True)],
    ids=["float32-every-step-hard", "float32-every-other", "bfloat16-every-other-hard"],
)
def test_killed_anywhere_it_ends_with_the_same_bytes(
    save_every: int, dtype: torch.dtype, hard: bool, fatal: Callable[..., Fate], tmp_path: Path
) -> None:
    options = make_options(save_every=save_every)
    last = train(make_job(tmp_path / "whole", options, dtype=dtype), resume=False, progress=Silence())
    fate, folder = fatal(hard=hard), tmp_path / "killed"
    resumed = None
    while resumed is None:
        try:
            resumed = train(make_job(folder, options, dtype=dtype), resume=True, progress=Watched(fate))
        except Killed:
            fate.dead = False
            for _, path in checkpoints(folder):
                assert files_of(path).keys() == files_of(last).keys()
            if hard and (folder / "metrics.jsonl").exists():
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 5, "lo')
    kinds = {point[0] for point in fate.met}
    assert kinds == {f"{when} {what}" for when in ("before", "after") for what in ("save_model", "_replace")} | {
        "advance", "notice", "half deleted",
    }  # fmt: skip
    assert resumed == folder / last.name
    assert files_of(resumed) == files_of(last)
    assert log_of(folder) == log_of(tmp_path / "whole")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert set(files_of(last)) == {"config.json", "model.safetensors", "optimizer/model.safetensors", "training.json"}
    biases = [tensor for name, tensor in load_file(last / "model.safetensors").items() if name.endswith("correction_bias")]
    assert len(biases) == 3
    assert all(bias_E.any() for bias_E in biases)


def test_a_run_in_the_folder_is_not_overwritten_and_a_finished_one_stays_as_it_is(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_options(steps=2))
    last = train(job, resume=True, progress=Silence())
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"holds a run that is at step 2") as caught:
        train(job, resume=False, progress=Silence())
    assert caught.value.hint
    assert train(job, resume=True, progress=Silence()) == last
    assert snapshot(tmp_path) == before


def test_checkpoints_are_written_after_the_lines_of_their_steps_are_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flushed: list[int] = []
    flush, save = MetricsLog.flush, loop.save_checkpoint
    monkeypatch.setattr(MetricsLog, "flush", lambda log: (flush(log), flushed.append(log_of(tmp_path)[-1]["step"])))

    def saved(run: Path, step: int, **kwargs: Any) -> Path:
        assert flushed[-1] == step
        return save(run, step, **kwargs)

    monkeypatch.setattr(loop, "save_checkpoint", saved)
    train(make_job(tmp_path, make_options(steps=3, save_every=2)), resume=False, progress=Silence())
    assert flushed == [2, 3]


def test_the_log_says_what_happened(tmp_path: Path) -> None:
    train(make_job(tmp_path, make_options(log_every=2)), resume=False, progress=Silence())
    lines = log_of(tmp_path, without=())
    assert [(line["step"], "heldout" in line) for line in lines] == [(0, True), (2, False), (3, True), (4, False), (5, False), (5, True)]
    trained = [line for line in lines if "loss" in line]
    assert [line["tokens"] for line in trained] == [2 * 64, 4 * 64, 5 * 64]
    assert [line["lr"] for line in trained] == [learning_rate(make_options(), step) for step in (1, 3, 4)]
    assert [line["bias_gamma"] for line in trained] == [0.01, 0.01, 0.0]
    for line in trained:
        assert line["loss"] > 0
        assert line["mtp_loss_1"] > 0
        assert line["auxiliary_loss"] > 0
        assert line["tokens_per_s"] > 0
        assert list(line["layers"]) == ["1", "2", "3"]
        assert all(sum(layer["load_fractions"]) == pytest.approx(1) for layer in line["layers"].values())
    assert lines[0]["heldout"]["mean"] == lines[0]["heldout"]["a"]


def test_a_run_is_its_plain_statement(tmp_path: Path) -> None:
    options = make_options(accumulation=1, batch_tokens=4 * SEQ_LEN, save_every=9)
    job = make_job(tmp_path, options)
    last = train(job, resume=False, progress=Silence())

    model, order = make_model(), DataOrder(job.domains, seq_len=SEQ_LEN, seed=0)
    trained = {name: parameter.requires_grad_() for name, parameter in model.named_parameters() if "correction_bias" not in name}
    groups = [
        {"params": [p for p in trained.values() if (p.ndim > 1) == matrix], "weight_decay": 0.1 if matrix else 0.0}
        for matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(5):
        ids_BS = torch.from_numpy(order.take(4))
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        weight = 0.3 if step < 4 else 0.1
        per_step = count_targets(ids_BS, 1, {END})
        losses = batch_losses(model, ids_BS, per_step, balance=options.balance, mtp_weight=weight, boundary_ids={END})
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step)
        optimizer.step()
        for layer, routing in losses.routings:
            update_bias(stored_biases(model)[layer], expert_load(routing.expert_ids_TK, 8), 0.01 if step < 4 else 0.0)
        line = log_of(tmp_path)[1 + step + (step > 2)]
        assert line["step"] == step + 1
        assert line["loss"] == pytest.approx(float(losses.main))
        assert line["mtp_loss_1"] == pytest.approx(float(losses.ahead[0]))
    for name, tensor in load_model(last, mtp=True).state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_it_learns_what_is_easy_to_predict(tmp_path: Path) -> None:
    domains = [make_domain("count", np.arange(40 * SEQ_LEN) % 7)]
    options = make_options(steps=60, accumulation=1, lr=1e-2, warmup_steps=5, save_every=60, balance=BalanceOptions(bias_gamma=1e-3))
    train(make_job(tmp_path, options, domains=domains, heldout=domains), resume=False, progress=Silence())
    lines = log_of(tmp_path)
    first, last = lines[1], lines[-2]
    assert (first["step"], last["step"]) == (1, 60)
    assert first["loss"] > 4
    assert last["loss"] < 0.5
    assert last["mtp_loss_1"] < 0.5
    assert lines[-1]["heldout"]["mean"] < 0.5


def direct_loads(model: Model, ids_BS: torch.Tensor) -> dict[int, list[int]]:
    """Tokens per expert of each MoE layer, from what a pass over all sequences of a step executed."""
    loads: dict[int, list[int]] = {}

    def record(_: int, layer: int, routing: Routing) -> None:
        loads[layer] = [sum(row.count(e) for row in routing.expert_ids_TK.tolist()) for e in range(8)]

    with torch.no_grad():
        following_BS = torch.nn.functional.pad(ids_BS[:, 1:], (0, 1))
        model.predict_ahead(0, model.hidden(ids_BS, on_routing=record), following_BS, on_routing=record)
    return loads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_follow_the_loads_of_the_whole_step_and_freeze_at_the_end(dtype: torch.dtype, tmp_path: Path) -> None:
    gamma, options = 0.02, make_options(keep_last=9, balance=BalanceOptions(bias_gamma=0.02, bias_freeze_fraction=0.4))
    job = make_job(tmp_path, options, dtype=dtype)
    train(job, resume=False, progress=Silence())
    order = DataOrder(job.domains, seq_len=SEQ_LEN, seed=0)
    before = stored_biases(make_model(dtype=dtype))
    for step, path in checkpoints(tmp_path):
        name = str(dtype).removeprefix("torch.")
        model = make_model(dtype=dtype) if step == 1 else load_model(tmp_path / f"step-{step - 1:08d}", dtype=name, mtp=True)
        loads = direct_loads(model, torch.from_numpy(order.take(4)))
        assert sorted(loads) == [1, 2, 3]
        after = {layer: load_file(path / "model.safetensors")[BIAS.format(layer)] for layer in loads}
        for layer, load in loads.items():
            signs = [(sum(load) > 8 * n) - (sum(load) < 8 * n) for n in load] if step <= 3 else [0] * 8
            expected = [float(b) + gamma * (s - sum(signs) / 8) for b, s in zip(before[layer], signs, strict=True)]
            assert after[layer].dtype == torch.float32
            assert after[layer].tolist() == pytest.approx(expected, abs=1e-7)
            assert torch.equal(after[layer], before[layer]) == (step > 3)
        before = after


def stored_biases(model: Model) -> dict[int, torch.Tensor]:
    blocks = [*model.layers[1:], *(resident.block for resident in model.mtp)]
    return {layer: block.weights["correction_bias"].detach() for layer, block in enumerate(blocks, start=1)}


def test_nothing_but_its_own_rule_moves_a_bias(tmp_path: Path) -> None:
    model = make_model()
    for bias_E in stored_biases(model).values():
        bias_E.copy_(torch.linspace(-0.1, 0.1, 8))
    before = {layer: bias_E.clone() for layer, bias_E in stored_biases(model).items()}
    options = make_options(steps=2, lr=0.1, weight_decay=0.5, balance=BalanceOptions(sequence_alpha=0.1))
    last = train(make_job(tmp_path, options, initial=lambda: model), resume=False, progress=Silence())
    assert all(torch.equal(bias_E, before[layer]) for layer, bias_E in stored_biases(model).items())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "correction_bias" in name)
    assert not [name for name in load_file(last / "optimizer/model.safetensors") if "correction_bias" in name]


def test_accumulation_and_recomputation_change_nothing_but_rounding(tmp_path: Path) -> None:
    balance = BalanceOptions(sequence_alpha=0.1, z_alpha=0.1, bias_gamma=0.01)
    ways = {
        "whole": make_options(steps=1, accumulation=1, batch_tokens=4 * SEQ_LEN, balance=balance),
        "split": make_options(steps=1, accumulation=4, batch_tokens=SEQ_LEN, balance=balance),
        "again": make_options(steps=1, accumulation=4, batch_tokens=SEQ_LEN, balance=balance, recompute=True),
    }
    paths = {name: train(make_job(tmp_path / name, options), resume=False, progress=Silence()) for name, options in ways.items()}
    lines = {name: log_of(tmp_path / name)[1] for name in ways}
    assert lines["again"] == lines["split"]
    assert lines["whole"]["layers"] == lines["split"]["layers"]
    for key in ("loss", "mtp_loss_1", "auxiliary_loss", "grad_norm"):
        assert lines["split"][key] == pytest.approx(lines["whole"][key], rel=1e-5)
    tensors = {name: load_file(path / "model.safetensors") for name, path in paths.items()}
    for name, whole in tensors["whole"].items():
        assert torch.equal(tensors["again"][name], tensors["split"][name])
        if name.endswith("correction_bias"):
            assert torch.equal(tensors["split"][name], whole)
    moments = {name: load_file(path / "optimizer/model.safetensors") for name, path in paths.items()}
    for name, whole in moments["whole"].items():
        torch.testing.assert_close(moments["split"][name], whole, rtol=1e-4, atol=1e-7)


def test_every_expert_is_trained_whatever_the_layout_it_came_in(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    save_model(make_model(), CONFIG, plain)
    fused = shutil.copytree(plain, tmp_path / "fused")
    save_file(stack_experts(load_file(plain / "model.safetensors")), fused / "model.safetensors")
    results = []
    for source in (plain, fused):
        job = make_job(tmp_path / f"run-{source.name}", make_options(steps=2), initial=lambda source=source: load_model(source, mtp=True))
        results.append(files_of(train(job, resume=False, progress=Silence())))
    assert results[0] == results[1]


class Saboteur(Silence):
    """Does something to the run at the end of a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act, self.position = step, act, 0.0

    def advance(self, amount: float) -> None:
        self.position += amount
        if self.position == self.step:
            self.act()


def test_a_poisoned_weight_stops_the_run_before_any_checkpoint(tmp_path: Path) -> None:
    model = make_model()
    model.layers[2].experts.down[3][0, 0] = torch.nan
    options = make_options(balance=BalanceOptions(bias_gamma=1e-3))
    with pytest.raises(ModelError, match=r"diverged at step 1: loss nan, .*; no checkpoint had been written yet") as caught:
        train(make_job(tmp_path, options, initial=lambda: model), resume=False, progress=Silence())
    assert caught.value.hint
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("poison", ["embed", "router", "unused expert"])
def test_poison_in_the_middle_leaves_the_last_good_checkpoint_and_names_it(poison: str, tmp_path: Path) -> None:
    model = make_model()
    parameter = {"embed": model.embed, "router": model.layers[1].weights["router"], "unused expert": model.layers[2].experts.up[0]}[poison]
    if poison == "unused expert":
        # No token of any kind will ever see it: only looking at the weights themselves finds it.
        model.layers[2].weights["correction_bias"][0] = -100.0
    before: dict[str, dict[str, bytes]] = {}

    def act() -> None:
        before.update({path.name: files_of(path) for _, path in checkpoints(tmp_path)})
        with torch.no_grad():
            parameter[1, 1] = torch.nan

    with pytest.raises(ModelError, match=rf"diverged at step 4: .*the last good checkpoint is `{tmp_path}/step-00000003`"):
        train(make_job(tmp_path, initial=lambda: model), resume=False, progress=Saboteur(3, act))
    assert {path.name: files_of(path) for _, path in checkpoints(tmp_path)} == before
    assert list(before) == ["step-00000002", "step-00000003"]
    assert load_model(tmp_path / "step-00000003", mtp=True)(torch.ones(1, 4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("lr", [1e25, 9e37])
def test_an_exploding_update_is_not_saved(lr: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda options, step: lr if step == 2 else 1e-3)
    with pytest.raises(ModelError, match=r"diverged at step 3: its update leads to .* nan; the last good checkpoint is `.*step-00000002`"):
        train(make_job(tmp_path), resume=False, progress=Silence())
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 2]


def test_ids_outside_the_vocabulary_and_runs_without_data_are_refused(tmp_path: Path) -> None:
    ids = np.ones(4 * SEQ_LEN, np.int32)
    ids[40] = VOCAB_SIZE
    for bad, message in (([make_domain("x", ids)], "domain `x` holds the token id `97`, outside"), ([], "no domain to train on")):
        with pytest.raises(DataError, match=message):
            train(make_job(tmp_path / "run", domains=bad), resume=False, progress=Silence())
    assert not (tmp_path / "run").exists()


def test_without_anything_held_out_there_is_no_such_line(tmp_path: Path) -> None:
    for name, heldout in (("none", []), ("nothing to predict", [make_domain("a", [5])])):
        train(make_job(tmp_path / name, make_options(steps=1), heldout=heldout), resume=False, progress=Silence())
        assert [line["step"] for line in log_of(tmp_path / name)] == [1]


def test_a_config_of_another_model_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the configuration describes another model: layer 1 differs"):
        train(make_job(tmp_path / "run", config={**CONFIG, "num_experts_per_tok": 3}), resume=False, progress=Silence())
    assert not (tmp_path / "run").exists()
