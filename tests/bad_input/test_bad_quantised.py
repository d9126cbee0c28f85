"""Quantised models that cannot be read: exit code 3, one message, a hint, nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from quantised_checkpoints import FP8, Tensors, Twins, change, deepseek_fp8, gpt_oss_mxfp4
from refusals import assert_says
from tiny_checkpoints import set_config

# Of deepseek_v3 in blocks of 16 x 16, and of gpt_oss.
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"  # [20, 44]
SCALES = f"{EXPERT}_scale_inv"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"  # blocks [5, 128, 3, 16]
Damage = Callable[[Path], None]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twins]:
    root = tmp_path_factory.mktemp("quantised")
    return {"fp8": deepseek_fp8(root / "fp8"), "mxfp4": gpt_oss_mxfp4(root / "mxfp4")}


def tensors(edit: Callable[[Tensors], object]) -> Damage:
    return lambda model: change(model, edit)


def put(name: str, tensor: torch.Tensor) -> Damage:
    return tensors(lambda found: found.update({name: tensor}))


def poke(name: str, value: float, *at: int) -> Damage:
    def edit(found: Tensors) -> None:
        tensor = found[name]
        (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor)[at] = value  # type: ignore[call-overload]

    return tensors(edit)


def scheme(**keys: object) -> Damage:
    return lambda model: set_config(model, quantization_config={**FP8, **keys})


CASES: dict[str, tuple[str, Damage, tuple[str, ...], str]] = {
    "no-scales": (
        "fp8", tensors(lambda found: found.pop(SCALES)),
        (f"tensor `{EXPERT}` is quantised, but its scales `{SCALES}` are missing",), "again",
    ),
    "scales-of-another-shape": (
        "fp8", put(SCALES, torch.ones(3, 2)),
        (f"the scales `{SCALES}` are `F32` [3, 2], but `{EXPERT}` [20, 44] needs", "[2, 3]"), "damaged",
    ),
    "scales-of-another-dtype": ("fp8", put(SCALES, torch.ones(2, 3).half()), (f"`{SCALES}` are `F16`", "`F32` or `BF16`"), "damaged"),
    "scales-not-numbers": ("fp8", poke(SCALES, float("nan"), 1, 2), (f"tensor `{SCALES}` holds 1 NaN", "the first at [1, 2]"), "damaged"),
    "scales-infinite": ("fp8", poke(SCALES, float("inf"), 1, 2), (f"tensor `{SCALES}` holds 0 NaN and 1 infinite",), "damaged"),
    "scales-too-large": ("fp8", poke(SCALES, 3e38, 1, 2), (f"tensor `{EXPERT}` holds 0 NaN and ", "the first at [16, 32]"), "damaged"),
    "code-not-a-number": (
        "fp8", poke(EXPERT, 0xFF, 17, 3), (f"tensor `{EXPERT}` holds 1 codes that are NaN among 880, the first at [17, 3]",), "damaged",
    ),
    "vector-in-fp8": (
        "fp8", put("model.norm.weight", torch.ones(44).to(torch.float8_e4m3fn)),
        ("scales `model.norm.weight_scale_inv` are missing",), "again",
    ),
    "e5m2-codes": (
        "fp8", put(EXPERT, torch.ones(20, 44).to(torch.float8_e5m2)), ("1 tensor holds FP8 codes", EXPERT, "is one of fp8"), "config.json",
    ),
    "other-block-size": ("fp8", scheme(weight_block_size=[16, 32]), ("the scales `", "but `", "needs `F32`"), "config.json"),
    "no-block-size": (
        "fp8", scheme(weight_block_size=None, activation_scheme="static"),
        ("the FP8 weights of `model` have no `weight_block_size` and `activation_scheme` `static`",), "a scale for each block",
    ),
    "e5m2": ("fp8", scheme(fmt="e5m2"), ("the FP8 weights of `model` have the format `e5m2`, not e4m3",), "bf16 copy"),
    "fp8-unannounced": (
        "fp8", lambda model: set_config(model, quantization_config=None), ("tensors hold FP8 codes, such as", "no `quantization_config`"),
        "config.json",
    ),
    "mxfp4-unannounced": (
        "mxfp4", lambda model: set_config(model, quantization_config=None), ("6 tensors hold MXFP4 codes", "no `quantization_config`"),
        "config.json",
    ),
    "mxfp4-called-fp8": ("mxfp4", scheme(), ("6 tensors hold MXFP4 codes", "is one of fp8"), "config.json"),
    "mxfp4-no-scales": (
        "mxfp4", tensors(lambda found: found.pop(f"{GATE_UP}_scales")),
        (f"tensor `{GATE_UP}_blocks` is quantised, but its scales `{GATE_UP}_scales` are missing",), "again",
    ),
    "mxfp4-scales-of-another-shape": (
        "mxfp4", put(f"{GATE_UP}_scales", torch.zeros(5, 128, 2, dtype=torch.uint8)), ("needs `U8` [5, 128, 3]",), "damaged",
    ),
    "mxfp4-groups-of-another-size": (
        "mxfp4", put(f"{GATE_UP}_blocks", torch.zeros(5, 128, 6, 8, dtype=torch.uint8)), (f"`{GATE_UP}_blocks`", "[5, 128, 6, 8]"), "again",
    ),
    "mxfp4-other-width": (
        "mxfp4", lambda model: set_config(model, hidden_size=80),
        ("`hidden_size` is 80, but must be a multiple of 32, the size of MXFP4",), "contradicts",
    ),
    "mxfp4-other-model": ("mxfp4", lambda model: set_config(model, intermediate_size=32), (f"{GATE_UP}_blocks is [5, 128, 96]",), "config"),
    "mxfp4-scale-not-a-number": (
        "mxfp4", poke(f"{GATE_UP}_scales", 255, 2, 7, 1), (f"tensor `{GATE_UP}_blocks` holds 32 NaN", "the first at [7, 32]"), "damaged",
    ),
    "mxfp4-scale-too-large": (
        "mxfp4", poke(f"{GATE_UP}_scales", 254, 2, 7, 1), (f"tensor `{GATE_UP}_blocks` holds 0 NaN and ",), "damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ["resident", "streamed"])
@pytest.mark.parametrize("case", CASES)
def test_a_quantised_model_that_cannot_be_read(isolated, refused, whole, case: str, order: str) -> None:
    kind, damage, message, hint = CASES[case]
    shutil.copytree(whole[kind].quantised, "model")
    np.save("ids.npy", np.arange(103))
    damage(Path("model"))
    refusal = refused("model", "--data", "ids.npy", "--output", "out", "--trace", "--order", order, code=3)
    assert_says(refusal, message, hint)
