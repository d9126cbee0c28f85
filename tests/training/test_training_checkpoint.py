"""Checkpoints of a run: complete models, refused for another run, and named where they are damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import snapshot
from safetensors.torch import load_file, save_file
from training_runs import CONFIG, SEQ_LEN, files_of, log_of, make_job, make_model, make_options, random_domain

from moectl.api import load_model
from moectl.checkpoint.companions import NAMES
from moectl.checkpoint.writer import CheckpointWriter
from moectl.errors import ModelError, ResourceError, UsageError
from moectl.plan import Silence
from moectl.training.balance import BalanceOptions
from moectl.training.checkpoint import checkpoints, tidy
from moectl.training.loop import train

WEIGHTS = {"a": 2.0, "b": 1.0}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that was stopped after three. Copy it before going on."""

    class Stopping(Silence):
        position = 0.0

        def advance(self, amount: float) -> None:
            self.position += amount
            if self.position == 3:
                raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(make_job(folder, weights=WEIGHTS), resume=False, progress=Stopping())
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_checkpoint_is_a_model_for_any_command_and_the_newest_are_kept(run: Path) -> None:
    assert [(step, path.name) for step, path in checkpoints(run)] == [(2, "step-00000002"), (3, "step-00000003")]
    last = checkpoints(run)[-1][1]
    model = load_model(last, mtp=True)
    assert len(model.mtp) == 1
    assert json.loads((last / "config.json").read_text()) == CONFIG
    assert json.loads((last / "training.json").read_text())["taken"] == [8, 4]
    provenance = json.loads((last / "moectl.json").read_text())["provenance"]
    assert provenance["command"] == "train"
    assert provenance["options"] == make_options().to_json()
    state = load_file(last / "optimizer/model.safetensors")
    names = {name for name in load_file(last / "model.safetensors") if "correction_bias" not in name}
    copies = {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    assert set(state) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in names - copies}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": make_options(lr=1e-3)}, r"started with options.lr = 0.003, not 0.001"),
        ({"options": make_options(steps=9)}, r"started with options.steps = 5, not 9"),
        ({"options": make_options(seed=1)}, r"started with options.seed = 0, not 1"),
        ({"options": make_options(balance=BalanceOptions())}, r"started with options.balance.bias_freeze_fraction = 0.1, not 0.0"),
        (
            {"domains": [random_domain("a", 9 * SEQ_LEN + 5, seed=9), random_domain("b", 64, seed=2)]},
            r"started with data_sha256 = \w+, not",
        ),
        ({"weights": {"a": 2.0, "b": 1.1}}, r"started with data_sha256 = \w+, not"),
        ({"weights": None}, r"started with data_sha256 = \w+, not"),
        ({"boundary_ids": frozenset({1, 0})}, r"started with boundary_ids = \[0\], not \[0, 1\]"),
        ({"config": {**CONFIG, "rope_theta": 5e5}}, r"started with config.rope_theta = 10000.0, not 500000.0"),
        ({"config": {key: value for key, value in CONFIG.items() if key != "n_group"}}, r"started with config.n_group = 2, not None"),
    ],
    ids=["lr", "steps", "seed", "balance", "data", "weights", "no-weights", "boundaries", "config", "config-key"],
)
def test_another_run_is_refused_by_name(changes: dict[str, Any], message: str, run: Path) -> None:
    before = snapshot(run)
    with pytest.raises(UsageError, match=message) as caught:
        train(make_job(run, **{"weights": WEIGHTS, **changes}), resume=True, progress=Silence())
    assert caught.value.hint
    assert str(run) in caught.value.message
    assert snapshot(run) == before


def edit_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        state = json.loads((path / "training.json").read_text())
        change(state)
        (path / "training.json").write_text(json.dumps(state))

    return apply


def edit_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / file)
        change(tensors)
        save_file(tensors, path / file, metadata={"format": "pt"})

    return apply


def truncate(file: str) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / file, (path / file).stat().st_size - 100)


LOST = "does not say where the run was"
UNFIT = "the optimizer state does not fit the model"
OPTIMIZER = "optimizer/model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "training.json").unlink(), "training.json` does not exist"),
        (truncate("training.json"), "training.json` is not valid JSON"),
        (lambda path: (path / "training.json").write_text("[]"), "must hold a JSON object"),
        (lambda path: (path / "training.json").write_text("{}"), LOST),
        (edit_state(lambda state: state.pop("options")), LOST),
        (edit_state(lambda state: state.update(step="3")), LOST),
        (edit_state(lambda state: state.update(step=2)), LOST),
        (edit_state(lambda state: state.update(taken=[1.5, 2])), LOST),
        (edit_state(lambda state: state.update(taken={"a": 3})), LOST),
        (edit_state(lambda state: state.update(taken=[12])), "does not fit 2 domains"),
        (lambda path: shutil.rmtree(path / "optimizer"), "optimizer` does not exist"),
        (truncate(OPTIMIZER), "model.safetensors"),
        (edit_tensors(OPTIMIZER, lambda t: t.pop("exp_avg.lm_head.weight")), UNFIT),
        (edit_tensors(OPTIMIZER, lambda t: t.pop("step.lm_head.weight")), UNFIT),
        (edit_tensors(OPTIMIZER, lambda t: t.update({"exp_avg.lm_head.weight": torch.zeros(2, 3)})), UNFIT),
        (truncate("model.safetensors"), "model.safetensors"),
        (edit_tensors("model.safetensors", lambda t: t.pop("model.norm.weight")), "lacks 1 of"),
        (edit_tensors("model.safetensors", lambda t: t.pop("model.layers.3.eh_proj.weight")), r"has no tensor `model.layers.3.eh_"),
        (edit_tensors("model.safetensors", lambda t: t["model.norm.weight"].fill_(torch.nan)), "holds 32 NaN"),
        (lambda path: (path / "config.json").unlink(), "config.json` does not exist"),
    ],
)  # fmt: skip
def test_damage_is_named_and_nothing_is_touched(damage: Callable[[Path], object], message: str, run: Path) -> None:
    damage(run / "step-00000003")
    before = snapshot(run)
    with pytest.raises(ModelError, match=message):
        train(make_job(run, weights=WEIGHTS), resume=True, progress=Silence())
    assert snapshot(run) == before


def test_a_damaged_checkpoint_may_be_deleted_to_go_on_from_an_older_one(run: Path, tmp_path: Path) -> None:
    whole = train(make_job(tmp_path / "whole", weights=WEIGHTS), resume=False, progress=Silence())
    shutil.rmtree(run / "step-00000003")
    last = train(make_job(run, weights=WEIGHTS), resume=True, progress=Silence())
    assert files_of(last) == files_of(whole)
    assert log_of(run) == log_of(tmp_path / "whole")


def test_what_an_earlier_version_did_not_note_is_not_asked_for(run: Path) -> None:
    edit_state(lambda state: state.pop("boundary_ids"))(run / "step-00000003")
    assert train(make_job(run, weights=WEIGHTS), resume=True, progress=Silence()).name == "step-00000005"


def test_a_model_without_its_prediction_layers_goes_on_without_them(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_options(steps=2), initial=lambda: make_model(mtp=False))
    last = train(job, resume=False, progress=Silence())
    expected = files_of(last)
    assert not [name for name in load_file(last / "model.safetensors") if name.startswith("model.layers.3.")]
    shutil.rmtree(last)
    assert files_of(train(job, resume=True, progress=Silence())) == expected


def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = snapshot(run), CheckpointWriter._pwrite

    def full(writer: CheckpointWriter, file: str, view: memoryview, start: int, **kwargs: Any) -> None:
        if writer.folder.name == "optimizer" and start > 1000:
            raise ResourceError("the disk is full")
        write(writer, file, view, start, **kwargs)

    monkeypatch.setattr(CheckpointWriter, "_pwrite", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        train(make_job(run, weights=WEIGHTS), resume=True, progress=Silence())
    monkeypatch.undo()
    after = snapshot(run)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != "metrics.jsonl")


def test_tokenizer_files_travel_with_every_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "generation_config.json", "model.safetensors", "notes.txt"):
        (source / name).write_text(name)
    train(make_job(tmp_path / "run", make_options(steps=2), companions=source), resume=False, progress=Silence())
    for _, path in checkpoints(tmp_path / "run"):
        assert {name for name in NAMES if (path / name).exists()} == {"tokenizer.json", "generation_config.json"}
        assert (path / "tokenizer.json").read_text() == "tokenizer.json"
        assert not (path / "notes.txt").exists()
        assert load_model(path, mtp=True)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").mkdir()  # not a file: passed over
    (source / "vocab.json").symlink_to(source / "generation_config.json")
    last = train(make_job(tmp_path / "again", make_options(steps=1), companions=source), resume=False, progress=Silence())
    assert not (last / "vocab.json").is_symlink()
    assert {name for name in NAMES if (last / name).exists()} == {"vocab.json", "generation_config.json"}


def test_a_companion_that_cannot_be_copied_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(ResourceError, match=r"cannot copy `.*tokenizer.json` to .*: the disk is full"):
        train(make_job(tmp_path / "run", make_options(steps=1), companions=tmp_path), resume=False, progress=Silence())
    assert checkpoints(tmp_path / "run") == []


def test_tidying_touches_checkpoints_and_leftovers_only(tmp_path: Path) -> None:
    names = [".step-00000009.partial-x", ".step-00000001.partial-old", ".other.partial-x", "step-7", "step-00000003x", "tensorboard"]
    for name in [*names, *(f"step-{step:08d}" for step in (5, 100, 20))]:
        (tmp_path / name / "folder").mkdir(parents=True)
    (tmp_path / "step-00000200").write_text("a file")
    assert [step for step, _ in checkpoints(tmp_path)] == [5, 20, 100]
    tidy(tmp_path, keep_last=2)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".other.partial-x", "step-7", "step-00000003x", "tensorboard", "step-00000200", "step-00000020", "step-00000100"}
    assert checkpoints(tmp_path / "nothing") == []
    tidy(tmp_path / "nothing", keep_last=1)
