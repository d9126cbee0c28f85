"""A saved run -> its statistics, exactly: what `files.py` wrote, read back and checked.

    stats, provenance = read_route_stats(Path("stats"))
    write_route_stats(stats, another, provenance=provenance)      # the same bytes

A folder with a summary is a run, any other file or folder should be a trace (see `routing.replay`).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moectl.checkpoint.header import read_header
from moectl.checkpoint.json_object import read_object
from moectl.errors import DataError, ModelError, from_os_error
from moectl.routing.frames import ALL, BOUND_KEYS, METRIC_KEYS
from moectl.routing.pair_frames import DOMAIN_PAIR_DTYPES, EXPERT_PAIR_DTYPES
from moectl.routing.replay import stats_from_trace
from moectl.routing.result import RouteStats
from moectl.routing.token_frames import CLASS_DTYPES, VOCABULARY_DTYPES

TRACE = "trace.safetensors"
_SUMMARY = "summary.json"
_EXPERT_TYPES = {
    "domain": "string", "layer": "int32", "expert": "int32", "tokens": "int64", "share": "double", "relative_load": "double",
    "weight_sum": "double", "mean_weight": "double", "first_choice_tokens": "int64", "share_low": "double", "share_high": "double",
    "domain_specialisation": "double", "lift": "double", "gate_score": "double", "domain_entropy": "double",
    "expert_set": "int32", "expert_set_gate": "int32",
}  # fmt: skip
_LAYER_TYPES = {
    "domain": "string", "layer": "int32", "n_experts": "int32", "top_k": "int32", "tokens": "int64",
    **dict.fromkeys((*METRIC_KEYS, *BOUND_KEYS), "double"),
}  # fmt: skip
_ARROW_NAMES = {"object": "string", "float64": "double"}
_VOCABULARY_TYPES = {name: _ARROW_NAMES.get(dtype, dtype) for name, dtype in VOCABULARY_DTYPES.items()}
_CLASS_TYPES = {name: _ARROW_NAMES.get(dtype, dtype) for name, dtype in CLASS_DTYPES.items()}
_EXPERT_PAIR_TYPES = {name: _ARROW_NAMES.get(dtype, dtype) for name, dtype in EXPERT_PAIR_DTYPES.items()}
_DOMAIN_PAIR_TYPES = {name: _ARROW_NAMES.get(dtype, dtype) for name, dtype in DOMAIN_PAIR_DTYPES.items()}
_TEXT, _WHOLE, _NUMBER = (str,), (int,), (int, float, type(None))
_SUMMARY_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "provenance": {"dtype": _TEXT, "device": _TEXT},
    "model": {"name": _TEXT, "model_type": _TEXT, "layers": _WHOLE, "experts": _WHOLE, "top_k": _WHOLE, "shared_experts": _WHOLE},
    "data": {},
    "overall": {},
    "throughput": {"tokens_per_s": _NUMBER, "read_gb": _NUMBER, "peak_rss_gb": _NUMBER, "seconds": _NUMBER},
}


def load_saved(source: Path) -> tuple[RouteStats, dict[str, Any]]:
    """The run or trace at `source`, a folder or a trace file, and its provenance. Raises DataError, ResourceError."""
    if not source.exists():
        raise DataError(f"`{source}` does not exist", hint="name a folder that `moectl route-stats --output` wrote, or a trace")
    if source.is_file():
        if source.name == _SUMMARY:
            raise DataError(f"`{source}` is only the summary of a run", hint=f"name its folder, `{source.parent}`")
        return stats_from_trace(source)
    if (source / _SUMMARY).exists():
        return read_route_stats(source)
    if (source / TRACE).exists():
        return stats_from_trace(source / TRACE)
    raise DataError(
        f"`{source}` holds no run: neither `{_SUMMARY}` nor `{TRACE}` is in it",
        hint="name a folder that `moectl route-stats --output` wrote, or a trace",
    )


def read_route_stats(folder: Path) -> tuple[RouteStats, dict[str, Any]]:
    """What `write_route_stats` wrote into `folder`, and the provenance it was given. Raises DataError, ResourceError."""
    try:
        summary = read_object(folder / _SUMMARY)
        counts_LEE, layers, coactivation_text = _read_coactivation(folder / "coactivation.safetensors")
    except ModelError as error:
        raise DataError(error.message, hint="the folder is damaged: run `moectl route-stats` again") from error
    experts, experts_text = _read_parquet(folder / "experts.parquet", _EXPERT_TYPES)
    layer_table, layers_text = _read_parquet(folder / "layers.parquet", _LAYER_TYPES)
    vocabulary, vocabulary_text = _read_parquet(folder / "vocabulary.parquet", _VOCABULARY_TYPES)
    classes, classes_text = _read_parquet(folder / "token_classes.parquet", _CLASS_TYPES)
    expert_pairs, expert_pairs_text = _read_parquet(folder / "expert_pairs.parquet", _EXPERT_PAIR_TYPES)
    domain_pairs, domain_pairs_text = _read_parquet(folder / "domain_pairs.parquet", _DOMAIN_PAIR_TYPES)
    pairs_texts = {expert_pairs_text, domain_pairs_text}
    if len({experts_text, layers_text, vocabulary_text, classes_text, coactivation_text} | pairs_texts) > 1:
        raise _refuse(folder, "its files come of different runs")
    try:
        provenance = json.loads(experts_text)
    except (ValueError, RecursionError) as error:
        raise _refuse(folder, "the provenance of its tables is not JSON") from error
    _check_summary(folder, summary, provenance)
    stats = RouteStats(
        summary=summary,
        experts=experts,
        layers=layer_table,
        coactivation_LEE=counts_LEE,
        moe_layers=layers,
        vocabulary=vocabulary,
        token_classes=classes,
        expert_pairs=expert_pairs,
        domain_pairs=domain_pairs,
    )
    _check_rows(folder, stats)
    _check_pairs(folder, stats)
    return stats, provenance


def _read_parquet(path: Path, types: dict[str, str]) -> tuple[pd.DataFrame, str]:
    """The table as it was, and the text of its provenance."""
    try:
        table = pq.read_table(path, memory_map=False, use_threads=False)
    except FileNotFoundError as error:
        raise _refuse(path.parent, f"`{path.name}` is missing") from error
    except (pa.ArrowException, ValueError) as error:
        raise _refuse(path.parent, f"`{path.name}` is not readable Parquet") from error
    except OSError as error:
        # Arrow says both "cannot read the disk" and "the bytes make no sense" with an OSError; only the first has a number.
        if error.errno is None:
            raise _refuse(path.parent, f"`{path.name}` is not readable Parquet") from error
        raise from_os_error(error, f"read `{path}`") from error
    found = {field.name: str(field.type) for field in table.schema}
    if len(found) != len(table.schema):
        raise _refuse(path.parent, f"`{path.name}` has two columns of one name")
    for name, expected in types.items():
        if found.get(name) != expected:
            raise _refuse(path.parent, f"the column `{name}` of `{path.name}` is {found.get(name, 'missing')}, not {expected}")
        if expected != "double" and table.column(name).null_count:
            raise _refuse(path.parent, f"the column `{name}` of `{path.name}` has nulls")
    text = (table.schema.metadata or {}).get(b"moectl", b"")
    columns = {name: table.column(name).to_numpy() for name in found}
    for name, values in columns.items():
        if values.dtype.kind == "f" and np.isinf(values).any():
            raise _refuse(path.parent, f"the column `{name}` of `{path.name}` holds a number that is not finite")
    return pd.DataFrame({name: _plain(values) for name, values in columns.items()}), text.decode("utf-8", errors="replace")


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(object) if values.dtype.kind in "OU" else values


def _read_coactivation(path: Path) -> tuple[NDArray[np.int64], tuple[int, ...], str]:
    """Counts, layers and the text of the provenance. Raises ModelError if the header is bad."""
    header = read_header(path)
    info = header.tensors.get("counts")
    if info is None or info.dtype != "I64" or len(info.shape) != 3 or info.shape[1] != info.shape[2]:
        raise _refuse(path.parent, f"`{path.name}` holds no `counts` of int64 [layers, experts, experts]")
    try:
        with path.open("rb") as file:
            file.seek(info.start)
            data = file.read(info.nbytes)
        layers = json.loads(header.metadata.get("layers", "null"))
    except (ValueError, RecursionError) as error:
        raise _refuse(path.parent, f"the metadata `layers` of `{path.name}` is not JSON") from error
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    if not isinstance(layers, list) or len(layers) != info.shape[0] or any(type(layer) is not int for layer in layers):
        raise _refuse(path.parent, f"the metadata `layers` of `{path.name}` does not fit its counts")
    counts_LEE = np.frombuffer(data, "<i8").astype(np.int64).reshape(info.shape)
    return counts_LEE, tuple(layers), header.metadata.get("provenance", "")


def _check_summary(folder: Path, summary: dict[str, Any], provenance: Any) -> None:
    for key, fields in _SUMMARY_KEYS.items():
        value = summary.get(key)
        if not isinstance(value, dict):
            raise _refuse(folder, f"`{_SUMMARY}` has no object `{key}`")
        for name, kinds in fields.items():
            if name not in value or type(value[name]) not in kinds:
                raise _refuse(folder, f"`{_SUMMARY}` has no usable `{key}.{name}`")
    if not isinstance(summary.get("layers"), list) or not summary["data"]:
        raise _refuse(folder, f"`{_SUMMARY}` has no layers or no data")
    for row in summary["data"].values():
        if not isinstance(row, dict) or any(type(row.get(key)) is not int for key in ("documents", "sequences", "tokens")):
            raise _refuse(folder, f"`{_SUMMARY}` has a domain without its size")
    perplexity = summary.get("perplexity")
    if perplexity is not None and not _is_perplexity(perplexity, [ALL, *summary["data"]]):
        raise _refuse(folder, f"`{_SUMMARY}` has no usable `perplexity`")
    try:
        json.dumps(summary, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise _refuse(folder, f"`{_SUMMARY}` holds a number that is not finite") from error
    if not isinstance(provenance, dict) or any(summary["provenance"].get(key, ...) != value for key, value in provenance.items()):
        raise _refuse(folder, f"`{_SUMMARY}` and the tables come of different runs")


def _is_perplexity(value: Any, domains: list[str]) -> bool:
    keys = ("loss", "perplexity", "perplexity_low", "perplexity_high")
    return (
        isinstance(value, dict)
        and list(value) == domains
        and all(isinstance(row, dict) and all(type(row.get(key, "")) in _NUMBER for key in keys) for row in value.values())
    )


def _check_rows(folder: Path, stats: RouteStats) -> None:
    """Every (domain, layer, expert) once and in order, and sizes that agree."""
    domains, layers = [ALL, *stats.summary["data"]], list(stats.moe_layers)
    table = stats.layers
    in_order = table["domain"].tolist() == [name for name in domains for _ in layers] and table["layer"].tolist() == layers * len(domains)
    if not in_order or not layers:
        raise _refuse(folder, "`layers.parquet` does not have a row for every domain and layer")
    sizes = table["n_experts"].tolist()
    most = stats.coactivation_LEE.shape[1]
    if min(sizes) < 1 or max(sizes) > most or sizes != sizes[: len(layers)] * len(domains):
        raise _refuse(folder, "`layers.parquet` and `coactivation.safetensors` do not agree on the number of experts")
    rows = zip(table["domain"], table["layer"], sizes, strict=True)
    expected = [(domain, layer, expert) for domain, layer, n_experts in rows for expert in range(n_experts)]
    if list(zip(stats.experts["domain"], stats.experts["layer"], stats.experts["expert"], strict=True)) != expected:
        raise _refuse(folder, "`experts.parquet` does not have a row for every domain, layer and expert")
    if stats.experts["tokens"].min() < 0 or table["tokens"].min() < 0:
        raise _refuse(folder, "its tables hold a negative count")


def _check_pairs(folder: Path, stats: RouteStats) -> None:
    """Every pair of domains of every layer once and in order; pairs of experts that exist, and met as often as co-activation says."""
    pairs = list(itertools.combinations(stats.summary["data"], 2))
    expected = [(layer, *pair) for layer in stats.moe_layers for pair in pairs]
    if list(stats.domain_pairs[["layer", "domain", "other"]].itertuples(index=False, name=None)) != expected:
        raise _refuse(folder, "`domain_pairs.parquet` does not have a row for every layer and pair of domains")
    sizes = dict(zip(stats.moe_layers, stats.layers["n_experts"].iloc[: len(stats.moe_layers)], strict=True))
    first, second = stats.expert_pairs[["expert", "other"]].to_numpy().T
    size = stats.expert_pairs["layer"].map(sizes).fillna(0).to_numpy()
    if not ((first >= 0) & (first < second) & (second < size)).all():
        raise _refuse(folder, "`expert_pairs.parquet` has a pair of experts that its layer does not have")
    position = stats.expert_pairs["layer"].map({layer: at for at, layer in enumerate(stats.moe_layers)}).to_numpy(np.int64)
    if (stats.coactivation_LEE[position, first, second] != stats.expert_pairs["tokens"]).any():
        raise _refuse(folder, "`expert_pairs.parquet` and `coactivation.safetensors` do not agree on the tokens of a pair")


def _refuse(folder: Path, reason: str) -> DataError:
    return DataError(f"`{folder}` is not a whole run: {reason}", hint="run `moectl route-stats` again, or name its `trace.safetensors`")
