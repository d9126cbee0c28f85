"""Outputs that appear whole or not at all: written beside their final name, then renamed.

    with staged_directory(Path("out"), overwrite=False) as folder:
        (folder / "summary.json").write_text("{}")

If the block raises, for any reason including Ctrl-C, nothing is left under the output's name or beside it.
A killed process can leave a `.NAME.partial-*` sibling, never a half-written output.

    with resumable_directory(Path("out"), overwrite=False, key="what is being made") as stage:
        ...                                  # unless "a.safetensors" is in stage.done
        stage.commit("a.safetensors")

Here what was committed survives: the same work, started again, finds it in `stage.done`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from moectl.errors import MoectlError, ResourceError, UsageError, from_os_error

# Every folder moectl writes holds one of these, so `--overwrite` never deletes a folder of something else.
_MARKERS = ("summary.json", "moectl.json")
_JOURNAL = ".journal"


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists. Call it before any long work. Raises UsageError."""
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UsageError(f"the output `{path}` already exists", hint="pass `--overwrite` to replace it, or choose another name")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in _MARKERS):
        raise UsageError(
            f"`{path}` was not written by moectl (it holds no {' or '.join(f'`{name}`' for name in _MARKERS)}), so it is not replaced",
            hint="delete it yourself, or choose another name",
        )


def check_file(path: Path, *, overwrite: bool) -> None:
    """The same for an output that is one file; a folder in its place is never replaced. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder, so no file can be written there", hint="choose another name")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UsageError(f"the output `{path}` already exists", hint="pass `--overwrite` to replace it, or choose another name")


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write one file, whole or not at all. Raises UsageError as check_file, ResourceError if the disk refuses."""
    check_file(path, overwrite=overwrite)
    with _new_parents(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                os.chmod(name, 0o666 & ~_umask())
                os.replace(name, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        except OSError as error:
            raise from_os_error(error, f"write `{path}`") from error


@contextlib.contextmanager
def staged_directory(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty sibling of `path`; rename it to `path` if the block succeeds.

    Raises UsageError if `path` exists and `overwrite` is false, ResourceError if the disk refuses.
    """
    check_output(path, overwrite=overwrite)
    with _new_parents(path):
        stage = _make_stage(path)
        try:
            yield stage
            _publish(stage, path)
        except MoectlError:
            raise
        except OSError as error:
            raise from_os_error(error, f"write `{path}`") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)


class ResumableStage:
    """A staging folder that outlives a failure. `done`: names of the files that are complete and on the disk."""

    def __init__(self, folder: Path, done: set[str], journal: int) -> None:
        self.folder = folder
        self.done = done
        self._journal = journal
        self._lock = threading.Lock()

    def commit(self, name: str) -> None:
        """The file is complete: write it through to the disk and remember it. Safe from several threads. Raises OSError."""
        _sync_file(self.folder / name)
        with self._lock:
            os.write(self._journal, (json.dumps(name) + "\n").encode())
            os.fsync(self._journal)
            self.done.add(name)


@contextlib.contextmanager
def resumable_directory(path: Path, *, overwrite: bool, key: str) -> Iterator[ResumableStage]:
    """Yield a stage beside `path`; rename its folder to `path` if the block succeeds.

    If the block is interrupted or the system refuses, the stage stays as long as anything in it is done, and the next call with the same
    `key` (one line that names the work) continues it; a call with another key starts afresh. After any other error nothing is left.
    Raises UsageError if `path` exists and `overwrite` is false or another process is at the same work, ResourceError if the disk refuses.
    """
    check_output(path, overwrite=overwrite)
    folder = path.with_name(f".{path.name}.partial")
    keep = False
    with _new_parents(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            journal = os.open(folder / _JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise from_os_error(error, f"create `{path}`") from error
        try:
            _take(journal, path)
            stage = ResumableStage(folder, _continued(folder, journal, key), journal)
            try:
                yield stage
                (folder / _JOURNAL).unlink()
                _publish(folder, path)
            except BaseException as error:
                # What is not an Exception is an interruption.
                lasting = isinstance(error, ResourceError | OSError) or not isinstance(error, Exception)
                keep = lasting and bool(stage.done) and (folder / _JOURNAL).exists()
                if isinstance(error, OSError):
                    raise from_os_error(error, f"write `{path}`") from error
                raise
            finally:
                if not keep:
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(journal)


def _take(journal: int, path: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another process is writing `{path}`", hint="wait for it, or choose another name") from error


def _continued(folder: Path, journal: int, key: str) -> set[str]:
    """Names of the files an earlier call with this key committed; of any other call nothing is kept."""
    lines = []
    for line in os.pread(journal, os.fstat(journal).st_size, 0).decode(errors="replace").split("\n"):
        # A last line cut short by a kill says nothing.
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    if lines[:1] == [key]:
        return {name for name in lines[1:] if isinstance(name, str) and (folder / name).is_file()}
    for entry in folder.iterdir():
        if entry.name != _JOURNAL:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    os.ftruncate(journal, 0)
    os.write(journal, (json.dumps(key) + "\n").encode())
    return set()


def _publish(stage: Path, path: Path) -> None:
    for file in stage.rglob("*"):
        if file.is_file():
            _sync_file(file)
    stage.chmod(0o777 & ~_umask())
    _replace(stage, path)


@contextlib.contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Folders made in the block to hold `path` go with it if it failed; otherwise they hold it, and are not removed."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_stage(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise from_os_error(error, f"create `{path}`") from error


def _replace(stage: Path, path: Path) -> None:
    if not (path.exists() or path.is_symlink()):
        os.rename(stage, path)
        return
    old = stage.with_name(stage.name + ".old")
    os.rename(path, old)
    try:
        os.rename(stage, path)
    except BaseException:
        os.rename(old, path)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()


def _sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
