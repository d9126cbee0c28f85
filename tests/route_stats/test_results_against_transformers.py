"""Results of `moectl route-stats`: counts, weights and temporal metrics are those of the experts transformers executes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_models import run_oracle
from tiny_checkpoints import TinyCheckpoint

# Shapes: T tokens, L MoE layers, K slots, E experts.


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


def test_weights_in_the_trace_are_those_of_the_oracle(checkpoints, runs, family):
    trace = runs[family].trace
    ids_TLK, weights_TLK = oracle_selection(checkpoints[family], trace)
    ours = np.take_along_axis(trace["weights"], np.argsort(trace["expert_ids"], -1), -1).astype(np.float32)
    theirs = np.take_along_axis(weights_TLK, np.argsort(ids_TLK, -1), -1)
    np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-5)
