"""From a `config.json` to a ModelSpec: one family per `model_type`.

    spec = build_spec({"model_type": "mixtral", ...}, shapes={"lm_head.weight": (32000, 4096), ...})

Adding a family: one module with a `spec(config, present)` function, one line in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from moectl.arch import deepseek_v3, llama, mixtral, qwen3_moe
from moectl.arch.check import check_router, check_tensors
from moectl.arch.config import Config
from moectl.arch.spec import ModelSpec
from moectl.errors import ModelError

FAMILIES: dict[str, Callable[[Config, Collection[str]], ModelSpec]] = {
    "deepseek_v3": deepseek_v3.spec,
    "llama": llama.spec,
    "mixtral": mixtral.spec,
    "qwen3_moe": qwen3_moe.spec,
}


def find_family(config: Mapping[str, Any]) -> Callable[[Config, Collection[str]], ModelSpec]:
    """The family of a configuration. Raises ModelError, naming the supported ones, if there is none."""
    model_type = Config(config).string("model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"config.json: model_type `{model_type}` is not supported by this version",
            hint=f"supported model types: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]


def build_spec(config: Mapping[str, Any], *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> ModelSpec:
    """The ModelSpec of a configuration, checked against the tensors of its checkpoint if `shapes` is given.

    Raises ModelError: unknown `model_type`, a key that is missing or damaged, tensors that do not match.
    """
    spec = find_family(config)(Config(config), frozenset(shapes or ()))
    for layer in spec.moe_layers:
        check_router(layer)
    if shapes is not None:
        check_tensors(spec, shapes)
    return spec
