"""Outputs that appear whole or not at all: written beside their final name, then renamed.

    with staged_directory(Path("out"), overwrite=False) as folder:
        (folder / "summary.json").write_text("{}")

If the block raises, for any reason including Ctrl-C, nothing is left under the output's name or beside it.
A killed process can leave a `.NAME.partial-*` sibling, never a half-written output.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moectl.errors import MoectlError, UsageError, from_os_error

# Every folder moectl writes holds one of these, so `--overwrite` never deletes a folder of something else.
_MARKERS = ("summary.json", "moectl.json")


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
            _sync(stage)
            stage.chmod(0o777 & ~_umask())
            _replace(stage, path)
        except MoectlError:
            raise
        except OSError as error:
            raise from_os_error(error, f"write `{path}`") from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)


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


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
