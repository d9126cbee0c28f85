"""What a decoder layer is made of, as frozen data: norms, rotary embeddings, attention, routers, feed-forward blocks.

A family file in this package fills these in from a `config.json`; `moectl.model` runs them and knows no family. Sizes use the reference
letters: H hidden, I width of a feed-forward block, E routed experts, K experts per token, G groups. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moectl.arch.tensors import ExpertTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMSNorm (arXiv 1910.07467) or LayerNorm; families differ in where they round and what they store.

    "rms": x / rms(x) in float32, cast to the input's dtype, then times the weight (llama). "rms_float32": times the weight before the
    cast (gpt-oss). "rms_zero_centred": times 1 + weight, before the cast (gemma). "layer": LayerNorm with bias.
    """

    eps: float
    kind: Literal["rms", "rms_float32", "rms_zero_centred", "layer"] = "rms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of the first `dim` values of a head.

    `layout` "half" pairs (j, j + dim/2); "interleaved" pairs (2j, 2j+1). cos and sin are multiplied by `attention_factor`; the rotation
    is in float32 or in the model's dtype.
    `low`/`high` mean low/high_freq_factor for llama3 and the ramp's ends (in pairs of dimensions) for yarn.
    "dynamic" stretches theta with the length of a sequence beyond `original_max_positions`. "longrope" divides the frequencies by
    `short_factors`, in a sequence longer than `original_max_positions` by `long_factors` (and takes `long_attention_factor` if given).
    """

    dim: int
    theta: float
    layout: Literal["half", "interleaved"] = "half"
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    low: float = 0.0
    high: float = 0.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    long_attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    float32: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QKNorm:
    """A norm of queries and keys: over each head, or over all heads together; before or after the rotation; with or without weights."""

    norm: Norm
    over: Literal["head", "all_heads"] = "head"
    after_rope: bool = False
    weighted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """Queries at position p are multiplied by 1 + scale ln(1 + floor((p + 1) / floor_scale)) (llama 4; arXiv 2501.19399)."""

    scale: float
    floor_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """Multi-head, grouped-query or multi-query attention. `scale` multiplies q.k.

    `window` counts the current token; `chunk` lets a token see only those of its own chunk of so many positions. `softcap`: scores
    become softcap tanh(score / softcap). `sinks`: one learnt logit per head joins the softmax and attends to nothing. `clip` bounds
    queries, keys and values. `softmax_dtype` matters where scores are written out (softcap, sinks). No `rope`: no positions at all.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None
    chunk: int | None = None
    qk_norm: QKNorm | None = None
    clip: float | None = None
    softcap: float | None = None
    sinks: bool = False
    softmax_dtype: Literal["model", "float32"] = "float32"
    temperature: Temperature | None = None


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

    z = x W (+ b if `bias`) in `logits_dtype`; p = score(z) in `score_dtype`.
    - "softmax", "sigmoid": selection takes the top_k of p (+ `correction_bias`), or of z (`selects_by` "logits"), which does not tie where
      p saturates; with several groups only inside the best `topk_group` of `n_group`. A group is as good as its best member ("max") or
      the sum of its best two ("top2_sum"); what lies outside counts `group_fill`. Weights are the unbiased p of the selected, if
      `renormalize` (and K is at least `renormalize_from`) divided by their sum + `renormalize_eps`, the sum being at least
      `renormalize_floor`.
    - "softmax_of_selected": the top_k of z, weighted by a softmax over those alone.
    - "sparsemixer": two picks, each weighted by a softmax over the experts within 2 `jitter` of it (Phi-3.5-MoE; arXiv 2409.12136).
    Weights are multiplied by `scale` and cast to `weight_dtype`. They apply to an expert's output, with `weighs_input` to its input.
    """

    n_experts: int
    top_k: int
    score: Literal["softmax", "sigmoid", "softmax_of_selected", "sparsemixer"]
    logits_dtype: Literal["model", "float32"]
    weight_dtype: Literal["model", "float32"]
    renormalize: bool
    renormalize_from: int = 1
    renormalize_eps: float = 0.0
    renormalize_floor: float = 0.0
    score_dtype: Literal["model", "float32"] = "float32"
    bias: bool = False
    selects_by: Literal["score", "logits"] = "score"
    correction_bias: bool = False
    scale: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    group_score: Literal["top2_sum", "max"] = "top2_sum"
    group_fill: float = float("-inf")
    jitter: float = 0.0
    weighs_input: bool = False

    @property
    def renormalizes(self) -> bool:
        """Whether the weights of a token's experts are divided by their sum."""
        return self.renormalize and self.top_k >= self.renormalize_from

    @property
    def probability(self) -> Literal["softmax", "sigmoid"]:
        """What makes the logits of all experts comparable scores, for statistics and balance losses."""
        return "sigmoid" if self.score == "sigmoid" else "softmax"

    def formula(self) -> str:
        """The rule in one line, for people."""
        z = "x W + b" if self.bias else "x W"
        if self.score == "softmax_of_selected":
            rule = f"top-{self.top_k} of {self.n_experts} by {z}; weights softmax over the selected"
        elif self.score == "sparsemixer":
            rule = f"top-{self.top_k} of {self.n_experts} by {z}; weights softmax over the experts within {2 * self.jitter:g} of each pick"
        else:
            score = f"{self.score}({z})"
            key = f"{score} + bias" if self.correction_bias else z if self.selects_by == "logits" else score
            groups = f" within the best {self.topk_group} of {self.n_group} groups" if self.n_group > 1 else ""
            norm = ", normalised over the selected" if self.renormalizes else ""
            rule = f"top-{self.top_k} of {self.n_experts} by {key}{groups}; weights {score}{norm}"
        scale = f", times {self.scale:g}" if self.scale != 1 else ""
        return f"{rule}{scale}{', on the input' if self.weighs_input else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What joins gate and up of a feed-forward block: act(gate) * up.

    "clamped_swiglu" (gpt-oss): gate sigmoid(alpha gate) (up + 1), gate at most `limit`, up within +-`limit`.
    """

    name: str = "silu"
    alpha: float = 1.0
    limit: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFFN:
    """down(act(gate(x)) * up(x)) of `width`."""

    width: int
    act: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class MoE:
    """Routed experts of `expert_width`, plus one always-active block of `shared_width` if not zero.

    `n_shared_experts` is the configuration's number; together they are that one block. `gated_shared`: its output is multiplied by
    sigmoid(x g) (Qwen2-MoE).
    """

    router: Router
    expert_width: int
    act: Activation
    experts: ExpertTensors
    shared_width: int = 0
    n_shared_experts: int = 0
    gated_shared: bool = False
