"""Measured expert loads in the files that serving programs plan their placement from.

    export_bytes("sglang", stats, provenance=stable)

Loads are the tokens that ran each expert, of all domains together. What each program reads:

- `eplb`: `weight` of `rebalance_experts` (deepseek-ai/EPLB), int64 [MoE layers, experts], as `.npy` or as that tensor in safetensors.
- `vllm`: what its balancer calls `global_expert_load_window`, the `weight` of its policies, int64 [MoE layers, experts], in safetensors.
- `sglang`: JSON with `logical_count` [steps, layers, experts] for `--init-expert-location`; one step.
- `ktransformers`: a torch file with the same `logical_count`, int64, for its `--kt-expert-placement-strategy frequency`.

The first two have a row per MoE layer, in order; the last two one per decoder layer, zeros where it is dense, as their own recorders write.
"""

# Shapes: L MoE layers, N decoder layers, E experts.

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moectl.checkpoint.layout import lay_out
from moectl.errors import DataError, UsageError
from moectl.routing.frames import ALL
from moectl.routing.options import Export
from moectl.routing.result import RouteStats


def export_bytes(export: Export, stats: RouteStats, *, provenance: Mapping[str, Any]) -> bytes:
    """The content of the file. Raises UsageError if layers differ in size, which no format can say, DataError for layers out of place."""
    loads_LE = expert_loads(stats)
    text = json.dumps(provenance, sort_keys=True, ensure_ascii=False, allow_nan=False)
    match export.format:
        case "eplb" if export.path.suffix == ".npy":
            return _npy(loads_LE)
        case "eplb":
            return _safetensors("weight", loads_LE, stats.moe_layers, text)
        case "vllm":
            return _safetensors("global_expert_load_window", loads_LE, stats.moe_layers, text)
        case "sglang":
            counts = _of_all_layers(loads_LE, stats)[None].tolist()
            return (
                json.dumps({"logical_count": counts, "moectl": provenance}, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            ).encode()
        case "ktransformers":
            buffer = io.BytesIO()
            torch.save({"logical_count": torch.from_numpy(_of_all_layers(loads_LE, stats)[None]), "moectl": text}, buffer)
            return buffer.getvalue()
    raise AssertionError(export.format)


def expert_loads(stats: RouteStats) -> NDArray[np.int64]:
    """int64 [L, E] tokens that ran each expert, all domains together. Raises UsageError if layers differ in size."""
    rows = stats.experts[stats.experts["domain"] == ALL].sort_values(["layer", "expert"], kind="stable")
    sizes = rows.groupby("layer").size()
    if sizes.nunique() != 1:
        raise UsageError(
            f"the layers have {sizes.min()} to {sizes.max()} experts, and a file of loads has one number for all",
            hint="leave out `--export`; `experts.parquet` has the loads of every layer",
        )
    return rows["tokens"].to_numpy(np.int64).reshape(len(sizes), -1)


def _of_all_layers(loads_LE: NDArray[np.int64], stats: RouteStats) -> NDArray[np.int64]:
    """[N, E] with zeros for dense layers."""
    n_layers, last = int(stats.summary["model"]["layers"]), max(stats.moe_layers)
    if not last < n_layers <= 100_000:
        raise DataError(
            f"the run has an MoE layer {last}, but says that the model has {n_layers} layers", hint="run `moectl route-stats` again"
        )
    loads_NE = np.zeros((n_layers, loads_LE.shape[1]), np.int64)
    loads_NE[list(stats.moe_layers)] = loads_LE
    return loads_NE


def _npy(array: NDArray[np.int64]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, "<i8"), allow_pickle=False)
    return buffer.getvalue()


def _safetensors(name: str, array: NDArray[np.int64], layers: tuple[int, ...], provenance: str) -> bytes:
    header, _ = lay_out(Path(name), [(name, "I64", array.shape)], metadata={"layers": json.dumps(list(layers)), "provenance": provenance})
    return header + np.ascontiguousarray(array, "<i8").tobytes()
