"""The head in blocks against all logits at once."""

from __future__ import annotations

import pytest
import torch

from moectl.model import head
from moectl.model.head import TokenScores, next_ids, predict_reference, row_blocks

# Shapes: T tokens, H hidden, V vocabulary.


def run(normed_TH, head_VH, targets_T):
    scores = TokenScores(normed_TH, targets_T)
    for start, stop in row_blocks(*head_VH.shape):
        scores.add(head_VH[start:stop], start)
    return scores.finish()


@pytest.fixture
def small(monkeypatch):
    """Three blocks and a bit of the head, several chunks of tokens."""
    monkeypatch.setattr(head, "BLOCK_ROWS", 64)
    monkeypatch.setattr(head, "CHUNK_TOKENS", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_blocks_give_what_all_logits_give(small, dtype, scale):
    generator = torch.Generator().manual_seed(1)
    normed_TH = torch.randn(53, 24, generator=generator).to(dtype)
    head_VH = (scale * torch.randn(211, 24, generator=generator)).to(dtype)
    targets_T = torch.randint(-1, 211, (53,), generator=generator)
    assert len(row_blocks(*head_VH.shape)) == 4
    found, expected = run(normed_TH, head_VH, targets_T), predict_reference(normed_TH, head_VH, targets_T)
    torch.testing.assert_close(found.loss_T, expected.loss_T, rtol=1e-5, atol=1e-5)
    assert (found.loss_T[targets_T < 0] == 0).all()
    assert (found.id_T == expected.id_T).all()


def test_of_equal_logits_the_lowest_id_is_predicted(small):
    head_VH = torch.zeros(130, 4)
    head_VH[[70, 101, 129]] = 1.0
    assert run(torch.ones(3, 4), head_VH, torch.tensor([0, 70, -1])).id_T.tolist() == [70, 70, 70]


def test_a_logit_that_is_not_finite_shows(small):
    head_VH = torch.zeros(130, 4)
    head_VH[99] = torch.inf
    assert not run(torch.ones(3, 4), head_VH, torch.tensor([0, 1, -1])).loss_T.isfinite().any()


def test_blocks_are_of_bounded_size_and_start_on_a_cache_line():
    for vocab, hidden in ((151_936, 2048), (129_280, 7168), (307, 48), (100, 1_000_000)):
        blocks = row_blocks(vocab, hidden)
        assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == vocab
        assert all(start % 64 == 0 for start, _ in blocks)
        rows = blocks[0][1]
        assert rows <= 8192
        assert rows <= 64 or rows * hidden * 4 <= 64 * 2**20


def test_targets_stay_in_their_sequence():
    assert next_ids(torch.tensor([[3, 1, 4], [1, 5, 9]])).tolist() == [[1, 4, -1], [5, 9, -1]]
