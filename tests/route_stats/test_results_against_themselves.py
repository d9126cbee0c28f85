"""Results of `moectl route-stats` against themselves: schedules, repeats, micro-batches, permuted experts, layouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from oracle_models import save
from route_runs import route, same_files
from safetensors.torch import save_file
from tiny_checkpoints import INDEX, VOCAB_SIZE, TinyCheckpoint, all_tensors

from moectl.routing.frames import BOUND_KEYS

# Shapes: T tokens, L MoE layers, K slots, E experts.


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
    of_batches = ["max_vio_batch", "max_vio_batch_low", "max_vio_batch_high"]
    metrics = output.layers.drop(columns=["domain", *of_batches])
    np.testing.assert_allclose(metrics, expected.layers.drop(columns=["domain", *of_batches]), rtol=1e-6)


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
    # Sums over experts are taken in another order, so scores, like weights, differ in the last bits of float32.
    of_scores = ["balance_loss", "sequence_balance_loss", "z_loss", "router_entropy", "captured_mass", "margin", "effective_used_experts"]
    of_scores += BOUND_KEYS
    others = ["domain", *of_scores]
    np.testing.assert_allclose(output.layers.drop(columns=others), expected.layers.drop(columns=others), rtol=1e-9)
    np.testing.assert_allclose(output.layers[of_scores], expected.layers[of_scores], rtol=1e-4, atol=1e-9)


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
