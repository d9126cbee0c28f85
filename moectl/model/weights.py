"""Weights of a spec, read one by one from a checkpoint: cast, placed, and checked for NaN.

WeightReader is also the streamed ExpertSource: `get` reads one expert from disk. ResidentLayer and ResidentExperts hold weights as
parameters, filled from any WeightSource.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from moectl.arch.spec import Layer, ModelSpec, MoE, TensorRef
from moectl.checkpoint.reader import TensorReader, require_finite
from moectl.model.experts import ExpertSource, ExpertWeights

# Rows of the embedding read at once when streaming: a table of 129,280 x 7,168 in bf16 alone is 1.9 GB.
_EMBEDDING_CHUNK_BYTES = 64 * 2**20


class WeightSource(ExpertSource, Protocol):
    """What fills a resident model: weights of a checkpoint or fresh ones. `get` gives memory of its own for every expert."""

    @property
    def spec(self) -> ModelSpec: ...

    def read(self, ref: TensorRef) -> Tensor: ...

    def layer(self, layer: Layer) -> dict[str, Tensor]: ...


class WeightReader:
    """Reads the weights of `spec` in `dtype` on `device`. Raises ModelError for a tensor with NaN or infinite values."""

    def __init__(self, spec: ModelSpec, reader: TensorReader, *, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.reader = reader
        self.dtype = dtype
        self.device = device

    def read(self, ref: TensorRef) -> Tensor:
        """One weight, contiguous."""
        if ref.index is None and ref.rows is None:
            raw = self.reader.read(ref.name)
        else:
            raw = self.reader.read_slice(ref.name, index=ref.index, rows=ref.rows)
        require_finite(ref.name, raw, first_row=ref.rows[0] if ref.rows else 0)
        return raw.to(device=self.device, dtype=torch.float32 if ref.keep_float32 else self.dtype)

    def layer(self, layer: Layer) -> dict[str, Tensor]:
        """All weights of a layer but its routed experts, by slot."""
        return {slot: self.read(ref) for slot, ref in layer.tensors.items()}

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert, read from disk."""
        ffn = self.spec.layer(layer).ffn
        assert isinstance(ffn, MoE)
        return ExpertWeights(*(self.read(ref) for ref in ffn.experts.refs(expert)))

    def embed(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings `[B, S, H]` of every `[B, S]` of ids, reading the table once, in chunks, and only where ids fall."""
        ref = self.spec.tensors["embed"]
        vocab, hidden = ref.shape
        rows = max(1, _EMBEDDING_CHUNK_BYTES // (4 * hidden))
        out = [torch.empty(*ids_BS.shape, hidden, dtype=self.dtype, device=self.device) for ids_BS in batches]
        used = torch.zeros(vocab, dtype=torch.bool, device=self.device)
        for ids_BS in batches:
            used[ids_BS] = True
        for start in range(0, vocab, rows):
            stop = min(vocab, start + rows)
            if not used[start:stop].any():
                continue
            stored_RH = self.reader.read_slice(ref.name, rows=(start, stop))
            require_finite(ref.name, stored_RH, first_row=start)
            table_RH = stored_RH.to(device=self.device, dtype=self.dtype)
            for ids_BS, x_BSH in zip(batches, out, strict=True):
                here_BS = (ids_BS >= start) & (ids_BS < stop)
                x_BSH[here_BS] = table_RH[ids_BS[here_BS] - start]
        return out


class ResidentExperts(nn.Module):
    """The routed experts of one layer as parameters, each in memory of its own.

    One allocation an expert keeps alignment, and so bits, the same as when the expert is streamed.
    """

    def __init__(self, experts: list[ExpertWeights]) -> None:
        super().__init__()
        self.gate = nn.ParameterList([nn.Parameter(w.gate_IH, requires_grad=False) for w in experts])
        self.up = nn.ParameterList([nn.Parameter(w.up_IH, requires_grad=False) for w in experts])
        self.down = nn.ParameterList([nn.Parameter(w.down_HI, requires_grad=False) for w in experts])

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """The expert's parameters; `layer` is this one."""
        return ExpertWeights(self.gate[expert], self.up[expert], self.down[expert])


class ResidentLayer(nn.Module):
    """The weights of one layer as parameters."""

    def __init__(self, layer: Layer, source: WeightSource) -> None:
        super().__init__()
        self.experts: ResidentExperts | None = None
        if isinstance(layer.ffn, MoE):
            self.experts = ResidentExperts([source.get(layer.index, e) for e in range(layer.ffn.router.n_experts)])
        self.weights = nn.ParameterDict({slot: nn.Parameter(w, requires_grad=False) for slot, w in source.layer(layer).items()})
