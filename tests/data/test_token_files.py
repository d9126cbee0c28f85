"""`.npy` token ids: what is used, what is refused, and that nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.data.token_files import TokenFile, read_token_file
from moectl.errors import DataError, ResourceError


def _read(path: Path, vocab_size: int = 100, seq_len: int = 8, limit: int | None = None) -> TokenFile:
    return read_token_file(path, vocab_size=vocab_size, seq_len=seq_len, limit=limit)


def _saved(folder: Path, array: Any) -> Path:
    np.save(folder / "a.npy", array)
    return folder / "a.npy"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "<i4", ">i4", "uint16", "int64", ">u8"])
def test_any_integer_type(dtype: str, tmp_path: Path) -> None:
    read = _read(_saved(tmp_path, np.arange(20).astype(dtype)))
    assert read.ids_T.dtype == np.int32
    assert read.ids_T.tolist() == list(range(20))
    assert read.lengths_N == [8, 8, 4]
    assert read.n_documents == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_used_as_they_are(order: Any, tmp_path: Path) -> None:
    read = _read(_saved(tmp_path, np.asarray(np.arange(60).reshape(5, 12), order=order)))
    assert read.ids_T.tolist() == list(range(60))
    assert read.lengths_N == [12] * 5
    assert read.n_documents == 5


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(st.tuples(st.integers(0, 40)), st.tuples(st.integers(0, 8), st.integers(0, 9))), limit=st.none() | st.integers(1, 50)
)
def test_the_limit_takes_the_first_tokens(shape: tuple[int, ...], limit: int | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _saved(tmp_path_factory.mktemp("d"), np.arange(np.prod(shape, dtype=int)).reshape(shape))
    whole, some = _read(path), _read(path, limit=limit)
    assert some.ids_T.tolist() == whole.ids_T.tolist()[:limit]
    assert sum(some.lengths_N) == len(some.ids_T)
    assert all(some.lengths_N)
    assert some.lengths_N[:-1] == whole.lengths_N[: len(some.lengths_N)][:-1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, 2], np.float32), "holds float32, not integers"),
        (np.array([True]), "holds bool, not integers"),
        (np.array(["a"]), "holds <U1, not integers"),
        (np.zeros(3, dtype=[("a", "i4")]), "not integers"),
        (np.int32(3), r"has 0 dimensions \(shape none\)"),
        (np.zeros((2, 3, 4), np.int32), r"has 3 dimensions \(shape 2x3x4\)"),
        (np.array([3, -1, -2]), r"token id `-1` in `.*a\.npy` \(position 1\) is negative"),
        (np.array([3, 99, 100, 101]), r"token id `100` in `.*` \(position 2\) is not below the model's vocabulary of 100"),
        (np.array([[3, 99], [7, 100]]), r"token id `100` in `.*` \(row 1, column 1\) is not below"),
        (np.array([2**64 - 1], np.uint64), r"token id `18446744073709551615` .* is not below"),
        (np.array([-(2**63)]), "is negative"),
    ],
)
def test_refused_arrays(array: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _read(_saved(tmp_path, array))
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_ids_after_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    assert _read(_saved(tmp_path, np.array([1, 2, 500])), limit=2).ids_T.tolist() == [1, 2]


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_pickled_objects_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.array([_Bomb()], dtype=object))
    with pytest.raises(DataError, match="it holds pickled objects"):
        _read(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match=r"not a whole `\.npy` array"):
        _read(tmp_path / "a.npy")
    assert not (tmp_path / "exploded").exists()


def _with_header(header: bytes) -> bytes:
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world" * 10,
        b"\x93NUMPY\x01\x00\xff\xff{",
        _with_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (14,), }"),
        _with_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (-5,), }"),
        _with_header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000000000000,), }"),
        _with_header(b"{'descr': '<i4', 'fortran_order': False, 'shape': (True, 2), }"),
        _with_header(b"{'descr': 'zz', 'fortran_order': False, 'shape': (5,), }"),
        _with_header(b"{'descr': ((((((((, }"),
        _with_header(b"\xff\xfe\xfd"),
    ],
)
def test_hostile_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"`.*a\.npy` is not a whole `\.npy` array: ."):
        _read(tmp_path / "a.npy")


def test_zip_of_arrays_under_the_wrong_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    os.rename(tmp_path / "a.npz", tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"not a whole `\.npy` array"):
        _read(tmp_path / "a.npy")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot read"):
        _read(tmp_path / "gone.npy")
