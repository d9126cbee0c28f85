"""Headers of safetensors files: what is read, and every way a hostile file is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from moectl.checkpoint.header import dtype_bits, read_header
from moectl.errors import ModelError, ResourceError


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_bytes(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write(folder: Path, content: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return path


def test_reads_what_safetensors_wrote(tmp_path):
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "b": torch.zeros(7, dtype=torch.bool),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 4),
        "q": torch.zeros(3, 3, dtype=torch.float8_e4m3fn),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a": ("BF16", (3, 5)),
        "b": ("BOOL", (7,)),
        "scalar": ("F32", ()),
        "empty": ("F32", (0, 4)),
        "q": ("F8_E4M3", (3, 3)),
    }
    content = path.read_bytes()
    for name, info in header.tensors.items():
        assert info.file == path
        assert info.nbytes == tensors[name].nbytes
        assert content[info.start : info.end] == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, b""),
        ({"a": tensor(), "zero": tensor(shape=[0], offsets=[0, 0])}, bytes(8)),
        ({"a": tensor(), "zero": tensor(shape=[0], offsets=[8, 8])}, bytes(8)),
        ({"a": tensor("F4", [4], [0, 2])}, bytes(2)),
        ({"a": tensor("F6_E2M3", [4], [0, 3])}, bytes(3)),
        ({"a": tensor("F64", [], [0, 8])}, bytes(8)),
        ({"__metadata__": None}, b""),
        (json.dumps({"a": tensor()}).encode() + b"   ", bytes(8)),
    ],
)
def test_legal_corners(tmp_path, header, data):
    path = write(tmp_path, file_bytes(header, data))
    with safe_open(path, "pt") as peer:
        assert set(read_header(path).tensors) == set(peer.keys())


DUPLICATE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

HOSTILE = {
    "empty file": (b"", "has 0 bytes, too few"),
    "seven bytes": (bytes(7), "has 7 bytes, too few"),
    "zero length": (bytes(16), "claim a header of 0 bytes"),
    "absurd length": (b"\xff" * 8 + bytes(8), "claim a header of 18,446,744,073,709,551,615 bytes"),
    "just above the limit": ((100_000_001).to_bytes(8, "little"), "100,000,001 bytes"),
    "header cut": ((100).to_bytes(8, "little") + b"{}", "is truncated: 98 bytes of its header are missing"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    "gguf": (b"GGUF\x03\x00\x00\x00\x10\x00\x00\x00", "is a GGUF file"),
    "pickle": (b"PK\x03\x04\x00\x00\x08\x08\x00", "is a zip archive"),
    "web page": (b"<!DOCTYPE html><html></html>", "is a web page"),
    "not utf-8": (file_bytes(b'{"\xff": 1}'), "is not UTF-8 text: byte 2 is 0xff"),
    "utf-16": (file_bytes("{}".encode("utf-16")), "is not UTF-8"),
    "not json": (file_bytes(b"{nope}"), "is not valid JSON"),
    "byte order mark": (file_bytes(b"\xef\xbb\xbf{}", b""), "is not valid JSON"),
    "huge integer": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "is not valid JSON"),
    "list": (file_bytes([1]), "must hold a JSON object, not `[1]`"),
    "deep": (file_bytes(b'{"a":' + b"[" * 200_000), "is nested too deeply"),
    "duplicate": (file_bytes(DUPLICATE), "the key `a` appears twice"),
    "duplicate field": (file_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "the key `dtype` appears twice"),
    "metadata list": (file_bytes({"__metadata__": []}, b""), "`__metadata__` of `[]`"),
    "metadata number": (file_bytes({"__metadata__": {"k": 1}}, b""), "`__metadata__` key `k` of `1`, not a string"),
    "metadata surrogate": (file_bytes(b'{"__metadata__": {"k": "\\ud800"}}', b""), "not Unicode text"),
    "not an entry": (file_bytes({"a": 3}), "tensor `a` must have exactly"),
    "field missing": (file_bytes({"a": {"dtype": "F32", "shape": [2]}}), "tensor `a` must have exactly"),
    "field too many": (file_bytes({"a": tensor() | {"x": 1}}), "tensor `a` must have exactly"),
    "unknown dtype": (file_bytes({"a": tensor("Q4_K")}), "tensor `a` has the unknown dtype `Q4_K`"),
    "dtype list": (file_bytes({"a": tensor([])}), "has the unknown dtype `[]`"),
    "shape bool": (file_bytes({"a": tensor("F64", [True])}), "has the impossible shape `[True]`"),
    "shape float": (file_bytes({"a": tensor(shape=[2.0])}), "has the impossible shape `[2.0]`"),
    "shape negative": (file_bytes({"a": tensor(shape=[-2])}), "has the impossible shape `[-2]`"),
    "shape string": (file_bytes({"a": tensor(shape="2")}), "has the impossible shape `2`"),
    "shape overflow": (file_bytes({"a": tensor(shape=[2**32, 2**32])}), "has the impossible shape"),
    "zero hides overflow": (file_bytes({"a": tensor(shape=[0, 2**40, 2**40], offsets=[0, 0])}, b""), "has the impossible shape"),
    "offsets reversed": (file_bytes({"a": tensor(offsets=[8, 0])}), "has the impossible `data_offsets` `[8, 0]`"),
    "offsets three": (file_bytes({"a": tensor(offsets=[0, 4, 8])}), "has the impossible `data_offsets`"),
    "offsets bool": (file_bytes({"a": tensor(offsets=[False, 8])}), "has the impossible `data_offsets`"),
    "size lies": (file_bytes({"a": tensor(shape=[3])}), "tensor `a` has 8 bytes, which does not match dtype `F32` and shape `[3]`"),
    "half a byte": (file_bytes({"a": tensor("F4", [3], [0, 2])}, bytes(2)), "tensor `a` has 2 bytes, which does not match"),
    "overlap": (file_bytes({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)), "tensor `b` overlaps tensor `a`"),
    "twins": (file_bytes({"a": tensor(), "b": tensor()}), "overlaps tensor `a`"),
    "empty inside": (file_bytes({"a": tensor(), "b": tensor(shape=[0], offsets=[4, 4])}), "tensor `b` overlaps tensor `a`"),
    "hole at the start": (file_bytes({"a": tensor(offsets=[4, 12])}, bytes(12)), "4 bytes between the header and tensor `a`"),
    "hole": (file_bytes({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)), "4 bytes between tensor `a` and tensor `b`"),
    "trailing": (file_bytes({"a": tensor()}, bytes(11)), "has 3 bytes after the last tensor"),
    "truncated": (file_bytes({"a": tensor()}, bytes(5)), "is truncated: 3 bytes are missing"),
    "escape in the name": (file_bytes({"a\x1b[2J": tensor()}), "tensor `a\\x1b[2J` has a name with unprintable characters"),
    "surrogate in the name": (file_bytes(b'{"\\ud800":{}}'), "unprintable characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_named(tmp_path, case):
    content, message = HOSTILE[case]
    path = write(tmp_path, content)
    with pytest.raises(ModelError) as caught:
        read_header(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.message.isprintable()


def test_truncation_says_what_to_do(tmp_path):
    with pytest.raises(ModelError) as caught:
        read_header(write(tmp_path, file_bytes({"a": tensor()}, b"")))
    assert caught.value.hint == "download the file again"
    assert caught.value.exit_code == 3


def test_long_values_are_cut(tmp_path):
    with pytest.raises(ModelError) as caught:
        read_header(write(tmp_path, file_bytes({"a": tensor("x" * 5000)})))
    assert len(caught.value.message) < 400 + len(str(tmp_path))


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read_header(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match="link to a file that is gone"):
        read_header(tmp_path / "link")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, file_bytes({"a": tensor()}))

    def denied(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ResourceError, match="Permission denied"):
        read_header(path)


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 16), ("F4", 4), ("F6_E3M2", 6), ("F8_E4M3", 8), ("C64", 64), ("BOOL", 8)])
def test_dtype_bits(dtype, bits):
    assert dtype_bits(dtype) == bits


def test_dtype_bits_unknown():
    with pytest.raises(ModelError, match="unknown dtype `Q8_0`"):
        dtype_bits("Q8_0")


def agree_or_refuse(path: Path) -> None:
    """Ours may be stricter than the safetensors library, but must never read another checkpoint out of the same bytes."""
    try:
        ours = read_header(path)
    except ModelError as error:
        refusal = error.message
    else:
        refusal = None
    if refusal is not None:
        assert refusal.isprintable()
        return
    with safe_open(path, "pt") as peer:
        assert set(peer.keys()) == set(ours.tensors)
        assert (peer.metadata() or {}) == ours.metadata
        for name, info in ours.tensors.items():
            part = peer.get_slice(name)
            assert (part.get_dtype(), tuple(part.get_shape())) == (info.dtype, info.shape)


# `make soak` sets MOECTL_SOAK.
FUZZ = settings(
    max_examples=20_000 if os.environ.get("MOECTL_SOAK") else 300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALID = save(
    {
        "a": torch.arange(6).reshape(2, 3),
        "bb": torch.ones(3, dtype=torch.bfloat16),
        "n": torch.zeros(0),
        "u": torch.zeros(2, dtype=torch.bool),
    },
    {"format": "pt"},
)


@pytest.mark.fuzz
@FUZZ
@given(content=st.binary(max_size=200))
def test_fuzz_random_bytes(tmp_path, content):
    agree_or_refuse(write(tmp_path, content))


@pytest.mark.fuzz
@FUZZ
@given(text=st.binary(max_size=100), data=st.binary(max_size=20))
def test_fuzz_random_header(tmp_path, text, data):
    agree_or_refuse(write(tmp_path, file_bytes(text, data)))


@pytest.mark.fuzz
@FUZZ
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255) | st.sampled_from(list(b'0123456789[]{},":-e.'))), max_size=4
    ),
    cut=st.integers(-3, 3),
)
def test_fuzz_mutations(tmp_path, edits, cut):
    content = bytearray(VALID)
    for position, value in edits:
        content[position] = value
    content = content[:cut] if cut < 0 else content + bytes(cut)
    agree_or_refuse(write(tmp_path, bytes(content)))


NUMBER = st.integers(-2, 20) | st.integers(2**62, 2**65) | st.booleans() | st.floats() | st.none()
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "F6_E2M3", "BF16", "?", 4, None]),
        "shape": st.lists(NUMBER, max_size=3),
        "data_offsets": st.lists(NUMBER, min_size=1, max_size=3),
    }
)


@pytest.mark.fuzz
@FUZZ
@given(header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRY | NUMBER, max_size=3), size=st.integers(0, 20))
def test_fuzz_structures(tmp_path, header, size):
    agree_or_refuse(write(tmp_path, file_bytes(header, bytes(size))))


@pytest.mark.fuzz
@FUZZ
@given(
    sizes=st.lists(st.integers(0, 4), max_size=4),
    shift=st.integers(-1, 1),
    which=st.integers(0, 3),
    extra=st.integers(-1, 1),
)
def test_fuzz_near_valid_layouts(tmp_path, sizes, shift, which, extra):
    header, position = {}, 0
    for i, size in enumerate(sizes):
        begin = position + (shift if i == which else 0)
        header[f"t{i}"] = tensor("U8", [size], [begin, begin + size])
        position += size
    path = write(tmp_path, file_bytes(header, bytes(max(0, position + extra))))
    agree_or_refuse(path)
    try:
        with safe_open(path, "pt"):
            legal = True
    except SafetensorError:
        legal = False
    if legal:
        assert set(read_header(path).tensors) == set(header)
