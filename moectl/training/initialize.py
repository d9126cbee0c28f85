"""Random weights for a model that starts from nothing: a source of weights like a checkpoint, without one.

model = Model(spec, RandomWeights(spec, std=0.02, seed=0), mtp=True)
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from moectl.arch.spec import Layer, ModelSpec, MoE, TensorRef
from moectl.model.experts import ExpertWeights


class RandomWeights:
    """Matrices from N(0, std^2), norms one, biases zero. A tensor's values depend on `seed` and its name alone, so adding a layer does
    not change the others."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        std: float,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = device or torch.device("cpu")
        self._std = std
        self._seed = seed

    def read(self, ref: TensorRef) -> Tensor:
        """One weight, in its part's shape."""
        if len(ref.part_shape) == 1:
            value = torch.zeros(ref.part_shape) if ref.name.endswith("bias") else torch.ones(ref.part_shape)
        else:
            key = f"{self._seed} {ref.name} {ref.index} {ref.rows}"
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True))
            value = torch.randn(ref.part_shape, generator=generator) * self._std
        return value.to(device=self.device, dtype=torch.float32 if ref.keep_float32 else self.dtype)

    def layer(self, layer: Layer) -> dict[str, Tensor]:
        """All weights of a layer but its routed experts, by slot."""
        return {slot: self.read(ref) for slot, ref in layer.tensors.items()}

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert."""
        ffn = self.spec.layer(layer).ffn
        assert isinstance(ffn, MoE)
        return ExpertWeights(*(self.read(ref) for ref in ffn.experts.refs(expert)))
