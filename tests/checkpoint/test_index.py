"""The index of a folder: which files count, and how disagreement between index and shards is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moectl.checkpoint.index import INDEX_NAME, open_index
from moectl.errors import ModelError


def shard(path: Path, *names: str) -> None:
    save_file({name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}, path)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    shard(tmp_path / "model-00001-of-00002.safetensors", "a", "b")
    shard(tmp_path / "model-00002-of-00002.safetensors", "c")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(tmp_path, {"a": first, "b": first, "c": second})
    return tmp_path


def refused(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        open_index(folder)
    assert caught.value.exit_code == 3
    return caught.value


def test_sharded_with_index(sharded):
    index = open_index(sharded)
    assert list(index.tensors) == ["a", "b", "c"]
    assert [path.name for path in index.shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index.total_bytes == 3 * 24
    assert index.tensors["c"].file == index.shards[1]


def test_complete_shards_need_no_index(sharded):
    with_index = open_index(sharded)
    (sharded / INDEX_NAME).unlink()
    assert open_index(sharded) == with_index


def test_single_files(tmp_path):
    shard(tmp_path / "weights.safetensors", "a")
    assert list(open_index(tmp_path).tensors) == ["a"]
    shard(tmp_path / "model.safetensors", "m")
    assert list(open_index(tmp_path).tensors) == ["m"]
    assert list(open_index(tmp_path / "weights.safetensors").tensors) == ["a"]


def test_originals_and_adapters_are_not_weights(tmp_path):
    shard(tmp_path / "model-00001-of-00001.safetensors", "a")
    shard(tmp_path / "consolidated.safetensors", "x")
    shard(tmp_path / "adapter_model.safetensors", "y")
    assert list(open_index(tmp_path).tensors) == ["a"]


def test_missing_shard_of_the_index(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    error = refused(sharded)
    assert "1 of 2 shards" in error.message
    assert "`model-00002-of-00002.safetensors`" in error.message
    assert error.hint == "download the checkpoint again"


def test_missing_shard_of_the_numbering(sharded):
    (sharded / INDEX_NAME).unlink()
    (sharded / "model-00001-of-00002.safetensors").unlink()
    error = refused(sharded)
    assert "holds 1 of the 2 shards" in error.message
    assert "`model-00001-of-00002.safetensors`" in error.message


@pytest.mark.parametrize("second", ["other.safetensors", "model-00001-of-00003.safetensors", "model-1-of-00001.safetensors"])
def test_unrelated_files_are_ambiguous(tmp_path, second):
    shard(tmp_path / "model-00001-of-00001.safetensors", "a")
    shard(tmp_path / second, "b")
    assert "are not one set of shards" in refused(tmp_path).message


def test_tensor_not_in_its_shard(sharded):
    shard(sharded / "model-00002-of-00002.safetensors", "d")
    assert "tensor `c` is not in" in refused(sharded).message


def test_tensor_in_another_shard(sharded):
    shard(sharded / "model-00001-of-00002.safetensors", "a")
    shard(sharded / "model-00002-of-00002.safetensors", "b", "c")
    message = refused(sharded).message
    assert "tensor `b` is in " in message
    assert "not in `model-00001-of-00002.safetensors`" in message


@pytest.mark.parametrize("with_index", [True, False])
def test_tensor_in_two_shards(sharded, with_index):
    shard(sharded / "model-00002-of-00002.safetensors", "a", "c")
    if not with_index:
        (sharded / INDEX_NAME).unlink()
    assert "tensor `a` is in two shards" in refused(sharded).message


def test_tensor_the_index_does_not_list(sharded):
    shard(sharded / "model-00002-of-00002.safetensors", "c", "z")
    error = refused(sharded)
    assert "does not list 1 tensors of its shards, such as `z`" in error.message
    assert f"delete `{INDEX_NAME}`" in (error.hint or "")
    (sharded / INDEX_NAME).unlink()
    assert set(open_index(sharded).tensors) == {"a", "b", "c", "z"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no `weight_map` object"),
        ('{"weight_map": []}', "has no `weight_map` object"),
        ('{"weight_map": {}}', "lists no tensors"),
        ('{"weight_map": {"a": 1}}', "puts tensor `a` into `1`"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "plain name"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "plain name"),
        ('{"weight_map": {"a": "sub\\\\x.safetensors"}}', "plain name"),
        ('{"weight_map": {"a": "x.safetensors\\u0000.safetensors"}}', "plain name"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "plain name of a `.safetensors` file"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "x.safetensors"}}', "the key `a` appears twice"),
        ('{"weight_map":' + "[" * 200_000, "nested too deeply"),
    ],
)
def test_hostile_index(sharded, text, message):
    (sharded / INDEX_NAME).write_text(text)
    assert message in refused(sharded).message


def test_broken_links_of_the_cache(sharded):
    path = sharded / "model-00002-of-00002.safetensors"
    path.unlink()
    path.symlink_to(sharded / "blobs" / "gone")
    assert "1 of 2 shards" in refused(sharded).message
    (sharded / INDEX_NAME).unlink()
    (sharded / INDEX_NAME).symlink_to(sharded / "blobs" / "gone")
    assert "link to a file that is gone" in refused(sharded).message


def test_nothing_there(tmp_path):
    assert "holds no `.safetensors` file" in refused(tmp_path).message
    save_file({}, tmp_path / "model.safetensors")
    assert "holds no tensors" in refused(tmp_path).message


def test_needs_no_torch():
    code = "import sys, moectl.checkpoint.index, moectl.checkpoint.locate, moectl.checkpoint.writer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
