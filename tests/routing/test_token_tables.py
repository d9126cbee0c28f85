"""Which tokens experts read: the counts, and the classes of tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moectl.routing.counters import Counters
from moectl.routing.counting import vocabulary
from moectl.routing.counting.vocabulary import track_ids
from moectl.routing.token_classes import CLASSES, class_table, token_class

SHAPES = ((0, 5, 9), (0, 1, 4), (1, 6, 7))


def count(run, **options):
    counters = Counters(run.layers, len(run.names), run.batches, **options)
    for event in run.events:
        counters.record(event)
    return counters


def next_id(row, s):
    return row[s + 1] if s + 1 < len(row) else None


def occurrences(batches, kind):
    found = Counter()
    for batch in batches:
        for row, counted in zip(batch.ids_BS.tolist(), batch.counted_BS.tolist(), strict=True):
            found.update(x for s, x in enumerate(row if kind == "input" else [next_id(row, s) for s in range(len(row))]) if counted[s])
    del found[None]
    return found


@pytest.mark.parametrize("kind", ["input", "next"])
def test_the_most_frequent_ids_are_tracked(batches_of, kind):
    batches = batches_of(SHAPES, counted=0.9, vocabulary=8)
    found = occurrences(batches, kind)
    ranked = sorted((-n, x) for x, n in found.items() if n >= 10)
    assert 2 < len(ranked) < 8
    for limit in (2, 100, 0):
        tracked = track_ids(batches, kind, limit=limit)
        assert tracked.ids_M.tolist() == [x for _, x in ranked[:limit]]
        assert tracked.tokens_M.tolist() == [-n for n, _ in ranked[:limit]]


def test_the_last_token_of_a_sequence_has_no_next_one(batches_of):
    (batch,) = batches_of([(0, 2, 10)], vocabulary=1)
    tracked = track_ids([batch], "next", limit=5)
    assert tracked.tokens_M.tolist() == [18]
    assert tracked.rows(batch).reshape(2, 10).tolist() == [[0] * 9 + [-1]] * 2


@pytest.mark.parametrize(("counted", "empty"), [(1.0, 0.0), (0.8, 0.3)])
def test_tables_equal_loops_over_tokens(run_of, counted, empty):
    run = run_of(shapes=SHAPES, vocabulary=8, counted=counted, empty=empty)
    classes_V = np.arange(8, dtype=np.int8) % 3
    counters, expected = count(run, class_of_id_V=classes_V), Counter()
    row_of = {kind: {int(x): m for m, x in enumerate(tracked.ids_M)} for kind, tracked in counters.tracked.items()}
    for event in run.events:
        l = [info.layer for info in run.layers].index(event.layer)
        B, S = event.batch.ids_BS.shape
        for b in range(B):
            row = event.batch.ids_BS[b].tolist()
            for s in range(S):
                if not event.batch.counted_BS[b, s]:
                    continue
                slots = zip(event.expert_ids_TK[b * S + s].tolist(), event.weights_TK[b * S + s].tolist(), strict=True)
                ran = sorted((-w, e) for e, w in slots if e >= 0)
                for rank, (_, e) in enumerate(ran):
                    expected["classes_LCE", l, classes_V[row[s]], e] += 1
                    for kind, x in (("input", row[s]), ("next", next_id(row, s))):
                        if x in row_of[kind]:
                            expected[f"{kind}_LME", l, row_of[kind][x], e] += 1
                            expected[f"{kind}_first_choice_LME", l, row_of[kind][x], e] += rank == 0
    state = counters.arrays()
    for name in ("classes_LCE", "input_LME", "input_first_choice_LME", "next_LME", "next_first_choice_LME"):
        assert state[name].any()
        found = {(name, *map(int, index)): state[name][tuple(index)] for index in np.argwhere(state[name])}
        assert found == {key: n for key, n in expected.items() if key[0] == name and n}, name


def test_class_totals(run_of):
    run = run_of(shapes=SHAPES, vocabulary=8, counted=0.8)
    counters = count(run, class_of_id_V=np.arange(8, dtype=np.int8) % 3)
    assert counters.class_tokens_C.sum() == sum(int(batch.counted_BS.sum()) for batch in run.batches)
    top_k_L1 = np.array([info.top_k for info in run.layers])[:, None]
    assert (counters.counts.classes_LCE.sum(-1) == counters.class_tokens_C * top_k_L1).all()
    assert count(run).counts.classes_LCE.size == 0


def test_memory_of_the_tables(run_of, monkeypatch):
    run = run_of(shapes=SHAPES, vocabulary=8)
    monkeypatch.setattr(vocabulary, "TABLE_BYTES", 4 * 4 * 3 * 8 * 2 + 7)
    counters = count(run)
    assert [len(tracked.ids_M) for tracked in counters.tracked.values()] == [2, 2]
    assert sum(array.nbytes for name, array in counters.arrays().items() if name.endswith("_LME")) <= vocabulary.TABLE_BYTES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" cat", "latin"), ("naïve", "latin"), ("x1", "latin"), ("self.", "latin"), ("foo_bar", "latin"),
        ("42", "digit"), (" 3.14", "digit"), ("½", "digit"), ("-1", "digit"),
        (" ", "whitespace"), ("\n\n", "whitespace"), ("\t", "whitespace"), ("\u00a0", "whitespace"),
        (".", "punctuation"), (" \u201c", "punctuation"), ("(", "punctuation"), ("?!", "punctuation"), ("\u3002", "punctuation"),
        ("{", "code"), (" ==", "code"), ("});", "code"), ("_", "code"), ("->", "code"),
        ("猫", "cjk"), ("ねこ", "cjk"), ("고양이", "cjk"), (" кот", "cyrillic"), ("γάτα", "greek"), ("قطة", "arabic"),
        ("חתול", "hebrew"), ("बिल", "indic"), ("แมว", "other_script"), ("кот cat кот", "cyrillic"),
        ("", "other"), ("😀", "other"), ("\x00", "other"), ("\u0301", "other"),
    ],
)  # fmt: skip
def test_classes_of_tokens(text, expected):
    assert CLASSES[token_class(text)] == expected


class Tokenizer:
    """Byte pieces decode to a replacement character, a lone SentencePiece space to nothing, an unknown id to <id>."""

    special_ids = frozenset({0})
    texts = ("<s>", "cat", "", "\ufffd", "<4>", "\n", "<code>")

    def decode(self, ids):
        return self.texts[ids[0]]

    def token(self, token_id):
        return "\u2581" if token_id == 2 else self.texts[token_id]


def test_classes_of_ids(batches_of):
    (batch,) = batches_of([(0, 1, 7)])
    batch.ids_BS[:] = [0, 1, 2, 3, 4, 5, 6]
    expected = ["special", "latin", "whitespace", "other", "other", "whitespace", "latin"]
    assert [CLASSES[c] for c in class_table(Tokenizer(), [batch])] == expected
    batch.ids_BS[:] = 6
    assert [CLASSES[c] for c in class_table(Tokenizer(), [batch])] == ["other"] * 6 + ["latin"]
