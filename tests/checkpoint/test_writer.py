"""Checkpoints onto disk: read back by safetensors and by the reader, in any order, and never half."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from moectl.checkpoint.dtypes import dtype_name, torch_dtype
from moectl.checkpoint.index import INDEX_NAME, SINGLE_NAME, open_index
from moectl.checkpoint.reader import TensorReader
from moectl.checkpoint.writer import CheckpointWriter, PlannedTensor
from moectl.errors import ModelError, ResourceError, UsageError
from moectl.staging import staged_directory


def plan_of(tensors: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]


def read_back(folder: Path) -> dict[str, torch.Tensor]:
    """Through our own index and reader, after checking that safetensors sees the same."""
    index = open_index(folder)
    with TensorReader(index) as reader:
        ours = {name: reader.read(name) for name in index.tensors}
    theirs = {name: tensor for shard in index.shards for name, tensor in load_file(shard).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8))
    return ours


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "norm": torch.randn(7),
        "mask": torch.tensor([True, False, True]),
        "w": torch.randn(5, 3).bfloat16(),
        "q": torch.randn(4, 5).to(torch.float8_e4m3fn),
        "ids": torch.arange(5),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "z": torch.randn(2, 3, dtype=torch.complex64),
    }


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shard_size", [1, 40, 64, 10**9])
def test_round_trip(tmp_path, tensors, shard_size, backwards):
    with CheckpointWriter(tmp_path, plan_of(tensors), shard_size=shard_size) as writer:
        for name in reversed(tensors) if backwards else tensors:
            writer.write(name, tensors[name])
    found = read_back(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    index = open_index(tmp_path)
    for shard in index.shards:
        sizes = [info.nbytes for info in index.tensors.values() if info.file == shard]
        assert sum(sizes) <= shard_size or sum(size > 0 for size in sizes) == 1
    for info in index.tensors.values():
        assert info.start % torch_dtype(info.dtype).itemsize == 0


def test_order_of_writing_does_not_matter(tmp_path, tensors):
    for folder, names in ((tmp_path / "a", list(tensors)), (tmp_path / "b", sorted(tensors))):
        folder.mkdir()
        with CheckpointWriter(folder, plan_of(tensors), shard_size=50) as writer:
            for name in names:
                writer.write(name, tensors[name])
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "a", tmp_path / "b")]
    assert contents[0] == contents[1]


def test_one_file(tmp_path, tensors):
    with CheckpointWriter(tmp_path, plan_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_NAME]
    with safe_open(tmp_path / SINGLE_NAME, "pt") as peer:
        assert peer.metadata() == {"format": "pt"}
    content = (tmp_path / SINGLE_NAME).read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_names_and_index(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    with CheckpointWriter(tmp_path, plan_of(tensors), shard_size=80) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"] == {"total_size": 200}
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert index["weight_map"] == {"t0": shards[0], "t1": shards[0], "t2": shards[1], "t3": shards[1], "t4": shards[2]}
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, INDEX_NAME]


def test_a_large_tensor_has_its_own_shard(tmp_path):
    tensors = {"a": torch.zeros(2), "big": torch.ones(100), "b": torch.zeros(2)}
    with CheckpointWriter(tmp_path, plan_of(tensors), shard_size=50) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert [path.stat().st_size > 400 for path in open_index(tmp_path).shards] == [False, True, False]


def test_tied_and_strided_tensors(tmp_path):
    embedding = torch.randn(6, 4, requires_grad=True)
    tensors = {"embed": embedding, "head": embedding, "transposed": embedding.T, "row": embedding[2]}
    with CheckpointWriter(tmp_path, plan_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    found = read_back(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_raw_bytes(tmp_path):
    values = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    with CheckpointWriter(tmp_path, [PlannedTensor("a", "I16", (2, 3)), PlannedTensor("f4", "F4", (4,))]) as writer:
        with pytest.raises(ModelError, match="tensor `a` has 11 bytes, but 12 were planned"):
            writer.write_bytes("a", bytes(11))
        writer.write_bytes("a", memoryview(values.numpy()))
        writer.write_bytes("f4", b"\x12\x34")
    index = open_index(tmp_path)
    with TensorReader(index) as reader:
        assert torch.equal(reader.read("a"), values)
    info = index.tensors["f4"]
    assert (tmp_path / SINGLE_NAME).read_bytes()[info.start : info.end] == b"\x12\x34"


def test_what_was_not_planned(tmp_path):
    writer = CheckpointWriter(tmp_path, [PlannedTensor("a", "F32", (2,)), PlannedTensor("b", "F32", (2,))])
    with pytest.raises(ModelError, match=r"tensor `a` is `F32` \[3\], but `F32` \[2\] was planned"):
        writer.write("a", torch.zeros(3))
    with pytest.raises(ModelError, match=r"tensor `a` is `BF16` \[2\], but `F32`"):
        writer.write("a", torch.zeros(2).bfloat16())
    with pytest.raises(ModelError, match="tensor `c` was not planned"):
        writer.write("c", torch.zeros(2))
    writer.write("a", torch.zeros(2))
    with pytest.raises(ModelError, match="tensor `a` is written twice"):
        writer.write("a", torch.zeros(2))
    with pytest.raises(ModelError, match="1 of 2 planned tensors were not written, the first is `b`"):
        writer.close()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "without tensors"),
        ([PlannedTensor("a", "F32", (1,)), PlannedTensor("a", "F32", (1,))], "tensor `a` is planned twice"),
        ([PlannedTensor("__metadata__", "F32", (1,))], "cannot have the name `__metadata__`"),
        ([PlannedTensor("a\n", "F32", (1,))], "cannot have the name"),
        ([PlannedTensor("a", "Q4", (1,))], "unknown dtype `Q4`"),
        ([PlannedTensor("a", "F4", (3,))], "tensor `a` cannot be written as `F4`"),
        ([PlannedTensor("a", "F32", (-1, -1))], "tensor `a` cannot be written"),
    ],
)
def test_impossible_plans(tmp_path, plan, message):
    with pytest.raises(ModelError, match=message):
        CheckpointWriter(tmp_path, plan)
    assert list(tmp_path.iterdir()) == []


def test_impossible_shard_size(tmp_path):
    with pytest.raises(UsageError, match="shard size `0`"):
        CheckpointWriter(tmp_path, [PlannedTensor("a", "F32", (1,))], shard_size=0)


def test_no_room(tmp_path, monkeypatch, tensors):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(ResourceError) as caught, staged_directory(tmp_path / "out", overwrite=False) as stage:
        CheckpointWriter(stage, [PlannedTensor("a", "F32", (1000,))])
    assert "needs 4.10 kB" in caught.value.message
    assert "only 1.00 kB are free" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_call", range(6))
def test_disk_full_leaves_nothing(tmp_path, monkeypatch, tensors, failing_call):
    """Fails at each write: the two headers, then the tensors."""
    calls = 0
    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)

    def convert() -> None:
        with (
            staged_directory(tmp_path / "out", overwrite=False) as stage,
            CheckpointWriter(stage, plan_of(tensors), shard_size=100) as writer,
        ):
            for name, tensor in tensors.items():
                writer.write(name, tensor)

    with pytest.raises(ResourceError, match="the disk is full") as caught:
        convert()
    assert caught.value.exit_code == 4
    assert calls == failing_call + 1
    assert list(tmp_path.iterdir()) == []


def test_forgotten_tensor_leaves_nothing(tmp_path, tensors):
    with (
        pytest.raises(ModelError, match="8 of 8 planned tensors were not written"),
        staged_directory(tmp_path / "out", overwrite=False) as stage,
        CheckpointWriter(stage, plan_of(tensors)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_error_inside_the_block_is_not_hidden(tmp_path, tensors):
    with pytest.raises(KeyError), CheckpointWriter(tmp_path, plan_of(tensors)):
        raise KeyError("inside")


def test_short_writes_are_continued(tmp_path, monkeypatch, tensors):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:3], offset))
    with CheckpointWriter(tmp_path, plan_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert torch.equal(read_back(tmp_path)["norm"], tensors["norm"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), st.lists(st.integers(0, 4), max_size=3)), min_size=1, max_size=8
    ),
    shard_size=st.integers(1, 300),
    data=st.data(),
)
def test_any_plan_round_trips(tmp_path, shapes, shard_size, data):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").mkdir()
    tensors = {
        f"t{i}": torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch_dtype(dtype)) for i, (dtype, shape) in enumerate(shapes)
    }
    with CheckpointWriter(tmp_path / "out", plan_of(tensors), shard_size=shard_size) as writer:
        for name in data.draw(st.permutations(list(tensors))):
            writer.write(name, tensors[name])
    found = read_back(tmp_path / "out")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
