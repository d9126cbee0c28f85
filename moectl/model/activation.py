"""What joins the gate and up projections of a feed-forward block, and its derivative.

gated(Activation(name="silu"), gate_NI, up_NI)      # silu(gate) * up
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from moectl.arch.parts import Activation

_aten = torch.ops.aten
_gelu_tanh = partial(F.gelu, approximate="tanh")
_gelu_tanh_backward = partial(_aten.gelu_backward, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
}

# The gradient of each of ACTIVATIONS from that of its output and its input: the kernels that autograd itself runs.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _aten.silu_backward,
    "swish": _aten.silu_backward,
    "gelu": _aten.gelu_backward,
    "gelu_new": _gelu_tanh_backward,
    "gelu_pytorch_tanh": _gelu_tanh_backward,
    "relu": partial(_aten.threshold_backward, threshold=0),
}


def gated(act: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up, any shape."""
    if act.name == "clamped_swiglu":
        gate, up = gate.clamp(max=act.limit), up.clamp(min=-act.limit, max=act.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * act.alpha))
    return ACTIVATIONS[act.name](gate) * up


def gated_and_derivative(act: Activation, gate: Tensor, up: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """`gated`, and what turns the gradient of its result into those of gate and up; that may be called once and overwrites its argument."""
    if act.name == "clamped_swiglu":
        low, high = gate.clamp(max=act.limit), up.clamp(min=-act.limit, max=act.limit)
        sigmoid = torch.sigmoid(low * act.alpha)
        swish = low * sigmoid

        def clamped_backward(grad: Tensor) -> tuple[Tensor, Tensor]:
            d_swish = grad * (high + 1) * (gate <= act.limit)
            return d_swish * (sigmoid + act.alpha * swish * (1 - sigmoid)), grad * swish * (up.abs() <= act.limit)

        return (high + 1) * swish, clamped_backward
    activated = ACTIVATIONS[act.name](gate)

    def backward(grad: Tensor) -> tuple[Tensor, Tensor]:
        d_up = activated.mul_(grad)
        return _DERIVATIVES[act.name](grad.mul_(up), gate), d_up

    return activated * up, backward
