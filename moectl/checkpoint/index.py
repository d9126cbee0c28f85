"""All tensors of a checkpoint, from the headers of its shards. Reads no tensor.

    index = open_index(Path("Qwen3-30B-A3B"))
    index.tensors["model.embed_tokens.weight"].file

A folder is read through `model.safetensors.index.json`; without one through `model.safetensors`, else its only
`*.safetensors` file, else a complete set of numbered shards. The index and the headers must agree both ways: a
tensor one of them does not know is refused, because which of the two is right cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moectl.checkpoint.header import TensorInfo, read_header
from moectl.checkpoint.json_object import quote, read_object
from moectl.errors import ModelError, from_os_error

if TYPE_CHECKING:
    from moectl.checkpoint.quantised import QuantisedInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})\.safetensors", re.ASCII)
_DOWNLOAD_AGAIN = "download the checkpoint again"


@dataclass(frozen=True, slots=True)
class CheckpointIndex:
    """Every tensor by name, in shard order and byte order; `total_bytes` is the sum of the tensors' bytes."""

    tensors: Mapping[str, TensorInfo | QuantisedInfo]
    shards: tuple[Path, ...]
    total_bytes: int


def open_index(weights: Path) -> CheckpointIndex:
    """Read the headers of a folder or of one `.safetensors` file. Raises ModelError if anything does not agree."""
    if not weights.is_dir():
        return _merge([weights], None)
    index_path = weights / INDEX_NAME
    if index_path.is_file() or index_path.is_symlink():
        weight_map = _read_weight_map(index_path)
        shards = [weights / name for name in sorted(set(weight_map.values()))]
        _require_shards(shards, f"which `{INDEX_NAME}` lists")
        return _merge(shards, weight_map)
    return _merge(_shards_without_index(weights), None)


def weight_names(names: Iterable[str]) -> list[str]:
    """The safetensors files of a Hub layout among file `names`, sorted: no adapters, no `consolidated*` originals."""
    return sorted(name for name in names if name.endswith(".safetensors") and not name.startswith(("adapter", "consolidated", ".")))


def _shards_without_index(folder: Path) -> list[Path]:
    try:
        names = weight_names(path.name for path in folder.iterdir())
    except OSError as error:
        raise from_os_error(error, f"read `{folder}`") from error
    if not names:
        raise ModelError(f"`{folder}` holds no `.safetensors` file")
    if SINGLE_NAME in names:
        return [folder / SINGLE_NAME]
    matches = [SHARD_NAME.fullmatch(name) for name in names]
    if len(names) == 1 and (matches[0] is None or int(matches[0]["count"]) == 1):
        return [folder / names[0]]
    sets = {(match["stem"], match["count"]) for match in matches if match}
    if len(sets) != 1 or None in matches or len(names) > int(next(iter(sets))[1]):
        raise ModelError(
            f"`{folder}` holds {len(names)} `.safetensors` files that are not one set of shards: {_some(names)}",
            hint=f"pass one of the files, or add the `{INDEX_NAME}`",
        )
    ((stem, count),) = sets
    present = {int(match["number"]) for match in matches if match}
    missing = next((number for number in range(1, int(count) + 1) if number not in present), None)
    if missing is not None:
        name = f"{stem}-{missing:0{len(count)}d}-of-{count}.safetensors"
        raise ModelError(
            f"`{folder}` holds {len(names)} of the {int(count)} shards its file names speak of; the first missing one is `{name}`",
            hint=_DOWNLOAD_AGAIN,
        )
    return [folder / name for name in names]


def _read_weight_map(path: Path) -> dict[str, str]:
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"`{path}` has no `weight_map` object", hint=_DOWNLOAD_AGAIN)
    if not weight_map:
        raise ModelError(f"`{path}` lists no tensors", hint=_DOWNLOAD_AGAIN)
    for name, file in weight_map.items():
        # Only names of files beside the index: a shard elsewhere on the disk is not part of this checkpoint.
        plain = isinstance(file, str) and file.isprintable() and not set(file) & set("/\\") and ".." not in file
        if not plain or not file.endswith(".safetensors"):
            raise ModelError(f"`{path}` puts tensor {quote(name)} into {quote(file)}, which is not the plain name of a `.safetensors` file")
    return weight_map


def _require_shards(shards: list[Path], why: str) -> None:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(shards)} shards {why} are missing in `{shards[0].parent}`: {_some(missing)}",
            hint=_DOWNLOAD_AGAIN,
        )


def _merge(shards: list[Path], weight_map: dict[str, str] | None) -> CheckpointIndex:
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(shard).tensors.items():
            if name in tensors:
                raise ModelError(
                    f"tensor {quote(name)} is in two shards, `{tensors[name].file.name}` and `{shard.name}` of `{shard.parent}`"
                )
            tensors[name] = info
    if weight_map is not None:
        _check_weight_map(tensors, weight_map, shards[0].parent / INDEX_NAME)
    if not tensors:
        raise ModelError(f"`{shards[0]}` holds no tensors", hint=_DOWNLOAD_AGAIN)
    return CheckpointIndex(tensors, tuple(shards), sum(info.nbytes for info in tensors.values()))


def _check_weight_map(tensors: dict[str, TensorInfo], weight_map: dict[str, str], index_path: Path) -> None:
    for name, file in weight_map.items():
        info = tensors.get(name)
        if info is None:
            raise ModelError(
                f"tensor {quote(name)} is not in `{index_path.with_name(file)}`, where `{INDEX_NAME}` puts it", hint=_DOWNLOAD_AGAIN
            )
        if info.file.name != file:
            raise ModelError(
                f"tensor {quote(name)} is in `{info.file}`, not in `{file}`, where `{INDEX_NAME}` puts it", hint=_DOWNLOAD_AGAIN
            )
    unlisted = tensors.keys() - weight_map.keys()
    if unlisted:
        first = min(unlisted)
        raise ModelError(
            f"the index `{index_path}` does not list {len(unlisted)} tensors of its shards, "
            f"such as {quote(first)} in `{tensors[first].file.name}`",
            hint=f"download the checkpoint again; if the shards are right, delete `{INDEX_NAME}`: numbered shards are read without it",
        )


def _some(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(quote(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
