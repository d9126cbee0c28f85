"""The checkpoint formats moectl does not read, each refused by name with what to do instead. FP8 in blocks and MXFP4 it reads.

    refuse_files({"model.Q4_K_M.gguf", "config.json"}, where="models/qwen")
    refuse_quantization(config, where="models/qwen")

It looks at file names and at `config.json` only; damaged safetensors files are the concern of `header` and `index`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePath
from typing import Any

from moectl.checkpoint.index import INDEX_NAME, weight_names
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.quantised import read_quantisation
from moectl.errors import ModelError

_GGUF_HINT = "use the safetensors repository this file was made from"
_PICKLE_HINT = "convert it: `AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(OUT)` of transformers writes safetensors"
_LORA_HINT = "merge it into its base model first: `merge_and_unload()` of peft, then `save_pretrained`"
_CONSOLIDATED_HINT = "use the repository's Hugging Face layout: `config.json` with `model-*.safetensors`"
_ORIGINAL_HINT = "use the original bf16 repository of this model"
_BF16_HINT = "of quantised weights moectl reads FP8 with a scale for each block, and MXFP4: use one of these, or a bf16 copy of this model"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Left beside the weights by trainers; not weights.
_TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|rng_state|scaler|tokenizer)[._].*")
_METHODS = {
    "gptq": ("GPTQ", _ORIGINAL_HINT),
    "awq": ("AWQ", _ORIGINAL_HINT),
    "bitsandbytes": ("bitsandbytes", _ORIGINAL_HINT),
    "compressed-tensors": ("compressed-tensors", _ORIGINAL_HINT),
}
# Written by tools that keep the method out of `config.json`.
_METHOD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


def refuse_files(names: Collection[str], *, where: str) -> None:
    """Raise ModelError if a folder of files `names` holds weights, but only in a form that is not read."""
    if weight_names(names) or INDEX_NAME in names:
        return
    pickles = sorted(n for n in names if n.endswith(_PICKLE_SUFFIXES) and not _TRAINER_STATE.fullmatch(n))
    consolidated = sorted(n for n in names if n.startswith("consolidated") and n.endswith(".safetensors"))
    ggufs = sorted(n for n in names if n.lower().endswith(".gguf"))
    if "adapter_config.json" in names:
        raise ModelError(f"`{where}` is a LoRA adapter, not a whole model: it holds `adapter_config.json` and no weights", hint=_LORA_HINT)
    if ggufs:
        raise ModelError(f"`{where}` holds only GGUF weights, such as {quote(ggufs[0])}, which moectl does not read", hint=_GGUF_HINT)
    if consolidated:
        raise ModelError(
            f"`{where}` holds only Mistral's own layout, such as {quote(consolidated[0])}, which moectl does not read",
            hint=_CONSOLIDATED_HINT,
        )
    if pickles:
        raise ModelError(
            f"`{where}` holds only PyTorch pickles, such as {quote(pickles[0])}, which moectl does not read", hint=_PICKLE_HINT
        )


def refuse_file(path: PurePath) -> None:
    """Raise ModelError for a single file given as MODEL that is neither safetensors nor `config.json`."""
    match path.suffix.lower():
        case ".gguf":
            raise ModelError(f"`{path}` is a GGUF file, which moectl does not read", hint=_GGUF_HINT)
        case ".bin" | ".pt" | ".pth" | ".ckpt":
            raise ModelError(f"`{path}` is a PyTorch pickle, which moectl does not read", hint=_PICKLE_HINT)
    raise ModelError(
        f"`{path}` is not a model: it is neither a folder, nor a `.safetensors` file, nor a `config.json`",
        hint="pass the folder that holds `config.json` and the weights",
    )


def refuse_quantization(config: dict[str, Any], *, names: Collection[str], where: str) -> None:
    """Raise ModelError if `config.json`, or a file among `names` beside it, says that the weights are quantised and not read."""
    method = _method(config, where)
    if method is None:
        method = next((method for file, method in _METHOD_FILES.items() if file in names), None)
    if method is None or read_quantisation(config, where=where) is not None:
        return
    title, hint = _METHODS.get(method, (quote(method), _BF16_HINT))
    raise ModelError(
        f"the weights of `{where}` are quantised with {title} (`quant_method` {quote(method)}), which moectl does not read", hint=hint
    )


def _method(config: dict[str, Any], where: str) -> str | None:
    text_config = config.get("text_config")
    # `compression_config` is the older key of compressed-tensors, `quantization` that of MLX.
    for holder in (config, text_config if isinstance(text_config, dict) else {}):
        for key, default in (("quantization_config", "unnamed"), ("compression_config", "compressed-tensors"), ("quantization", "mlx")):
            found = holder.get(key)
            if found is None or found == {}:
                continue
            if not isinstance(found, dict):
                raise ModelError(f"`{key}` in the `config.json` of `{where}` must be an object, not {quote(found)}")
            if found.get("load_in_8bit") or found.get("load_in_4bit"):
                default = "bitsandbytes"
            return str(found.get("quant_method") or default).lower()
    return None
