"""Models that cannot be read: exit code 3, one message, a hint, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import EMBEDDING, EXPERT, ROUTER, assert_says
from safetensors.torch import load_file, save_file
from tiny_checkpoints import INDEX, all_tensors, edit, set_config


def truncate(model: Path) -> None:
    with (model / "model-00007-of-00012.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 10)


def wrong_shape(model: Path) -> None:
    edit(model, lambda tensors: tensors.update({ROUTER: torch.zeros(9, 47)}), name=ROUTER)


def drop(model: Path) -> None:
    edit(model, lambda tensors: tensors.pop(EXPERT), name=EXPERT)


def add(model: Path) -> None:
    edit(model, lambda tensors: tensors.update({"model.layers.0.mlp.shared_expert_gate.weight": torch.zeros(1, 48)}), name=ROUTER)


def unindexed(model: Path) -> None:
    shard = model / "model-00006-of-00012.safetensors"
    save_file(load_file(shard) | {"extra.weight": torch.zeros(2)}, shard)


def only(*names: str) -> Callable[[Path], None]:
    """Keep no weights but `names`, which are made of rubbish."""

    def damage(model: Path) -> None:
        for path in [*model.glob("*.safetensors"), model / INDEX]:
            path.unlink()
        for name in names:
            (model / name).write_bytes(b"GGUF" + bytes(60))

    return damage


def config(content: str) -> Callable[[Path], None]:
    return lambda model: (model / "config.json").write_text(content)


def quantised(**config: Any) -> Callable[[Path], None]:
    return lambda model: set_config(model, quantization_config=config)


MODELS = {
    "no-config": (
        lambda m: (m / "config.json").unlink(),
        ("`model` has no `config.json`; it holds `generation_config.json`",),
        "pass the folder",
    ),
    "config-not-json": (config('{"model_type": '), ("`model/config.json` is not valid JSON",), "again"),
    "config-not-an-object": (config("[1]"), ("`model/config.json` must hold a JSON object, not `[1]`",), "again"),
    "config-empty": (config(""), ("`model/config.json` is not valid JSON",), "again"),
    "unsupported": (
        lambda m: set_config(m, model_type="qwen9_moe"),
        ("model_type `qwen9_moe` is not supported",),
        "supported model types: ",
    ),
    "no-model-type": (lambda m: set_config(m, model_type=None), ("`model_type` is missing",), "incomplete"),
    "absurd-config": (lambda m: set_config(m, hidden_size="wide"), ("`hidden_size` is 'wide', not an integer",), "damaged"),
    "contradiction": (lambda m: set_config(m, num_experts_per_tok=10), ("layer 0 selects 10 of 9 experts",), "contradicts"),
    "truncated-shard": (truncate, ("`model/model-00007-of-00012.safetensors`", "10 bytes"), "download"),
    "empty-shard": (
        lambda m: (m / "model-00007-of-00012.safetensors").write_bytes(b""),
        ("`model/model-00007-of-00012.safetensors` has 0 bytes, too few",),
        "download",
    ),
    "missing-shard": (
        lambda m: (m / "model-00004-of-00012.safetensors").unlink(),
        ("1 of 12 shards", "missing in `model`: `model-00004-of-00012.safetensors`"),
        "download",
    ),
    "wrong-shape": (wrong_shape, (f"{ROUTER} is [9, 47] instead of [9, 48]",), "config.json belongs to another model"),
    "missing-tensor": (drop, ("lacks 1 of ", EXPERT), "download is incomplete"),
    "surplus-tensor": (add, ("holds 1 tensors that model_type `qwen3_moe` has no place for", "shared_expert_gate"), "another function"),
    "unindexed-tensor": (unindexed, ("does not list 1 tensors", "`extra.weight` in `model-00006-of-00012.safetensors`"), "download"),
    "only-config": (only(), ("`model` holds a `config.json` but no weights",), "pass the folder"),
    "gptq": (quantised(quant_method="gptq", bits=4), ("`model` are quantised with GPTQ (`quant_method` `gptq`)",), "bf16"),
    "awq": (quantised(quant_method="awq", bits=4), ("quantised with AWQ",), "bf16"),
    "bitsandbytes": (quantised(load_in_4bit=True), ("quantised with bitsandbytes",), "bf16"),
    "compressed-tensors": (quantised(quant_method="compressed-tensors"), ("quantised with compressed-tensors",), "bf16"),
    "fp8": (quantised(quant_method="fp8"), ("the FP8 weights of `model` have no `weight_block_size`",), "bf16"),
    "gguf": (only("model.Q4_K_M.gguf"), ("`model` holds only GGUF weights, such as `model.Q4_K_M.gguf`",), "safetensors"),
    "pickle": (only("pytorch_model.bin"), ("`model` holds only PyTorch pickles, such as `pytorch_model.bin`",), "save_pretrained"),
    "lora": (only("adapter_config.json", "adapter_model.safetensors"), ("`model` is a LoRA adapter",), "merge"),
    "tokenizer-broken": (lambda m: (m / "tokenizer.json").write_text("{"), ("`model/tokenizer.json` is not a tokenizer",), "again"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_read(model, refused, case):
    damage, message, hint = MODELS[case]
    damage(model)
    assert_says(refused("model", "--data", "text.txt", "--output", "out", "--trace", code=3), message, hint)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("./modle", "the model `./modle` does not exist", "did you mean `model`?"),
        ("/no/such/folder", "the model `/no/such/folder` does not exist", "there is no folder `/no/such` either"),
        ("model/nothing.safetensors", "the model `model/nothing.safetensors` does not exist", "check the path"),
        ("text.txt", "`text.txt` is not a model", "pass the folder"),
        ("model/model-00002-of-00012.safetensors", "is one of 12 shards", "pass the folder `model`"),
        ("model/config.json", "holds a `config.json` but no weights", "pass the folder"),
        ("", "the model `` does not exist", "check the path"),
    ],
)
def test_a_model_that_is_not_there(model, refused, path, message, hint):
    assert_says(refused(path, "--data", "text.txt", "--output", "out", code=3), (message,), hint)


def test_a_gguf_file(model, refused):
    Path("m.gguf").write_bytes(b"GGUF")
    assert_says(refused("m.gguf", "--data", "text.txt", code=3), ("`m.gguf` is a GGUF file",), "safetensors")


def test_a_hub_id_that_is_not_in_the_cache(model, refused):
    assert "some-org/some-model" in refused("some-org/some-model", "--data", "text.txt", "--output", "out", code=3).message


@pytest.mark.parametrize("order", ["resident", "streamed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("name", [ROUTER, EXPERT, EMBEDDING], ids=["router", "expert", "embedding"])
def test_weights_that_are_not_numbers(model, refused, name, value, order):
    edit(model, lambda tensors: tensors[name].view(-1)[50:52].fill_(value), name=name)
    width = all_tensors(model)[name].shape[1]
    found = "2 NaN and 0 infinite" if value != value else "0 NaN and 2 infinite"
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--trace", "--order", order, code=3)
    assert_says(refusal, (f"tensor `{name}` holds {found} values", f"the first at [{50 // width}, {50 % width}]"), "damaged")


def test_a_dense_model(refused):
    from oracle_cases import CASES
    from oracle_models import make_oracle, save

    save(make_oracle(*CASES["llama-tied-linear-headdim"]), Path("dense"), hub_style=True)
    np.save("ids.npy", np.arange(20))
    refusal = refused("dense", "--data", "ids.npy", "--output", "out", code=3)
    assert_says(refusal, ("this `llama` model is dense: it has no routers",), "Mixture-of-Experts")
