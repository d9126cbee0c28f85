"""What `moectl route-stats` makes of its data: joining, cutting, bounds, token ids, special tokens."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from route_runs import SPECIAL, Output, route
from tiny_checkpoints import VOCAB_SIZE
from tokenizers import Tokenizer

# Shapes: T tokens, L MoE layers, K slots, E experts.


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
