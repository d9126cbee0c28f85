"""Bytes of a checkpoint by dtype: as its headers say, or as a bare configuration lets one expect.

bytes_by_dtype(source)        # {"F8_E4M3": 680..., "BF16": ..., "F32": ...}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.checkpoint.header import dtype_bits
from moectl.checkpoint.quantised import Quantisation
from moectl.inspection.headers import Source

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_DEFAULT = "BF16"
# What DeepSeek's recipe quantises: the matrices of attention and of feed-forward blocks, not the router, norms, embedding or head.
_FP8_SLOTS = frozenset(
    ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "gate", "up", "down", "shared_gate", "shared_up", "shared_down", "expert")
)
_MXFP4_GROUP = 32


def config_dtype(source: Source) -> str | None:
    """The safetensors name of the dtype that `config.json` states; None if it states none, or one that weights are not kept in."""
    text = source.config.get("text_config")
    for level in (source.config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if (name := str(level.get(key, "")).removeprefix("torch.")) in _DTYPES:
                return _DTYPES[name]
    return None


def bytes_by_dtype(source: Source) -> dict[str, int]:
    """Bytes of all tensors in the files by safetensors dtype, largest first; of a bare configuration those of the main model."""
    found: Counter[str] = Counter()
    if source.index is not None:
        for info in source.index.tensors.values():
            found[info.dtype] += info.nbytes
    else:
        plain = config_dtype(source) or _DEFAULT
        for slot, ref, times in _weights(source.spec):
            for dtype, size in _stored(slot, ref, plain, source.quantisation):
                found[dtype] += times * size
    return dict(found.most_common())


def _weights(spec: ModelSpec) -> Iterator[tuple[str, TensorRef, int]]:
    """Slot, weight, and how many there are of it."""
    for slot, ref in spec.tensors.items():
        if not (spec.tied and slot == "head"):
            yield slot, ref, 1
    for layer in spec.layers:
        yield from ((slot, ref, 1) for slot, ref in layer.tensors.items())
        yield from _experts(layer)


def _experts(layer: Layer) -> Iterator[tuple[str, TensorRef, int]]:
    if isinstance(layer.ffn, MoE):
        for ref in layer.ffn.experts.refs(0):
            yield "expert" if len(ref.part_shape) == 2 else "expert_bias", ref, layer.ffn.router.n_experts


def _stored(slot: str, ref: TensorRef, plain: str, quantisation: Quantisation | None) -> list[tuple[str, int]]:
    if quantisation is not None and quantisation.method == "fp8" and slot in _FP8_SLOTS:
        rows, columns = ref.part_shape
        blocks = math.ceil(rows / quantisation.block[0]) * math.ceil(columns / quantisation.block[1])
        return [("F8_E4M3", ref.numel), ("F32", 4 * blocks)]
    if quantisation is not None and quantisation.method == "mxfp4" and slot == "expert":
        return [("U8", ref.numel // 2 + ref.numel // _MXFP4_GROUP)]
    dtype = "F32" if ref.keep_float32 else plain
    return [(dtype, ref.numel * dtype_bits(dtype) // 8)]
