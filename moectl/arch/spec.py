"""ModelSpec: everything the decoder knows about a model, as frozen data.

A family file in this package turns a `config.json` into a ModelSpec; `moectl.model` runs any ModelSpec and knows no family. What its
layers are made of is in `parts.py`, where their weights lie in `tensors.py`. No torch here, no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moectl.arch.parts import DenseFFN, GroupedQueryAttention, LatentAttention, MoE, Norm
from moectl.arch.tensors import TensorRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer: x += residual_scale attention(norm(x)); x += residual_scale ffn(norm(x)).

    With `out_norms`, what a block adds is normed once more (gemma's sandwich).
    `tensors` maps slots to weights, routed experts excluded. Slots: `attention_norm ffn_norm`, with `out_norms` `attention_out_norm
    ffn_out_norm`; `q k v o` (+ `_bias`), `q_norm k_norm`, `sinks`; for MLA `q_a q_a_norm q_b kv_a kv_a_norm kv_b`; dense `gate up down`
    (+ `_bias`); MoE `router router_bias correction_bias shared_gate shared_up shared_down` (+ `_bias`) `shared_expert_gate`. A LayerNorm
    has a `_bias` too.
    """

    index: int
    attention: GroupedQueryAttention | LatentAttention
    ffn: DenseFFN | MoE
    norm: Norm
    tensors: Mapping[str, TensorRef]
    out_norms: bool = False
    residual_scale: float = 1.0

    def refs(self) -> Iterator[TensorRef]:
        """Every weight, routed experts included."""
        yield from self.tensors.values()
        if isinstance(self.ffn, MoE):
            for expert in range(self.ffn.router.n_experts):
                yield from self.ffn.experts.refs(expert)


@dataclass(frozen=True, slots=True, kw_only=True)
class MTPLayer:
    """A multi-token-prediction layer (arXiv 2412.19437, section 2.2): one more decoder layer, fed with the tokens that came meanwhile.

    h' = norm(layer(eh_proj([enorm(embedding); hnorm(h)]))); its norms take `layer.norm.eps`, and `layer.index` follows the main stack's.
    Slots of `tensors`: `enorm hnorm norm` [H], without `norm` the main model's final norm; `eh_proj` [H, 2H] (+ `_bias`); and `embed head`,
    copies of the main ones that a file may leave out. `prefixes`: what the names of all its tensors begin with.
    """

    layer: Layer
    tensors: Mapping[str, TensorRef]
    prefixes: tuple[str, ...]

    @property
    def own_tensors(self) -> Mapping[str, TensorRef]:
        """`tensors` without the two copies."""
        return {slot: ref for slot, ref in self.tensors.items() if slot not in ("embed", "head")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Rows of the table times `scale`, which gemma rounds to the table's dtype first (`rounded_scale`)."""

    scale: float = 1.0
    rounded_scale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Logits: head(x) / divisor, then softcap tanh(logits / softcap) if there is one.

    `unit_columns`: each column of the matrix `[V, H]` is divided by its norm first (Ling V1's `norm_head`).
    """

    divisor: float = 1.0
    softcap: float | None = None
    unit_columns: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model.

    `tensors` holds the slots `embed`, `norm` and `head`, and `norm_bias` and `head_bias` where they exist; a tied head is the same tensor
    as `embed`. `mtp` lists what the configuration announces; whether a checkpoint holds the tensors is checked when they are asked for.
    `ignored`: patterns of names that checkpoints of this family carry and this model does not use.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    layers: tuple[Layer, ...]
    norm: Norm
    tensors: Mapping[str, TensorRef]
    tied: bool
    mtp: tuple[MTPLayer, ...] = ()
    embedding: Embedding = Embedding()
    head: Head = Head()
    ignored: tuple[str, ...] = ()

    @property
    def n_mtp_layers(self) -> int:
        """Multi-token-prediction layers after the main stack."""
        return len(self.mtp)

    @property
    def moe_layers(self) -> tuple[Layer, ...]:
        """The layers of the main stack with routed experts, ascending."""
        return tuple(layer for layer in self.layers if isinstance(layer.ffn, MoE))

    def layer(self, index: int) -> Layer:
        """The layer of that index, in the main stack or after it."""
        return self.layers[index] if index < len(self.layers) else self.mtp[index - len(self.layers)].layer

    def refs(self) -> Iterator[TensorRef]:
        """Every weight of the main model, routed experts included; a tied head appears once."""
        yield from (ref for slot, ref in self.tensors.items() if not (self.tied and slot == "head"))
        for layer in self.layers:
            yield from layer.refs()

    def mtp_refs(self) -> Iterator[TensorRef]:
        """Every weight of the multi-token-prediction layers but their copies of embedding and head."""
        for mtp in self.mtp:
            yield from mtp.own_tensors.values()
            yield from mtp.layer.refs()
