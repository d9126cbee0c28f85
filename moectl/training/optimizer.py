"""AdamW (arXiv 1711.05101) over float32 masters: of float32 parameters themselves, of bfloat16 ones a copy that the updates go to.

A bfloat16 weight of 1 cannot take a step below 2^-9: without masters most updates of a late training would be lost. torch's own AdamW does
the arithmetic; this adds masters, float32 accumulation, clipping and a state of named tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moectl.errors import ModelError
from moectl.training.options import TrainOptions


class MasterAdamW:
    """Optimiser of named parameters. Matrices decay; norms, biases and other vectors do not."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: TrainOptions) -> None:
        self._parameters = dict(parameters)
        self._masters: dict[str, nn.Parameter] = {}
        for name, parameter in self._parameters.items():
            own = parameter.dtype == torch.float32
            self._masters[name] = parameter if own else nn.Parameter(parameter.detach().to(torch.float32).clone())
            self._masters[name].grad = torch.zeros_like(self._masters[name])
        # Parameters of another dtype than their master, whose gradients have to be carried over.
        self._cast = [name for name, parameter in self._parameters.items() if parameter is not self._masters[name]]
        decay = [master for master in self._masters.values() if master.ndim >= 2]
        plain = [master for master in self._masters.values() if master.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [{"params": decay, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            foreach=True,
        )
        self._clip = options.clip

    def zero_grad(self) -> None:
        """Gradients to zero, kept allocated: an expert without tokens has a zero gradient, not none."""
        torch._foreach_zero_([master.grad for master in self._masters.values() if master.grad is not None])

    def collect(self) -> None:
        """After the backward pass of a micro-batch: add what bfloat16 parameters got to their masters, in float32."""
        for name in self._cast:
            parameter, master = self._parameters[name], self._masters[name]
            if parameter.grad is not None:
                assert master.grad is not None
                master.grad += parameter.grad
                parameter.grad = None

    def clip(self) -> float:
        """Scale the gradient to the largest norm allowed; its norm before, not finite if a gradient is not."""
        return float(nn.utils.clip_grad_norm_(self._masters.values(), self._clip, foreach=True))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update at learning rate `lr`."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for name in self._cast:
            self._parameters[name].copy_(self._masters[name])

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs beside the parameters, float32, by name. Empty before the first step."""
        state: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            kept = self._adamw.state.get(master)
            if kept:
                state |= {f"exp_avg.{name}": kept["exp_avg"], f"exp_avg_sq.{name}": kept["exp_avg_sq"], f"step.{name}": kept["step"]}
            if name in self._cast:
                state[f"master.{name}"] = master.detach()
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up a `state`. Raises ModelError if it belongs to another set of parameters."""
        wanted = {f"{kind}.{name}": master.shape for name, master in self._masters.items() for kind in ("exp_avg", "exp_avg_sq")}
        wanted |= {f"master.{name}": self._masters[name].shape for name in self._cast}
        wanted |= {f"step.{name}": torch.Size() for name in self._masters}
        found = {key: tensor.shape for key, tensor in state.items()}
        wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if wrong:
            raise ModelError(
                f"the optimizer state does not fit the model: {len(wrong)} tensors are missing, surplus or differ, such as `{wrong[0]}`",
                hint="the checkpoint is damaged: resume from an older one by deleting it",
            )
        for name, master in self._masters.items():
            if name in self._cast:
                master.copy_(state[f"master.{name}"])
            self._adamw.state[master] = {
                "step": state[f"step.{name}"].clone(),
                "exp_avg": state[f"exp_avg.{name}"].to(master.device).clone(),
                "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(master.device).clone(),
            }
