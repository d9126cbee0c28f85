"""ModelSpec: everything the decoder knows about a model, as frozen data.

A family file in this package turns a `config.json` into a ModelSpec; `moectl.model` runs any ModelSpec and knows no family. Sizes use
the reference letters: H hidden, I width of a feed-forward block, E routed experts, K experts per token, G groups. Weights are `[out, in]`.
No torch here, no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

EVERY_EXPERT = -1
"""As `TensorRef.index`: one tensor holds all experts along dim 0; `ExpertTensors.refs` fills in the expert's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Where a weight lies: a tensor on disk, or a part of one.

    `shape` is that of the whole tensor on disk. `index` picks along dim 0 (stacked experts), then `rows` takes rows of what is left
    (fused projections). `keep_float32`: not cast to the model's dtype.
    """

    name: str
    shape: tuple[int, ...]
    index: int | None = None
    rows: tuple[int, int] | None = None
    keep_float32: bool = False

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the weight itself."""
        shape = self.shape if self.index is None else self.shape[1:]
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    @property
    def numel(self) -> int:
        """Values in the weight itself."""
        count = 1
        for size in self.part_shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMSNorm: x / rms(x) in float32, cast to the input's dtype, then times the weight (llama's order of rounding)."""

    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of the first `dim` values of a head.

    `layout` "half" pairs (j, j + dim/2); "interleaved" pairs (2j, 2j+1). cos and sin are multiplied by `attention_factor`.
    `low`/`high` mean low/high_freq_factor for llama3 and the ramp's ends (in pairs of dimensions) for yarn.
    """

    dim: int
    theta: float
    layout: Literal["half", "interleaved"] = "half"
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low: float = 0.0
    high: float = 0.0
    original_max_positions: int = 0
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """Multi-head, grouped-query or multi-query attention. `scale` multiplies q.k; `window` counts the current token."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope
    window: int | None = None
    qk_norm: Norm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434): keys and values expand from a latent of `kv_lora_rank`."""

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    value_dim: int
    scale: float
    rope: Rope
    lora_norm: Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How experts are chosen and weighted.

    z = x W in `logits_dtype`; p = score(z) in float32; selection takes the top_k of p (+ correction bias), inside the best
    `topk_group` of `n_group` groups if there are several; weights are the unbiased p of the selected, divided by (their sum +
    `renormalize_eps`) if `renormalize`, times `scale`, in `weight_dtype`.
    """

    n_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid"]
    logits_dtype: Literal["model", "float32"]
    weight_dtype: Literal["model", "float32"]
    renormalize: bool
    renormalize_eps: float = 0.0
    correction_bias: bool = False
    scale: float = 1.0
    n_group: int = 1
    topk_group: int = 1

    def formula(self) -> str:
        """The rule in one line, for people."""
        score = f"{self.score}(x W)"
        key = f"{score} + bias" if self.correction_bias else score
        groups = f" within the best {self.topk_group} of {self.n_group} groups" if self.n_group > 1 else ""
        norm = ", normalised over the selected" if self.renormalize else ""
        scale = f", times {self.scale:g}" if self.scale != 1 else ""
        return f"top-{self.top_k} of {self.n_experts} by {key}{groups}; weights {score}{norm}{scale}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTensors:
    """The three matrices of every routed expert, as patterns: `{e}` in a name, or EVERY_EXPERT as index."""

    gate: TensorRef
    up: TensorRef
    down: TensorRef

    def refs(self, expert: int) -> tuple[TensorRef, TensorRef, TensorRef]:
        """gate, up, down of one expert."""
        return (_of_expert(self.gate, expert), _of_expert(self.up, expert), _of_expert(self.down, expert))


def _of_expert(ref: TensorRef, expert: int) -> TensorRef:
    index = expert if ref.index == EVERY_EXPERT else ref.index
    return replace(ref, name=ref.name.replace("{e}", str(expert)), index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFFN:
    """down(act(gate(x)) * up(x)) of `width`."""

    width: int
    act: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoE:
    """Routed experts of `expert_width`, plus one always-active block of `shared_width` if not zero.

    `n_shared_experts` is the configuration's number; together they are that one block.
    """

    router: Router
    expert_width: int
    act: str
    experts: ExpertTensors
    shared_width: int = 0
    n_shared_experts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer: x += attention(norm(x)); x += ffn(norm(x)).

    `tensors` maps slots to weights, routed experts excluded. Slots: `attention_norm ffn_norm`; `q k v o` (+ `_bias`), `q_norm k_norm`;
    for MLA `q_a q_a_norm q_b kv_a kv_a_norm kv_b`; dense `gate up down` (+ `_bias`); MoE `router correction_bias
    shared_gate shared_up shared_down`.
    """

    index: int
    attention: GroupedQueryAttention | LatentAttention
    ffn: DenseFFN | MoE
    norm: Norm
    tensors: Mapping[str, TensorRef]

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
    Slots of `tensors`: `enorm hnorm norm` [H], `eh_proj` [H, 2H], and `embed head`, copies of the main ones that a file may leave out.
    """

    layer: Layer
    tensors: Mapping[str, TensorRef]

    @property
    def own_tensors(self) -> Mapping[str, TensorRef]:
        """`tensors` without the two copies."""
        return {slot: ref for slot, ref in self.tensors.items() if slot not in ("embed", "head")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model. `tensors` holds the slots `embed`, `norm` and `head`; a tied head is the same tensor as `embed`.

    `mtp` lists what the configuration announces; whether a checkpoint holds the tensors is checked when they are asked for.
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
