"""Tensors out of a checkpoint: the same bits as safetensors, only the bytes asked for, and no damaged values."""

from __future__ import annotations

import math
import threading

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from moectl.checkpoint.index import open_index
from moectl.checkpoint.reader import TensorReader, require_finite
from moectl.checkpoint.writer import CheckpointWriter, PlannedTensor
from moectl.errors import ModelError

DTYPES = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu,
    torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint16, torch.complex64,
]  # fmt: skip


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        size = torch.empty(shape, dtype=dtype).nbytes
        return torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).view(dtype).reshape(shape)

    tensors = {str(dtype): random(5, 3, 7, dtype=dtype) for dtype in DTYPES}
    tensors |= {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "row": torch.arange(3.0),
    }
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def test_equals_safetensors(folder):
    index = open_index(folder)
    expected = {name: tensor for shard in index.shards for name, tensor in load_file(shard).items()}
    with TensorReader(index) as reader:
        for name, tensor in expected.items():
            found = reader.read(name)
            assert same_bits(found, tensor), name
            assert found.data_ptr() % 16 == 0
        assert reader.bytes_read == index.total_bytes
        assert len(expected) == len(index.tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_read_only_their_bytes(folder, dtype):
    index, name = open_index(folder), str(dtype)
    with TensorReader(index) as reader:
        whole = reader.read(name)
        before = reader.bytes_read
        assert same_bits(reader.read_slice(name, index=3), whole[3])
        assert same_bits(reader.read_slice(name, rows=(1, 4)), whole[1:4])
        assert same_bits(reader.read_slice(name, index=4, rows=(1, 2)), whole[4, 1:2])
        assert same_bits(reader.read_slice(name, rows=(2, 2)), whole[2:2])
        assert same_bits(reader.read_slice(name), whole)
        assert reader.bytes_read - before == whole.element_size() * (21 + 63 + 7 + 0 + 105)


def test_slices_of_odd_shapes(folder):
    with TensorReader(open_index(folder)) as reader:
        assert reader.read_slice("row", index=2).item() == 2.0
        assert reader.read_slice("empty", rows=(0, 0)).shape == (0, 4)
        for part in ({"index": 3}, {"index": -1}, {"rows": (0, 4)}, {"rows": (2, 1)}, {"rows": (-1, 2)}, {"index": 0, "rows": (0, 1)}):
            with pytest.raises(ModelError, match=r"tensor `row` of shape \[3\] has no"):
                reader.read_slice("row", **part)
        with pytest.raises(ModelError, match=r"of shape \[\] has no entry 0"):
            reader.read_slice("scalar", index=0)
        with pytest.raises(ModelError, match="has no entry 0"):
            reader.read_slice("empty", index=0)


def test_unknown_name(folder):
    with TensorReader(open_index(folder)) as reader, pytest.raises(ModelError) as caught:
        reader.read("scaler")
    assert "has no tensor `scaler`" in caught.value.message
    assert caught.value.hint == "similar names: `scalar`"


def test_own_memory(folder):
    with TensorReader(open_index(folder)) as reader:
        first = reader.read("row")
        first.fill_(9)
        second = reader.read("row")
    assert second.tolist() == [0.0, 1.0, 2.0]
    assert first.tolist() == [9.0, 9.0, 9.0]


def test_dtype_torch_lacks(tmp_path):
    header = b'{"packed":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with TensorReader(open_index(tmp_path)) as reader, pytest.raises(ModelError, match="cannot hold tensors of dtype `F4`"):
        reader.read("packed")


def test_file_changed_after_its_header_was_read(folder):
    index = open_index(folder)
    for shard in index.shards:
        shard.write_bytes(shard.read_bytes()[:-1])
    with TensorReader(index) as reader:
        last = max((info for info in index.tensors.values() if info.file == index.shards[0]), key=lambda info: info.end)
        with pytest.raises(ModelError, match="lost 1 bytes of tensor"):
            reader.read(last.name)
    for shard in index.shards:
        shard.unlink()
    with TensorReader(index) as reader, pytest.raises(ModelError, match="is gone since its header was read"):
        reader.read("row")


def test_short_reads_are_continued(folder, monkeypatch):
    monkeypatch.setattr("moectl.checkpoint.reader._MAX_READ", 5)
    with TensorReader(open_index(folder)) as reader:
        assert reader.read("row").tolist() == [0.0, 1.0, 2.0]


def test_shards_are_opened_once_and_closed(folder):
    process = psutil.Process()
    before = process.num_fds()
    index = open_index(folder)
    with TensorReader(index) as reader:
        assert process.num_fds() == before
        for _ in range(2):
            for name in index.tensors:
                reader.read(name)
        assert process.num_fds() == before + 2
    assert process.num_fds() == before


def test_threads(folder):
    index = open_index(folder)
    with TensorReader(index) as reader:
        threads = [threading.Thread(target=lambda: [reader.read(name) for name in index.tensors]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reader.bytes_read == 4 * index.total_bytes


def test_memory_follows_what_is_held(tmp_path):
    # Above 32 MiB, glibc's largest threshold, every tensor is its own mapping: freeing one shows in the RSS at once.
    size = 40 << 20
    CheckpointWriter(tmp_path, [PlannedTensor(f"t{i}", "U8", (size,)) for i in range(8)])  # headers only: a sparse file of zeros
    process = psutil.Process()
    with TensorReader(open_index(tmp_path)) as reader:
        reader.read("t0")
        before = process.memory_info().rss
        for i in range(8):
            tensor = reader.read(f"t{i}")
            assert process.memory_info().rss - before < 2.5 * size
        assert tensor.numel() == size


FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_found(dtype, bad):
    tensor = torch.zeros(4, 5, 6, dtype=dtype)
    tensor[2, 3, 4] = bad
    with pytest.raises(ModelError) as caught:
        require_finite("w", tensor)
    counts = "1 NaN and 0 infinite" if math.isnan(bad) else "0 NaN and 1 infinite"
    assert caught.value.message == f"tensor `w` holds {counts} values among 120, the first at [2, 3, 4]"


def test_opposite_infinities_do_not_cancel(monkeypatch):
    monkeypatch.setattr("moectl.checkpoint.reader._EXACT_CHUNK", 7)
    tensor = torch.zeros(20)
    tensor[9], tensor[15], tensor[16] = math.inf, -math.inf, math.nan
    with pytest.raises(ModelError, match=r"1 NaN and 2 infinite values among 20, the first at \[9\]"):
        require_finite("w", tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_legal_values_that_overflow_the_sum(dtype):
    require_finite("w", torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bit_floats(dtype):
    tensor = torch.ones(3, 3).to(dtype)
    require_finite("w", tensor)
    tensor[1, 2] = math.nan
    with pytest.raises(ModelError, match=r"1 NaN and 0 infinite values among 9, the first at \[1, 2\]"):
        require_finite("w", tensor)


def test_what_cannot_be_bad():
    require_finite("ids", torch.full((3,), torch.iinfo(torch.int64).max))
    require_finite("mask", torch.ones(3, dtype=torch.bool))
    require_finite("none", torch.zeros(0))
    with pytest.raises(ModelError, match=r"1 NaN and 0 infinite values among 1, the first at \[\]"):
        require_finite("scalar", torch.tensor(math.nan))
    with pytest.raises(ModelError, match="1 infinite"):
        require_finite("complex", torch.tensor([1 + 1j, complex(0, math.inf)]))
    with pytest.raises(ModelError, match=r"the first at \[1, 0\]"):
        require_finite("strided", torch.tensor([[0.0, math.nan], [0.0, 0.0]]).T)
