"""Where the tensors of one new safetensors file go, and the header that says so.

    header, places = lay_out(path, [("counts", "I64", (2, 8, 8))], metadata={"layers": "[0, 1]"})

It writes nothing. The bytes depend on the arguments only: metadata keeps its order, unlike in the safetensors library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from moectl.checkpoint.header import TensorInfo, dtype_bits, tensor_bytes


def lay_out(
    path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], *, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Header bytes (length prefix included) and the place of each (name, dtype, shape), for whole-byte dtypes.

    Widest elements come first, so that every tensor is aligned to its own element size in a memory map.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    spans: list[tuple[str, str, tuple[int, ...], int, int]] = []
    end = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: -dtype_bits(tensor[1])):
        nbytes = tensor_bytes(dtype, shape)
        assert nbytes is not None
        start, end = end, end + nbytes
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        spans.append((name, dtype, shape, start, end))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data_start = 8 + len(text)
    places = {name: TensorInfo(name, dtype, shape, path, data_start + a, data_start + b) for name, dtype, shape, a, b in spans}
    return len(text).to_bytes(8, "little") + text, places
