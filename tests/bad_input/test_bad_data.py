"""Data that cannot be used: exit code 5, one message, a hint, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_says
from tiny_checkpoints import VOCAB_SIZE, write_tokenizer


def jsonl(*lines: str) -> Callable[[], str]:
    def write() -> str:
        Path("rows.jsonl").write_text("\n".join(lines) + "\n")
        return "rows.jsonl"

    return write


def file(name: str, content: bytes) -> Callable[[], str]:
    def write() -> str:
        Path(name).write_bytes(content)
        return name

    return write


def ids(*values: int | float, shape: tuple[int, ...] = (-1,)) -> Callable[[], str]:
    def write() -> str:
        np.save("ids.npy", np.array(values or np.empty(0, np.int64)).reshape(shape))
        return "ids.npy"

    return write


DATA = {
    "missing": (lambda: "txet.txt", ("`txet.txt`",), "did you mean `text.txt`?"),
    "empty-text": (file("empty.txt", b""), ("the domain `empty` holds no text: `empty.txt`",), "check the source"),
    "empty-jsonl": (file("empty.jsonl", b"\n\n"), ("the domain `empty` holds no text",), "check the source"),
    "empty-npy": (ids(), ("the domain `ids` holds no token",), "check the source"),
    "latin1": (file("latin1.txt", "caf\u00e9".encode("latin-1")), ("`latin1.txt` is not UTF-8: bad byte at offset 3",), "iconv"),
    "binary": (file("blob.txt", b"ab\0cd"), ("`blob.txt` is a binary file", "offset 2"), "UTF-8 text"),
    "pdf": (file("paper.pdf", b"%PDF"), ("cannot read `paper.pdf`",), "UTF-8 text"),
    "no-field": (
        jsonl('{"text": "fine"}', '{"body": "b", "id": 3}'),
        ("`rows.jsonl` line 2 has no field `text` (its fields: `body`, `id`)",),
        "--text-field",
    ),
    "bad-line": (jsonl('{"text": "fine"}', '{"text": '), ("`rows.jsonl` line 2 is not JSON",), "one whole JSON object"),
    "not-an-object": (jsonl("[1]"), ("`rows.jsonl` line 1 is a JSON list, not an object",), "write rows like"),
    "not-a-string": (jsonl('{"text": 3}'), ("line 1: the field `text` is a number, not a string",), "--text-field"),
    "chat": (jsonl('{"messages": [{"role": "user", "content": "Hi"}]}'), ("`rows.jsonl` line 1 is a chat", "`model`"), "--text-field"),
    "json-cut-off": (file("rows.json", b'[{"text": "a"},'), ("`rows.json` row 2 (line 1) is not JSON",), "one whole JSON object"),
    "parquet-truncated": (file("rows.parquet", b"PAR1"), ("`rows.parquet` is not a whole Parquet file",), "again"),
    "id-too-large": (
        ids(1, 2, VOCAB_SIZE, 4),
        (f"the token id `{VOCAB_SIZE}` in `ids.npy` (position 2) is not below the model's vocabulary of {VOCAB_SIZE}",),
        f"ids must be 0 to {VOCAB_SIZE - 1}",
    ),
    "id-in-a-row": (ids(1, 2, 3, 999, shape=(2, 2)), ("the token id `999` in `ids.npy` (row 1, column 1)",), "ids must be"),
    "id-negative": (ids(1, -1), ("the token id `-1` in `ids.npy` (position 1) is negative",), "ids must be"),
    "floats": (ids(0.5), ("`ids.npy` holds float64, not integers",), "numpy.save"),
    "npy-truncated": (file("ids.npy", b"\x93NUMPY\x01\x00"), ("`ids.npy` is not a whole `.npy` array",), "numpy.save"),
    "empty-folder": (
        lambda: Path("empty").mkdir() or "empty",
        ("no text, `.jsonl` or `.parquet` file in the folder `empty`",),
        "other files",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(model, refused, case):
    write, message, hint = DATA[case]
    refusal = refused("model", "--data", "text.txt", "--data", write(), "--output", "out", "--trace", code=5)
    assert_says(refusal, message, hint)


def test_a_dataset_without_the_network(model, refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refusal = refused("model", "--data", "text.txt", "--data", "hf://datasets/org/name/a.jsonl", "--output", "out", code=5)
    assert_says(refusal, ("`hf://datasets/org/name/a.jsonl` is not in the Hub cache, and `HF_HUB_OFFLINE`",), "unset")


def test_a_tokenizer_of_another_model(model, refused):
    write_tokenizer(model, add_bos=False, extra=tuple(f"<extra_{i}>" for i in range(40)))
    Path("text.txt").write_text("so far so good <extra_39>")
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=5)
    assert_says(refusal, ("the tokenizer gives the id `329` (`<extra_39>`) for `text.txt`", f"vocabulary of {VOCAB_SIZE}"), "do not belong")


def test_text_without_a_tokenizer(model, refused):
    (model / "tokenizer.json").unlink()
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=5)
    assert_says(refusal, ("no tokenizer in `model`: looked for `tokenizer.json`",), "`.npy` token ids, which need no tokenizer")
