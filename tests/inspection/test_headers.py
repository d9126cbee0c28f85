"""Inspections of files, against their tensors: real tiny checkpoints, quantised ones, large ones, and the Hub's cache."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from header_checkpoints import FP8, MXFP4, write_headers

import moectl
from moectl.errors import ModelError

FAMILIES = ("qwen3_moe", "mixtral", "deepseek_v3")
V3 = {
    "model_type": "deepseek_v3", "vocab_size": 100, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 300, "moe_intermediate_size": 130, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_tensors(checkpoints: dict[str, Any], family: str) -> None:
    from tiny_checkpoints import all_tensors

    folder = checkpoints[family].folder
    found, tensors = moectl.inspect(folder, tensors=True), all_tensors(folder)
    parameters = found.parameters
    assert parameters.total + parameters.mtp + parameters.other == sum(tensor.numel() for tensor in tensors.values())
    mtp = [tensor for name, tensor in tensors.items() if name.startswith("model.layers.3.")]
    assert parameters.mtp + parameters.other == sum(tensor.numel() for tensor in mtp)
    assert found.total_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert {row.name: row.shape for row in found.tensors} == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert (found.source, found.files) == ("headers", len(list(folder.glob("*.safetensors"))))
    assert [info.layer for info in found.layers if info.kind == "moe"] == [layer for layer, _, _ in checkpoints[family].moe_layers]
    assert found.routing is not None
    assert (found.routing["experts"], found.routing["top_k"]) == checkpoints[family].moe_layers[0][1:]


def test_the_built_in_model() -> None:
    from safetensors import safe_open

    found = moectl.inspect("demo")
    file = Path(moectl.__file__).parent / "demo_model/model.safetensors"
    with safe_open(str(file), framework="numpy") as tensors:
        sizes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    count = {name: math.prod(shape) for name, shape in sizes.items()}
    mtp = sum(size for name, size in count.items() if name.startswith("model.layers.7."))
    copies = sum(
        size for name, size in count.items() if name.startswith(("model.layers.7.embed_tokens", "model.layers.7.shared_head.head"))
    )
    assert found.parameters.total == sum(count.values()) - mtp
    assert (found.parameters.mtp, found.parameters.other) == (mtp - copies, copies)
    assert found.total_bytes <= file.stat().st_size < found.total_bytes + 100_000


def test_fp8_scales_are_bytes_but_no_parameters(tmp_path: Path) -> None:
    plain = write_headers(tmp_path / "plain", V3)
    total = write_headers(tmp_path / "fp8", V3 | {"quantization_config": FP8})
    one, other = moectl.inspect(tmp_path / "plain"), moectl.inspect(tmp_path / "fp8", tensors=True)
    assert one.parameters == other.parameters
    assert (one.quantisation, other.quantisation) == (None, "fp8")
    assert (one.bytes, sum(other.bytes.values())) == ({"BF16": plain}, total)
    scales = [row for row in other.tensors if row.name.endswith("_scale_inv")]
    assert other.bytes["F32"] == sum(row.bytes for row in scales) > 0
    weights = [row for row in other.tensors if row.dtype == "F8_E4M3"]
    assert (len(weights), other.bytes["F8_E4M3"]) == (len(scales), sum(row.bytes for row in weights))
    # What a bare configuration lets one expect is what the files hold, but for the MTP layer and the bias in float32.
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "fp8/config.json", tmp_path / "bare")
    write_headers(tmp_path / "main", V3 | {"quantization_config": FP8, "num_nextn_predict_layers": 0})
    bare, main = moectl.inspect(tmp_path / "bare"), moectl.inspect(tmp_path / "main")
    assert bare.bytes["F8_E4M3"] == main.bytes["F8_E4M3"]
    assert bare.total_bytes == main.total_bytes + 2 * 3 * 8


def test_mxfp4_counts_the_weights_it_stands_for(tmp_path: Path) -> None:
    config = {"model_type": "gpt_oss", "num_hidden_layers": 2, "num_local_experts": 4, "hidden_size": 64, "intermediate_size": 96}
    write_headers(tmp_path / "plain", config)
    write_headers(tmp_path / "mxfp4", config | {"quantization_config": MXFP4})
    one, other = moectl.inspect(tmp_path / "plain"), moectl.inspect(tmp_path / "mxfp4")
    assert one.parameters == other.parameters
    matrices = 2 * 4 * 3 * 64 * 96
    assert other.bytes["U8"] == matrices * 17 // 32
    assert other.total_bytes == one.total_bytes - 2 * matrices + matrices * 17 // 32
    bare = moectl.inspect(tmp_path / "mxfp4/config.json")
    assert (bare.source, bare.bytes) == ("config", other.bytes)


def test_a_model_of_hundreds_of_gigabytes_is_its_headers(tmp_path: Path) -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 12, "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16"}
    total = write_headers(tmp_path, config, shards=5)
    found = moectl.inspect(tmp_path)
    assert total == found.total_bytes > 2e11
    assert (found.files, [group.layers for group in found.layer_groups]) == (5, ["0-2", "3-11"])


def test_what_has_no_place_is_refused_and_what_lies_outside_is_counted(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32}
    write_headers(tmp_path / "a", config, extra={"model.layers.0.block_sparse_moe.more.weight": (2, 2)})
    with pytest.raises(ModelError, match="has no place for"):
        moectl.inspect(tmp_path / "a")
    write_headers(tmp_path / "b", config, extra={"model.layers.0.self_attn.rotary_emb.inv_freq": (16,)})
    assert moectl.inspect(tmp_path / "b").parameters.other == 16


def test_mtp_layers_that_the_files_lack_are_not_counted(tmp_path: Path) -> None:
    write_headers(tmp_path, V3 | {"num_nextn_predict_layers": 0})
    (tmp_path / "config.json").write_text(json.dumps(V3))
    found = moectl.inspect(tmp_path)
    assert (found.parameters.mtp, found.mtp_layers) == (0, 0)
    assert moectl.inspect(tmp_path / "config.json").mtp_layers == 1


def test_a_hub_id_is_its_configuration_and_what_the_cache_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moectl.checkpoint import hub

    snapshot = tmp_path / "abc123"
    write_headers(snapshot, V3)
    asked = []
    monkeypatch.setattr(hub.HubRepository, "download", lambda self, *, weights: asked.append(weights) or snapshot)
    found = moectl.inspect("org/name")
    assert (found.model, found.revision, found.source, found.notes) == ("org/name", "abc123", "headers", ())
    next(snapshot.glob("*.safetensors")).unlink()
    part = moectl.inspect("org/name")
    assert (part.source, part.parameters.total) == ("config", found.parameters.total)
    assert "not complete" in part.notes[0]
    for file in snapshot.glob("*.safetensors"):
        file.unlink()
    assert moectl.inspect("org/name").notes[0].startswith("the weights are not in the Hub cache")
    assert asked == [False] * 3
    with pytest.raises(ModelError, match="not here to list"):
        moectl.inspect("org/name", tensors=True)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_other_quantised_formats_are_refused_by_name(tmp_path: Path, method: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(V3 | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match="does not read"):
        moectl.inspect(tmp_path)


def test_from_python_it_needs_no_torch() -> None:
    code = "import sys, moectl; moectl.inspect('demo', ranks=2); sys.exit(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
