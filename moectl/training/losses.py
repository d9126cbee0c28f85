"""The cross entropy of a language model's head, without the logits of all tokens in memory.

    loss = linear_cross_entropy(hidden_TH, model.head, targets_T) / n_targets

Logits of a vocabulary of 150,000 take 600 kB a token in float32, and their gradient as much again. The head's gradient needs nothing that
is not at hand in the forward pass, so each chunk of tokens goes there and back before the next one starts.

Shapes: T tokens, H hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moectl.arch.spec import Head
from moectl.model.ends import finish_logits

# The float32 logits of one chunk.
_CHUNK_BYTES = 16 * 2**20
# Fewer rows read the head too often for what they compute: at a vocabulary of 152,000 chunks of 27 are slower than one of all tokens.
_MIN_CHUNK_ROWS = 128


def linear_cross_entropy(
    hidden_TH: Tensor,
    head_VH: Tensor,
    targets_T: Tensor,
    *,
    ignore_index: int = -100,
    bias_V: Tensor | None = None,
    head: Head = Head(),  # noqa: B008, frozen
    chunk_tokens: int | None = None,
) -> Tensor:
    """The sum over targets of -log softmax(logits)[target], a float32 scalar; targets of `ignore_index` count nothing.

    Logits are `finish_logits` of hidden @ head.T + bias; unit columns are the caller's (`Model.head_input`). Both matrices share a dtype;
    softmax and sums are in float32 (float64 for float64). Differentiable once.
    """
    if chunk_tokens is None:
        chunk_tokens = max(_MIN_CHUNK_ROWS, _CHUNK_BYTES // (4 * head_VH.shape[0]))
    wants_gradients = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in (hidden_TH, head_VH, bias_V))
    arguments = hidden_TH, head_VH, bias_V, targets_T, head, ignore_index, chunk_tokens, wants_gradients
    loss: Tensor = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        head_VH: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        head: Head,
        ignore_index: int,
        chunk_tokens: int,
        wants_gradients: bool,
    ) -> Tensor:
        """Gradients too, of the loss as it stands: d loss / d logits = softmax - one-hot."""
        sum_dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
        wants_hidden, wants_head, wants_bias = (wants_gradients and needed for needed in ctx.needs_input_grad[:3])
        loss = hidden_TH.new_zeros((), dtype=sum_dtype)
        d_hidden_TH = torch.empty_like(hidden_TH) if wants_hidden else None
        d_head_VH = torch.zeros_like(head_VH, dtype=sum_dtype) if wants_head else None
        d_bias_V = torch.zeros_like(bias_V, dtype=sum_dtype) if wants_bias and bias_V is not None else None
        for start in range(0, len(targets_T), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CH = hidden_TH[chunk]
            counts_C1 = (targets_T[chunk] != ignore_index)[:, None]
            targets_C1 = targets_T[chunk, None].where(counts_C1, 0)
            logits_CV = finish_logits(head, F.linear(hidden_CH, head_VH, bias_V)).to(sum_dtype)
            slope_CV = None if head.softcap is None or not wants_gradients else 1 - (logits_CV / head.softcap).square()
            lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
            loss += (lse_C1 - logits_CV.gather(1, targets_C1)).where(counts_C1, 0.0).sum()
            if not wants_gradients:
                continue
            grad_CV = logits_CV.sub_(lse_C1).exp_()
            grad_CV.scatter_add_(1, targets_C1, grad_CV.new_full((), -1.0).expand_as(targets_C1))
            grad_CV.mul_(counts_C1)
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            if head.divisor != 1.0:
                grad_CV.div_(head.divisor)
            if d_bias_V is not None:
                d_bias_V += grad_CV.sum(0)
            grad_CV = grad_CV.to(hidden_TH.dtype)
            if d_hidden_TH is not None:
                d_hidden_TH[chunk] = grad_CV @ head_VH
            if d_head_VH is not None:
                if d_head_VH.dtype == grad_CV.dtype:
                    d_head_VH.addmm_(grad_CV.T, hidden_CH)
                else:
                    d_head_VH += grad_CV.T @ hidden_CH
        saved = (d_hidden_TH, d_head_VH, d_bias_V)
        ctx.save_for_backward(*(None if d is None else d.to(hidden_TH.dtype) for d in saved))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if d is None else d * grad.to(d.dtype) for d in ctx.saved_tensors), None, None, None, None, None)


def linear_cross_entropy_reference(
    hidden_TH: Tensor,
    head_VH: Tensor,
    targets_T: Tensor,
    *,
    ignore_index: int = -100,
    bias_V: Tensor | None = None,
    head: Head = Head(),  # noqa: B008, frozen
) -> Tensor:
    """The obvious version, for tests."""
    logits_TV = finish_logits(head, F.linear(hidden_TH, head_VH, bias_V))
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return F.cross_entropy(logits_TV, targets_T, ignore_index=ignore_index, reduction="sum")
