"""The n-gram baselines against dictionaries, and as probability distributions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngram import loss, train_trigram, train_unigram

VOCAB = 6
sequences_of_ids = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=30).map(lambda ids: np.array(ids, np.int32)), max_size=6)


def kneser_ney(sequences, discount, vocab_size):
    """P(w | context) with context a tuple of at most two ids, written as in the papers."""
    raw = {n: Counter(tuple(s[i : i + n].tolist()) for s in sequences for i in range(len(s) - n + 1)) for n in (2, 3)}
    counts = {3: raw[3], 2: Counter(gram[1:] for gram in raw[3]), 1: Counter(gram[1:] for gram in raw[2])}

    def prob(word, context):
        seen = [count for gram, count in counts[len(context) + 1].items() if gram[:-1] == context]
        lower = prob(word, context[1:]) if context else 1 / vocab_size
        if not seen:
            return lower
        return (max(counts[len(context) + 1][(*context, word)] - discount, 0) + discount * len(seen) * lower) / sum(seen)

    return prob


@given(sequences_of_ids, sequences_of_ids, st.floats(0.05, 0.95))
def test_trigram_equals_dictionaries(train, held_out, discount):
    model, prob = train_trigram(train, VOCAB, discount), kneser_ney(train, discount, VOCAB)
    for sequence in [*train, *held_out]:
        ids = sequence.tolist()
        expected = [math.log(prob(ids[t], tuple(ids[max(t - 2, 0) : t]))) for t in range(1, len(ids))]
        np.testing.assert_allclose(model.log_probs(sequence), expected, rtol=1e-12, atol=1e-12)


@given(sequences_of_ids)
def test_unigram_equals_a_counter_of_predicted_tokens(train):
    counts = Counter(token for sequence in train for token in sequence[1:].tolist())
    everything = np.arange(-1, VOCAB).clip(0)
    expected = [math.log((counts[w] + 1) / (counts.total() + VOCAB)) for w in range(VOCAB)]
    np.testing.assert_allclose(train_unigram(train, VOCAB).log_probs(everything), expected, rtol=1e-12)


@given(sequences_of_ids)
def test_every_context_has_a_distribution(train):
    unigram, trigram = train_unigram(train, VOCAB), train_trigram(train, VOCAB)
    for u in range(VOCAB):
        for v in range(VOCAB):
            last = np.array([trigram.log_probs(np.array([u, v, w]))[1] for w in range(VOCAB)])
            assert np.exp(last).sum() == pytest.approx(1, abs=1e-12)
        first = np.array([trigram.log_probs(np.array([u, w]))[0] for w in range(VOCAB)])
        assert np.exp(first).sum() == pytest.approx(1, abs=1e-12)
    assert np.exp(unigram.log_probs_V).sum() == pytest.approx(1, abs=1e-12)


def test_trigram_by_hand():
    # Trigrams 0 1 2 (twice) and 0 1 3. Left neighbours: one of 1 2, one of 1 3, one each of 1, 2 and 3.
    model = train_trigram([np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([0, 1, 3])], vocab_size=4)
    unigram = (0.25 + 0.75 * 3 / 4) / 3
    bigram = (0.25 + 0.75 * 2 * unigram) / 2
    assert np.exp(model.log_probs(np.array([0, 1, 2])))[1] == pytest.approx((1.25 + 0.75 * 2 * bigram) / 3, abs=1e-15)
    assert np.exp(model.log_probs(np.array([3, 1, 2])))[1] == pytest.approx(bigram, abs=1e-15)
    assert np.exp(model.log_probs(np.array([3, 2])))[0] == pytest.approx(unigram, abs=1e-15)
    assert np.exp(model.log_probs(np.array([3, 0])))[0] == pytest.approx(0.75 * 3 / 3 / 4, abs=1e-15)


def test_loss_weighs_positions_not_sequences():
    model = train_trigram([np.arange(10) % VOCAB], VOCAB)
    long, short = np.arange(20) % VOCAB, np.array([5, 5])
    total = model.log_probs(long).sum() + model.log_probs(short).sum()
    assert loss(model, [long, np.array([3]), short, np.array([], np.int64)]) == pytest.approx(-total / 20, abs=1e-14)
    with pytest.raises(ValueError, match="nothing to predict"):
        loss(model, [np.array([3])])


def test_a_large_vocabulary_in_narrow_ids_does_not_overflow():
    # Three ids below 65 536 need 48 bits; packing them in the sequence's own dtype would wrap.
    vocab_size = 65_536
    sequence = np.array([65_535, 65_534, 65_533, 65_535, 65_534, 65_533], np.uint16)
    prob = kneser_ney([sequence], 0.75, vocab_size)
    ids = sequence.tolist()
    expected = [math.log(prob(ids[t], tuple(ids[max(t - 2, 0) : t]))) for t in range(1, 6)]
    np.testing.assert_allclose(train_trigram([sequence], vocab_size).log_probs(sequence), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        (np.array([0, VOCAB]), "run from 0 to 6"),
        (np.array([-1, 0]), "run from -1"),
        (np.array([0.5]), "float64"),
        (np.zeros((2, 2), int), "flat"),
    ],
)
def test_ids_that_are_none_are_refused(sequence, said):
    for train in (train_unigram, train_trigram):
        with pytest.raises(ValueError, match=said):
            train([sequence], VOCAB)
    with pytest.raises(ValueError, match=said):
        train_trigram([], VOCAB).log_probs(sequence)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="63 bits"):
        train_trigram([], 2**21)
    with pytest.raises(ValueError, match="discount"):
        train_trigram([], VOCAB, discount=1.0)
