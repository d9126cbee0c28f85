"""`--from`: a saved run comes back byte for byte; a trace is counted again."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from route_runs import TABLES, Output, route
from safetensors.numpy import load_file, save_file

import moectl as package
from moectl.cli.app import main
from moectl.routing.bounds import BOUNDED_KEYS
from moectl.routing.frames import _OF_SCORES

FILES = (
    *TABLES,
    "report.html",
    "summary.json",
)


def again(source, output, *options):
    assert main(["route-stats", "--from", str(source), "--output", str(output), *options]) == 0
    return Output(output)


@pytest.fixture(scope="module")
def whole(checkpoints, standard, tmp_path_factory):
    """A run with everything in it."""
    return route(tmp_path_factory.mktemp("whole") / "run", checkpoints["deepseek_v3"].folder, *standard, "--perplexity", "--skip-special")


def test_a_saved_run_comes_back_byte_for_byte(whole, tmp_path):
    output = again(whole.folder, tmp_path / "out")
    assert sorted(os.listdir(output.folder)) == sorted(FILES)
    for name in FILES:
        assert (output.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert all(name in FILES for name in TABLES)


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_it_is_shown_as_the_run_was(whole, moectl, output_format):
    result = moectl("route-stats", "--from", whole.folder, "--format", output_format)
    assert (result.code, result.err) == (0, "")
    if output_format == "json":
        assert json.loads(result.out) == whole.summary
    elif output_format == "csv":
        assert len(result.out.splitlines()) == 1 + len(whole.layers)
    else:
        assert "tokens/s" in result.out
        assert "Perplexity" in result.out


def test_from_python(whole, tmp_path):
    stats = package.load_route_stats(whole.folder, output=tmp_path / "out", export=[f"eplb={tmp_path}/load.npy"])
    assert stats.experts.equals(whole.experts)
    assert stats.experts.dtypes.equals(whole.experts.dtypes)
    assert sorted(os.listdir(tmp_path)) == ["load.npy", "out"]


@pytest.mark.parametrize("how", ["file", "folder", "renamed"])
def test_a_trace_is_counted_again(whole, family, runs, tmp_path, how):
    run = whole if family == "deepseek_v3" else runs[family]
    (tmp_path / "in").mkdir()
    source = shutil.copy(
        run.folder / "trace.safetensors", tmp_path / "in" / ("other.safetensors" if how == "renamed" else "trace.safetensors")
    )
    output = again(tmp_path / "in" if how == "folder" else source, tmp_path / "out")
    # float16 weights; all else is counts.
    weights, of_gates = ["weight_sum", "mean_weight", "gate_score"], ["expert_set_gate"]
    assert output.experts.drop(columns=[*weights, *of_gates]).equals(run.experts.drop(columns=[*weights, *of_gates]))
    assert len(output.expert_pairs) > 0
    assert output.expert_pairs.equals(run.expert_pairs)
    assert len(output.domain_pairs) > 0
    assert output.domain_pairs.drop(columns="expert_set_overlap_gate").equals(run.domain_pairs.drop(columns="expert_set_overlap_gate"))
    np.testing.assert_allclose(output.experts[weights], run.experts[weights], rtol=1e-3)
    assert (output.folder / "coactivation.safetensors").read_bytes() != (run.folder / "coactivation.safetensors").read_bytes()
    assert (output.coactivation == run.coactivation).all()
    null = [
        *_OF_SCORES,
        *(f"{key}_{end}" for key in _OF_SCORES for end in ("low", "high") if key in BOUNDED_KEYS),
        *(key for key in run.layers.columns if key.startswith("vocabulary_predicted")),
    ]
    assert output.layers[null].isna().all(axis=None)
    of_weights = ["effective_used_experts", "effective_used_experts_low", "effective_used_experts_high"]
    kept = run.layers.columns.drop([*null, *of_weights])
    assert output.layers[kept].equals(run.layers[kept])
    np.testing.assert_allclose(output.layers[of_weights], run.layers[of_weights], rtol=1e-2)
    for key in ("model", "data"):
        assert output.summary[key] == run.summary[key]
    assert output.summary["provenance"]["from"] == "trace"
    assert output.summary["throughput"]["tokens_per_s"] is None
    assert output.summary["perplexity"] is None


def test_a_trace_is_shown(whole, moectl):
    result = moectl("route-stats", "--from", whole.folder / "trace.safetensors")
    assert (result.code, result.err) == (0, "")
    assert "counted again from its trace" in result.out


def test_what_was_counted_again_can_be_saved_and_read(whole, tmp_path):
    first = again(whole.folder / "trace.safetensors", tmp_path / "first")
    second = again(first.folder, tmp_path / "second")
    for name in FILES:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo",), "MODEL `demo` and `--from` do not go together"),
        (("--tokens", "5"), "`--tokens` and `--from` do not go together"),
        (("--perplexity",), "`--perplexity` and `--from` do not go together"),
        (("--dry-run",), "`--dry-run` and `--from` do not go together"),
        (("--data", "a.txt"), "`--data` and `--from` do not go together"),
        (("--trace", "--output", "out"), "`--trace` and `--from` do not go together"),
        (("--output", "run", "--overwrite"), "`run` belongs to `run`, which it would be made of"),
        (("--output", ".", "--overwrite"), "`.` belongs to `run`"),
        (("--export", "vllm=run/coactivation.safetensors", "--overwrite"), "`run/coactivation.safetensors` belongs to `run`"),
    ],
)
def test_options_that_do_not_go_with_it(whole, moectl, arguments, message):
    shutil.copytree(whole.folder, "run")
    result = moectl("route-stats", "--from", "run", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert sorted(os.listdir("run")) == sorted(os.listdir(whole.folder))


def test_neither_model_nor_run(moectl):
    result = moectl("route-stats")
    assert (result.code, result.out) == (2, "")
    assert "missing argument `MODEL`" in result.err
    assert "--from DIR" in result.err


def parquet(name, change):
    def damage(folder):
        table = pq.read_table(folder / name)
        pq.write_table(change(table), folder / name)

    return damage


def summary(change):
    def damage(folder):
        content = json.loads((folder / "summary.json").read_text())
        change(content)
        (folder / "summary.json").write_text(json.dumps(content))

    return damage


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def infinite(table):
    column = table.schema.get_field_index("max_vio")
    return table.set_column(column, "max_vio", pa.array([np.inf] * len(table)))


def replaced(column, change):
    """The table with another column of that name."""

    def replace(table):
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(change(table[column].to_pandas()), field.type))

    return replace


DAMAGE = {
    "no-table": (lambda folder: (folder / "layers.parquet").unlink(), "`layers.parquet` is missing"),
    "no-coactivation": (lambda folder: (folder / "coactivation.safetensors").unlink(), "does not exist"),
    "cut-table": (cut("experts.parquet"), "`experts.parquet` is not readable Parquet"),
    "cut-coactivation": (cut("coactivation.safetensors"), "is truncated"),
    "cut-summary": (cut("summary.json"), "is not valid JSON"),
    "empty-table": (lambda folder: (folder / "layers.parquet").write_bytes(b""), "`layers.parquet` is not readable Parquet"),
    "lost-column": (parquet("layers.parquet", lambda t: t.drop_columns(["cv"])), "the column `cv` of `layers.parquet` is missing"),
    "lost-row": (parquet("experts.parquet", lambda t: t.slice(1)), "`experts.parquet` does not have a row for every"),
    "rows-in-another-order": (parquet("layers.parquet", lambda t: t.take([*range(len(t))][::-1])), "`layers.parquet` does not have a row"),
    "lost-pair": (parquet("domain_pairs.parquet", lambda t: t.slice(1)), "`domain_pairs.parquet` does not have a row"),
    "pairs-of-other-domains": (parquet("domain_pairs.parquet", replaced("other", lambda v: v + "s")), "`domain_pairs.parquet` does"),
    "no-such-expert": (parquet("expert_pairs.parquet", replaced("other", lambda v: v + 99)), "a pair of experts that its layer does not"),
    "no-such-layer": (parquet("expert_pairs.parquet", replaced("layer", lambda v: v + 99)), "a pair of experts that its layer does not"),
    "itself": (parquet("expert_pairs.parquet", lambda t: replaced("expert", lambda v: t["other"])(t)), "a pair of experts that its layer"),
    "other-pairs": (parquet("expert_pairs.parquet", replaced("tokens", lambda v: v + 1)), "do not agree on the tokens of a pair"),
    "no-pairs-of-experts": (lambda folder: (folder / "expert_pairs.parquet").unlink(), "`expert_pairs.parquet` is missing"),
    "infinite": (parquet("layers.parquet", infinite), "holds a number that is not finite"),
    "no-provenance": (parquet("layers.parquet", lambda t: t.replace_schema_metadata({})), "its files come of different runs"),
    "another-run": (summary(lambda s: s["provenance"].update(dtype="bfloat16")), "come of different runs"),
    "no-model": (summary(lambda s: s.pop("model")), "has no object `model`"),
    "odd-model": (summary(lambda s: s["model"].update(top_k="two")), "has no usable `model.top_k`"),
    "nan": (summary(lambda s: s["overall"].update(cv=float("nan"))), "holds a number that is not finite"),
    "odd-perplexity": (summary(lambda s: s["perplexity"]["all"].pop("loss")), "has no usable `perplexity`"),
    "another-domain": (summary(lambda s: s["data"].pop("code")), "no usable `perplexity`"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_refused(whole, moectl, tmp_path, name):
    damage, message = DAMAGE[name]
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    damage(folder)
    result = moectl("route-stats", "--from", folder, "--output", tmp_path / "out")
    assert (result.code, result.out) == (5, ""), result.err
    assert message in result.err
    assert "hint: " in result.err
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no run: neither `summary.json` nor `trace.safetensors`"),
        (lambda path: path.write_text("something else entirely"), "is not a safetensors file"),
        (lambda path: save_file({"weight": np.zeros(3)}, path), "is not a routing trace: it holds no tensor"),
    ],
    ids=["nothing", "folder", "text", "weights"],
)
def test_what_is_no_run_is_refused(moectl, tmp_path, make, message):
    make(tmp_path / "x")
    result = moectl("route-stats", "--from", tmp_path / "x")
    assert (result.code, result.out) == (5, "")
    assert message in result.err
    assert "hint: " in result.err


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("summary", lambda v: {}, "does not describe the model"),
        ("summary", lambda v: v["data"].pop("code") and v, "does not describe its domains"),
        ("summary", lambda v: v["data"]["code"].update(tokens=3) or v, "does not describe the text of `code`"),
        ("provenance", lambda v: {**v, "batch_tokens": 0}, "has no `batch_tokens`"),
        ("layers", lambda v: v[::-1], "its layers are not in order"),
        ("domains", lambda v: [*v, "more"], "does not describe its domains"),
    ],
)
def test_a_trace_that_says_too_little_is_refused(whole, moectl, tmp_path, key, change, message):
    from safetensors import safe_open

    with safe_open(whole.folder / "trace.safetensors", framework="np") as file:
        metadata = file.metadata()
    metadata[key] = json.dumps(change(json.loads(metadata[key])))
    save_file(load_file(whole.folder / "trace.safetensors"), tmp_path / "trace.safetensors", metadata)
    result = moectl("route-stats", "--from", tmp_path / "trace.safetensors")
    assert (result.code, result.out) == (5, "")
    assert message in result.err
