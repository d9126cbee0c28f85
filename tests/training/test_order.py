"""The order of the data: exact proportions, every sequence once an epoch, and a stream that goes on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_runs import make_domain

from moectl.data.packing import Domain
from moectl.errors import DataError, ModelError, UsageError
from moectl.training.order import DataOrder

S = 4


def numbered(name: str, n_sequences: int, *, tail: int = 0, first: int = 0) -> Domain:
    """Sequences that say which they are: all tokens of number i are `first` + i; a tail of -1."""
    ids_T = np.repeat(np.arange(first, first + n_sequences), S)
    return make_domain(name, np.concatenate([ids_T, np.full(tail, -1)]), seq_len=S)


def drawn(order: DataOrder, n: int) -> list[int]:
    """Numbers of the next `n` sequences, whole ones all."""
    ids_BS = order.take(n)
    assert ids_BS.shape == (n, S)
    assert ids_BS.dtype == np.int64
    assert (ids_BS == ids_BS[:, :1]).all()
    return ids_BS[:, 0].tolist()


@given(weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_proportions_hold_in_every_prefix(weights):
    domains = [numbered(str(d), 3, first=100 * d) for d in range(len(weights))]
    order = DataOrder(domains, seq_len=S, seed=0, weights={str(d): weight for d, weight in enumerate(weights)})
    for n in range(1, 120):
        order.take(1)
        assert sum(order.taken) == n
        for taken, weight in zip(order.taken, weights, strict=True):
            # Never two sequences from its share.
            assert abs(taken - n * weight / sum(weights)) < 2


def test_each_epoch_is_a_new_permutation_of_the_whole_sequences():
    order = DataOrder([numbered("a", 20, tail=3)], seq_len=S, seed=0)
    epochs = [drawn(order, 20) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert len({tuple(epoch) for epoch in [*epochs, range(20)]}) == 4
    assert order.epochs == {"a": 3.0}


def test_by_default_all_sequences_are_seen_equally_often():
    order = DataOrder([numbered("a", 6), numbered("b", 3, first=10)], seq_len=S, seed=0)
    assert sorted(drawn(order, 9)) == [*range(6), 10, 11, 12]
    order = DataOrder([numbered("a", 6), numbered("b", 3, first=10)], seq_len=S, seed=0, weights={"b": 3, "a": 1})
    assert sum(n >= 10 for n in drawn(order, 40)) == 30


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), cut=st.integers(0, 30), seed=st.integers(0, 3))
def test_a_restored_stream_is_the_same_stream(sizes, cut, seed):
    def order() -> DataOrder:
        return DataOrder([numbered(str(d), n, tail=1, first=100 * d) for d, n in enumerate(sizes)], seq_len=S, seed=seed)

    whole, first, second = order(), order(), order()
    expected = drawn(whole, 40)
    begun = drawn(first, cut) if cut else []
    second.restore(first.taken)
    assert begun + drawn(second, 40 - cut) == expected
    assert second.taken == whole.taken


def test_seeds_and_domains_shuffle_differently():
    streams = [drawn(DataOrder([numbered("a", 30)], seq_len=S, seed=seed), 30) for seed in (0, 1, 0)]
    assert streams[0] == streams[2] != streams[1]
    order = DataOrder([numbered("a", 30), numbered("b", 30, first=100)], seq_len=S, seed=0)
    both = drawn(order, 60)
    assert [n for n in both if n < 100] != [n - 100 for n in both if n >= 100]


def test_the_hash_is_of_data_and_mixture():
    a, b, c = numbered("a", 6), numbered("b", 3), numbered("b", 3, first=1)

    def sha256(domains, weights=None):
        return DataOrder(domains, seq_len=S, seed=0, weights=weights).sha256

    assert sha256([a, b]) == sha256([a, b], {"a": 2, "b": 1})
    assert len({sha256([a, b]), sha256([a, c]), sha256([b, a]), sha256([a]), sha256([a, b], {"a": 1, "b": 1})}) == 5


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 1, "c": 1}])
def test_weights_name_every_domain_and_no_other(weights):
    with pytest.raises(UsageError, match=r"the weights name .* the domains are \['a', 'b'\]"):
        DataOrder([numbered("a", 2), numbered("b", 2)], seq_len=S, seed=0, weights=weights)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive(weight):
    with pytest.raises(UsageError, match="must be above 0"):
        DataOrder([numbered("a", 2), numbered("b", 2)], seq_len=S, seed=0, weights={"a": 1, "b": weight})


def test_a_domain_without_a_whole_sequence_is_refused():
    with pytest.raises(DataError, match="`b` has 3 tokens, not one sequence of 4"):
        DataOrder([numbered("a", 2), numbered("b", 0, tail=3)], seq_len=S, seed=0)
    with pytest.raises(DataError, match="no domain"):
        DataOrder([], seq_len=S, seed=0)


@pytest.mark.parametrize("taken", [[], [1], [1, 2, 3], [1, -1]])
def test_a_position_of_other_domains_is_refused(taken):
    order = DataOrder([numbered("a", 2), numbered("b", 2)], seq_len=S, seed=0)
    with pytest.raises(ModelError, match="does not fit 2 domains"):
        order.restore(taken)
