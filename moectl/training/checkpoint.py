"""Checkpoints of a training run: each a complete model in Hub layout, with the optimizer's state and the run's position beside it.

    RUN/metrics.jsonl
    RUN/step-00000500/  config.json model.safetensors tokenizer.json ...   the model, ready for any command
                        optimizer/model.safetensors                        moments (and float32 masters), by parameter
                        training.json                                      step, data position, options, hashes
                        moectl.json                                        provenance

A checkpoint appears whole or not at all, and goes at once; what a killed process left half-written has a hidden name, and the next life of
the run removes it. It does not depend on how many processes trained it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moectl.checkpoint.companions import copy_companions
from moectl.checkpoint.dtypes import dtype_name
from moectl.checkpoint.index import open_index
from moectl.checkpoint.json_object import read_object
from moectl.checkpoint.locate import CONFIG_NAME
from moectl.checkpoint.quantised import plain_config
from moectl.checkpoint.reader import TensorReader
from moectl.checkpoint.writer import CheckpointWriter, PlannedTensor
from moectl.errors import ModelError, UsageError
from moectl.model.decoder import Model
from moectl.model.save import save_model
from moectl.staging import staged_directory
from moectl.training.optimizer import MasterAdamW

_STEP = re.compile(r"step-(\d{8,})")
# Of a checkpoint being written (`moectl.staging`) or deleted.
_PARTIAL = ".step-*.partial-*"
_STATE, _PROVENANCE, _OPTIMIZER = "training.json", "moectl.json", "optimizer"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint of a run, oldest first."""
    if not run.is_dir():
        return []
    found = [(int(match[1]), path) for path in run.iterdir() if (match := _STEP.fullmatch(path.name)) and path.is_dir()]
    return sorted(found)


def tidy(run: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints, and what killed processes left of those they were writing or deleting."""
    for _, old in checkpoints(run)[:-keep_last]:
        # Its name goes first: half a checkpoint must not look like one. What cannot be deleted is no reason to stop a run.
        with contextlib.suppress(OSError):
            old.rename(old.with_name(f".{old.name}.partial-old"))
    for path in run.glob(_PARTIAL):
        shutil.rmtree(path, ignore_errors=True)


def save_checkpoint(
    run: Path,
    step: int,
    *,
    model: Model,
    config: Mapping[str, Any],
    optimizer: MasterAdamW,
    state: Mapping[str, Any],
    provenance: Mapping[str, Any],
    companions: Path | None,
    keep_last: int,
) -> Path:
    """Write `RUN/step-N`, then `tidy`. Raises ResourceError, leaving the older ones alone."""
    path = run / f"step-{step:08d}"
    with staged_directory(path, overwrite=True) as folder:
        save_model(model, config, folder)
        if companions is not None:
            copy_companions(companions, folder)
        tensors = {name: tensor.contiguous() for name, tensor in optimizer.state().items()}
        plan = [PlannedTensor(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
        (folder / _OPTIMIZER).mkdir()
        with CheckpointWriter(folder / _OPTIMIZER, plan) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        _write_json(folder / _STATE, {"step": step, **state})
        _write_json(folder / _PROVENANCE, {"provenance": provenance})
    tidy(run, keep_last=keep_last)
    return path


def load_optimizer(path: Path, optimizer: MasterAdamW) -> None:
    """Take up the optimizer's state of a checkpoint. Raises ModelError if it is damaged or of another model."""
    with TensorReader(open_index(path / _OPTIMIZER)) as reader:
        state: dict[str, Tensor] = {name: reader.read(name).to(torch.float32) for name in reader.index.tensors}
    optimizer.load_state(state)


def load_state(path: Path, *, expected: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The run's position.

    Raises UsageError if the run was started with other options or data than `expected` or another `config`, naming what differs, ModelError
    if the file is damaged.
    """
    state = read_object(path / _STATE)
    step, taken = state.get("step"), state.get("taken")
    whole = isinstance(taken, list) and all(type(n) is int for n in taken) and isinstance(state.get("options"), dict)
    if not whole or type(step) is not int or f"step-{step:08d}" != path.name:
        raise ModelError(f"`{path / _STATE}` does not say where the run was", hint="resume from an older checkpoint by deleting this one")
    # What an earlier version did not write down cannot be compared.
    for key in (key for key in expected if key in state):
        _compare(key, state[key], expected[key], path)
    written, config = read_object(path / CONFIG_NAME), plain_config(config)
    # The dtype is the checkpoint's own.
    for key in sorted((written.keys() | config.keys()) - {"dtype", "torch_dtype"}):
        _compare(f"config.{key}", written.get(key), config.get(key), path)
    return state


def _compare(name: str, found: Any, wanted: Any, path: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            _compare(f"{name}.{key}", found.get(key), wanted.get(key), path)
    elif found != wanted:
        raise UsageError(
            f"the run in `{path.parent}` was started with {name} = {found}, not {wanted}",
            hint="resume with the same settings, or start a new run in another folder",
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
