"""MODEL, as written on the command line, to the files it means. Reads `config.json` and no weights.

    location = locate("Qwen/Qwen3-30B-A3B@main")
    config = read_config(location)

What moectl cannot read is refused here, by name, before anything large is downloaded.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moectl.checkpoint.formats import refuse_file, refuse_files, refuse_quantization
from moectl.checkpoint.hub import HubRepository
from moectl.checkpoint.index import INDEX_NAME, SHARD_NAME, weight_names
from moectl.checkpoint.json_object import Pairs, quote, read_object
from moectl.errors import ModelError, from_os_error

CONFIG_NAME = "config.json"
DEMO = "demo"
_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo_model"
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".json", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_SPECIAL_FLOATS = ("Infinity", "-Infinity", "NaN")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model is. `name` is MODEL as written, without the revision; `revision` is the Hub commit, None for a path.

    `weights` is the folder or the one file for `open_index`; None where only a `config.json` was given.
    """

    name: str
    folder: Path
    config_path: Path
    weights: Path | None
    revision: str | None


def locate(model: str, *, weights: bool = True) -> Location:
    """Find MODEL: a folder, a `.safetensors` file, a `config.json`, a Hub id `org/name[@revision]`, or `demo`, the built-in model.

    A path wins over a Hub id; `demo` always is the built-in model, a folder of that name is `./demo`.

    With `weights=False` a Hub id is fetched without its weights, to look at the config before a long download.
    Raises ModelError for anything that is missing or not readable by this version.
    """
    if model == DEMO:
        return _built_in()
    path = Path(os.path.expanduser(model))
    if model and os.path.exists(path):
        return _from_folder(model, path) if path.is_dir() else _from_file(model, path)
    hub_id = _HUB_ID.fullmatch(model)
    if hub_id is None or model.lower().endswith(_FILE_SUFFIXES):
        raise ModelError(f"the model {quote(model)} does not exist", hint=_near_names(path))
    return _from_hub(HubRepository(hub_id["name"], hub_id["revision"]), path, weights=weights)


def require_weights(location: Location) -> Path:
    """The weights, for `open_index`. Raises ModelError where there is only a `config.json`."""
    if location.weights is None:
        raise ModelError(
            f"`{location.name}` holds a `{CONFIG_NAME}` but no weights", hint="pass the folder that holds the `.safetensors` files as well"
        )
    return location.weights


def read_config(location: Location) -> dict[str, Any]:
    """The `config.json` as a dict, `{"__float__": "Infinity"}` of newer transformers as a float.

    Raises ModelError if it is not a JSON object.
    """
    return read_object(location.config_path, hook=_config_object)


def _config_object(pairs: Pairs) -> Any:
    # Duplicate keys: the last one wins, as for everybody else who reads this file.
    found = dict(pairs)
    if found.keys() == {"__float__"}:
        if found["__float__"] not in _SPECIAL_FLOATS:
            raise ValueError(f"`__float__` must be one of {', '.join(_SPECIAL_FLOATS)}, not {quote(found['__float__'])}")
        return float(found["__float__"])
    return found


def _built_in() -> Location:
    if not (_DEMO_FOLDER / CONFIG_NAME).is_file():
        raise ModelError("the built-in model is not part of this installation", hint="install moectl again, or run `make demo-model`")
    return replace(_from_folder(str(_DEMO_FOLDER), _DEMO_FOLDER), name=DEMO)


def _from_folder(model: str, folder: Path) -> Location:
    names = _names(folder)
    refuse_files(names, where=model)
    if CONFIG_NAME not in names:
        raise _no_config(model, names)
    has_weights = bool(weight_names(names)) or INDEX_NAME in names
    return _checked(Location(model, folder, folder / CONFIG_NAME, folder if has_weights else None, None), names)


def _from_file(model: str, path: Path) -> Location:
    folder = path.parent
    names = _names(folder)
    if path.name == CONFIG_NAME:
        return _checked(Location(model, folder, path, None, None), names)
    if path.suffix != ".safetensors":
        refuse_file(path)
    shard = SHARD_NAME.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        raise ModelError(f"`{path}` is one of {int(shard['count'])} shards of a model", hint=f"pass the folder `{folder}`")
    if "adapter_config.json" in names and path.name.startswith("adapter"):
        refuse_files({"adapter_config.json"}, where=model)
    if CONFIG_NAME not in names:
        raise _no_config(str(folder), names)
    return _checked(Location(model, folder, folder / CONFIG_NAME, path, None), names)


def _from_hub(repository: HubRepository, path: Path, *, weights: bool) -> Location:
    model = repository.name
    try:
        folder = repository.download(weights=False)
    except ModelError as error:
        # `runs/mixtrl` has the form of a Hub id but is more likely a path when there is a folder `runs`.
        if os.path.isdir(path.parent):
            error.hint = "; ".join(part for part in (error.hint, _near_names(path)) if part)
        raise
    commit = HubRepository(model, folder.name)
    names = _names(folder)
    if CONFIG_NAME not in names:
        names |= commit.file_names()
        refuse_files(names, where=model)
        raise _no_config(model, names)
    location = _checked(Location(model, folder, folder / CONFIG_NAME, None, folder.name), names)
    if not weights:
        return location
    names = _names(commit.download(weights=True))
    if not weight_names(names):
        refuse_files(names | commit.file_names(), where=model)
        return location
    return Location(model, folder, location.config_path, folder, folder.name)


def _checked(location: Location, names: set[str]) -> Location:
    refuse_quantization(read_config(location), names=names, where=location.name)
    return location


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise from_os_error(error, f"read `{folder}`") from error


def _no_config(where: str, names: set[str]) -> ModelError:
    shown = sorted(name for name in names if not name.startswith("."))
    inside = ", ".join(quote(name) for name in shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
    return ModelError(
        f"`{where}` has no `{CONFIG_NAME}`; it holds {inside or 'nothing'}",
        hint=f"pass the folder that holds `{CONFIG_NAME}` and the weights",
    )


def _near_names(path: Path) -> str:
    parent = path.parent
    if not os.path.isdir(parent):
        return f"there is no folder `{parent}` either"
    near = difflib.get_close_matches(path.name, sorted(_names(parent)), n=3) if os.access(parent, os.R_OK) else []
    return "did you mean " + " or ".join(f"`{parent / name}`" for name in near) + "?" if near else "check the path"
