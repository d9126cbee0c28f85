"""The head of a language model without the logits of all tokens: how well each next token is predicted, and which id is the likeliest.

    scores = TokenScores(normed_TH, next_ids(ids_BS).flatten())
    for start, stop in row_blocks(*head_VH.shape):
        scores.add(head_VH[start:stop], start)
    scores.finish().loss_T

The head comes in blocks of rows and meets the tokens in chunks. Every GEMM has the same shape whether the head is in memory or read block
by block for all micro-batches, so the result has the same bits; the sum of exponentials goes along with its maximum so far (Milakov and
Gimelshein 2018, arXiv 1805.02867). At most CHUNK_TOKENS x BLOCK_ROWS logits exist at a time.
"""

# Shapes: T tokens of a micro-batch (B sequences x S positions), H hidden, V vocabulary, R rows of one block, C tokens of one chunk.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.spec import Head
from moectl.model.ends import finish_logits

CHUNK_TOKENS = 512
BLOCK_ROWS = 8192
_BLOCK_BYTES = 64 * 2**20
# A block inside a matrix in memory then starts on a cache line, as one that was read does: alignment can decide bits.
_ROW_STEP = 64


class Prediction(NamedTuple):
    """`loss_T` float64: -ln p of the next token in nats, 0 where there is none. `id_T` int64: the likeliest next token."""

    loss_T: Tensor
    id_T: Tensor


def next_ids(ids_BS: Tensor) -> Tensor:
    """[B, S] the id that follows each token in its sequence, -1 for the last one."""
    return F.pad(ids_BS[:, 1:], (0, 1), value=-1)


def block_rows(vocab_size: int, hidden_size: int) -> int:
    """Rows of the head in one block."""
    most = min(BLOCK_ROWS, _BLOCK_BYTES // (4 * hidden_size))
    return min(vocab_size, max(_ROW_STEP, most // _ROW_STEP * _ROW_STEP))


def row_blocks(vocab_size: int, hidden_size: int) -> list[tuple[int, int]]:
    """[start, stop) of the blocks of rows that make up the head, in order."""
    rows = block_rows(vocab_size, hidden_size)
    return [(start, min(start + rows, vocab_size)) for start in range(0, vocab_size, rows)]


class TokenScores:
    """What the blocks of the head so far say of each token of one micro-batch: 24 bytes a token beside the hidden states."""

    def __init__(self, normed_TH: Tensor, targets_T: Tensor, head: Head = Head()) -> None:  # noqa: B008, frozen
        """`normed_TH` what the head multiplies; `targets_T` the id each token should predict, -1 for none."""
        self._normed_TH, self._targets_T, self._head = normed_TH, targets_T, head
        self._top_T = torch.full(targets_T.shape, -torch.inf, device=normed_TH.device)
        self._sum_T = torch.zeros_like(self._top_T, dtype=torch.float64)
        self._target_T = torch.zeros_like(self._top_T)
        self._id_T = torch.zeros_like(targets_T)

    def add(self, head_RH: Tensor, first_row: int, bias_R: Tensor | None = None) -> None:
        """Take in the rows from `first_row` on; blocks must come in order."""
        for start in range(0, len(self._targets_T), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            logits_CR = finish_logits(self._head, F.linear(self._normed_TH[chunk], head_RH, bias_R)).float()
            high_C, at_C = logits_CR.max(1)
            row_C = self._targets_T[chunk] - first_row
            inside_C = (row_C >= 0) & (row_C < len(head_RH))
            found_C = logits_CR.gather(1, row_C.where(inside_C, 0)[:, None]).squeeze(1)
            self._target_T[chunk] = found_C.where(inside_C, self._target_T[chunk])
            top_C = self._top_T[chunk]
            # Of equal logits the lowest id counts.
            self._id_T[chunk] = (at_C + first_row).where(high_C > top_C, self._id_T[chunk])
            new_C = torch.maximum(top_C, high_C)
            sums_C = logits_CR.sub_(new_C[:, None]).exp_().sum(1).double()
            self._sum_T[chunk] = self._sum_T[chunk] * (top_C - new_C).double().exp() + sums_C
            self._top_T[chunk] = new_C

    def finish(self) -> Prediction:
        """The verdict, once every row was added; a loss is not finite if a logit was not."""
        loss_T = self._sum_T.log() + (self._top_T.double() - self._target_T.double())
        sound_T = loss_T.isfinite()
        return Prediction(loss_T.masked_fill((self._targets_T < 0) & sound_T, 0.0), self._id_T)


def predict_reference(normed_TH: Tensor, head_VH: Tensor, targets_T: Tensor) -> Prediction:
    """The obvious version, for tests."""
    logits_TV = F.linear(normed_TH, head_VH).float()
    losses_T = F.cross_entropy(logits_TV.double(), targets_T.clamp(min=0), reduction="none")
    return Prediction(losses_T.masked_fill(targets_T < 0, 0.0), logits_TV.argmax(1))
