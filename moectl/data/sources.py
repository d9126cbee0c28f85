"""From `[NAME=]SOURCE` on the command line to named domains of files, in a fixed order.

Only names and folders are looked at here, and for `hf://` what the Hub lists; `documents.py` and `token_files.py` read the files.

    parse_sources(["wiki=wiki.jsonl.gz", "code=src/"])
    # {"wiki": (Source(PosixPath("wiki.jsonl.gz"), "jsonl"),), "code": (Source(PosixPath("src/a.py"), "text"), ...)}
"""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moectl.data import demo
from moectl.data.file_kinds import COMPRESSED_SUFFIXES, READABLE, Kind, is_searched_for, kind_of
from moectl.data.hub_files import SCHEME, HubFile, find_hub_files, hub_path
from moectl.errors import DataError, UsageError, from_os_error

# What is read if the user names nothing.
DEFAULT_DATA = ("demo",)

# `experts.parquet` uses `all` for the sum over domains.
_RESERVED_NAME = "all"

# Every way to spell the built-in data, and the split it means.
_DEMO_SPLITS = {"demo": "heldout"} | {f"demo:{split}": split for split in demo.SPLITS}


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read and how: `text` is one document, `jsonl`, `json` and `parquet` one per row, `npy` token ids.

    With `hub` it is a file of a dataset on the Hub, and `path` its place there. A `demo` source is no file but one domain of the built-in
    data; its path is only a label, `demo:SPLIT/DOMAIN`.
    """

    path: Path
    kind: Kind
    hub: HubFile | None = None

    @property
    def label(self) -> str:
        """The file's name in messages."""
        return str(self.path) if self.hub is None else self.hub.label


def parse_sources(specs: Sequence[str]) -> dict[str, tuple[Source, ...]]:
    """The files of every domain, domains in order of first mention; a name given twice joins its sources in order.

    No specs are `demo`: the five built-in domains under their own names, or under NAME all together. A path of that name is `./demo`.

    Raises UsageError for a spec that is not `[NAME=]SOURCE` or a domain that mixes text and token ids, DataError for a
    SOURCE that is missing, empty or of a kind that is not read.
    """
    domains: dict[str, tuple[Source, ...]] = {}
    for spec in specs or DEFAULT_DATA:
        name, location = _split_spec(spec)
        files = _expand(location)
        if files[0].kind == "demo" and name is None:
            for file in files:
                domains[file.path.name] = (*domains.get(file.path.name, ()), file)
            continue
        name = _check_name(_default_name(location) if name is None else name, spec)
        domains[name] = domains.get(name, ()) + files
    for name, files in domains.items():
        if len({file.kind == "npy" for file in files}) == 2:
            raise UsageError(f"the domain `{name}` mixes text and `.npy` token ids", hint="give the two different names with `NAME=SOURCE`")
    return domains


def source_of(path: Path) -> Source:
    """How to read the file `path`, from its suffixes. Raises DataError, by name, for a kind that is not read."""
    return Source(path, kind_of(path, str(path)))


def _split_spec(spec: str) -> tuple[str | None, str]:
    """NAME and SOURCE; a path that exists wins over a `=` inside it, and a NAME never holds a slash."""
    if "\0" in spec:
        raise UsageError(f"`{ascii(spec)[1:-1]}` holds a NUL character", hint="write `NAME=SOURCE` or only `SOURCE`")
    name, equals, location = spec.partition("=")
    if not equals or os.sep in name or os.path.exists(os.path.expanduser(spec)):
        name, location = "", spec
    elif not name:
        raise UsageError(f"`{spec}` has no name before the `=`", hint="write `NAME=SOURCE` or only `SOURCE`")
    if not location:
        raise UsageError(f"`{spec}` names no source", hint="write `NAME=SOURCE`, for example `wiki=wiki.txt`")
    return name or None, os.path.expanduser(location)


def _expand(location: str) -> tuple[Source, ...]:
    if location in _DEMO_SPLITS:
        return tuple(Source(Path(f"demo:{_DEMO_SPLITS[location]}", domain), "demo") for domain in demo.DOMAINS)
    if location.startswith(SCHEME):
        return tuple(Source(Path(file.path), kind_of(Path(file.path), file.label), file) for file in find_hub_files(location))
    path = Path(location)
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return (source_of(path),)
        if path.exists():
            raise DataError(f"`{path}` is neither a file nor a folder", hint=READABLE)
    except (OSError, ValueError) as error:
        raise _unusable_path(location, error) from error
    if glob.has_magic(location):
        files = sorted(Path(match) for match in glob.glob(location, recursive=True) if os.path.isfile(match))
        if not files:
            raise DataError(
                f"no file matches `{location}`", hint="quote the pattern; `**` matches folders of any depth, `*` no hidden file"
            )
        return tuple(source_of(file) for file in files)
    if location.startswith("demo:"):
        raise DataError(
            f"the built-in demo data has no part `{location}`",
            hint="write `demo` (its held-out part) or `demo:train`; a path is `./demo:...`",
        )
    raise DataError(f"`{path}` does not exist", hint=_near_names(path))


def _folder(folder: Path) -> tuple[Source, ...]:
    found: list[Path] = []
    others: Counter[str] = Counter()

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            if is_searched_for(path):
                found.append(path)
            else:
                others[path.suffix or "without a suffix"] += 1
    if not found:
        listing = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items())) or "nothing"
        hint = f"{READABLE}; other files need their own name or a glob such as `{folder}/*.npy` or `{folder}/*.json`"
        raise DataError(f"no text, `.jsonl` or `.parquet` file in the folder `{folder}` (found: {listing})", hint=hint)
    return tuple(source_of(path) for path in sorted(found))


def _default_name(location: str) -> str:
    """The stem without format and compression suffix, a folder's name, or what is fixed in a pattern.

    `wiki.jsonl.gz` -> `wiki`, `v1.5.txt` -> `v1.5`, `logs/wiki-*.jsonl` -> `wiki`, `src/**/*.py` -> `src`.
    """
    if location.startswith(SCHEME):
        path = Path(hub_path(location))
        return _name_of_pattern(path) if glob.has_magic(path.name) else _stem(path)
    path = Path(location)
    if path.is_dir():
        return path.name if path.name not in ("", "..") else path.resolve().name
    return _stem(path) if path.exists() or not glob.has_magic(location) else _name_of_pattern(path)


def _stem(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.name).stem


def _name_of_pattern(path: Path) -> str:
    # Without a fixed part in the file's pattern, the last folder without a wildcard.
    parent = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    return _fixed_text(_stem(path)) or parent.resolve().name


def _fixed_text(pattern: str) -> str:
    """The longest run of `pattern` that is no wildcard, trimmed of separators."""
    for wildcard in "*?":
        pattern = pattern.replace(wildcard, "[]")
    runs = [run.rpartition("]")[2].strip("-_. ") for run in pattern.split("[")]
    return max(runs, key=len)


def _check_name(name: str, spec: str) -> str:
    if name == _RESERVED_NAME:
        raise UsageError(f"the domain name `{name}` is reserved for the sum over domains", hint="give another name: `NAME=SOURCE`")
    if not name or not name.isprintable():
        raise UsageError(f"`{ascii(spec)[1:-1]}` gives no printable domain name", hint="give one: `NAME=SOURCE`")
    return name


def _near_names(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"the folder `{parent}` does not exist either; the working folder is `{Path.cwd()}`"
    near = difflib.get_close_matches(path.name, sorted(os.listdir(parent)), n=3)
    return f"did you mean {' or '.join(f'`{parent / name}`' for name in near)}?" if near else "check the path"


def _unusable_path(location: str, error: OSError | ValueError) -> Exception:
    if isinstance(error, OSError):
        return from_os_error(error, f"read `{location}`")
    return DataError(f"`{ascii(location)[1:-1]}` is not a usable path: {error}", hint="check the path")
