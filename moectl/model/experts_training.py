"""Routed experts for runs that need gradients: the arithmetic of run_experts with a backward pass of its own.

    run = run_experts_with_gradients if needs_gradients(moe, source) else run_experts
    run(layer.index, moe, source, act="silu")

Recorded by autograd, run_experts would make a gradient `[T, H]` for each expert and keep every intermediate. Here one expert after another
adds to one float32 gradient of the tokens, and of the intermediates only gate and up are kept. All work on one expert stays in the cache,
and an expert meets a token once, so that sums have a fixed order on any device.

Shapes: T tokens of a micro-batch, H hidden, I width, N tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moectl.model.experts import ACTIVATIONS, ROW_BLOCK, Dispatch, ExpertSource, MoEInput

_aten = torch.ops.aten
_gelu_tanh_backward = partial(_aten.gelu_backward, approximate="tanh")

# The gradient of each of ACTIVATIONS from that of its output and its input: the kernels that autograd itself runs.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _aten.silu_backward,
    "swish": _aten.silu_backward,
    "gelu": _aten.gelu_backward,
    "gelu_new": _gelu_tanh_backward,
    "gelu_pytorch_tanh": _gelu_tanh_backward,
    "relu": partial(_aten.threshold_backward, threshold=0),
}


def needs_gradients(inputs: Sequence[MoEInput], source: ExpertSource) -> bool:
    """Whether autograd is on and tokens, routing weights or experts want a gradient."""
    if not torch.is_grad_enabled():
        return False
    if any(item.x_TH.requires_grad or item.dispatch.weights.requires_grad for item in inputs):
        return True
    return isinstance(source, nn.Module) and any(p.requires_grad for p in source.parameters())


def run_experts_with_gradients(layer: int, inputs: Sequence[MoEInput], source: ExpertSource, *, act: str) -> None:
    """`run_experts`, same bits, differentiable once with respect to tokens, slot weights and the matrices of `source`.

    Experts without tokens get no gradient. `source` must keep what it returns unchanged until the backward pass.
    """
    for x_TH, slots, out_TH in inputs:
        matrices = [matrix for expert in slots.experts for matrix in source.get(layer, expert)]
        _Experts.apply(x_TH, slots.weights, out_TH, slots, act, *matrices)  # type: ignore[no-untyped-call]


class _Experts(torch.autograd.Function):
    """Adds to `out_TH` in place. `matrices` are gate, up and down of each expert of the dispatch in turn."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, weights: Tensor, out_TH: Tensor, slots: Dispatch, act: str, *matrices: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for i, (span, rows_N, weights_N1) in enumerate(_experts_of(slots, weights, x_TH)):
            gate_IH, up_IH, down_HI = matrices[3 * i : 3 * i + 3]
            x_NH = x_TH.index_select(0, rows_N)
            gate_NI, up_NI = F.linear(x_NH, gate_IH), F.linear(x_NH, up_IH)
            kept += gate_NI, up_NI
            y_NH = F.linear(ACTIVATIONS[act](gate_NI).mul_(up_NI), down_HI) * weights_N1
            n = span.stop - span.start
            out_TH.index_add_(0, rows_N[:n], y_NH[:n].to(out_TH.dtype))
        ctx.mark_dirty(out_TH)
        ctx.save_for_backward(x_TH, weights, *kept, *matrices)
        ctx.slots, ctx.act = slots, act
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Any, ...]:
        """Of a slot: y = weight * down(h) with h = act(gate) * up, so d_weight = <down^T d_y, h>, and weight moves to the narrow side."""
        x_TH, weights, *saved = ctx.saved_tensors
        n_kept = 2 * len(ctx.slots.experts)
        kept, matrices = saved[:n_kept], saved[n_kept:]
        wants_x, wants_matrices = ctx.needs_input_grad[0], any(ctx.needs_input_grad[5:])
        d_x_TH = torch.zeros_like(grad_TH)
        d_weights = torch.empty_like(weights)
        d_matrices: list[Tensor | None] = []
        for i, (span, rows_N, weights_N1) in enumerate(_experts_of(ctx.slots, weights, x_TH)):
            gate_IH, up_IH, down_HI = matrices[3 * i : 3 * i + 3]
            gate_NI, up_NI = kept[2 * i : 2 * i + 2]
            n = span.stop - span.start
            d_y_NH = grad_TH.index_select(0, rows_N).to(x_TH.dtype)
            d_h_NI = d_y_NH @ down_HI
            act_NI = ACTIVATIONS[ctx.act](gate_NI)
            h_NI = act_NI * up_NI
            d_weights[span] = (d_h_NI[:n] * h_NI[:n]).sum(-1, dtype=weights.dtype)
            d_h_NI.mul_(weights_N1)
            d_up_NI = act_NI.mul_(d_h_NI)
            d_gate_NI = _DERIVATIVES[ctx.act](d_h_NI.mul_(up_NI), gate_NI)
            if wants_matrices:
                x_NH = x_TH.index_select(0, rows_N)
                d_matrices += d_gate_NI.T @ x_NH, d_up_NI.T @ x_NH, d_y_NH.T @ h_NI.mul_(weights_N1)
            if wants_x:
                d_x_NH = torch.addmm(d_gate_NI @ gate_IH, d_up_NI, up_IH)
                d_x_TH.index_add_(0, rows_N[:n], d_x_NH[:n].to(d_x_TH.dtype))
        if not wants_matrices:
            d_matrices = [None] * len(matrices)
        return d_x_TH.to(x_TH.dtype) if wants_x else None, d_weights, grad_TH, None, None, *d_matrices


def _experts_of(slots: Dispatch, weights: Tensor, x_TH: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of each expert: its span of slots, then rows and weights `[N, 1]`, padded to a multiple of ROW_BLOCK where run_experts pads too.

    A padded slot is token 0 with weight 0. It adds nothing to any gradient; only the gradients of weights must leave it out.
    """
    pads = x_TH.dtype == torch.bfloat16 and not x_TH.is_cuda
    for start, stop in zip(slots.starts, slots.starts[1:], strict=False):
        rows_N, weights_N = slots.rows[start:stop], weights[start:stop]
        missing = -(stop - start) % ROW_BLOCK if pads else 0
        if missing:
            rows_N, weights_N = F.pad(rows_N, (0, missing)), F.pad(weights_N, (0, missing))
        yield slice(start, stop), rows_N, weights_N[:, None]
