"""Too little memory or disk, no such device: exit code 4, and nothing half-written."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import ROUTER, assert_says
from route_runs import TABLES
from tiny_checkpoints import edit


def test_cuda_without_cuda(model, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--device", "cuda", code=4)
    assert_says(refusal, ("the device `cuda` is not there",), "--device cpu")


@pytest.mark.parametrize("extra", [(), ("--order", "resident"), ("--order", "streamed"), ("--dry-run",)])
def test_too_little_memory(model, refused, extra):
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--memory", "1MB", *extra, code=4)
    assert_says(refusal, ("this run would take ", "B of memory, but 1.00 MB are allowed"), "raise `--memory`")


class FullDisk(io.FileIO):
    """A file on a disk that fills up after `room` bytes: part of the data arrives, then the system refuses."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            super().write(bytes(data)[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.parametrize(
    "name",
    [
        *TABLES,
        "report.html",
        "summary.json",
        "trace.safetensors",
    ],
)
def test_a_disk_that_fills_up(model, refused, monkeypatch, name, room):
    real = Path.open
    filled = []

    def fake(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name != name:
            return real(path, mode, *arguments, **options)
        filled.append(path)
        disk = FullDisk(path, mode.replace("b", ""))
        disk.room = room
        return disk

    monkeypatch.setattr(Path, "open", fake)
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--trace", code=4)
    assert len(filled) == 1
    assert_says(refusal, ("cannot write `", f"{name}`: the disk is full"), "free some space")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fills_up_at_the_last_step(model, refused, monkeypatch, call):
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=4)
    assert_says(refusal, ("cannot write `out`: the disk is full",), "free some space")


def test_too_little_room_is_known_before_the_run(model, refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--trace", code=4)
    assert_says(refusal, ("`out` needs 1.0", "its disk has 1.00 kB free"), "leave out `--trace`")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(model, refused):
    Path("locked").mkdir(mode=0o500)
    refusal = refused("model", "--data", "text.txt", "--output", "locked/out", code=4)
    assert_says(refusal, ("`locked/out`", "Permission denied"), "check the permissions")


def test_a_parent_that_is_a_file(model, refused):
    refusal = refused("model", "--data", "text.txt", "--output", "text.txt/out", code=4)
    assert_says(refusal, ("`text.txt/out`",), "")


def test_folders_made_for_a_failed_output_go_with_it(model, refused):
    edit(model, lambda tensors: tensors[ROUTER].fill_(float("nan")), name=ROUTER)
    refused("model", "--data", "text.txt", "--output", "results/today/out", code=3)
