"""Tables of pairs against their definitions written as loops, at the edges too, and what they must not depend on."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.data.batching import MicroBatch
from moectl.model.events import MoELayerInfo
from moectl.routing.counters import Counters
from moectl.routing.counting.selection import WEIGHT_UNIT
from moectl.routing.frames import expert_frame, layer_frame
from moectl.routing.pair_frames import DOMAIN_PAIR_DTYPES, EXPERT_PAIR_DTYPES, domain_pair_frame, expert_pair_frame


def sets_of(n_tokens, n_experts, top_k, *, spread=0.5, seed=0):
    """[T, E] 0 or 1: which experts each token runs, some far more often than others."""
    rng = np.random.default_rng(seed)
    scores_TE = rng.gumbel(size=(n_tokens, n_experts)) + spread * rng.normal(size=n_experts)
    ran_TE = np.zeros((n_tokens, n_experts), np.int64)
    np.put_along_axis(ran_TE, np.argsort(-scores_TE)[:, :top_k], 1, axis=1)
    return ran_TE


def frame_of(*layers):
    """The table of layers given as [T, E], padded to the largest, every second decoder layer."""
    most = max(ran_TE.shape[1] for ran_TE in layers)
    counts_LEE = np.zeros((len(layers), most, most), np.int64)
    for position, ran_TE in enumerate(layers):
        counts_LEE[position, : ran_TE.shape[1], : ran_TE.shape[1]] = ran_TE.T @ ran_TE
    infos = [MoELayerInfo(2 * at, ran_TE.shape[1], 1) for at, ran_TE in enumerate(layers)]
    return expert_pair_frame(infos, counts_LEE, np.array([len(ran_TE) for ran_TE in layers]))


def rows_of(layer, ran_TE):
    """The rows of a layer by definition."""
    E, T = ran_TE.shape[1], len(ran_TE)
    ran = [set(np.flatnonzero(ran_TE[:, e])) for e in range(E)]
    both = {(i, j): len(ran[i] & ran[j]) for i, j in combinations(range(E), 2)}
    expected = {(i, j): Fraction(len(ran[i]) * len(ran[j]), T) if T else None for i, j in both}
    lift = {pair: both[pair] / expected[pair] if expected[pair] else None for pair in both}
    listed = set(both)
    if len(both) > 128:
        strongest = sorted((pair for pair in both if both[pair] >= 30), key=lambda pair: (-lift[pair], -both[pair], pair))
        weakest = sorted((pair for pair in both if T and expected[pair] >= 30), key=lambda pair: (lift[pair], -expected[pair], pair))
        listed = {*strongest[:128], *weakest[:32]}
    for i, j in sorted(listed, key=lambda pair: (lift[pair] is None, -(lift[pair] or 0), pair)):
        n, x, a, b = both[i, j], lift[i, j], len(ran[i]), len(ran[j])
        measures = (expected[i, j], x, math.log(x) if x else None, n / (a + b - n) if a or b else None, n / a if a else None)
        yield layer, i, j, n, *(math.nan if value is None else float(value) for value in (*measures, n / b if b else None))


EDGES = {
    "one expert": sets_of(9, 1, 1),
    "every token runs every expert": sets_of(7, 5, 5),
    "one expert a token": sets_of(400, 20, 1),
    "one token": sets_of(1, 6, 2),
    "no token": sets_of(0, 6, 2),
    "no token, many experts": sets_of(0, 40, 2),
    "one token, many experts": sets_of(1, 40, 8),
    "experts that never ran": sets_of(60, 8, 3) * (np.arange(8) < 4),
    "many that never ran": sets_of(500, 40, 4) * (np.arange(40) % 3 > 0),
    "as many pairs as are listed": sets_of(40, 16, 3),
    "ends that meet": sets_of(3000, 17, 4),
    "too few tokens to list any": sets_of(100, 17, 2),
    "many of either end": sets_of(3000, 40, 8, spread=1.0),
    "an even load": np.kron(np.ones((50, 1), np.int64), np.kron(np.eye(9, dtype=np.int64), np.ones((1, 2), np.int64))),
}


@pytest.mark.parametrize("name", EDGES)
def test_experts_equal_their_definitions(name):
    frame = frame_of(EDGES[name])
    assert frame.dtypes.astype(str).to_dict() == EXPERT_PAIR_DTYPES
    rows = list(rows_of(0, EDGES[name]))
    assert frame[["layer", "expert", "other", "tokens"]].to_numpy().tolist() == [list(row[:4]) for row in rows]
    np.testing.assert_allclose(frame.iloc[:, 4:], np.array([row[4:] for row in rows]).reshape(-1, 6), rtol=1e-12, atol=1e-12)
    assert not np.isinf(frame.iloc[:, 4:]).any(axis=None)


def test_the_edges_list_what_they_say():
    sizes = {name: len(frame_of(ran_TE)) for name, ran_TE in EDGES.items()}
    assert sizes["one expert"] == sizes["too few tokens to list any"] == sizes["no token, many experts"] == 0
    assert sizes["as many pairs as are listed"] == 120
    assert sizes["ends that meet"] == 136, "128 of one end and the other 8 of 32: none twice"
    assert sizes["many of either end"] == 128 + 32
    assert sizes["one expert a token"] == 0, "expected on fewer than 30 tokens"


@given(n_tokens=st.integers(0, 60), n_experts=st.integers(1, 15), data=st.data())
def test_layers_do_not_mix_and_their_sums_are_known(n_tokens, n_experts, data):
    """All pairs are listed: the tokens of an expert's pairs are K - 1 times its own."""
    top_k, seed = data.draw(st.integers(1, n_experts)), data.draw(st.integers(0, 99))
    layers = sets_of(n_tokens, n_experts, top_k, seed=seed), sets_of(12, 3, 2, seed=seed)
    frame = frame_of(*layers)
    assert frame.equals(frame.sort_values(["layer"], kind="stable"))
    assert frame[["expert", "other"]].to_numpy().tolist() == [list(row[1:3]) for at in (0, 1) for row in rows_of(2 * at, layers[at])]
    for e, n in enumerate(layers[0].sum(0)):
        first, second = (frame[(frame["layer"] == 0) & (frame[column] == e)] for column in ("expert", "other"))
        assert first["tokens"].sum() + second["tokens"].sum() == (top_k - 1) * n
        if n and n_experts > 1:
            assert first["conditional"].sum() + second["conditional_other"].sum() == pytest.approx(top_k - 1)
    rows = frame[frame["tokens"] > 0]
    assert rows["lift"].to_numpy() == pytest.approx((rows["tokens"] / rows["expected"]).to_numpy())
    assert rows["pmi"].to_numpy() == pytest.approx(np.log(rows["lift"].to_numpy()))
    assert (1 / rows["jaccard"]).to_numpy() == pytest.approx((1 / rows["conditional"] + 1 / rows["conditional_other"] - 1).to_numpy())
    assert frame.loc[frame["tokens"] == 0, "pmi"].isna().all()


@pytest.mark.parametrize("n_experts", [12, 40])
def test_permuting_experts_permutes_the_table(n_experts):
    ran_TE = sets_of(3001, n_experts, 8, spread=1.0)
    order = np.random.default_rng(1).permutation(n_experts)
    before, after = frame_of(ran_TE[:, order]), frame_of(ran_TE)
    both = np.stack([order[before["expert"]], order[before["other"]]])
    turned = both[0] > both[1]
    assert turned.any()
    before["expert"], before["other"] = both.min(0).astype(np.int32), both.max(0).astype(np.int32)
    columns = ["conditional", "conditional_other"]
    before.loc[turned, columns] = before.loc[turned, columns[::-1]].to_numpy()
    by = ["expert", "other"]
    assert before.sort_values(by, ignore_index=True).equals(after.sort_values(by, ignore_index=True))


# Domains.


def counters_with(tokens_DLE, weight_DLE=None, *, sizes=None, tokens=100):
    """Counters of given counts, as many tokens in every domain."""
    D, L, E = tokens_DLE.shape
    ones_1T = np.ones((1, tokens), np.int64)
    layers = [MoELayerInfo(3 + at, size, 1) for at, size in enumerate(sizes or [E] * L)]
    counters = Counters(layers, D, [MicroBatch(d, d, d, ones_1T, ones_1T > 0) for d in range(D)])
    counters.counts.tokens_XLE[:] = tokens_DLE
    counters.counts.counted_XL[:] = tokens
    counters.counts.weight_DLE[:] = np.round((tokens_DLE if weight_DLE is None else weight_DLE) / WEIGHT_UNIT)
    return counters


def set_by_definition(scores, top_p):
    """The highest scores, until they sum to `top_p`."""
    chosen, total = set(), Fraction(0)
    for e in sorted(range(len(scores)), key=lambda e: (-scores[e], e)):
        if total < top_p:
            chosen.add(e)
            total += scores[e]
    return chosen if any(scores) else set()


def jsd_by_definition(one, other):
    def entropy(p):
        return -sum(x * math.log2(x) for x in p if x)

    p, q = ([n / sum(row) for n in row] for row in (one, other))
    return entropy([(x + y) / 2 for x, y in zip(p, q, strict=True)]) - (entropy(p) + entropy(q)) / 2


def overlap(one, other):
    return len(one & other) / len(one | other) if one and other else math.nan


@st.composite
def tables(draw):
    """Tokens [D, L, E], with domains without load and experts that never run, and combine weights in quarters of a token."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9)))
    n = math.prod(shape)
    tokens = draw(st.lists(st.one_of(st.integers(0, 30), st.sampled_from([0, 0, 0, 100])), min_size=n, max_size=n))
    quarters = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    tokens_DLE, quarters_DLE = np.array(tokens).reshape(shape), np.array(quarters).reshape(shape)
    tokens_DLE[:, draw(st.integers(0, shape[1] - 1))] *= draw(st.sampled_from([0, 1, 1]))
    return tokens_DLE, tokens_DLE * quarters_DLE / 4


@given(table=tables())
def test_domains_equal_their_definitions(table):
    tokens_DLE, weight_DLE = table
    D, L, _ = tokens_DLE.shape
    names = ["wiki", "code", "math", "law", "chat"][:D]
    frame = domain_pair_frame(counters_with(tokens_DLE, weight_DLE, tokens=128), names)
    assert frame.dtypes.astype(str).replace("str", "object").to_dict() == DOMAIN_PAIR_DTYPES
    expected = [(3 + at, *pair) for at in range(L) for pair in combinations(range(D), 2)]
    assert frame[["layer", "domain", "other"]].to_numpy().tolist() == [[at, names[d], names[o]] for at, d, o in expected]
    for row, (layer, d, o) in zip(frame.itertuples(), expected, strict=True):
        one, other = tokens_DLE[d, layer - 3].tolist(), tokens_DLE[o, layer - 3].tolist()
        loaded = any(one) and any(other)
        assert row.jsd_bits == pytest.approx(jsd_by_definition(one, other) if loaded else math.nan, abs=1e-12, nan_ok=True)
        by_token = [set_by_definition([Fraction(n, sum(counts) or 1) for n in counts], Fraction(1, 5)) for counts in (one, other)]
        assert row.expert_set_overlap == pytest.approx(overlap(*by_token), nan_ok=True)
        scores = ([Fraction(int(4 * w), 4 * 128) for w in weight_DLE[at, layer - 3]] for at in (d, o))
        everyone = set(range(tokens_DLE.shape[2]))
        by_gate = [set_by_definition(scores_E, 0.1) or everyone for scores_E in scores]
        assert row.expert_set_overlap_gate == pytest.approx(overlap(*by_gate) if loaded else math.nan, nan_ok=True)


def test_a_single_domain_makes_an_empty_table_with_types():
    frame = domain_pair_frame(counters_with(np.full((1, 2, 4), 5)), ["wiki"])
    assert len(frame) == 0
    assert frame.dtypes.astype(str).to_dict() == DOMAIN_PAIR_DTYPES


def test_the_mean_over_pairs_and_the_sets_are_those_of_the_other_tables(run_of, counters_of):
    run = run_of(shapes=((0, 3, 20), (1, 2, 20), (2, 4, 10)), vocabulary=9)
    counters = counters_of(run)
    frame, layers, experts = domain_pair_frame(counters, run.names), layer_frame(counters, run.names), expert_frame(counters, run.names)
    mean = frame.groupby("layer")["jsd_bits"].mean()
    assert mean.to_numpy() == pytest.approx(layers.loc[layers["domain"] == "all", "domain_jsd_bits"].to_numpy())
    for column, measure in (("expert_set", "expert_set_overlap"), ("expert_set_gate", "expert_set_overlap_gate")):
        chosen = experts[experts[column] == 1].groupby(["domain", "layer"])["expert"].agg(set)
        assert [chosen[row.domain, row.layer] for row in frame.itertuples()] != [chosen[row.other, row.layer] for row in frame.itertuples()]
        for row in frame.itertuples():
            assert getattr(row, measure) == overlap(chosen[row.domain, row.layer], chosen[row.other, row.layer])


def test_each_layer_is_compared_with_its_own_size():
    """A layer of 5 experts in a run padded to 8, whose weights never reach the sum: its set is all five."""
    tokens_DLE = np.random.default_rng(0).integers(0, 30, (3, 2, 8))
    tokens_DLE[:, 1, 5:] = 0
    names, weight_DLE = ["a", "b", "c"], tokens_DLE / 100
    together = domain_pair_frame(counters_with(tokens_DLE, weight_DLE, sizes=(8, 5)), names)
    apart = domain_pair_frame(counters_with(tokens_DLE[:, 1:, :5], weight_DLE[:, 1:, :5]), names)
    assert together[3:].iloc[:, 1:].reset_index(drop=True).equals(apart.iloc[:, 1:])
    assert apart["expert_set_overlap_gate"].tolist() == [1, 1, 1]
    frame = expert_frame(counters_with(tokens_DLE, weight_DLE, sizes=(8, 5)), names)
    assert frame.loc[frame["layer"] == 4, "expert_set_gate"].eq(1).all()


@given(table=tables(), seed=st.integers(0, 99))
def test_the_order_of_experts_changes_nothing_of_domains(table, seed):
    tokens_DLE, _ = table
    distinct_DLE = 100 * tokens_DLE + np.where(tokens_DLE > 0, np.arange(tokens_DLE.shape[2]), 0)  # ties go to the lower id
    order = np.random.default_rng(seed).permutation(tokens_DLE.shape[2])
    names = list("abcde")[: len(tokens_DLE)]
    before, after = (domain_pair_frame(counters_with(counts), names) for counts in (distinct_DLE, distinct_DLE[..., order]))
    assert before.equals(after)
