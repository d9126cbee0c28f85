"""Random weights for a model that starts from nothing: a source of weights like a checkpoint, without one.

model = Model(spec, RandomWeights(spec, std=0.02, seed=0), mtp=True)
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from moectl.arch.spec import ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.model.weights import WeightSource


class RandomWeights(WeightSource):
    """Matrices from N(0, std^2), norms one, biases and sinks zero.

    A tensor's values depend on `seed` and its name alone, so adding a layer does
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
        self._zero = {ref.name for layer in spec.layers for slot, ref in layer.tensors.items() if slot == "sinks"}
        if spec.norm.kind == "rms_zero_centred":
            self._zero |= {ref.name for ref in spec.refs() if len(ref.part_shape) == 1}

    def read(self, ref: TensorRef) -> Tensor:
        """One weight, in its part's shape."""
        if len(ref.part_shape) == 1:
            zero = ref.name.endswith("bias") or ref.name in self._zero
            value = torch.zeros(ref.part_shape) if zero else torch.ones(ref.part_shape)
        else:
            key = f"{self._seed} {ref.name} {ref.index} {ref.rows}"
            generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True))
            value = torch.randn(ref.part_shape, generator=generator) * self._std
        return value.to(device=self.device, dtype=torch.float32 if ref.keep_float32 else self.dtype)
