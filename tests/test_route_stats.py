"""`moectl route-stats` from the command line to its files: the results, against transformers and against themselves."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from oracle_models import run_oracle, save
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_checkpoints import FAMILIES, INDEX, VOCAB_SIZE, TinyCheckpoint, all_tensors, text
from tokenizers import Tokenizer

import moectl as package
from moectl.cli.app import main

# Shapes: T tokens, L MoE layers, K slots, E experts.

SPECIAL = (0, 1)  # <s> and </s> of the tiny tokenizer
TABLES = ("experts.parquet", "layers.parquet", "coactivation.safetensors")


class Output(NamedTuple):
    """The files of one run."""

    folder: Path

    @property
    def experts(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "experts.parquet").to_pandas()

    @property
    def layers(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "layers.parquet").to_pandas()

    @property
    def coactivation(self) -> np.ndarray:
        with safe_open(self.folder / "coactivation.safetensors", framework="np") as file:
            return file.get_tensor("counts")

    @property
    def trace(self) -> dict[str, np.ndarray]:
        with safe_open(self.folder / "trace.safetensors", framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def of(self, column: str, domain: str = "all") -> np.ndarray:
        """A column of experts.parquet as [L, E]."""
        rows = self.experts[self.experts["domain"] == domain]
        return rows[column].to_numpy().reshape(rows["layer"].nunique(), -1)


def route(output: Path, model: Path, *arguments: str | Path) -> Output:
    """Run the command, which must succeed."""
    code = main(["route-stats", str(model), *map(str, arguments), "--output", str(output)])
    assert code == 0
    return Output(output)


def varying_removed(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("throughput", "provenance")}


def same_files(a: Output, b: Output) -> None:
    """Every file byte for byte, JSON but for throughput and provenance."""
    assert sorted(os.listdir(a.folder)) == sorted(os.listdir(b.folder))
    for name in os.listdir(a.folder):
        if name != "summary.json":
            assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes(), name
    assert varying_removed(a.summary) == varying_removed(b.summary)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `prose.txt` and `code.jsonl` (three documents)."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "prose.txt").write_text(text("prose", 1500))
    (folder / "code.jsonl").write_text("".join(json.dumps({"text": text("code", 311, seed=seed)}) + "\n" for seed in range(3)))
    return folder


@pytest.fixture(scope="session")
def standard(checkpoints, texts) -> tuple[str, ...]:
    """Options of a run over two domains with tails, in several micro-batches."""
    data = ("--data", str(texts / "prose.txt"), "--data", str(texts / "code.jsonl"))
    return (*data, "--seq-len", "33", "--batch-tokens", "150", "--dtype", "float32", "--trace")


@pytest.fixture(scope="session")
def runs(checkpoints, standard, tmp_path_factory) -> dict[str, Output]:
    """A resident run of every family."""
    root = tmp_path_factory.mktemp("runs")
    return {family: route(root / family, checkpoints[family].folder, *standard, "--order", "resident") for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


# Against transformers.


def oracle_selection(checkpoint: TinyCheckpoint, trace: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What transformers executes for the sequences of a trace: expert ids and weights [T, L, K], in its own order of slots."""
    layers = [layer for layer, _, _ in checkpoint.moe_layers]
    ids, weights = [], []
    for start, stop in zip(trace["sequence_offsets"][:-1], trace["sequence_offsets"][1:], strict=True):
        tokens_1S = torch.from_numpy(trace["token_ids"][start:stop].astype(np.int64))[None]
        executed = run_oracle(checkpoint.oracle, tokens_1S)
        assert sorted(executed.ids) == layers
        ids.append(torch.stack([executed.ids[layer] for layer in layers], 1).numpy())
        weights.append(torch.stack([executed.weights[layer] for layer in layers], 1).float().numpy())
    return np.concatenate(ids), np.concatenate(weights)


def test_counts_and_weights_are_those_of_the_experts_transformers_executes(checkpoints, runs, family):
    output, checkpoint = runs[family], checkpoints[family]
    trace = output.trace
    ids_TLK, weights_TLK = oracle_selection(checkpoint, trace)
    assert (np.sort(trace["expert_ids"], -1) == np.sort(ids_TLK, -1)).all()
    lengths = np.diff(trace["sequence_offsets"])
    domain_T = np.repeat(trace["domain_ids"], lengths)
    n_experts = checkpoint.moe_layers[0][1]
    for domain, here_T in {"all": domain_T >= 0, "prose": domain_T == 0, "code": domain_T == 1}.items():
        for position in range(len(checkpoint.moe_layers)):
            ids, weights = ids_TLK[here_T, position].ravel(), weights_TLK[here_T, position].ravel()
            expected = np.bincount(ids, minlength=n_experts)
            assert (output.of("tokens", domain)[position] == expected).all()
            sums = np.bincount(ids, weights=weights, minlength=n_experts)
            np.testing.assert_allclose(output.of("weight_sum", domain)[position], sums, rtol=1e-4, atol=1e-4)
    pairs_LEE = np.zeros_like(output.coactivation)
    for ids_LK in ids_TLK:
        for position, ids_K in enumerate(ids_LK):
            pairs_LEE[position][np.ix_(ids_K, ids_K)] += 1
    assert (output.coactivation == pairs_LEE).all()


def test_first_choices_and_temporal_metrics_from_the_trace(runs, family):
    output = runs[family]
    trace = output.trace
    first_TL = trace["expert_ids"][:, :, 0]
    n_experts = output.of("tokens").shape[1]
    expected = [np.bincount(first_TL[:, position], minlength=n_experts) for position in range(first_TL.shape[1])]
    # float16 weights of the trace may tie where float32 ones do not.
    ties = (trace["weights"][:, :, 0] == trace["weights"][:, :, 1]).sum()
    assert np.abs(output.of("first_choice_tokens") - np.array(expected)).sum() <= 2 * ties
    starts = set(trace["sequence_offsets"].tolist())
    pairs = [(t - 1, t) for t in range(1, len(first_TL)) if t not in starts]
    everything = output.layers[output.layers["domain"] == "all"]
    for position, row in enumerate(everything.to_dict("records")):
        shared = [len(set(trace["expert_ids"][a, position]) & set(trace["expert_ids"][b, position])) for a, b in pairs]
        assert row["any_overlap"] == pytest.approx(np.mean([n > 0 for n in shared]))
        assert row["next_token_overlap"] == pytest.approx(np.mean(shared) / row["top_k"])


# Against itself.


def test_streamed_is_resident_bit_for_bit(checkpoints, standard, runs, family, tmp_path):
    same_files(route(tmp_path / "out", checkpoints[family].folder, *standard, "--order", "streamed"), runs[family])


@pytest.mark.parametrize("order", ["resident", "streamed"])
def test_the_same_run_again_gives_the_same_bytes(checkpoints, standard, runs, order, tmp_path):
    again = route(tmp_path / "deeper" / "again", checkpoints["mixtral"].folder, *standard, "--order", order)
    same_files(again, runs["mixtral"])


def test_bfloat16_streamed_is_resident(checkpoints, standard, family, tmp_path):
    folder = checkpoints[family].folder
    outputs = [route(tmp_path / order, folder, *standard, "--dtype", "bfloat16", "--order", order) for order in ("resident", "streamed")]
    same_files(*outputs)
    assert outputs[0].summary["provenance"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("seed", range(3))
def test_what_must_add_up_does(checkpoints, family, seed, tmp_path):
    rng = np.random.default_rng(seed)
    sizes = {"flat": rng.integers(1, 300), "rows": (rng.integers(1, 9), rng.integers(1, 40)), "one": (rng.integers(1, 5), 1)}
    data = []
    for name, size in sizes.items():
        np.save(tmp_path / f"{name}.npy", rng.integers(0, VOCAB_SIZE, size).astype(rng.choice(["int32", "uint16", "int64"])))
        data += ["--data", tmp_path / f"{name}.npy"]
    options = ["--seq-len", rng.integers(1, 60), "--batch-tokens", rng.integers(1, 200), "--order", rng.choice(["resident", "streamed"])]
    output = route(tmp_path / "out", checkpoints[family].folder, *data, *options)
    tokens = {name: int(np.prod(size)) for name, size in sizes.items()}
    assert {name: entry["tokens"] for name, entry in output.summary["data"].items()} == tokens

    _, n_experts, top_k = checkpoints[family].moe_layers[0]
    sum_of_domains: dict[str, Any] = dict.fromkeys(("tokens", "weight_sum", "first_choice_tokens"), 0)
    for name, n_tokens in tokens.items():
        counts_LE = output.of("tokens", name)
        assert counts_LE.shape == (len(checkpoints[family].moe_layers), n_experts)
        assert (counts_LE.sum(1) == n_tokens * top_k).all()
        assert (output.of("first_choice_tokens", name).sum(1) == n_tokens).all()
        assert (counts_LE <= n_tokens).all()
        np.testing.assert_allclose(output.of("share", name), counts_LE / (n_tokens * top_k), rtol=1e-12)
        np.testing.assert_allclose(output.of("relative_load", name).mean(1), 1.0, rtol=1e-12)
        assert (output.layers.loc[output.layers["domain"] == name, "tokens"] == n_tokens).all()
        for column in sum_of_domains:
            sum_of_domains[column] = sum_of_domains[column] + output.of(column, name)
    for column, total in sum_of_domains.items():
        assert (output.of(column) == total).all()

    coactivation_LEE = output.coactivation
    diagonal_LE = np.diagonal(coactivation_LEE, axis1=1, axis2=2)
    assert coactivation_LEE.dtype == np.int64
    assert (coactivation_LEE == coactivation_LEE.transpose(0, 2, 1)).all()
    assert (diagonal_LE == output.of("tokens")).all()
    assert (coactivation_LEE.sum(2) == top_k * diagonal_LE).all()
    # Sequences of one token have no neighbours: what does not apply is null, not zero.
    alone = output.layers[output.layers["domain"] == "one"]
    assert alone[["any_overlap", "next_token_overlap", "first_choice_repeat"]].isna().all(axis=None)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_another_micro_batch_changes_no_count(checkpoints, standard, runs, family, batch_tokens, tmp_path):
    output = route(tmp_path / "out", checkpoints[family].folder, *standard, "--batch-tokens", str(batch_tokens))
    expected = runs[family]
    for column in ("tokens", "first_choice_tokens"):
        assert (output.experts[column] == expected.experts[column]).all()
    np.testing.assert_allclose(output.experts["weight_sum"], expected.experts["weight_sum"], rtol=1e-6, atol=1e-6)
    assert (output.coactivation == expected.coactivation).all()
    metrics = output.layers.drop(columns=["domain", "max_vio_batch"])
    np.testing.assert_allclose(metrics, expected.layers.drop(columns=["domain", "max_vio_batch"]), rtol=1e-6)


def permuted(checkpoint: TinyCheckpoint, folder: Path, *, groups: int, seed: int) -> np.ndarray:
    """Write the checkpoint with its experts in another order, groups kept together; [L, E]: old expert at each new place."""
    rng = np.random.default_rng(seed)
    tensors = all_tensors(checkpoint.folder)
    orders = []
    for layer, n_experts, _ in checkpoint.moe_layers:
        blocks = rng.permutation(np.arange(n_experts).reshape(groups, -1))
        order = np.concatenate([rng.permutation(block) for block in blocks])
        orders.append(order)
        prefix = next(name for name in tensors if f".{layer}." in name and name.endswith(".gate.weight")).removesuffix(".gate.weight")
        source = dict(tensors)
        for name in (f"{prefix}.gate.weight", f"{prefix}.gate.e_score_correction_bias"):
            if name in source:
                tensors[name] = source[name][torch.from_numpy(order)].contiguous()
        matrices = {name.rpartition(f"{prefix}.experts.0.")[2] for name in source if name.startswith(f"{prefix}.experts.0.")}
        assert len(matrices) == 3
        for new, old in enumerate(order):
            for matrix in matrices:
                tensors[f"{prefix}.experts.{new}.{matrix}"] = source[f"{prefix}.experts.{old}.{matrix}"].clone()
    shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    save_file(tensors, folder / "model.safetensors")
    return np.array(orders)


def test_permuted_experts_permute_the_tables_and_change_no_metric(checkpoints, standard, runs, family, tmp_path):
    order_LE = permuted(checkpoints[family], tmp_path / "model", groups=4 if family == "deepseek_v3" else 1, seed=3)
    assert (order_LE != np.arange(order_LE.shape[1])).any(axis=1).all()
    output, expected = route(tmp_path / "out", tmp_path / "model", *standard), runs[family]
    for domain in ("all", "prose", "code"):
        for column in ("tokens", "first_choice_tokens"):
            assert (output.of(column, domain) == np.take_along_axis(expected.of(column, domain), order_LE, 1)).all()
        sums = np.take_along_axis(expected.of("weight_sum", domain), order_LE, 1)
        np.testing.assert_allclose(output.of("weight_sum", domain), sums, rtol=1e-5)
    for position, order in enumerate(order_LE):
        assert (output.coactivation[position] == expected.coactivation[position][np.ix_(order, order)]).all()
    np.testing.assert_allclose(output.layers.drop(columns="domain"), expected.layers.drop(columns="domain"), rtol=1e-9)


def test_a_single_file_gives_the_tables_of_the_shards(checkpoints, standard, runs, family, tmp_path):
    folder = checkpoints[family].folder
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    save_file(all_tensors(folder), tmp_path / "model/model.safetensors")
    for name in ("model", "model/model.safetensors"):
        output = route(tmp_path / f"out-{len(name)}", tmp_path / name, *standard)
        pd.testing.assert_frame_equal(output.experts, runs[family].experts)
        pd.testing.assert_frame_equal(output.layers, runs[family].layers)
        assert (output.coactivation == runs[family].coactivation).all()
        trace, expected = output.trace, runs[family].trace
        assert all((trace[key] == expected[key]).all() for key in expected)


def test_a_checkpoint_with_the_keys_of_newer_transformers(checkpoints, standard, runs, family, tmp_path):
    save(checkpoints[family].oracle, tmp_path / "model", hub_style=False, shard="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints[family].folder / name, tmp_path / "model")
    output = route(tmp_path / "out", tmp_path / "model", *standard)
    pd.testing.assert_frame_equal(output.experts, runs[family].experts)


# Data.


def encoded(folder: Path, documents: list[str], *, bos: bool) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [token for document in documents for token in [*([0] if bos else []), *tokenizer.encode(document).ids, 1]]


def test_documents_are_joined_cut_and_never_padded(checkpoints, texts, runs, family):
    trace, summary = runs[family].trace, runs[family].summary
    bos = family != "qwen3_moe"
    prose = encoded(checkpoints[family].folder, [(texts / "prose.txt").read_text()], bos=bos)
    rows = [json.loads(line)["text"] for line in (texts / "code.jsonl").read_text().splitlines()]
    code = encoded(checkpoints[family].folder, rows, bos=bos)
    assert trace["token_ids"].tolist() == prose + code
    offsets = [*range(0, len(prose), 33), *range(len(prose), len(prose) + len(code), 33), len(prose) + len(code)]
    assert trace["sequence_offsets"].tolist() == offsets
    sequences = [math.ceil(len(prose) / 33), math.ceil(len(code) / 33)]
    assert trace["domain_ids"].tolist() == [0] * sequences[0] + [1] * sequences[1]
    assert len(prose) % 33
    assert len(code) % 33
    assert [(name, d["documents"], d["sequences"], d["tokens"]) for name, d in summary["data"].items()] == [
        ("prose", 1, sequences[0], len(prose)),
        ("code", 3, sequences[1], len(code)),
    ]


def test_tokens_bounds_each_domain(checkpoints, standard, runs, tmp_path):
    output, whole = route(tmp_path / "out", checkpoints["deepseek_v3"].folder, *standard, "--tokens", "0.1k"), runs["deepseek_v3"].trace
    trace = output.trace
    assert np.diff(trace["sequence_offsets"]).tolist() == [33, 33, 33, 1] * 2
    second = whole["sequence_offsets"][np.argmax(whole["domain_ids"] == 1)]
    expected = [*whole["token_ids"][:100], *whole["token_ids"][second : second + 100]]
    assert trace["token_ids"].tolist() == expected
    assert [entry["tokens"] for entry in output.summary["data"].values()] == [100, 100]
    assert (output.of("tokens").sum(1) == 200 * 3).all()


def test_npy_is_used_as_it_is_and_needs_no_tokenizer(checkpoints, tmp_path):
    shutil.copytree(checkpoints["mixtral"].folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    rng = np.random.default_rng(1)
    rows, flat = rng.integers(0, VOCAB_SIZE, (5, 17)), rng.integers(0, VOCAB_SIZE, 21)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "flat.npy", flat)
    data = ("--data", f"grid={tmp_path / 'rows.npy'}", "--data", tmp_path / "flat.npy")
    trace = route(tmp_path / "out", tmp_path / "model", *data, "--seq-len", "8", "--trace").trace
    assert trace["token_ids"].tolist() == [*rows.ravel(), *flat]
    assert np.diff(trace["sequence_offsets"]).tolist() == [17] * 5 + [8, 8, 5]
    assert trace["domain_ids"].tolist() == [0] * 5 + [1] * 3
    cut = route(tmp_path / "cut", tmp_path / "model", *data, "--tokens", "20", "--trace").trace
    assert cut["token_ids"].tolist() == [*rows.ravel()[:20], *flat[:20]]
    assert np.diff(cut["sequence_offsets"]).tolist() == [17, 3, 20]


def test_a_sequence_never_sees_the_one_before(checkpoints, tmp_path):
    rows = np.random.default_rng(2).integers(0, VOCAB_SIZE, (4, 12))
    for name, array in {"both": rows, "last": rows[2:]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    both, last = (
        route(tmp_path / f"out-{name}", checkpoints["qwen3_moe"].folder, "--data", tmp_path / f"{name}.npy", "--trace").trace
        for name in ("both", "last")
    )
    assert (both["expert_ids"][24:] == last["expert_ids"]).all()


def test_skip_special_leaves_special_tokens_out_of_the_counts_only(checkpoints, standard, runs, family, tmp_path):
    output = route(tmp_path / "out", checkpoints[family].folder, *standard, "--skip-special")
    trace, whole = output.trace, runs[family].trace
    assert all((trace[key] == whole[key]).all() for key in whole)
    counted_T = ~np.isin(trace["token_ids"], SPECIAL)
    n_special = int((~counted_T).sum())
    assert n_special == (4 if family == "qwen3_moe" else 8)
    n_experts = output.of("tokens").shape[1]
    for position in range(trace["expert_ids"].shape[1]):
        expected = np.bincount(trace["expert_ids"][counted_T, position].ravel(), minlength=n_experts)
        assert (output.of("tokens")[position] == expected).all()
    assert (output.layers.loc[output.layers["domain"] == "all", "tokens"] == counted_T.sum()).all()
    # The data is what was run, counted or not.
    assert sum(entry["tokens"] for entry in output.summary["data"].values()) == len(counted_T)
    assert output.summary["provenance"]["skip_special"] is True


def test_nothing_but_special_tokens_counts_nothing(checkpoints, tmp_path, moectl):
    np.save(tmp_path / "special.npy", np.array([0, 1, 1, 0]))
    arguments = ("route-stats", checkpoints["mixtral"].folder, "--data", tmp_path / "special.npy", "--skip-special")
    result = moectl(*arguments, "--output", tmp_path / "out", "--format", "json")
    assert result.code == 0, result.err
    summary = json.loads(result.out, parse_constant=pytest.fail)
    assert [row["tokens"] for row in summary["layers"]] == [0, 0, 0]
    assert [row["max_vio"] for row in summary["layers"]] == [None] * 3
    assert (Output(tmp_path / "out").of("tokens") == 0).all()
    assert moectl(*arguments).code == 0


# The trace and the faces.


def test_the_trace_keeps_its_contract(checkpoints, runs, family):
    folder, trace = runs[family].folder, runs[family].trace
    n_layers, (_, n_experts, top_k) = len(checkpoints[family].moe_layers), checkpoints[family].moe_layers[0]
    n_tokens = sum(entry["tokens"] for entry in runs[family].summary["data"].values())
    shapes = {name: (str(array.dtype), array.shape) for name, array in trace.items()}
    n_sequences = len(trace["domain_ids"])
    assert shapes == {
        "expert_ids": ("uint8", (n_tokens, n_layers, top_k)),
        "weights": ("float16", (n_tokens, n_layers, top_k)),
        "token_ids": ("int32", (n_tokens,)),
        "sequence_offsets": ("int64", (n_sequences + 1,)),
        "domain_ids": ("uint8", (n_sequences,)),
    }
    assert (np.diff(trace["weights"].astype(np.float32), axis=-1) <= 0).all()
    assert (trace["weights"] > 0).all()
    assert trace["expert_ids"].max() < n_experts
    ordered = np.sort(trace["expert_ids"], -1)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()
    with safe_open(folder / "trace.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["layers"]) == [layer for layer, _, _ in checkpoints[family].moe_layers]
    assert json.loads(metadata["domains"]) == ["prose", "code"]
    assert json.loads(metadata["provenance"])["model"] == str(checkpoints[family].folder)


def test_weights_in_the_trace_are_those_of_the_oracle(checkpoints, runs, family):
    trace = runs[family].trace
    ids_TLK, weights_TLK = oracle_selection(checkpoints[family], trace)
    ours = np.take_along_axis(trace["weights"], np.argsort(trace["expert_ids"], -1), -1).astype(np.float32)
    theirs = np.take_along_axis(weights_TLK, np.argsort(ids_TLK, -1), -1)
    np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-5)


def test_layers_keep_their_own_index(checkpoints, runs, family):
    expected = [layer for layer, _, _ in checkpoints[family].moe_layers]
    output = runs[family]
    assert expected == {"qwen3_moe": [0, 2], "mixtral": [0, 1, 2], "deepseek_v3": [1, 2]}[family]
    assert output.experts["layer"].unique().tolist() == expected
    assert output.layers["layer"].unique().tolist() == expected
    assert [row["layer"] for row in output.summary["layers"]] == expected
    assert output.summary["model"]["moe_layers"] == expected
    assert output.layers["domain"].unique().tolist() == ["all", "prose", "code"]


def test_provenance_is_in_every_artefact(checkpoints, runs, family):
    output, found = runs[family], []
    for name in ("experts.parquet", "layers.parquet"):
        found.append(json.loads(pq.read_schema(output.folder / name).metadata[b"moectl"]))
    for name in ("coactivation.safetensors", "trace.safetensors"):
        with safe_open(output.folder / name, framework="np") as file:
            found.append(json.loads(file.metadata()["provenance"]))
    assert all(item == found[0] for item in found)
    provenance = output.summary["provenance"]
    assert found[0].items() <= provenance.items()
    wanted = ("moectl_version", "torch_version", "command", "model", "revision", "config_sha256", "data_hash", "seed", "dtype", "device")
    assert set(wanted) <= found[0].keys()
    assert found[0]["data_hash"] == {name: entry["hash"] for name, entry in output.summary["data"].items()}


def snapshot(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_dry_run_computes_and_writes_nothing(checkpoints, standard, moectl, tmp_path, output_format, monkeypatch):
    from moectl.checkpoint.reader import TensorReader

    monkeypatch.setattr(TensorReader, "_read", lambda *_: pytest.fail("a dry run read a tensor"))
    before = snapshot(tmp_path)
    arguments = ("route-stats", checkpoints["mixtral"].folder, *standard, "--output", tmp_path / "out", "--dry-run")
    result = moectl(*arguments, "--format", output_format)
    assert (result.code, result.err) == (0, "")
    assert snapshot(tmp_path) == before
    if output_format == "json":
        plan = json.loads(result.out)
        assert (plan["tokens"] > 1000, plan["dtype"], plan["order"]) == (True, "float32", "resident")
        assert all(plan[key] > 0 for key in ("read_bytes", "peak_bytes", "budget_bytes", "flops", "output_bytes", "arithmetic_seconds"))
    elif output_format == "csv":
        rows = list(csv.reader(io.StringIO(result.out)))
        assert rows[0] == ["label", "value"]
        assert {row[0] for row in rows} >= {"model", "data", "peak memory"}
    else:
        assert "peak memory" in result.out


def test_json_on_stdout_is_the_summary(checkpoints, standard, runs, moectl, tmp_path):
    arguments = ("route-stats", checkpoints["qwen3_moe"].folder, *standard, "--output", tmp_path / "out", "--format", "json")
    result = moectl(*arguments)
    assert result.code == 0
    printed = json.loads(result.out, parse_constant=pytest.fail)
    assert printed == Output(tmp_path / "out").summary
    assert varying_removed(printed) == varying_removed(runs["qwen3_moe"].summary)
    throughput = printed["throughput"]
    assert {"tokens_per_s", "seconds", "read_gb", "peak_rss_gb"} <= throughput.keys()
    assert throughput["tokens_per_s"] > 0


def test_csv_on_stdout_is_the_layers(checkpoints, standard, runs, moectl):
    without_trace = [argument for argument in standard if argument != "--trace"]
    result = moectl("route-stats", checkpoints["qwen3_moe"].folder, *without_trace, "--format", "csv")
    assert result.code == 0
    expected = runs["qwen3_moe"].layers
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert list(rows[0]) == list(expected.columns)
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        for key, value in wanted.items():
            if key == "domain":
                assert row[key] == value
            elif isinstance(value, float) and math.isnan(value):
                assert row[key] == ""
            else:
                assert float(row[key]) == value


def test_without_an_output_nothing_is_written(checkpoints, standard, moectl, isolated):
    without_trace = [argument for argument in standard if argument != "--trace"]
    before = snapshot(isolated)
    result = moectl("route-stats", checkpoints["deepseek_v3"].folder, *without_trace)
    assert result.code == 0
    assert "deepseek_v3" in result.out
    assert "\x1b" not in result.out + result.err
    assert all(line.startswith(("note: ", "warning: ")) for line in result.err.splitlines())
    assert snapshot(isolated) == before


def test_python_gives_what_the_command_gives(checkpoints, texts, runs, family, tmp_path):
    stats = package.route_stats(
        checkpoints[family].folder,
        data=[str(texts / "prose.txt"), str(texts / "code.jsonl")],
        seq_len=33,
        batch_tokens=150,
        dtype="float32",
        output=tmp_path / "out",
        trace=True,
        order="resident",
    )
    expected = runs[family]
    same_files(Output(tmp_path / "out"), expected)
    pd.testing.assert_frame_equal(stats.experts, expected.experts, check_dtype=False)
    pd.testing.assert_frame_equal(stats.layers, expected.layers, check_dtype=False)
    assert (stats.coactivation_LEE == expected.coactivation).all()
    assert stats.moe_layers == tuple(layer for layer, _, _ in checkpoints[family].moe_layers)
    assert varying_removed(stats.summary) == varying_removed(expected.summary)


def test_a_process_of_its_own(checkpoints, standard, runs, tmp_path):
    command = [sys.executable, "-m", "moectl", "route-stats", str(checkpoints["mixtral"].folder), *standard]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "out"), "--format", "json", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert varying_removed(json.loads(result.stdout)) == varying_removed(runs["mixtral"].summary)
    assert all(line.startswith("note: ") for line in result.stderr.splitlines())
    pd.testing.assert_frame_equal(Output(tmp_path / "out").experts, runs["mixtral"].experts)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout(checkpoints, standard, capsys):
    without_trace = [argument for argument in standard if argument != "--trace"]
    full = open("/dev/full", "w")  # noqa: SIM115 - closing it fails, as it must
    with contextlib.redirect_stdout(full):
        code = main(["route-stats", str(checkpoints["mixtral"].folder), *without_trace, "--format", "csv"])
    with contextlib.suppress(OSError):
        full.close()
    assert code == 4
    assert "error: cannot write to standard output: the disk is full" in capsys.readouterr().err
