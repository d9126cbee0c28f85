"""Tables out of counters."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing.counters import Counters
from moectl.routing.counting.predicted import KeptExperts
from moectl.routing.frames import _OF_SCORES, BOUND_KEYS, METRIC_KEYS, expert_frame, layer_frame, layer_records, overall


def test_expert_rows(run_of, counters_of):
    run = run_of()
    counters = counters_of(run)
    frame = expert_frame(counters, run.names)
    # E = 8, 8 and 5 experts, all domains first, decoder indices with their gaps.
    assert frame["domain"].drop_duplicates().tolist() == ["all", "wiki", "code"]
    assert frame.loc[:20, "layer"].tolist() == [3] * 8 + [4] * 8 + [7] * 5
    assert frame.loc[:20, "expert"].tolist() == [*range(8), *range(8), *range(5)]
    assert len(frame) == 3 * 21
    assert [str(dtype) for dtype in frame.dtypes.iloc[1:]] == [
        "int32", "int32", "int64", "float64", "float64", "float64", "float64", "int64", *["float64"] * 6, "int32", "int32",
    ]  # fmt: skip
    by_domain = frame[frame["domain"] != "all"].groupby(["layer", "expert"])[["tokens", "first_choice_tokens", "weight_sum"]].sum()
    whole = frame[frame["domain"] == "all"].set_index(["layer", "expert"])
    assert (by_domain["tokens"] == whole["tokens"]).all()
    assert (by_domain["first_choice_tokens"] == whole["first_choice_tokens"]).all()
    assert by_domain["weight_sum"].to_numpy() == pytest.approx(whole["weight_sum"].to_numpy())
    layer = frame[(frame["domain"] == "code") & (frame["layer"] == 7)]
    assert layer["tokens"].sum() == 22 * 3
    assert layer["share"].sum() == pytest.approx(1)
    assert layer["relative_load"].to_numpy() == pytest.approx(5 * layer["tokens"].to_numpy() / 66)
    assert layer["mean_weight"].to_numpy() == pytest.approx((layer["weight_sum"] / layer["tokens"]).to_numpy(), nan_ok=True)


def test_layer_rows_have_every_metric_and_records_match(run_of, counters_of):
    run = run_of()
    frame = layer_frame(counters_of(run), run.names)
    assert frame.columns.tolist() == ["domain", "layer", "n_experts", "top_k", "tokens", *METRIC_KEYS, *BOUND_KEYS]
    assert frame[["domain", "layer"]].to_numpy().tolist()[:4] == [["all", 3], ["all", 4], ["all", 7], ["wiki", 3]]
    assert frame["tokens"].tolist() == [56] * 3 + [34] * 3 + [22] * 3
    records = layer_records(frame)
    assert [record["layer"] for record in records] == [3, 4, 7]
    assert records[2]["n_experts"] == 5
    assert records[2]["max_vio"] == frame.loc[2, "max_vio"]
    assert type(records[0]["dead_experts"]) is int
    assert "domain" not in records[0]


def test_every_metric_applies_somewhere_and_nowhere_else_is_null(run_of, counters_of):
    run = run_of(shapes=((0, 4, 70), (1, 3, 66)), vocabulary=7, biased=(4,))
    counters, kept = counters_of(run), KeptExperts(run.layers, run.batches)
    for event in run.events:
        kept.record(event)
    counters.count_predicted(kept, run.batches, np.concatenate([batch.ids_BS.reshape(-1) for batch in run.batches]), vocab_size=7)
    frame = layer_frame(counters, run.names)
    everywhere = [key for key in METRIC_KEYS if not key.startswith(("vocabulary_", "domain_")) and key != "bias_effect"]
    assert not frame[everywhere].isna().to_numpy().any()
    only_all = [key for key in METRIC_KEYS if key.startswith(("vocabulary_", "domain_"))]
    assert (frame[only_all].isna().to_numpy() == (frame["domain"] != "all").to_numpy()[:, None]).all()
    assert (frame["bias_effect"].isna() == (frame["layer"] != 4)).all()


def test_what_scores_decide_is_null_without_logits(run_of, counters_of):
    run = run_of(shapes=((0, 4, 70), (1, 3, 66)), vocabulary=7, biased=(4,))
    blind = Counters(run.layers, len(run.names), run.batches)
    for event in run.events:
        blind.record(RoutingEvent(event.layer, event.batch, event.expert_ids_TK, event.weights_TK, None))
    seen, unseen = (layer_frame(counters, run.names) for counters in (counters_of(run), blind))
    null = [key for key in METRIC_KEYS if not seen[key].equals(unseen[key])]
    assert sorted(null) == sorted(_OF_SCORES)
    assert unseen[null].isna().all(axis=None)


def test_each_layer_is_measured_with_its_own_size(run_of, counters_of):
    """A layer of 5 experts in a run padded to 8 must not have 3 dead ones."""
    both, alone = (run_of(sizes=sizes, vocabulary=4) for sizes in (((0, 8, 2), (7, 5, 3)), ((7, 5, 3),)))
    events = [event for event in both.events if event.layer == 7]
    together = layer_frame(counters_of(both), both.names).query("layer == 7").reset_index(drop=True)
    apart = layer_frame(counters_of(alone, events), alone.names)
    pd.testing.assert_frame_equal(together, apart, check_exact=True)
    assert apart.loc[0, "next_token_overlap_uniform"] == 3 / 5


def test_what_does_not_apply_is_null_and_never_zero(run_of, counters_of):
    empty = layer_frame(counters_of(run_of(counted=0.0)), ["wiki", "code"])
    (record, *_) = layer_records(empty)
    assert record["tokens"] == 0
    uniform = {key for key in METRIC_KEYS if key.endswith("_uniform") and key not in ("kl_uniform", "tv_uniform")}
    assert {key for key in METRIC_KEYS if record[key] is not None} == uniform
    summary = overall(empty)
    assert {key for key in METRIC_KEYS if summary[key] is not None} == uniform

    single = run_of(shapes=((0, 3, 1),))
    (record, *_) = layer_records(layer_frame(counters_of(single), single.names))
    assert record["max_vio"] is not None
    assert [record[key] for key in ("first_choice_repeat", "any_overlap", "next_token_overlap")] == [None] * 3

    dense = run_of(sizes=((0, 4, 4),))
    (record, *_) = layer_records(layer_frame(counters_of(dense), dense.names))
    assert record["max_vio_noise_floor"] is record["margin"] is record["fragile_tokens"] is None
    assert record["captured_mass"] == pytest.approx(1)
    assert record["max_vio"] == 0.0
    assert record["any_overlap"] == record["any_overlap_load_aware"] == record["next_token_overlap"] == 1.0

    dropping = run_of(empty=0.3)
    (record, *_) = layer_records(layer_frame(counters_of(dropping), dropping.names))
    assert record["any_overlap_load_aware"] is None
    assert record["next_token_overlap_load_aware"] is not None


def test_experts_without_tokens_have_no_mean_weight(run_of, counters_of):
    frame = expert_frame(counters_of(run_of(counted=0.0)), ["wiki", "code"])
    assert frame[["share", "relative_load", "mean_weight"]].isna().all(axis=None)
    assert (frame["weight_sum"] == 0).all()


def test_the_experts_that_a_text_needs(run_of, counters_of):
    run = run_of(sizes=((0, 9, 2), (1, 4, 3), (2, 3, 3)), shapes=((0, 4, 40), (1, 3, 30)), vocabulary=5)
    for _, rows in expert_frame(counters_of(run), run.names).groupby(["domain", "layer"]):
        for column, score, top_p in (("expert_set", "share", 0.2), ("expert_set_gate", "gate_score", 0.1)):
            rows = rows.sort_values([score, "expert"], ascending=[False, True])
            n = int(rows[column].sum())
            assert rows[column].tolist() == [1] * n + [0] * (len(rows) - n)
            assert rows[score].head(n).sum() >= top_p > rows[score].head(n - 1).sum()
    nothing = expert_frame(counters_of(run_of(counted=0.0)), run.names)
    assert (nothing[["expert_set", "expert_set_gate"]] == 0).all(axis=None)


def test_permuting_experts_permutes_rows_and_changes_no_metric(run_of, counters_of):
    run = run_of(sizes=((0, 9, 3),), vocabulary=4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    # Distinct weights: with ties the lowest id is the first choice, which depends on the names.
    tie_free = [
        RoutingEvent(e.layer, e.batch, e.expert_ids_TK, e.weights_TK + 0.01 * e.expert_ids_TK, e.logits_TE) for e in run.events
    ]  # fmt: skip
    moved = [RoutingEvent(e.layer, e.batch, order[e.expert_ids_TK], e.weights_TK, e.logits_TE[:, order.argsort()]) for e in tie_free]
    before, after = counters_of(run, tie_free), counters_of(run, moved)
    tables = layer_frame(before, run.names), layer_frame(after, run.names)
    # A softmax adds up the experts in their order, so what is made of scores may differ in the last bits.
    of_scores = ["balance_loss", "sequence_balance_loss", "z_loss", "router_entropy", "captured_mass"]
    of_scores += BOUND_KEYS  # these add up blocks and experts as they come
    pd.testing.assert_frame_equal(*(table.drop(columns=of_scores) for table in tables), check_exact=True)
    pd.testing.assert_frame_equal(*(table[of_scores] for table in tables), rtol=1e-6)
    rows = expert_frame(before, run.names)
    rows["expert"] = order.numpy()[rows["expert"]].astype(np.int32)
    rows["place"] = rows["domain"].map({"all": 0, "wiki": 1, "code": 2})
    rows = rows.sort_values(["place", "expert"]).drop(columns="place").reset_index(drop=True)
    bounds = ["share_low", "share_high"]
    pd.testing.assert_frame_equal(rows.drop(columns=bounds), expert_frame(after, run.names).drop(columns=bounds), check_exact=True)
    pd.testing.assert_frame_equal(rows[bounds], expert_frame(after, run.names)[bounds], rtol=1e-9)
    together_EE, moved_EE = before.coactivation_LEE()[0], after.coactivation_LEE()[0]
    assert (moved_EE[order][:, order] == together_EE).all()


def test_temporal_columns_of_a_known_sequence(batches_of):
    (batch,) = batches_of([(0, 1, 4)])
    counters = Counters([MoELayerInfo(0, 4, 2)], 1, [batch])
    ids, weights = [[0, 1], [1, 0], [2, 3], [2, 1]], [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.7, 0.3]]
    counters.record(RoutingEvent(0, batch, torch.tensor(ids), torch.tensor(weights), torch.zeros(4, 4)))
    row = layer_frame(counters, ["wiki"]).iloc[0]
    assert row["first_choice_repeat"] == 2 / 3
    assert row["any_overlap"] == 2 / 3
    assert row["next_token_overlap"] == 3 / 6
    assert row["first_choice_repeat_load_aware"] == 0.5
    assert row["next_token_overlap_load_aware"] == pytest.approx((0.25 + 9 / 16 + 0.25 + 1 / 16) / 2)


def test_the_lag_curve_of_a_period(batches_of):
    """Experts that come again every fourth token."""
    (batch,) = batches_of([(0, 1, 70)])
    counters = Counters([MoELayerInfo(0, 8, 2)], 1, [batch])
    ids_TK = torch.tensor([[0, 1], [2, 3], [4, 5], [1, 7]]).repeat(18, 1)[:70]
    counters.record(RoutingEvent(0, batch, ids_TK, torch.ones(70, 2), torch.zeros(70, 8)))
    row = layer_frame(counters, ["wiki"]).iloc[0]
    assert row["next_token_overlap"] == pytest.approx(17 / 69 / 2)
    assert row["overlap_lag_2"] == 0
    assert row[[f"overlap_lag_{lag}" for lag in (4, 8, 16, 32, 64)]].tolist() == [1] * 5


def test_overall_is_over_layers_of_all_domains_together():
    rows = {key: [1.0, 2.0, 6.0, 100.0] for key in METRIC_KEYS}
    frame = pd.DataFrame({"domain": ["all", "all", "all", "wiki"], "tokens": [4, 4, 4, 4], **rows})
    frame.loc[0, "cv"] = math.nan
    assert overall(frame)["max_vio"] == {"min": 1.0, "median": 2.0, "mean": 3.0, "max": 6.0}
    assert overall(frame)["cv"] == {"min": 2.0, "median": 4.0, "mean": 4.0, "max": 6.0}
