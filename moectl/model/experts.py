"""Feed-forward blocks: the dense one, and routed experts from any source in one forward.

Shapes: T tokens of a micro-batch, K slots per token, H hidden, I width, N tokens of one expert.

Weights of experts come from an ExpertSource: resident or streamed. Tokens are sorted by expert once; each expert sees
its own rows only; outputs are weighted in the promoted dtype of output and weight, summed in float32 in ascending order of experts, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import Activation
from moectl.model.activation import gated
from moectl.model.projection import project

# oneDNN generates and keeps a kernel for every row count it meets; experts meet hundreds. See docs/dev-log.md.
ROW_BLOCK = 64


class ExpertWeights(NamedTuple):
    """The matrices of one expert, and its biases in families that have them."""

    gate_IH: Tensor
    up_IH: Tensor
    down_HI: Tensor
    gate_bias_I: Tensor | None = None
    up_bias_I: Tensor | None = None
    down_bias_H: Tensor | None = None


class ExpertSource(Protocol):
    """Where experts come from. A returned tensor may be reused by the next call."""

    def get(self, layer: int, expert: int) -> ExpertWeights: ...


class Dispatch(NamedTuple):
    """Slots of a micro-batch sorted by expert: rows and slots `[starts[i], starts[i+1])` belong to expert `experts[i]`."""

    experts: list[int]
    starts: list[int]
    rows: Tensor
    weights: Tensor


class MoEInput(NamedTuple):
    """One micro-batch on its way through the routed experts: normed tokens, their dispatch, and the float32 sum so far."""

    x_TH: Tensor
    dispatch: Dispatch
    out_TH: Tensor


def dense_ffn(x: Tensor, weights: Mapping[str, Tensor], *, act: Activation, slot_prefix: str = "") -> Tensor:
    """down(act(gate(x)) * up(x)), `[..., H]`, of the slots `gate up down` or, for a shared expert, `shared_gate ...`."""
    h = gated(act, project(x, weights, f"{slot_prefix}gate"), project(x, weights, f"{slot_prefix}up"))
    return project(h, weights, f"{slot_prefix}down")


def dispatch(expert_ids_TK: Tensor, weights_TK: Tensor) -> Dispatch:
    """Sort the slots by expert, stably; slots of id -1 run nothing."""
    flat = expert_ids_TK.flatten()
    order = flat.argsort(stable=True)
    n_dropped, *counts = (flat + 1).bincount().tolist()
    order = order[n_dropped:]
    experts = [expert for expert, count in enumerate(counts) if count]
    starts = [0, *accumulate(counts[expert] for expert in experts)]
    return Dispatch(experts, starts, order // expert_ids_TK.shape[1], weights_TK.flatten()[order])


def run_experts(layer: int, inputs: Sequence[MoEInput], source: ExpertSource, *, act: Activation, weighs_input: bool = False) -> None:
    """Add the weighted outputs of the routed experts of `layer` to each input's `out_TH`; `weighs_input`: the weights meet the input.

    Every expert that has tokens is fetched once and visits all inputs; each micro-batch is arithmetic of its own, so the result has the
    same bits whether micro-batches come one at a time or together.
    """
    position = [0] * len(inputs)
    for expert in sorted({e for item in inputs for e in item.dispatch.experts}):
        weights = source.get(layer, expert)
        for i, (x_TH, slots, out_TH) in enumerate(inputs):
            at = position[i]
            if at == len(slots.experts) or slots.experts[at] != expert:
                continue
            position[i] += 1
            span = slice(slots.starts[at], slots.starts[at + 1])
            rows_N = slots.rows[span]
            # index_select copies whole rows; x_TH[rows_N] goes through the general kernel for indexing, many times slower.
            x_NH = x_TH.index_select(0, rows_N)
            weights_N1 = slots.weights[span, None]
            y_NH = expert_ffn(_pad_rows(x_NH * weights_N1 if weighs_input else x_NH), weights, act=act)[: len(rows_N)]
            out_TH.index_add_(0, rows_N, (y_NH if weighs_input else y_NH * weights_N1).to(torch.float32))


def expert_ffn(x_NH: Tensor, weights: ExpertWeights, *, act: Activation) -> Tensor:
    """down(act(gate(x)) * up(x)) of one expert, unweighted."""
    gate_NI = expert_linear(x_NH, weights.gate_IH, weights.gate_bias_I)
    h_NI = gated(act, gate_NI, expert_linear(x_NH, weights.up_IH, weights.up_bias_I))
    del gate_NI
    return expert_linear(h_NI, weights.down_HI, weights.down_bias_H)


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T, rounded, then + b, rounded again, as grouped products do; one fused call changes three in ten bfloat16 values."""
    out = F.linear(x, weight)
    return out if bias is None else out.add_(bias)


def _pad_rows(x_NH: Tensor) -> Tensor:
    """Zero rows up to a multiple of ROW_BLOCK where every new row count would cost a new kernel (bfloat16 on CPU)."""
    missing = -len(x_NH) % ROW_BLOCK
    if missing and x_NH.dtype == torch.bfloat16 and not x_NH.is_cuda:
        return F.pad(x_NH, (0, 0, 0, missing))
    return x_NH


def run_experts_reference(
    layer: int,
    x_TH: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    source: ExpertSource,
    *,
    act: Activation,
    weighs_input: bool = False,
) -> Tensor:
    """The obvious version, token by token and slot by slot, for tests."""
    out_TH = torch.zeros_like(x_TH, dtype=torch.float32)
    for t in range(x_TH.shape[0]):
        for expert, weight in zip(expert_ids_TK[t].tolist(), weights_TK[t], strict=True):
            if expert >= 0:
                gate_IH, up_IH, down_HI, *biases = source.get(layer, expert)
                b_gate, b_up, b_down = (0.0 if bias is None else bias for bias in biases)
                x_H = x_TH[t] * weight if weighs_input else x_TH[t]
                y_H = gated(act, x_H @ gate_IH.T + b_gate, x_H @ up_IH.T + b_up) @ down_HI.T + b_down
                out_TH[t] += y_H if weighs_input else y_H * weight
    return out_TH
