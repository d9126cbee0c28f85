"""Options and output folders that do not fit: exit code 2, and what is there stays; tracebacks only if asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from refusals import EMBEDDING, assert_says
from tiny_checkpoints import edit, set_config


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
    assert sorted(os.listdir("out")) == [
        "coactivation.safetensors", "domain_pairs.parquet", "expert_pairs.parquet", "experts.parquet", "layers.parquet", "report.html",
        "summary.json", "token_classes.parquet", "vocabulary.parquet",
    ]  # fmt: skip
    assert sorted(os.listdir()) == ["model", "out", "text.txt"]


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
