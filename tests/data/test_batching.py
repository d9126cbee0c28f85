"""Micro-batches: every token once and in order, one domain and one length each, within the bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moectl.data.batching import MicroBatch, micro_batches
from moectl.data.packing import Domain
from moectl.errors import UsageError


def _domain(lengths: list[int], start: int = 0) -> Domain:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    token_ids = np.arange(start, start + offsets[-1], dtype=np.int32)
    return Domain("d", token_ids, offsets, 1, token_ids % 3 == 0, "")


_LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=20) | st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(1, 6)).map(
    lambda run: [run[1]] * run[0] + [run[2]]
)


@given(domains_lengths=st.lists(_LENGTHS, min_size=1, max_size=4), batch_tokens=st.integers(1, 20), skip_special=st.booleans())
def test_every_token_once_in_order(domains_lengths: list[list[int]], batch_tokens: int, skip_special: bool) -> None:
    domains = [_domain(lengths, 1000 * i) for i, lengths in enumerate(domains_lengths)]
    batches = micro_batches(domains, batch_tokens, skip_special=skip_special)
    for i, domain in enumerate(domains):
        mine = [batch for batch in batches if batch.domain == i]
        ids = np.concatenate([batch.ids_BS.reshape(-1) for batch in mine])
        assert np.array_equal(ids, domain.token_ids)
        counted = np.concatenate([batch.counted_BS.reshape(-1) for batch in mine])
        assert np.array_equal(counted, ~domain.special if skip_special else np.ones_like(domain.special))
    all_lengths = [length for lengths in domains_lengths for length in lengths]
    sequence = 0
    for index, batch in enumerate(batches):
        n_rows, length = batch.ids_BS.shape
        assert [batch.ids_BS.dtype.name, batch.counted_BS.dtype.name] == ["int64", "bool"]
        assert batch.index == index
        assert batch.first_sequence == sequence
        assert batch.n_tokens == n_rows * length
        assert n_rows == 1 or batch.n_tokens <= batch_tokens
        assert all_lengths[sequence : sequence + n_rows] == [length] * n_rows
        sequence += n_rows
    assert sequence == len(all_lengths)
    assert [batch.domain for batch in batches] == sorted(batch.domain for batch in batches)


@given(n=st.integers(1, 40), length=st.integers(1, 6), batch_tokens=st.integers(1, 30))
def test_batches_are_as_full_as_the_bound_allows(n: int, length: int, batch_tokens: int) -> None:
    rows = max(1, batch_tokens // length)
    sizes = [len(batch.ids_BS) for batch in micro_batches([_domain([length] * n)], batch_tokens)]
    assert sizes[:-1] == [rows] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= rows


def test_a_batch_is_compared_by_identity() -> None:
    one, two = (micro_batches([_domain([2])], 4)[0] for _ in range(2))
    assert isinstance(one, MicroBatch)
    assert one != two
    assert one in {one}


def test_too_few_batch_tokens() -> None:
    with pytest.raises(UsageError, match="`0` batch tokens are too few") as caught:
        micro_batches([_domain([2])], 0)
    assert caught.value.hint
