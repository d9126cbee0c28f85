"""The training log: lines that read back exactly, resume that leaves no trace, and TensorBoard's own reader on its files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moectl.errors import DataError, ResourceError, UsageError
from moectl.training.metrics import MetricsLog


def lines_of(folder: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def log_steps(folder: Path, steps: range, *, resume_step: int | None = None, tensorboard: bool = False) -> None:
    with MetricsLog(folder, resume_step=resume_step, tensorboard=tensorboard) as log:
        for step in steps:
            log.write(step, {"loss": 8 / step, "layers": {3: {"load": [0.25, 0.75]}}})


def events_of(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def test_values_read_back_exactly_and_in_order(tmp_path):
    values = {
        "loss": 0.1 + 0.2,
        "lr": np.float32(3e-4),
        "tokens": np.int64(2**53 + 1),
        "phase": "wärmup",
        "note": None,
        "load": torch.tensor([0.25, 0.75]),
        "layers": {1: {"max_vio": torch.tensor(0.5), "load": np.array([1, 2])}, 0: {"pair": (1, [2.5])}},
    }
    with MetricsLog(tmp_path / "run", resume_step=None, tensorboard=False) as log:
        log.write(7, values)
        read = lines_of(tmp_path / "run")  # flushed: the log is still open
    assert read == [
        {
            "step": 7,
            "loss": 0.1 + 0.2,
            "lr": float(np.float32(3e-4)),
            "tokens": 2**53 + 1,
            "phase": "wärmup",
            "note": None,
            "load": [0.25, 0.75],
            "layers": {"1": {"max_vio": 0.5, "load": [1, 2]}, "0": {"pair": [1, [2.5]]}},
        }
    ]
    assert list(read[0]) == ["step", *values]
    assert list(read[0]["layers"]) == ["1", "0"]


def test_what_json_has_no_number_for_is_null(tmp_path):
    with MetricsLog(tmp_path, resume_step=None, tensorboard=False) as log:
        log.write(1, {"a": math.nan, "b": {"c": [math.inf, 1.0, np.float32("-inf")]}, "d": torch.tensor([math.nan, 2.0])})
    assert lines_of(tmp_path) == [{"step": 1, "a": None, "b": {"c": [None, 1.0, None]}, "d": [None, 2.0]}]


def test_steps_only_grow_and_step_is_not_a_value(tmp_path):
    with MetricsLog(tmp_path, resume_step=None, tensorboard=False) as log:
        log.write(2, {"loss": 1})
        log.write(2, {"eval_loss": 2})
        with pytest.raises(ValueError, match="step 1 comes after step 2"):
            log.write(1, {"loss": 1})
        with pytest.raises(ValueError, match="own key"):
            log.write(3, {"step": 4})
        with pytest.raises(TypeError):
            log.write(3, {"loss": object()})
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 2]


@pytest.mark.parametrize("interrupted_at", [4, 5, 9])
def test_resumed_equals_uninterrupted(tmp_path, interrupted_at):
    log_steps(tmp_path / "whole", range(1, 11))
    log_steps(tmp_path / "resumed", range(1, interrupted_at + 1))
    log_steps(tmp_path / "resumed", range(5, 11), resume_step=4)
    assert (tmp_path / "resumed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("torn", [b'{"step": 5, "lo', b'{"step": 4}', b"\0\0\0\0", b"{", b'{"step": 5, "x": "\xc3'])
def test_a_torn_last_line_goes(tmp_path, torn):
    log_steps(tmp_path, range(1, 5))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + torn)
    MetricsLog(tmp_path, resume_step=4, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_new_run_keeps_no_line_of_an_earlier_one(tmp_path):
    log_steps(tmp_path, range(1, 5))
    log_steps(tmp_path, range(1, 2))
    assert [line["step"] for line in lines_of(tmp_path)] == [1]


def test_resume_without_a_file_starts_one(tmp_path):
    log_steps(tmp_path / "new", range(5, 7), resume_step=4)
    assert [line["step"] for line in lines_of(tmp_path / "new")] == [5, 6]


def test_resumed_steps_go_on_from_the_last_line(tmp_path):
    log_steps(tmp_path, range(1, 5))
    with MetricsLog(tmp_path, resume_step=3, tensorboard=False) as log, pytest.raises(ValueError, match="step 2 comes after step 3"):
        log.write(2, {})


@pytest.mark.parametrize("line", [b"loss 3.4\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "1"}\n', b"\xff\n"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, line):
    content = b'{"step": 1}\n' + line + b'{"step": 9}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="line 2 of"):
        MetricsLog(tmp_path, resume_step=4, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, resume_step=None, tensorboard=False)
    log.close()
    with open("/dev/full", "ab", buffering=0) as full:
        monkeypatch.setattr(log, "_file", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            log.write(1, {"loss": 1.0})


def test_scalars_and_histograms_reach_tensorboard(tmp_path):
    with MetricsLog(tmp_path, resume_step=None, tensorboard=True) as log:
        for step in (1, 2):
            values = {"max_vio": 0.5, "load": [0.0, 0.25, 0.75], "ids": ["a"], "pairs": [[1]]}
            log.write(step, {"loss": 1 / step, "phase": "x", "none": None, "layers": {3: values}})
    events = events_of(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["layers/3/max_vio", "loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert events.Tags()["histograms"] == ["layers/3/load"]
    histogram = events.Histograms("layers/3/load")[1].histogram_value
    assert (histogram.num, histogram.min, histogram.max, histogram.sum) == (3, 0.0, 0.75, 1.0)
    assert sum(histogram.bucket) == 3


def test_awkward_numbers_reach_tensorboard(tmp_path):
    lists = {
        "equal": [0.25] * 3,
        "nearly_equal": [0.0625, math.nextafter(0.0625, 1)],
        "zeros": [0, 0],
        "lone": [1e-9, 1e-9, 1e-9, 1.0],
        "holes": [math.nan, 0.5],
        "nothing": [math.nan],
        "empty": [],
    }
    with MetricsLog(tmp_path, resume_step=None, tensorboard=True) as log:
        log.write(1, {"loss": math.nan, **lists})
    events = events_of(tmp_path)
    assert math.isnan(events.Scalars("loss")[0].value)
    histograms = {tag: events.Histograms(tag)[0].histogram_value for tag in events.Tags()["histograms"]}
    counted = {tag: sum(histogram.bucket) for tag, histogram in histograms.items()}
    assert counted == {"equal": 3, "nearly_equal": 2, "zeros": 2, "lone": 4, "holes": 1}
    for histogram in histograms.values():
        assert list(histogram.bucket_limit) == sorted(set(histogram.bucket_limit))  # no bin without a width


def test_events_after_the_resume_step_are_hidden(tmp_path):
    interrupted = MetricsLog(tmp_path, resume_step=None, tensorboard=True)
    for step in range(1, 7):
        interrupted.write(step, {"loss": -1.0, "load": [1, 2]})
    interrupted.flush()  # then killed: its files are never closed
    log_steps(tmp_path, range(5, 8), resume_step=4, tensorboard=True)
    events = events_of(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(s, -1.0) for s in range(1, 5)] + [
        (s, np.float32(8 / s)) for s in range(5, 8)
    ]
    assert [event.step for event in events.Histograms("load")] == [1, 2, 3, 4]
    interrupted.close()


def test_events_of_an_earlier_run_are_hidden_from_a_new_one(tmp_path):
    log_steps(tmp_path, range(1, 5), tensorboard=True)
    [earlier] = (tmp_path / "tensorboard").iterdir()
    # As of another host, whose name sorts behind this one's: only the second in the name may decide which file is read first.
    earlier.rename(earlier.with_name(".".join([*earlier.name.split(".")[:4], "zzz"])))
    log_steps(tmp_path, range(1, 3), tensorboard=True)
    assert [event.step for event in events_of(tmp_path).Scalars("loss")] == [1, 2]


def test_a_missing_tensorboard_is_named_and_nothing_is_touched(tmp_path, monkeypatch):
    log_steps(tmp_path, range(1, 5))
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match="needs the package `tensorboard`") as caught:
        MetricsLog(tmp_path, resume_step=None, tensorboard=True)
    assert caught.value.hint is not None
    assert "pip install 'moectl[tensorboard]'" in caught.value.hint
    assert len(lines_of(tmp_path)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_is_imported_only_when_asked_for(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from moectl.training.metrics import MetricsLog
        with MetricsLog(Path(sys.argv[1]), resume_step=None, tensorboard=False) as log:
            log.write(1, {"loss": 1.0})
        assert not [name for name in sys.modules if "tensorboard" in name]
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
