"""Weights of a spec, read one by one from a checkpoint: decoded or cast, placed, and checked for NaN.

WeightReader is also the streamed ExpertSource: `get` reads one expert from disk. ResidentLayer and ResidentExperts hold weights as
parameters, filled from any WeightSource.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.checkpoint.header import TensorInfo
from moectl.checkpoint.reader import TensorReader, require_finite
from moectl.model.ends import scale_embedding
from moectl.model.experts import ExpertWeights

# Rows of embedding or head read at once when streaming: a table of 129,280 x 7,168 in bf16 alone is 1.9 GB.
_CHUNK_BYTES = 64 * 2**20


class WeightSource(ABC):
    """What fills a resident model, weights of a checkpoint or fresh ones: an ExpertSource that gives every expert memory of its own."""

    spec: ModelSpec

    @abstractmethod
    def read(self, ref: TensorRef) -> Tensor:
        """One weight, contiguous."""

    def layer(self, layer: Layer) -> dict[str, Tensor]:
        """All weights of a layer but its routed experts, by slot."""
        return {slot: self.read(ref) for slot, ref in layer.tensors.items()}

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert."""
        return ExpertWeights(*(self.read(ref) for ref in self._expert_refs(layer, expert)))

    def _expert_refs(self, layer: int, expert: int) -> tuple[TensorRef, ...]:
        ffn = self.spec.layer(layer).ffn
        assert isinstance(ffn, MoE)
        return ffn.experts.refs(expert)


class WeightReader(WeightSource):
    """Reads the weights of `spec` in `dtype` on `device`. Raises ModelError for a tensor with NaN or infinite values."""

    def __init__(self, spec: ModelSpec, reader: TensorReader, *, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.reader = reader
        self.dtype = dtype
        self.device = device

    def read(self, ref: TensorRef) -> Tensor:
        """One weight, contiguous."""
        return self._part(ref, self._stored(_whole(ref))) if _is_scattered(ref) else self._stored(ref)

    def _stored(self, ref: TensorRef) -> Tensor:
        """A tensor as it lies on disk, or one of its slices, cast and placed."""
        dtype = torch.float32 if ref.keep_float32 else self.dtype
        decode = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        if ref.index is None and ref.rows is None:
            raw = self.reader.read(ref.name, decode=decode)
        else:
            raw = self.reader.read_slice(ref.name, index=ref.index, rows=ref.rows, decode=decode)
        # The reader has looked at the codes and scales of quantised weights, which are fewer bytes.
        if isinstance(self.reader.index.tensors[ref.name], TensorInfo):
            require_finite(ref.name, raw, first_row=ref.rows[0] if ref.rows else 0)
        return raw.to(device=self.device, dtype=dtype)

    def _part(self, ref: TensorRef, stored: Tensor) -> Tensor:
        """What `ref` means of the slice it lies in."""
        part = stored.t() if ref.transposed else stored
        return part[slice(*ref.rows, ref.row_step) if ref.rows else slice(None)].contiguous()

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """One routed expert, read from disk; a slice that gate and up lie in together, in columns or in turns, is read once."""
        weights: list[Tensor] = []
        held: TensorRef | None = None
        stored = torch.empty(0)
        for ref in self._expert_refs(layer, expert):
            if not _is_scattered(ref):
                weights.append(self._stored(ref))
                continue
            if held != _whole(ref):
                held = _whole(ref)
                del stored  # not two slices at a time
                stored = self._stored(held)
            weights.append(self._part(ref, stored))
        return ExpertWeights(*weights)

    def head_column_norms(self) -> Tensor:
        """float32 `[H]`: the norm of each column of the head, which is read once, in chunks."""
        ref = self.spec.tensors["head"]
        vocab, hidden = ref.shape
        rows = max(1, _CHUNK_BYTES // (4 * hidden))
        squares_H = torch.zeros(hidden, dtype=torch.float64, device=self.device)
        for start in range(0, vocab, rows):
            squares_H += self.read(replace(ref, rows=(start, min(vocab, start + rows)))).double().square().sum(0)
        return squares_H.sqrt().float()

    def embed(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings `[B, S, H]` of every `[B, S]` of ids, reading the table once, in chunks, and only where ids fall."""
        ref = self.spec.tensors["embed"]
        vocab, hidden = ref.shape
        rows = max(1, _CHUNK_BYTES // (4 * hidden))
        out = [torch.empty(*ids_BS.shape, hidden, dtype=self.dtype, device=self.device) for ids_BS in batches]
        used = torch.zeros(vocab, dtype=torch.bool, device=self.device)
        for ids_BS in batches:
            used[ids_BS] = True
        for start in range(0, vocab, rows):
            stop = min(vocab, start + rows)
            if not used[start:stop].any():
                continue
            table_RH = scale_embedding(self.spec.embedding, self._stored(replace(ref, rows=(start, stop))))
            for ids_BS, x_BSH in zip(batches, out, strict=True):
                here_BS = (ids_BS >= start) & (ids_BS < stop)
                x_BSH[here_BS] = table_RH[ids_BS[here_BS] - start]
        return out


def _is_scattered(ref: TensorRef) -> bool:
    """Whether `ref` is no run of rows as it lies on disk, so that the slice around it has to be read."""
    return ref.transposed or ref.row_step > 1


def _whole(ref: TensorRef) -> TensorRef:
    """The slice of a tensor that `ref` is a part of, as it is stored."""
    return replace(ref, transposed=False, rows=None, row_step=1)


class ResidentExperts(nn.Module):
    """The routed experts of one layer as parameters, each in memory of its own.

    One allocation an expert keeps alignment, and so bits, the same as when the expert is streamed.
    """

    def __init__(self, experts: list[ExpertWeights]) -> None:
        super().__init__()
        self.gate = _frozen([w.gate_IH for w in experts])
        self.up = _frozen([w.up_IH for w in experts])
        self.down = _frozen([w.down_HI for w in experts])
        self.gate_bias = _frozen([w.gate_bias_I for w in experts])
        self.up_bias = _frozen([w.up_bias_I for w in experts])
        self.down_bias = _frozen([w.down_bias_H for w in experts])

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """The expert's parameters; `layer` is this one."""
        matrices = self.gate[expert], self.up[expert], self.down[expert]
        if not self.gate_bias:
            return ExpertWeights(*matrices)
        return ExpertWeights(*matrices, self.gate_bias[expert], self.up_bias[expert], self.down_bias[expert])


def _frozen(weights: Sequence[Tensor | None]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in weights if weight is not None])


class ResidentLayer(nn.Module):
    """The weights of one layer as parameters."""

    def __init__(self, layer: Layer, source: WeightSource) -> None:
        super().__init__()
        self.experts: ResidentExperts | None = None
        if isinstance(layer.ffn, MoE):
            self.experts = ResidentExperts([source.get(layer.index, e) for e in range(layer.ffn.router.n_experts)])
        self.weights = nn.ParameterDict({slot: nn.Parameter(w, requires_grad=False) for slot, w in source.layer(layer).items()})
