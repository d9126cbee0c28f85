from __future__ import annotations

import csv
import io
import json

import pytest

CONTRACT = {"model_type", "layers", "routing", "parameters", "bytes", "memory", "flops_per_token", "kv_cache"}
PARTS = {"total", "active", "embedding", "attention", "routed_experts", "shared_experts", "mtp", "dense_ffn", "router", "norms", "head"}


def test_the_contract_of_json(run):
    code, out, err = run("inspect", "demo", "--format", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found.keys() >= CONTRACT
    assert found["parameters"].keys() >= PARTS
    assert all(type(value) is int for value in found["parameters"].values())
    assert sum(found["bytes"].values()) == found["total_bytes"]
    assert found["kv_cache"]["bytes_per_token"] == 7 * (48 + 16) * 2
    # Four heads: grouped attention of eight would be wider than the model's own.
    assert found["kv_cache"]["ratio_to_grouped_8"] == found["kv_cache"]["ratio_to_multi_head"] == 64 / (4 * 80)
    assert (len(found["layers"]), found["routing"]["moe_layers"], found["routing"]["top_k"]) == (7, [1, 2, 3, 4, 5, 6], 4)
    assert not found.keys() & {"expert_parallel", "what_if", "tensors"}


def test_what_is_asked_for_is_in_the_json(run):
    asked = ("--ranks", "4", "--what-if", "8,2,granularity=2,shared=1", "--tensors", "--context", "1k", "--cache-bits", "8")
    code, out, err = run("inspect", "demo", "--format", "json", *asked)
    found = json.loads(out)
    assert (code, err) == (0, "note: a context of 1,000 tokens is longer than the 512 positions this model is made for\n")
    assert found["expert_parallel"]["experts_per_rank"] == 4
    assert (found["what_if"]["experts"], found["what_if"]["expert_width"], found["what_if"]["dense_width"]) == (8, 120, 240)
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == found["total_bytes"]
    assert (found["context_tokens"], found["kv_cache"]["bytes_at_context"]) == (1000, 7 * 64 * 1000)


def test_the_page(run):
    code, out, err = run("inspect", "demo", "--ranks", "4", "--what-if", "8,2,granularity=2,shared=1")
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    for text in (
        "demo  deepseek_v3, 3.60 M parameters, 1.61 M active per token", "0      1x  dense, width 240",
        "embedding           328 k    9.1 %                0", "head                328 k    9.1 %            328 k",
        "1-6    6x  MoE, 4 of 16 experts",
        "top-4 of 16 by sigmoid(x W) + bias", "routed experts     2.21 M   61.5 %            553 k", "MTP, not in all",
        "9.53 MB in 1 file: BF16", "896 B per token at 16 bits", "80.0 % less than multi-head attention\n", "each rank",
        "6 layers with 2 of 8 experts + 1 shared, each of width 120", "of the dense one",
    ):  # fmt: skip
        assert text in out


def test_tensors_as_csv_and_as_a_table(run):
    from moectl.inspection.run import inspect

    rows = inspect("demo", tensors=True).tensors
    code, out, _ = run("inspect", "demo", "--tensors", "--format", "csv")
    read = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [(row["name"], row["dtype"], int(row["bytes"]), row["file"]) for row in read] == [
        (row.name, row.dtype, row.bytes, row.file) for row in rows
    ]
    head = next(row for row in read if row["name"] == "lm_head.weight")
    assert (head["shape"], head["dtype"]) == ("2048 160", "BF16")
    _, out, _ = run("inspect", "demo", "--tensors")
    assert "2048 x 160" in out


def test_csv_without_tensors_is_every_value_by_its_path(run):
    code, out, _ = run("inspect", "demo", "--format", "csv")
    values = {row["key"]: row["value"] for row in csv.DictReader(io.StringIO(out))}
    assert code == 0
    assert (values["parameters.total"], values["layers.1.kind"], values["layers.1.ffn_width"]) == ("3598032", "moe", "")
    assert values["tied_head"] == "false"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere/at/all.json",), 3, "error: the model `nowhere/at/all.json` does not exist"),
        (("demo", "--ranks", "17"), 2, "error: `--ranks`: 17 ranks are more than the 16 experts of layer 1"),
        (("demo", "--what-if", "8"), 2, "error: `--what-if`: `8` does not say how many experts a token runs"),
        (("demo", "--what-if", "8,2,granularity=7"), 2, "error: `--what-if`: a granularity of 7 does not divide"),
        (("demo", "--cache-bits", "65"), 2, "error: `--cache-bits`: 65 is not a number of bits"),
        (("demo", "--context", "0"), 2, "error: `--context`"),
        (("demo", "--context", "many"), 2, "error: `--context`"),
        ((), 2, "error: missing argument"),
    ],
)
def test_exit_codes(run, arguments, code, message):
    found, out, err = run("inspect", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert "hint:" in err


def test_a_bare_configuration_has_no_tensors_and_a_dense_one_no_ranks(run, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    assert run("inspect", str(config))[0] == 0
    code, _, err = run("inspect", str(config), "--tensors")
    assert (code, "but no weights" in err) == (3, True)
    code, _, err = run("inspect", str(tmp_path), "--ranks", "2")
    assert (code, "has none to spread" in err) == (2, True)
    found = json.loads(run("inspect", str(tmp_path), "--format", "json")[1])
    assert (found["routing"], found["source"]) == (None, "config")
    config.write_text("[]")
    assert run("inspect", str(config))[0] == 3


def test_command_help(run):
    code, out, err = run("inspect", "--help")
    assert (code, err) == (0, "")
    for text in ("MODEL", "--context", "--what-if", "Compute", "Output", "Examples:", "[default: 16]"):
        assert text in out
    assert max(len(line) for line in out.splitlines()) <= 80
