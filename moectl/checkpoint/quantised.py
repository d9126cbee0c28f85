"""Quantised weights: which formats are read, and codes and scales that belong together as one weight.

    quantisation = read_quantisation(config, where="DeepSeek-V3")        # Quantisation("fp8", (128, 128)), or None
    index = with_weights(open_index(folder), quantisation)
    index.tensors["model.layers.0.mlp.up_proj.weight"].shape             # of the weight; its scales are no tensor of their own any more

FP8 keeps the scales of `X.weight` in `X.weight_scale_inv`. MXFP4 keeps codes in `X_blocks` and exponents in `X_scales`; the weight goes by
the name of the codes, so that it cannot be taken for the `X` of a checkpoint that is not quantised. Reads no tensor; the arithmetic is in
`fp8.py` and `mxfp4.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moectl.checkpoint.header import TensorInfo
from moectl.checkpoint.index import CheckpointIndex
from moectl.checkpoint.json_object import quote
from moectl.errors import ModelError

Method = Literal["fp8", "mxfp4"]

_SCALE_SUFFIX = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")
_GROUP, _GROUP_BYTES = 32, 16
_DOWNLOAD_AGAIN = "download the checkpoint again"
_BLOCKS_HINT = "moectl reads FP8 as e4m3 with a scale for each block, as DeepSeek publishes it; use a bf16 copy of this model"
_FP8_DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the weights of a checkpoint are quantised; `block` is rows and columns of an FP8 scale."""

    method: Method
    block: tuple[int, int] = (128, 128)


@dataclass(frozen=True, slots=True)
class QuantisedInfo:
    """One weight on disk as codes and scales. `shape` is the weight's; `dtype` names the format as a TensorInfo's does."""

    name: str
    dtype: Literal["F8_E4M3", "MXFP4"]
    shape: tuple[int, ...]
    codes: TensorInfo
    scales: TensorInfo
    block: tuple[int, int]

    @property
    def file(self) -> Path:
        """That of the codes; scales may lie in another shard."""
        return self.codes.file

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def read_quantisation(config: Mapping[str, Any], *, where: str) -> Quantisation | None:
    """What `quantization_config` says; None without one, and for the methods that `formats.py` refuses.

    Other keys, such as `modules_to_not_convert`, say nothing that the tensors do not say. Raises ModelError for FP8 that is not e4m3 with a
    scale for each block.
    """
    found = config.get("quantization_config") or {}
    if not found and isinstance(config.get("text_config"), dict):
        found = config["text_config"].get("quantization_config") or {}
    method = str(found.get("quant_method", "")).lower()
    if method == "mxfp4":
        return Quantisation("mxfp4")
    if method != "fp8":
        return None
    if found.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise ModelError(f"the FP8 weights of `{where}` have the format {quote(found['fmt'])}, not e4m3", hint=_BLOCKS_HINT)
    block = found.get("weight_block_size")
    if block is None:
        scheme = found.get("activation_scheme")
        activations = f" and `activation_scheme` {quote(scheme)}" if scheme else ""
        raise ModelError(
            f"the FP8 weights of `{where}` have no `weight_block_size`{activations}: a scale for each tensor", hint=_BLOCKS_HINT
        )
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
        raise ModelError(
            f"the FP8 weights of `{where}` have the `weight_block_size` {quote(block)}, not two sizes such as [128, 128]", hint=_BLOCKS_HINT
        )
    return Quantisation("fp8", (block[0], block[1]))


def with_weights(index: CheckpointIndex, quantisation: Quantisation | None) -> CheckpointIndex:
    """`index` with every quantised weight as one QuantisedInfo.

    Raises ModelError where codes and scales do not fit together, or where there are codes that `quantisation` does not speak of.
    """
    tensors: dict[str, TensorInfo | QuantisedInfo] = dict(index.tensors)
    if quantisation is None:
        _refuse_codes(tensors, "config.json has no `quantization_config`")
        return index
    for name, info in index.tensors.items():
        assert isinstance(info, TensorInfo)
        if quantisation.method == "fp8" and info.dtype == "F8_E4M3":
            scales = _partner(tensors, info, name + _SCALE_SUFFIX)
            tensors[name] = _fp8(info, scales, quantisation.block)
        elif quantisation.method == "mxfp4" and name.endswith(_BLOCKS) and info.dtype == "U8":
            scales = _partner(tensors, info, name.removesuffix(_BLOCKS) + _SCALES)
            tensors[name] = _mxfp4(info, scales)
    _refuse_codes(tensors, f"the `quantization_config` of config.json is one of {quantisation.method}")
    return replace(index, tensors=tensors)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for the same weights, decoded: without `quantization_config`, on both levels of a multimodal model."""
    found = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(found.get("text_config"), Mapping):
        found["text_config"] = plain_config(found["text_config"])
    return found


def _refuse_codes(tensors: Mapping[str, TensorInfo | QuantisedInfo], but: str) -> None:
    """Codes that would be taken for values."""
    left = [info for info in tensors.values() if isinstance(info, TensorInfo)]
    fp8 = [info.name for info in left if info.dtype in _FP8_DTYPES]
    mxfp4 = [info.name for info in left if info.dtype == "U8" and info.name.endswith(_BLOCKS)]
    for kind, codes in (("FP8", fp8), ("MXFP4", mxfp4)):
        if codes:
            raise ModelError(
                f"{len(codes)} {'tensor holds' if len(codes) == 1 else 'tensors hold'} {kind} codes, such as {quote(codes[0])}, but {but}",
                hint="take the config.json that came with these weights",
            )


def _partner(tensors: dict[str, TensorInfo | QuantisedInfo], codes: TensorInfo, name: str) -> TensorInfo:
    scales = tensors.pop(name, None)
    if not isinstance(scales, TensorInfo):
        raise ModelError(f"tensor {quote(codes.name)} is quantised, but its scales {quote(name)} are missing", hint=_DOWNLOAD_AGAIN)
    return scales


def _fp8(codes: TensorInfo, scales: TensorInfo, block: tuple[int, int]) -> QuantisedInfo:
    if len(codes.shape) not in (2, 3):
        raise ModelError(f"tensor {quote(codes.name)} is quantised in blocks but has the shape {list(codes.shape)}", hint=_BLOCKS_HINT)
    *stack, rows, columns = codes.shape
    expected = (*stack, -(-rows // block[0]), -(-columns // block[1]))
    _check_scales(codes, scales, expected, _SCALE_DTYPES)
    return QuantisedInfo(codes.name, "F8_E4M3", codes.shape, codes, scales, block)


def _mxfp4(codes: TensorInfo, scales: TensorInfo) -> QuantisedInfo:
    if len(codes.shape) != 4 or codes.shape[3] != _GROUP_BYTES:
        raise ModelError(
            f"tensor {quote(codes.name)} has the shape {list(codes.shape)}, not [experts, rows, groups, {_GROUP_BYTES}]",
            hint=_DOWNLOAD_AGAIN,
        )
    _check_scales(codes, scales, codes.shape[:3], ("U8",))
    experts, rows, groups = codes.shape[:3]
    return QuantisedInfo(codes.name, "MXFP4", (experts, rows, groups * _GROUP), codes, scales, (1, _GROUP))


def _check_scales(codes: TensorInfo, scales: TensorInfo, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if scales.shape != shape or scales.dtype not in dtypes:
        raise ModelError(
            f"the scales {quote(scales.name)} are `{scales.dtype}` {list(scales.shape)}, but {quote(codes.name)} {list(codes.shape)} "
            f"needs {' or '.join(f'`{dtype}`' for dtype in dtypes)} {list(shape)}",
            hint="config.json belongs to another model, or the checkpoint is damaged",
        )
