"""Files of datasets on the Hub, `hf://datasets/org/name[@revision]/path`, through `huggingface_hub`, its cache and `HF_HUB_OFFLINE`.

    (file,) = find_hub_files("hf://datasets/org/name@main/data/train.jsonl")
    with open_hub_file(file, in_part=True) as stream:
        stream.read(100)

A branch or tag is resolved to its commit once, so all files of a pattern are of one commit, and a file of that commit that is already in
the cache is read from there. Where the Hub cannot be reached, or must not be, the cache is all there is.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from moectl.data.hub_errors import is_unreachable, named_errors
from moectl.errors import DataError

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

SCHEME = "hf://"
_LOCATION = re.compile(
    # The Hub's own refs are the only revisions that hold a slash as it is.
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert/[\w.-]+|pr/\d+)|[^/]+))?/(?P<path>[^/].*)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What one request fetches; a caller who wants few tokens should not pay for more.
_READ_AHEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a dataset: `commit` is what the `revision` that the user wrote stands for; `label` names the file in messages."""

    repository: str
    revision: str
    commit: str
    path: str
    label: str


def find_hub_files(location: str) -> tuple[HubFile, ...]:
    """The file at `location`, or those its pattern matches, sorted. Asks the Hub for names only.

    Raises DataError for what is no such location, is missing, is gated or cannot be reached; ResourceError if the system refuses.
    """
    _parse(location)
    with named_errors(location):
        try:
            return _from_hub(location)
        except Exception as error:
            found = _from_cache(location) if is_unreachable(error) else ()
            if not found:
                raise
            return found


@contextlib.contextmanager
def open_hub_file(file: HubFile, *, in_part: bool) -> Iterator[IO[bytes]]:
    """The bytes of `file`, with seek. `in_part` fetches what is read and keeps nothing; else the whole file enters the cache first.

    Raises as find_hub_files, also for what fails inside the block.
    """
    path = _cached(file)
    if path is None and not in_part:
        path = download_hub_file(file)
    with named_errors(file.label), contextlib.ExitStack() as stack:
        if path is not None:
            yield stack.enter_context(path.open("rb"))
        else:
            remote = _file_system().open(_remote(file), "rb", block_size=_READ_AHEAD_BYTES)
            yield stack.enter_context(cast(IO[bytes], remote))


def download_hub_file(file: HubFile) -> Path:
    """The file in the cache, fetched whole if it is not there. Raises as find_hub_files."""
    import huggingface_hub

    with named_errors(file.label):
        path = _cached(file)
        # By the name of the branch, so that the cache knows its commit when there is no network; again if it has just moved.
        for revision in (file.revision, file.commit):
            if path is None or file.commit not in path.parts:
                path = Path(huggingface_hub.hf_hub_download(file.repository, file.path, revision=revision, repo_type="dataset"))
        assert path is not None
        return path


def hub_path(location: str) -> str:
    """`name/path` of a location, to name a domain after."""
    repository, _, path = _parse(location)
    return f"{repository.partition('/')[2]}/{path}"


def _parse(location: str) -> tuple[str, str, str]:
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise DataError(
            f"cannot read `{location}`: it names no file of a dataset on the Hub",
            hint="write `hf://datasets/org/name/path/to/file`, with `@revision` after the name if need be; patterns such as "
            "`hf://datasets/org/name/**/*.parquet` are allowed",
        )
    return match["repository"], unquote(match["revision"] or "main"), match["path"]


def _commit(repository: str, revision: str) -> str:
    import huggingface_hub

    if _COMMIT.fullmatch(revision):
        return revision
    commit = huggingface_hub.HfApi().dataset_info(repository, revision=revision).sha
    return commit or revision


def _from_hub(location: str) -> tuple[HubFile, ...]:
    repository, revision, path = _parse(location)
    commit = _commit(repository, revision)
    if not glob.has_magic(path):
        file = HubFile(repository, revision, commit, path, location)
        if _cached(file) is None and _file_system().info(_remote(file))["type"] != "file":
            raise DataError(f"`{location}` is a folder", hint=f"name its files, for example `{location.rstrip('/')}/*.parquet`")
        return (file,)
    root = _remote(HubFile(repository, revision, commit, "", location))
    found = cast(dict[str, dict[str, Any]], _file_system().glob(root + path, detail=True))
    files = _files(location, commit, [name.removeprefix(root) for name, entry in found.items() if entry["type"] == "file"])
    if not files:
        raise DataError(f"no file matches `{location}`", hint="quote the pattern; `**` matches folders of any depth")
    return files


def _from_cache(location: str) -> tuple[HubFile, ...]:
    """What the cache holds of `location`. Of a pattern that may be only some of the files: nobody offline can tell."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository, revision, path = _parse(location)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="dataset"))
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = folder / "snapshots" / commit
    names = glob.glob(path, root_dir=snapshot, recursive=True) if glob.has_magic(path) else [path]
    return _files(location, commit, [name for name in names if os.path.isfile(snapshot / name)])


def _files(location: str, commit: str, names: list[str]) -> tuple[HubFile, ...]:
    repository, revision, path = _parse(location)
    return tuple(HubFile(repository, revision, commit, name, location[: -len(path)] + name) for name in sorted(names))


def _cached(file: HubFile) -> Path | None:
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(file.repository, file.path, revision=file.commit, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def _file_system() -> HfFileSystem:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _remote(file: HubFile) -> str:
    return f"datasets/{file.repository}@{file.commit}/{file.path}"
