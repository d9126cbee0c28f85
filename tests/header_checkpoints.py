"""Checkpoints that are headers and holes: every tensor in its place, no bytes on the disk, whatever the size. Only tests import this."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moectl.arch.registry import build_spec
from moectl.checkpoint.layout import lay_out

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}
_FP8_NAMES = ("_proj.weight", "_proj_with_mqa.weight")


def write_headers(folder: Path, config: Mapping[str, Any], *, shards: int = 2, extra: Mapping[str, tuple[int, ...]] | None = None) -> int:
    """Write `config` and sparse shards with the tensors it asks for, quantised if it says so, in bf16 otherwise; return their bytes.

    `extra`: more tensors, bf16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    spec = build_spec({key: value for key, value in config.items() if key != "quantization_config"})
    shapes = {ref.name: ref.shape for ref in [*spec.refs(), *spec.mtp_refs()]} | dict(extra or {})
    method = config.get("quantization_config", {}).get("quant_method")
    tensors = [tensor for name, shape in shapes.items() for tensor in _stored(name, shape, method)]
    weight_map, total = {}, 0
    size = math.ceil(len(tensors) / shards)
    for number in range(shards):
        part = tensors[number * size : (number + 1) * size]
        path = folder / f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, places = lay_out(path, part, metadata={"format": "pt"})
        end = max(place.end for place in places.values())
        path.write_bytes(header)
        os.truncate(path, end)
        total += end - len(header)
        weight_map |= {name: path.name for name, _, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return total


def _stored(name: str, shape: tuple[int, ...], method: str | None) -> list[tuple[str, str, tuple[int, ...]]]:
    if method == "fp8" and name.endswith(_FP8_NAMES) and not name.endswith("eh_proj.weight"):
        rows, columns = shape
        scales = (math.ceil(rows / 128), math.ceil(columns / 128))
        return [(name, "F8_E4M3", shape), (f"{name}_scale_inv", "F32", scales)]
    if method == "mxfp4" and name.endswith(("gate_up_proj", "down_proj")):
        experts, columns, rows = shape
        return [(f"{name}_blocks", "U8", (experts, rows, columns // 32, 16)), (f"{name}_scales", "U8", (experts, rows, columns // 32))]
    return [(name, "BF16", shape)]
