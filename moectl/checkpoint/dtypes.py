"""Safetensors dtype names <-> torch dtypes. torch is imported inside the functions, so plans can be made without it.

torch_dtype("BF16")  # torch.bfloat16
dtype_name(torch.bfloat16)  # "BF16"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moectl.errors import ModelError

if TYPE_CHECKING:
    import torch

# Absent on purpose: the packed F4 and F6 formats, for which torch has no element type of that size.
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16",
    "I32": "int32", "U32": "uint32", "I64": "int64", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_SAFETENSORS_NAMES = {f"torch.{torch_name}": name for name, torch_name in _TORCH_NAMES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name. Raises ModelError if this torch has none."""
    import torch

    dtype = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"torch {torch.__version__} cannot hold tensors of dtype `{name}`", hint="use a bf16 copy of this model")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype. Raises ModelError if the format has none."""
    name = _SAFETENSORS_NAMES.get(str(dtype))
    if name is None:
        raise ModelError(f"safetensors cannot hold tensors of dtype `{dtype}`")
    return name
