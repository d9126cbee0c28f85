"""What each expert reads, as tables."""

from __future__ import annotations

import numpy as np
import pytest

from moectl.routing.token_classes import CLASSES
from moectl.routing.token_frames import CLASS_DTYPES, TOP_TOKENS, VOCABULARY_DTYPES, class_frame, vocabulary_frame


class Spelling:
    def token(self, token_id: int) -> str:
        return f"word{token_id}"


@pytest.fixture
def run(run_of):
    return run_of(shapes=((0, 6, 40), (1, 5, 30)), vocabulary=12)


def test_top_tokens_are_counted_as_they_ran(run, counters_of):
    counters = counters_of(run)
    frame = vocabulary_frame(counters, run.names, Spelling())
    assert frame.dtypes.astype(str).replace("str", "object").to_dict() == VOCABULARY_DTYPES
    assert set(frame["kind"]) == {"input", "next"}
    assert (frame["rank"] <= TOP_TOKENS).all()
    assert (frame["token"] == [f"word{i}" for i in frame["token_id"]]).all()
    ids = {}
    for event in run.events:
        for token_id, experts in zip(event.batch.ids_BS.reshape(-1).tolist(), event.expert_ids_TK.tolist(), strict=True):
            for expert in experts:
                ids[event.layer, expert, token_id] = ids.get((event.layer, expert, token_id), 0) + 1
    rows = frame[frame["kind"] == "input"]
    assert len(rows) > 0
    for row in rows.itertuples():
        assert row.count == ids[row.layer, row.expert, row.token_id]
    # By lift, the highest first.
    for _, group in frame.groupby(["kind", "domain", "layer", "expert"]):
        assert (np.diff(group["lift"]) <= 1e-12).all()
        assert group["rank"].tolist() == list(range(1, len(group) + 1))


def test_without_a_tokenizer_tokens_are_numbers(run, counters_of):
    frame = vocabulary_frame(counters_of(run), run.names, None)
    assert (frame["token"] == [f"<{i}>" for i in frame["token_id"]]).all()


def test_classes_add_up_to_the_tokens_of_an_expert(run, counters_of):
    table_V = np.array([i % 3 for i in range(12)], np.int8)
    counters = counters_of(run, class_of_id_V=table_V)
    frame = class_frame(counters)
    assert set(frame["token_class"]) == set(CLASSES[:3])
    sums = frame.groupby(["layer", "expert"])["tokens"].sum()
    for position, info in enumerate(counters.layers):
        expected_E = counters.counts.tokens_XLE[:, position, : info.n_experts].sum(0)
        assert sums.loc[info.layer].tolist() == expected_E.tolist()
    row = frame.iloc[0]
    counted, of_expert = counters.counts.counted_XL[:, 0].sum(), counters.counts.tokens_XLE[:, 0, row["expert"]].sum()
    assert row["lift"] == pytest.approx(row["share"] / (of_expert / counted))


def test_without_classes_there_is_no_row(run, counters_of):
    frame = class_frame(counters_of(run))
    assert list(frame.columns) == list(CLASS_DTYPES)
    assert len(frame) == 0
