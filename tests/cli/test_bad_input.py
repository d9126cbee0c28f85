"""Bad input through the real command: the exit code, one message, a hint, nothing on stdout and nothing left behind."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import INDEX, VOCAB_SIZE, all_tensors, edit, set_config, text, write_tokenizer

ROUTER = "model.layers.0.mlp.gate.weight"
EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


class Refusal(NamedTuple):
    message: str
    hint: str


def snapshot(root: Path) -> dict[str, bytes | str | None]:
    """Every path under `root`: content of files, target of links, None for folders."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def model(isolated, checkpoints):
    """`model/`: a copy that a test may damage; `text.txt` lies beside it. Tests run in the folder of both."""
    shutil.copytree(checkpoints["qwen3_moe"].folder, "model")
    Path("text.txt").write_text(text("prose", 400))
    return Path("model")


@pytest.fixture
def refused(moectl):
    """Run a command that must fail with `code`: no stdout, no traceback, no path changed, made or left."""

    def call(*arguments: str, code: int) -> Refusal:
        before = snapshot(Path())
        result = moectl("route-stats", *arguments)
        assert (result.code, result.out) == (code, ""), result.err
        assert "Traceback" not in result.err
        assert snapshot(Path()) == before
        error, *hints = [line for line in result.err.splitlines() if not line.startswith("note: ")]
        assert error.startswith("error: ")
        assert not error.endswith(".")
        assert len(hints) <= 1
        assert all(hint.startswith("hint: ") for hint in hints)
        return Refusal(error.removeprefix("error: "), "".join(hints).removeprefix("hint: "))

    return call


def assert_says(refusal: Refusal, message: tuple[str, ...], hint: str) -> None:
    for part in message:
        assert part in refusal.message
    assert hint in refusal.hint
    assert bool(hint) == bool(refusal.hint)


# The model.


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
        "supported model types: deepseek_v3, llama, mixtral, qwen3_moe",
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
    "fp8": (quantised(quant_method="fp8", weight_block_size=[128, 128]), ("quantised with FP8",), "bf16"),
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
    from oracle_models import CASES, make_oracle, save

    save(make_oracle(*CASES["llama-tied-linear-headdim"]), Path("dense"), hub_style=True)
    np.save("ids.npy", np.arange(20))
    refusal = refused("dense", "--data", "ids.npy", "--output", "out", code=3)
    assert_says(refusal, ("this `llama` model is dense: it has no routers",), "Mixture-of-Experts")


# The data.


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
    "id-too-large": (
        ids(1, 2, VOCAB_SIZE, 4),
        (f"the token id `{VOCAB_SIZE}` in `ids.npy` (position 2) is not below the model's vocabulary of {VOCAB_SIZE}",),
        f"ids must be 0 to {VOCAB_SIZE - 1}",
    ),
    "id-in-a-row": (ids(1, 2, 3, 999, shape=(2, 2)), ("the token id `999` in `ids.npy` (row 1, column 1)",), "ids must be"),
    "id-negative": (ids(1, -1), ("the token id `-1` in `ids.npy` (position 1) is negative",), "ids must be"),
    "floats": (ids(0.5), ("`ids.npy` holds float64, not integers",), "numpy.save"),
    "npy-truncated": (file("ids.npy", b"\x93NUMPY\x01\x00"), ("`ids.npy` is not a whole `.npy` array",), "numpy.save"),
    "empty-folder": (lambda: Path("empty").mkdir() or "empty", ("no text or `.jsonl` file in the folder `empty`",), "other files"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(model, refused, case):
    write, message, hint = DATA[case]
    refusal = refused("model", "--data", "text.txt", "--data", write(), "--output", "out", "--trace", code=5)
    assert_says(refusal, message, hint)


def test_a_tokenizer_of_another_model(model, refused):
    write_tokenizer(model, add_bos=False, extra=tuple(f"<extra_{i}>" for i in range(40)))
    Path("text.txt").write_text("so far so good <extra_39>")
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=5)
    assert_says(refusal, ("the tokenizer gives the id `329` (`<extra_39>`) for `text.txt`", f"vocabulary of {VOCAB_SIZE}"), "do not belong")


def test_text_without_a_tokenizer(model, refused):
    (model / "tokenizer.json").unlink()
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=5)
    assert_says(refusal, ("no tokenizer in `model`: looked for `tokenizer.json`",), "`.npy` token ids, which need no tokenizer")


# Usage and the output folder.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "float16"), "invalid value for `--dtype`: `float16` is not one of `auto`, `float32`, `bfloat16`"),
        (("--order", "random"), "invalid value for `--order`: `random` is not one of `auto`, `resident`, `streamed`"),
        (("--device", "tpu"), "`--device`: `tpu` is not a device"),
        (("--format", "xml"), "invalid value for `--format`: `xml` is not one of `table`, `json`, `csv`"),
        (("--tokens", "0"), "`--tokens`: `0` is not a count: it must be above zero and below 2^63"),
        (("--data", "all=text.txt"), "the domain name `all` is reserved for the sum over domains"),
    ],
)
def test_values_that_do_not_exist(model, refused, arguments, message):
    refusal = refused("model", "--data", "text.txt", "--output", "out", *arguments, code=2)
    assert refusal.message == message
    assert refusal.hint


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_no_data(model, refused, dry_run):
    assert_says(refused("model", "--output", "out", *dry_run, code=2), ("no data is given",), "--data")


def test_a_trace_needs_an_output(model, refused):
    assert_says(refused("model", "--data", "text.txt", "--trace", code=2), ("`--trace`", "no `--output`"), "add `--output DIR`")


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")], ids=["folder", "file", "dangling-link"])
def test_an_output_that_exists_is_left_alone(model, refused, make, dry_run):
    make(Path("out"))
    refusal = refused("model", "--data", "text.txt", "--output", "out", *dry_run, code=2)
    assert_says(refusal, ("the output `out` already exists",), "--overwrite")


def test_a_folder_of_somebody_else_is_never_replaced(model, refused):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--overwrite", code=2)
    assert_says(refusal, ("`out` was not written by moectl",), "delete it yourself")


def test_a_failed_overwrite_leaves_the_earlier_output(model, moectl, refused):
    assert moectl("route-stats", "model", "--data", "text.txt", "--output", "out", "--trace").code == 0
    Path("empty.txt").touch()
    refused("model", "--data", "empty.txt", "--output", "out", "--overwrite", code=5)
    edit(model, lambda tensors: tensors[EMBEDDING].fill_(float("nan")), name=EMBEDDING)
    refused("model", "--data", "text.txt", "--output", "out", "--overwrite", code=3)


def test_overwrite_replaces_an_earlier_output_as_a_whole(model, moectl):
    assert moectl("route-stats", "model", "--data", "text.txt", "--output", "out", "--trace").code == 0
    old = json.loads(Path("out/summary.json").read_text())
    assert moectl("route-stats", "model", "--data", "text.txt", "--tokens", "7", "--output", "out", "--overwrite").code == 0
    new = json.loads(Path("out/summary.json").read_text())
    assert (next(iter(new["data"].values()))["tokens"], next(iter(old["data"].values()))["tokens"] > 7) == (7, True)
    # The new run has no trace: nothing of the old one survives in it.
    assert sorted(os.listdir("out")) == ["coactivation.safetensors", "experts.parquet", "layers.parquet", "summary.json"]
    assert sorted(os.listdir()) == ["model", "out", "text.txt"]


# Resources.


def test_cuda_without_cuda(model, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--device", "cuda", code=4)
    assert_says(refusal, ("the device `cuda` is not there",), "--device cpu")


@pytest.mark.parametrize("extra", [(), ("--order", "resident"), ("--order", "streamed"), ("--dry-run",)])
def test_too_little_memory(model, refused, extra):
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--memory", "1MB", *extra, code=4)
    assert_says(refusal, ("this run would take ", " MB of memory, but 1.00 MB are allowed"), "raise `--memory`")


class FullDisk(io.FileIO):
    """A file on a disk that fills up after `room` bytes: part of the data arrives, then the system refuses."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            super().write(bytes(data)[: self.room])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.parametrize("name", ["experts.parquet", "layers.parquet", "coactivation.safetensors", "summary.json", "trace.safetensors"])
def test_a_disk_that_fills_up(model, refused, monkeypatch, name, room):
    real = Path.open
    filled = []

    def fake(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name != name:
            return real(path, mode, *arguments, **options)
        filled.append(path)
        disk = FullDisk(path, mode.replace("b", ""))
        disk.room = room
        return disk

    monkeypatch.setattr(Path, "open", fake)
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--trace", code=4)
    assert len(filled) == 1
    assert_says(refusal, ("cannot write `", f"{name}`: the disk is full"), "free some space")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fills_up_at_the_last_step(model, refused, monkeypatch, call):
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    refusal = refused("model", "--data", "text.txt", "--output", "out", code=4)
    assert_says(refusal, ("cannot write `out`: the disk is full",), "free some space")


def test_too_little_room_is_known_before_the_run(model, refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    refusal = refused("model", "--data", "text.txt", "--output", "out", "--trace", code=4)
    assert_says(refusal, ("`out` needs 1.0", "its disk has 1.00 kB free"), "leave out `--trace`")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(model, refused):
    Path("locked").mkdir(mode=0o500)
    refusal = refused("model", "--data", "text.txt", "--output", "locked/out", code=4)
    assert_says(refusal, ("`locked/out`", "Permission denied"), "check the permissions")


def test_a_parent_that_is_a_file(model, refused):
    refusal = refused("model", "--data", "text.txt", "--output", "text.txt/out", code=4)
    assert_says(refusal, ("`text.txt/out`",), "")


def test_folders_made_for_a_failed_output_go_with_it(model, refused):
    edit(model, lambda tensors: tensors[ROUTER].fill_(float("nan")), name=ROUTER)
    refused("model", "--data", "text.txt", "--output", "results/today/out", code=3)


# Interruptions.


@pytest.fixture
def after_events(monkeypatch):
    """Do something when the router of the run has spoken `count` times."""
    from moectl.routing.counters import Counters

    real = Counters.record

    def install(count: int, action: Callable[[], None]) -> list[int]:
        seen: list[int] = []

        def record(self: Counters, event: Any) -> None:
            real(self, event)
            seen.append(event.layer)
            if len(seen) == count:
                action()

        monkeypatch.setattr(Counters, "record", record)
        return seen

    return install


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("order", ["resident", "streamed"])
def test_ctrl_c_in_the_middle(model, refused, after_events, order):
    seen = after_events(5, ctrl_c)
    arguments = ("model", "--data", "text.txt", "--seq-len", "16", "--batch-tokens", "32", "--order", order)
    assert refused(*arguments, "--output", "out", "--trace", code=130).message == "interrupted"
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle(model, refused, after_events, name):
    number = getattr(signal, name)
    after_events(3, lambda: os.kill(os.getpid(), number))
    arguments = ("model", "--data", "text.txt", "--seq-len", "16", "--batch-tokens", "32", "--output", "out", "--trace")
    assert refused(*arguments, code=128 + number).message == f"stopped by {name}"


def test_ctrl_c_while_an_earlier_output_is_replaced(model, moectl, refused, monkeypatch):
    command = ("model", "--data", "text.txt", "--output", "out")
    assert moectl("route-stats", *command).code == 0
    real, calls = os.rename, []

    def rename(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    refused(*command, "--overwrite", code=130)
    assert len(calls) == 3


@pytest.mark.parametrize(("number", "code", "last"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")])
def test_a_real_process_stopped_in_the_middle(model, number, code, last):
    # Micro-batches of one short sequence are slow on purpose: this run would take minutes.
    np.save("ids.npy", np.random.default_rng(0).integers(0, VOCAB_SIZE, (100_000, 8)))
    before = snapshot(Path())
    command = [sys.executable, "-m", "moectl", "route-stats", "model", "--data", "ids.npy", "--batch-tokens", "8", "--threads", "1"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made pytest, and so its children, ignore it
    try:
        process = subprocess.Popen(
            [*command, "--output", "out", "--verbose"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        said = read_until(process.stderr, b"routing tokens: ", seconds=60)
        assert process.poll() is None
        assert len(list(Path().glob(".out.partial-*"))) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (code, b"")
    assert (said + err).decode().splitlines()[-1] == f"error: {last}"
    assert b"Traceback" not in said + err
    assert snapshot(Path()) == before


def read_until(stream: Any, text: bytes, *, seconds: float) -> bytes:
    """What a process says up to and with the line that holds `text`."""
    said, until = b"", time.monotonic() + seconds
    while text not in said or not said.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"nothing more within {seconds} s after {said!r}"
        part = os.read(stream.fileno(), 4096)
        assert part, f"the process ended: {said!r}"
        said += part
    return said


# Tracebacks.


@pytest.mark.parametrize("debug", ["before", "after", "environment", None])
def test_a_traceback_only_if_asked_for(model, moectl, monkeypatch, debug):
    set_config(model, model_type="qwen9_moe")
    if debug == "environment":
        monkeypatch.setenv("MOECTL_DEBUG", "1")
    result = moectl(
        *(["--debug"] if debug == "before" else []),
        "route-stats",
        "model",
        "--data",
        "text.txt",
        *(["--debug"] if debug == "after" else []),
    )
    assert (result.code, result.out) == (3, "")
    assert ("Traceback (most recent call last)" in result.err) is (debug is not None)
    assert result.err.splitlines()[-2].startswith("error: config.json: model_type `qwen9_moe`")
