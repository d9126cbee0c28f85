"""Routed experts for runs that need gradients: the arithmetic of run_experts with a backward pass of its own.

    run = run_experts_with_gradients if needs_gradients(moe, source) else run_experts
    run(layer.index, moe, source, act=Activation(name="silu"))

Recorded by autograd, run_experts would make a gradient `[T, H]` for each expert and keep every intermediate. Here one expert after another
adds to one float32 gradient of the tokens, and of the intermediates only gate and up are kept. All work on one expert stays in the cache,
and an expert meets a token once, so that sums have a fixed order on any device.

Shapes: T tokens of a micro-batch, H hidden, I width, N tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moectl.arch.parts import Activation
from moectl.model.activation import gated, gated_and_derivative
from moectl.model.experts import ROW_BLOCK, Dispatch, ExpertSource, ExpertWeights, MoEInput, expert_linear


def needs_gradients(inputs: Sequence[MoEInput], source: ExpertSource) -> bool:
    """Whether autograd is on and tokens, routing weights or experts want a gradient."""
    if not torch.is_grad_enabled():
        return False
    if any(item.x_TH.requires_grad or item.dispatch.weights.requires_grad for item in inputs):
        return True
    return isinstance(source, nn.Module) and any(p.requires_grad for p in source.parameters())


def run_experts_with_gradients(
    layer: int, inputs: Sequence[MoEInput], source: ExpertSource, *, act: Activation, weighs_input: bool = False
) -> None:
    """`run_experts`, same bits, differentiable once with respect to tokens, slot weights and the matrices and biases of `source`.

    Experts without tokens get no gradient. `source` must keep what it returns unchanged until the backward pass.
    """
    for x_TH, slots, out_TH in inputs:
        weights = [weight for expert in slots.experts for weight in source.get(layer, expert) if weight is not None]
        _Experts.apply(x_TH, slots.weights, out_TH, slots, act, weighs_input, *weights)  # type: ignore[no-untyped-call]


class _Experts(torch.autograd.Function):
    """Adds to `out_TH` in place. `experts` are the weights of each expert of the dispatch in turn: matrices, then biases if any."""

    @staticmethod
    def forward(
        ctx: Any, x_TH: Tensor, weights: Tensor, out_TH: Tensor, slots: Dispatch, act: Activation, weighs_input: bool, *experts: Tensor
    ) -> Tensor:
        kept: list[Tensor] = []
        for i, (span, rows_N, weights_N1) in enumerate(_experts_of(slots, weights, x_TH)):
            expert = _expert(experts, i, len(slots.experts))
            x_NH = x_TH.index_select(0, rows_N)
            if weighs_input:
                x_NH = x_NH * weights_N1
            gate_NI = expert_linear(x_NH, expert.gate_IH, expert.gate_bias_I)
            up_NI = expert_linear(x_NH, expert.up_IH, expert.up_bias_I)
            kept += gate_NI, up_NI
            y_NH = expert_linear(gated(act, gate_NI, up_NI), expert.down_HI, expert.down_bias_H)
            n = span.stop - span.start
            y_NH = y_NH if weighs_input else y_NH * weights_N1
            out_TH.index_add_(0, rows_N[:n], y_NH[:n].to(out_TH.dtype))
        ctx.mark_dirty(out_TH)
        ctx.save_for_backward(x_TH, weights, *kept, *experts)
        ctx.slots, ctx.act, ctx.weighs_input = slots, act, weighs_input
        return out_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Any, ...]:
        """Of a slot: y = weight * (down(h) + b) with h = act(gate) * up, so d_weight = <down^T d_y, h> + <d_y, b>, and weight moves to the
        narrow side; or y = ffn(weight * x), so d_weight = <d_(weight x), x>."""
        x_TH, weights, *saved = ctx.saved_tensors
        n_experts = len(ctx.slots.experts)
        kept, experts = saved[: 2 * n_experts], saved[2 * n_experts :]
        wants_x, wants_experts = ctx.needs_input_grad[0], any(ctx.needs_input_grad[6:])
        d_x_TH = torch.zeros_like(grad_TH)
        d_weights = torch.empty_like(weights)
        d_experts: list[Tensor | None] = []
        for i, (span, rows_N, weights_N1) in enumerate(_experts_of(ctx.slots, weights, x_TH)):
            expert = _expert(experts, i, n_experts)
            gate_NI, up_NI = kept[2 * i : 2 * i + 2]
            n = span.stop - span.start
            d_y_NH = grad_TH.index_select(0, rows_N).to(x_TH.dtype)
            h_NI, backward = gated_and_derivative(ctx.act, gate_NI, up_NI)
            if ctx.weighs_input:
                d_y_NH[n:] = 0  # padded slots, whose weight of 0 does not meet their output
                d_gate_NI, d_up_NI = backward(d_y_NH @ expert.down_HI)
                weighted_NI, d_o_NH = h_NI, d_y_NH
            else:
                d_h_NI = d_y_NH @ expert.down_HI
                d_weights[span] = (d_h_NI[:n] * h_NI[:n]).sum(-1, dtype=weights.dtype)
                if expert.down_bias_H is not None:
                    d_weights[span] += (d_y_NH[:n] @ expert.down_bias_H).to(weights.dtype)
                d_gate_NI, d_up_NI = backward(d_h_NI.mul_(weights_N1))
                weighted_NI, d_o_NH = h_NI.mul_(weights_N1), d_y_NH * weights_N1 if expert.down_bias_H is not None else d_y_NH
            if wants_experts:
                x_NH = x_TH.index_select(0, rows_N)
                if ctx.weighs_input:
                    x_NH = x_NH * weights_N1
                d_experts += d_gate_NI.T @ x_NH, d_up_NI.T @ x_NH, d_y_NH.T @ weighted_NI
                if expert.down_bias_H is not None:
                    d_experts += d_gate_NI.sum(0), d_up_NI.sum(0), d_o_NH.sum(0)
            if wants_x or ctx.weighs_input:
                d_x_NH = torch.addmm(d_gate_NI @ expert.gate_IH, d_up_NI, expert.up_IH)
                if ctx.weighs_input:
                    d_weights[span] = (d_x_NH[:n] * x_TH.index_select(0, rows_N[:n])).sum(-1, dtype=weights.dtype)
                    d_x_NH = d_x_NH * weights_N1
                d_x_TH.index_add_(0, rows_N[:n], d_x_NH[:n].to(d_x_TH.dtype))
        if not wants_experts:
            d_experts = [None] * len(experts)
        return d_x_TH.to(x_TH.dtype) if wants_x else None, d_weights, grad_TH, None, None, None, *d_experts


def _expert(experts: Sequence[Tensor], i: int, n_experts: int) -> ExpertWeights:
    each = len(experts) // n_experts
    return ExpertWeights(*experts[i * each : (i + 1) * each])


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
