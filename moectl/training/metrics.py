"""The log of a training run: one JSON object per line in `metrics.jsonl`, and TensorBoard event files beside it if asked for.

    with MetricsLog(folder, resume_step=None, tensorboard=False) as log:
        log.write(1, {"loss": 7.62, "layers": {3: {"max_vio": 0.4, "load": [0.1, 0.9]}}})

A run that was interrupted and resumed leaves the same lines as one that was not: on resume, what was logged after the checkpoint is cut
off before anything is added. Values are whatever the caller measured; wall-clock figures among them will differ, as they do anyway.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from moectl.errors import DataError, UsageError, from_os_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Linear bins between the smallest and the largest value of a list. A fixed number, because numpy's "auto" can ask for
# billions of bins when one expert takes nearly everything.
_HISTOGRAM_BINS = 30


class MetricsLog:
    """Writes `folder/metrics.jsonl` and, with `tensorboard`, event files in `folder/tensorboard`.

    `resume_step` is the step of the checkpoint that training goes on from: lines of later steps, and a last line that was not written
    to its end, are cut off. None starts a new run, which keeps no line of an earlier one. Events cannot be cut; those after
    `resume_step` (all, if None) are marked as purged, and TensorBoard does not show them.

    Raises UsageError if `tensorboard` is asked for and not installed, DataError if an earlier line is not a JSON object with a `step`,
    ResourceError if the disk refuses.
    """

    def __init__(self, folder: Path, *, resume_step: int | None, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        # First what can be refused, so that a refusal has changed nothing.
        if tensorboard:
            _check_tensorboard()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._last_step = _cut(self.path, resume_step)
            self._file = self.path.open("ab")
            self._events = _open_events(folder / "tensorboard", resume_step) if tensorboard else None
        except OSError as error:
            raise from_os_error(error, f"write `{self.path}`") from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line `{"step": step, **values}`, on disk before the next step should the process be killed.

        Values may nest: mappings, lists, numpy arrays and tensors. Floats are written in the fewest digits that read back the same;
        NaN and infinities, which JSON does not have, as null. TensorBoard gets every number under its path (`layers/3/max_vio`), NaN
        included, and every flat list of numbers as a histogram of its finite values: the spread of the experts' load, not which expert
        has it; strings, nulls and nested lists stay in the JSONL.

        Steps never go back (ValueError), though two lines may share one. Raises TypeError for what JSON cannot hold,
        ResourceError if the disk refuses.
        """
        if step < self._last_step:
            raise ValueError(f"step {step} comes after step {self._last_step}")
        if "step" in values:
            raise ValueError("`step` is the line's own key and cannot be among the values")
        plain = _plain(values)
        line = json.dumps({"step": step, **_nulled(plain)}, ensure_ascii=False, allow_nan=False)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if self._events is not None:
                _add_events(self._events, step, plain)
        except OSError as error:
            raise from_os_error(error, f"write `{self.path}`") from error
        self._last_step = step

    def flush(self) -> None:
        """Bring everything written so far to the disk. Raises ResourceError if it refuses.

        Call it before a checkpoint is saved, with all lines of its step written: a resumed run starts from the lines up to that step.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._events is not None:
                self._events.flush()
        except OSError as error:
            raise from_os_error(error, f"write `{self.path}`") from error

    def close(self) -> None:
        """Flush and close the files. Closing twice is harmless."""
        try:
            self._file.close()
            if self._events is not None:
                self._events.close()
        except OSError as error:
            raise from_os_error(error, f"write `{self.path}`") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _cut(path: Path, resume_step: int | None) -> int:
    """Drop the lines after `resume_step` and a torn last one; returns the last step kept, 0 if none.

    Steps only grow, so what goes is the end of the file, and one truncation, which a crash cannot leave half done, removes it.
    """
    kept_bytes, last_step = 0, 0
    if not path.exists():
        return last_step
    with path.open("r+b") as file:
        if resume_step is not None:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                step = _step_of(line, path, number)
                if step > resume_step:
                    break
                kept_bytes, last_step = kept_bytes + len(line), step
        file.truncate(kept_bytes)
        os.fsync(file.fileno())
    return last_step


def _step_of(line: bytes, path: Path, number: int) -> int:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        step = None
    if not isinstance(step, int):
        raise DataError(f"line {number} of `{path}` is not a JSON object with a `step`", hint="delete that line, or move the file away")
    return step


def _plain(value: Any) -> Any:
    """Mappings, lists, numbers and strings from what may be tensors, arrays and numpy scalars. Keys become strings, as JSON wants."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _check_tensorboard() -> None:
    try:
        # Only here: it is optional, and takes seconds to import.
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"TensorBoard logging needs the package `tensorboard`, which cannot be imported ({error})",
            hint="pip install 'moectl[tensorboard]', or go without: the same figures are in `metrics.jsonl`",
        ) from error


def _open_events(folder: Path, resume_step: int | None) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    earlier = sorted(folder.glob("events.out.tfevents.*")) if folder.is_dir() else []
    # TensorBoard reads the files in the order of their names, which begin with the second they were opened in. A resume within that
    # second could sort before the file whose events it hides.
    if earlier and earlier[-1].name.split(".")[3] == f"{int(time.time()):010d}":
        time.sleep(1 - time.time() % 1)
    purge_step = None if not earlier else 0 if resume_step is None else resume_step + 1
    return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)


def _add_events(events: SummaryWriter, step: int, values: dict[str, Any]) -> None:
    for tag, value in _flattened(values):
        if _is_number(value):
            events.add_scalar(tag, float(value), step)
        elif isinstance(value, list) and value and all(_is_number(item) for item in value):
            finite = [item for item in value if math.isfinite(item)]
            if finite:
                events.add_histogram(tag, np.array(finite, np.float64), step, bins=_bin_edges(min(finite), max(finite)))


def _bin_edges(low: float, high: float) -> list[float]:
    # Values that agree, or do to rounding, would give bins without a width.
    margin = 1e-6 * max(abs(low), abs(high), 1e-6)
    if high - low < margin:
        low, high = low - margin, high + margin
    edges: list[float] = np.linspace(low, high, _HISTOGRAM_BINS + 1).tolist()
    return edges
