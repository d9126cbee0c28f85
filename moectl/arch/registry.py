"""From a `config.json` to a ModelSpec: one family per `model_type`.

    spec = build_spec({"model_type": "mixtral", ...}, shapes={"lm_head.weight": (32000, 4096), ...})

Adding a family: one module with a `spec(config, present)` function, one line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from moectl.arch import (
    bailing_moe,
    bailing_moe_v2,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5_moe,
    gemma2,
    gemma3_text,
    glm4_moe,
    gpt_oss,
    granitemoe,
    hunyuan_v1_moe,
    llama,
    llama4_text,
    minimax_m2,
    mistral,
    mixtral,
    olmoe,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    qwen_vl,
)
from moectl.arch.check import check_router, check_tensors
from moectl.arch.config import Config
from moectl.arch.fused import FusedNames
from moectl.arch.spec import ModelSpec
from moectl.arch.text_tower import WRAPPERS, find_tower
from moectl.errors import ModelError

FAMILIES: dict[str, Callable[[Config, Collection[str]], ModelSpec]] = {
    "bailing_moe": bailing_moe.spec,
    "bailing_moe_v2": bailing_moe_v2.spec,
    "deepseek": deepseek.spec,
    "deepseek_v2": deepseek_v2.spec,
    "deepseek_v3": deepseek_v3.spec,
    "dots1": dots1.spec,
    "ernie4_5_moe": ernie4_5_moe.spec,
    "gemma2": gemma2.spec,
    "gemma3_text": gemma3_text.spec,
    "glm4_moe": glm4_moe.spec,
    "gpt_oss": gpt_oss.spec,
    "granitemoe": granitemoe.spec,
    "granitemoeshared": granitemoe.spec,
    "hunyuan_v1_moe": hunyuan_v1_moe.spec,
    "kimi_k2": deepseek_v3.spec,
    "llama": llama.spec,
    "llama4_text": llama4_text.spec,
    "minimax_m2": minimax_m2.spec,
    "mistral": mistral.spec,
    "mixtral": mixtral.spec,
    "olmoe": olmoe.spec,
    "phi3": phi3.spec,
    "phimoe": phimoe.spec,
    "qwen2": qwen2.spec,
    "qwen2_5_vl_text": qwen_vl.qwen2_vl,
    "qwen2_moe": qwen2_moe.spec,
    "qwen2_vl_text": qwen_vl.qwen2_vl,
    "qwen3": qwen3.spec,
    "qwen3_moe": qwen3_moe.spec,
    "qwen3_vl_moe_text": qwen_vl.qwen3_vl_moe,
    "qwen3_vl_text": qwen_vl.qwen3_vl,
}


def find_family(config: Mapping[str, Any]) -> Callable[[Config, Collection[str]], ModelSpec]:
    """The family of a configuration, that of its text model if it is multimodal.

    Raises ModelError, naming what is supported, if there is none.
    """
    tower = find_tower(config)
    return _family(config, Config(config) if tower is None else tower.config)


def build_spec(config: Mapping[str, Any], *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ModelSpec:
    """The ModelSpec of a configuration, checked against the tensors of its checkpoint if `shapes` is given.

    Of a multimodal model that of its text model, and tensors outside that are not looked at. Raises ModelError: unknown `model_type`, a key
    that is missing or damaged, tensors that do not match.
    """
    tower = find_tower(config, names=shapes or ())
    if tower is None:
        return _checked_spec(config, Config(config), shapes)
    inside = None if shapes is None else tower.inside(shapes)
    return tower.renamed(_checked_spec(config, tower.config, inside, on_disk=tower.on_disk))


def spec_in_layout(config: Mapping[str, Any], layout: str, *, names: Collection[str]) -> ModelSpec:
    """The spec of the same model in the layout "hub", as published, or "fused", as newer transformers has it in memory; in no codes.

    `names`: the tensors of its checkpoint, which decide what stands before those of a multimodal model's text model. Raises ModelError.
    """
    tower = find_tower(config, names=names)
    own = Config(config) if tower is None else tower.config
    spec = _family(config, own)(own, FusedNames() if layout == "fused" else ())
    return spec if tower is None else tower.renamed(spec)


def _checked_spec(
    config: Mapping[str, Any], own: Config, shapes: Mapping[str, tuple[int, ...]] | None, *, on_disk: Callable[[str], str] = str
) -> ModelSpec:
    """The spec of the (text) model whose keys are `own`, in plain names; `on_disk` makes of them what messages say."""
    spec = _family(config, own)(own, shapes or {})
    for layer in spec.moe_layers:
        check_router(layer)
    if shapes is not None:
        check_tensors(spec, shapes, on_disk=on_disk)
    return spec


def _family(config: Mapping[str, Any], own: Config) -> Callable[[Config, Collection[str]], ModelSpec]:
    model_type = own.string("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    supported = f"supported model types: {', '.join(sorted(FAMILIES))}"
    if config.get("model_type") in WRAPPERS:
        raise ModelError(
            f"config.json: model_type `{config['model_type']}` opens by its text model, whose model_type `{model_type}` is not supported "
            "by this version",
            hint=supported,
        )
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        text = Config(inner, where="config.json: text_config").string("model_type", default="unnamed")
        raise ModelError(
            f"config.json: model_type `{model_type}`, a multimodal model around a text model `{text}`, is not supported by this version",
            hint=f"multimodal models that open by their text model: {', '.join(sorted(WRAPPERS))}; {supported}",
        )
    raise ModelError(f"config.json: model_type `{model_type}` is not supported by this version", hint=supported)
