"""The rows of `vocabulary.parquet`: the tokens of every expert over all text, and of the experts of a domain among the domain's own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moectl.data.batching import MicroBatch
from moectl.routing.counting.vocabulary import home_domains, track_ids
from moectl.routing.token_frames import SPECIALISTS, TOP_TOKENS, VOCABULARY_DTYPES, vocabulary_frame

# Ids below 6 occur everywhere, 6 to 11 mostly in the first domain, the others mostly in the second.
SHAPES = ((0, 6, 16), (0, 2, 9), (1, 7, 15), (2, 3, 12))


class Tokenizer:
    def token(self, token_id):
        return f"token {token_id}"


def batches_with_homes(make_batches):
    """Micro-batches of three domains whose ids lean to one."""
    batches = []
    for batch in make_batches(SHAPES, counted=0.9):
        rng = np.random.default_rng(batch.index)
        p = np.array([3.0] * 6 + ([3.0] * 6 + [0.6] * 6 if batch.domain == 0 else [0.6] * 6 + [3.0] * 6))
        ids_BS = rng.choice(18, size=batch.ids_BS.shape, p=p / p.sum())
        batches.append(MicroBatch(batch.index, batch.domain, batch.first_sequence, ids_BS, batch.counted_BS))
    return batches


@pytest.fixture(scope="module")
def run(run_of, batches_of):
    made = run_of(sizes=((3, 8, 2), (7, 5, 3)), shapes=SHAPES, empty=0.1)
    batches = batches_with_homes(batches_of)
    for event in made.events:
        # Experts follow the id, so that ids differ in what they are for.
        leaning_T = np.arange(event.batch.ids_BS.size) % 3 > 0
        ids_T = batches[event.batch.index].ids_BS.reshape(-1)
        e = made.layers[[info.layer for info in made.layers].index(event.layer)].n_experts
        taken_T = (event.expert_ids_TK.numpy()[:, 1:] == (ids_T % e)[:, None]).any(1)
        event.expert_ids_TK.numpy()[leaning_T & ~taken_T, 0] = (ids_T % e)[leaning_T & ~taken_T]
        object.__setattr__(event, "batch", batches[event.batch.index])
    made.batches[:] = batches
    return made


def counted_tokens(run):
    """(domain, id) of every counted token of the text."""
    return [
        (batch.domain, int(x))
        for batch in run.batches
        for x, counts in zip(batch.ids_BS.flat, batch.counted_BS.flat, strict=True)
        if counts
    ]


def obvious_rows(run):
    """The definition: (layer, expert, domain) -> [(id, count, share, lift), ...] of kind "input", token by token."""
    text = counted_tokens(run)
    of_id, of_id_here = Counter(x for _, x in text), Counter(text)
    tracked = [x for x, n in of_id.items() if n >= 10]
    found = {}
    for info in run.layers:
        runs, runs_of_id, picks = Counter(), Counter(), Counter()
        for event in (event for event in run.events if event.layer == info.layer):
            for x, counts, slots in zip(event.batch.ids_BS.flat, event.batch.counted_BS.flat, event.expert_ids_TK.tolist(), strict=True):
                for expert in slots:
                    if counts and expert >= 0:
                        runs[expert] += 1
                        runs_of_id[expert, int(x)] += 1
                        picks[event.batch.domain, expert] += 1

        def best(expert, among, runs=runs, runs_of_id=runs_of_id):
            rows = [
                (x, n := runs_of_id[expert, x], n / of_id[x], n / of_id[x] / (runs[expert] / len(text)))
                for x in among
                if runs_of_id[expert, x] >= 10
            ]
            # Ties: the larger count, then the more frequent id, then the lower one.
            return sorted(rows, key=lambda row: (-row[3], -row[1], -of_id[row[0]], row[0]))[:TOP_TOKENS]

        for expert in range(info.n_experts):
            found[info.layer, expert, "all"] = best(expert, tracked)
        for domain, name in enumerate(run.names):
            slots = sum(n for (where, _), n in picks.items() if where == domain)
            gain = {e: picks[domain, e] / slots - runs[e] / sum(runs.values()) for e in range(info.n_experts)}
            for expert in sorted(gain, key=lambda e: (-gain[e], e))[:SPECIALISTS]:
                found[info.layer, expert, name] = best(expert, [x for x in tracked if of_id_here[domain, x] > of_id[x] / 2])
    return {key: rows for key, rows in found.items() if rows}


def test_rows_are_those_of_the_definition(run, counters_of):
    table = vocabulary_frame(counters_of(run), run.names, Tokenizer())
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == VOCABULARY_DTYPES
    assert (table["token"] == [f"token {x}" for x in table["token_id"]]).all()
    inputs = table[table["kind"] == "input"]
    expected = obvious_rows(run)
    assert {name for _, _, name in expected} == {"all", *run.names[:2]}, "the third domain has no id of its own"
    assert set(inputs.groupby(["layer", "expert", "domain"]).groups) == set(expected)
    for key, rows in inputs.groupby(["layer", "expert", "domain"], sort=False):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert rows[["token_id", "count"]].to_numpy().tolist() == [[x, n] for x, n, _, _ in expected[key]]
        np.testing.assert_allclose(rows[["share", "lift"]], [row[2:] for row in expected[key]])
    assert set(table[table["kind"] == "next"]["domain"]) == {"all"}
    # All text first, then the domains in their order.
    assert list(dict.fromkeys(table["domain"])) == ["all", *run.names[:2]]


def test_the_home_of_an_id_has_more_than_half_of_its_counted_tokens():
    def batch(index, domain, ids, counted=None):
        ids_1S = np.array([ids])
        return MicroBatch(index, domain, index, ids_1S, np.ones(ids_1S.shape, bool) if counted is None else np.array([counted]))

    # 1: half and half. 2: one more in the second domain. 3: only there, where it counts. 4: not tracked.
    batches = [batch(0, 0, [1] * 10 + [2] * 10), batch(1, 1, [1] * 10 + [2] * 5), batch(2, 1, [2] * 6 + [4] * 3)]
    batches += [batch(3, 2, [3] * 15), batch(4, 0, [3] * 20, [False] * 20)]
    tracked = track_ids(batches, "input", limit=9)
    assert dict(zip(tracked.ids_M.tolist(), home_domains(tracked, batches, 3).tolist(), strict=True)) == {1: -1, 2: 1, 3: 2}


def test_one_domain_alone_has_no_rows_of_its_own(run_of, counters_of):
    alone = run_of(shapes=((0, 6, 16),), vocabulary=6)
    table = vocabulary_frame(counters_of(alone), alone.names, None)
    assert set(table["domain"]) == {"all"}
    assert table["token"].str.fullmatch(r"<\d+>").all()
    # Nor has one beside a domain none of whose tokens count.
    beside = run_of(shapes=((0, 6, 16), (1, 6, 16)), vocabulary=6)
    assert set(vocabulary_frame(counters_of(beside), beside.names, None)["domain"]) != {"all"}
    for batch in beside.batches:
        batch.counted_BS[:] = batch.domain == 1
    assert set(vocabulary_frame(counters_of(beside), beside.names, None)["domain"]) == {"all"}


def test_a_run_without_tracked_ids_gives_an_empty_table(run_of, counters_of):
    few = run_of(shapes=((0, 1, 4), (1, 1, 4)))
    table = vocabulary_frame(counters_of(few), few.names, None)
    assert len(table) == 0
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == VOCABULARY_DTYPES
