"""FP8 and MXFP4 checkpoints compute, bit for bit, what checkpoints with the same weights decoded do."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from quantised_checkpoints import BLOCK, Twins, deepseek_fp8, dequantise_mxfp4, gpt_oss_mxfp4
from safetensors.torch import load_file

from moectl.api import load_model
from moectl.checkpoint.index import open_index
from moectl.checkpoint.quantised import Quantisation, with_weights
from moectl.checkpoint.reader import TensorReader
from moectl.errors import ModelError
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.runtime import choose_dtype
from moectl.model.save import save_model

IDS = torch.randint(0, 103, (3, 29), generator=torch.Generator().manual_seed(5))
BUILDERS: dict[str, Callable[[Path], Twins]] = {
    "deepseek": deepseek_fp8,
    "deepseek-everything": partial(deepseek_fp8, everything=True),
    "deepseek-bfloat16-scales": partial(deepseek_fp8, scales=torch.bfloat16),
    "deepseek-powers-of-two": partial(deepseek_fp8, scales=torch.float8_e8m0fnu),
    "deepseek-in-a-wrapper": partial(deepseek_fp8, wrapped=True),
    "gpt_oss": gpt_oss_mxfp4,
}


@pytest.fixture(scope="module", params=BUILDERS)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return BUILDERS[request.param](tmp_path_factory.mktemp("twins"))


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)


def same_weights(a: Model, b: Model) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_those_of_the_decoded_twin(twins: Twins, dtype: str) -> None:
    model, twin = load_model(twins.quantised, dtype), load_model(getattr(twins, dtype), dtype)
    assert same_weights(model, twin)
    expected = logits(twin)
    assert expected.isfinite().all()
    assert expected.std() > 0.1
    assert torch.equal(logits(model), expected)


def test_auto_is_bfloat16_and_says_what_it_decodes(monkeypatch: pytest.MonkeyPatch, twins: Twins) -> None:
    monkeypatch.setattr("moectl.model.runtime.cpu_has_bfloat16", lambda: True)
    with open_checkpoint(str(twins.quantised)) as checkpoint:
        chosen = choose_dtype("auto", stored=checkpoint.stored_dtypes, device=torch.device("cpu"))
    name = "MXFP4" if checkpoint.spec.model_type == "gpt_oss" else "FP8"
    assert chosen == (torch.bfloat16, f"the checkpoint's, {name} decoded")
    with open_checkpoint(str(twins.bfloat16)) as checkpoint:
        assert choose_dtype("auto", stored=checkpoint.stored_dtypes, device=torch.device("cpu")) == (torch.bfloat16, "the checkpoint's")


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_multi_token_prediction_layers(wrapped: bool, tmp_path: Path) -> None:
    twins = deepseek_fp8(tmp_path, wrapped=wrapped)
    for dtype in ("bfloat16", "float32"):
        model, twin = load_model(twins.quantised, dtype, mtp=True), load_model(getattr(twins, dtype), dtype, mtp=True)
        assert len(model.mtp) == 1
        assert same_weights(model, twin)


def test_what_is_saved_is_decoded_and_says_so(twins: Twins, tmp_path: Path) -> None:
    config = json.loads((twins.quantised / "config.json").read_text())
    assert "quantization_config" in config
    model = load_model(twins.quantised, "bfloat16")
    save_model(model, config, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_weights(load_model(tmp_path, "bfloat16"), model)


def test_gpt_oss_is_decoded_as_transformers_does(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    folder = gpt_oss_mxfp4(tmp_path).quantised
    tensors = load_file(folder / "model-00001-of-00002.safetensors") | load_file(folder / "model-00002-of-00002.safetensors")
    model = load_model(folder, "bfloat16")
    for layer in range(3):
        for name in ("gate_up_proj", "down_proj"):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            theirs = mxfp4.convert_moe_packed_tensors(tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"], dtype=torch.bfloat16)
            assert torch.equal(theirs.transpose(1, 2), dequantise_mxfp4(tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"]).bfloat16())
            for expert in range(5):
                weights = model.layers[layer].experts.get(layer, expert)  # type: ignore[union-attr]
                ours = torch.stack([weights.gate_IH, weights.up_IH], 1).flatten(0, 1) if name == "gate_up_proj" else weights.down_HI
                assert torch.equal(ours, theirs[expert].t())


def test_slices_are_those_of_the_whole(tmp_path: Path) -> None:
    """Rows that begin and end inside a block, experts of a stack."""
    fp8, mxfp4 = deepseek_fp8(tmp_path / "a"), gpt_oss_mxfp4(tmp_path / "b")
    name = "model.layers.0.mlp.gate_proj.weight"
    with TensorReader(with_weights(open_index(fp8.quantised), Quantisation("fp8", BLOCK))) as reader:
        whole = reader.read(name, decode=torch.float32)
        assert whole.shape == (72, 44)
        for start, stop in ((0, 72), (0, 5), (7, 16), (15, 17), (20, 71), (33, 33), (72, 72)):
            assert torch.equal(reader.read_slice(name, rows=(start, stop), decode=torch.float32), whole[start:stop])
        before = reader.bytes_read
        reader.read_slice(name, rows=(17, 20))
        assert reader.bytes_read - before == 3 * 44 + 4 * 3  # three rows of codes and one of scales
        with pytest.raises(ModelError, match="has no rows 70 to 73"):
            reader.read_slice(name, rows=(70, 73))
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    with TensorReader(with_weights(open_index(mxfp4.quantised), Quantisation("mxfp4"))) as reader:
        whole = reader.read(name)
        assert whole.shape == (5, 96, 64)
        assert torch.equal(reader.read_slice(name, index=3, rows=(5, 77)), whole[3, 5:77])
        assert torch.equal(reader.read_slice(name, rows=(1, 3)), whole[1:3])
        for rows in ((3, 6), (3, 2), (-1, 2)):
            with pytest.raises(ModelError, match="has no rows"):
                reader.read_slice(name, rows=rows)


def test_one_reader_decodes_while_evaluating_and_while_training(tmp_path: Path) -> None:
    with TensorReader(with_weights(open_index(deepseek_fp8(tmp_path).quantised), Quantisation("fp8", BLOCK))) as reader:
        with torch.inference_mode():
            first = reader.read("model.layers.0.mlp.gate_proj.weight").clone()
        second = reader.read("model.layers.0.mlp.gate_proj.weight")
    assert not second.is_inference()
    assert torch.equal(first, second)


def test_a_copy_in_bfloat16_may_keep_the_old_configuration(tmp_path: Path) -> None:
    twins = deepseek_fp8(tmp_path)
    (twins.bfloat16 / "config.json").write_text((twins.quantised / "config.json").read_text())
    assert same_weights(load_model(twins.bfloat16, "bfloat16"), load_model(twins.quantised, "bfloat16"))
