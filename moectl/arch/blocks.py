"""Building blocks that families share: tensor names of attention, feed-forward and experts, and the frame around the layers.

Names are the Hub's. Where a checkpoint stacks its experts in memory layout (`experts.gate_up_proj` `[E, 2I, H]`), the tensors that are
there decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from moectl.arch.config import Config
from moectl.arch.parts import Activation, GroupedQueryAttention, Norm
from moectl.arch.spec import Embedding, Head, Layer, ModelSpec, MTPLayer
from moectl.arch.tensors import EVERY_EXPERT, ExpertTensors, TensorRef

_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def activation(config: Config, *, key: str = "hidden_act", default: str = "silu") -> Activation:
    """The activation of the feed-forward blocks. Raises ModelError for one this version does not know."""
    return Activation(name=config.choice(key, *_ACTIVATIONS, default=default))


def linear(slot: str, name: str, n_out: int, n_in: int, *, bias: bool = False) -> dict[str, TensorRef]:
    """A projection and, if it has one, its bias."""
    refs = {slot: TensorRef(name=f"{name}.weight", shape=(n_out, n_in))}
    if bias:
        refs[f"{slot}_bias"] = TensorRef(name=f"{name}.bias", shape=(n_out,))
    return refs


def fused_linear(name: str, n_in: int, parts: Mapping[str, int], *, bias: bool = False) -> dict[str, TensorRef]:
    """Projections that lie in one matrix, block of rows by block of rows: slots and their rows, in order."""
    refs: dict[str, TensorRef] = {}
    total, start = sum(parts.values()), 0
    for slot, n_out in parts.items():
        rows = (start, start + n_out)
        refs[slot] = TensorRef(name=f"{name}.weight", shape=(total, n_in), rows=rows)
        if bias:
            refs[f"{slot}_bias"] = TensorRef(name=f"{name}.bias", shape=(total,), rows=rows)
        start += n_out
    return refs


def norm_tensors(slot: str, name: str, size: int, *, bias: bool = False) -> dict[str, TensorRef]:
    """A norm's weight and, in a LayerNorm, its bias."""
    refs = {slot: TensorRef(name=f"{name}.weight", shape=(size,))}
    if bias:
        refs[f"{slot}_bias"] = TensorRef(name=f"{name}.bias", shape=(size,))
    return refs


def layer_norms(prefix: str, hidden: int, *, bias: bool = False) -> dict[str, TensorRef]:
    """The two norms in front of attention and feed-forward."""
    return {
        **norm_tensors("attention_norm", f"{prefix}.input_layernorm", hidden, bias=bias),
        **norm_tensors("ffn_norm", f"{prefix}.post_attention_layernorm", hidden, bias=bias),
    }


def attention_tensors(
    prefix: str,
    hidden: int,
    attention: GroupedQueryAttention,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    norm_names: tuple[str, str] = ("q_norm", "k_norm"),
) -> dict[str, TensorRef]:
    """Separate q, k, v, o projections under `prefix`, with norms of q and k and sinks if the attention has them."""
    q_out, kv_out = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
    refs = {
        **linear("q", f"{prefix}.q_proj", q_out, hidden, bias=qkv_bias),
        **linear("k", f"{prefix}.k_proj", kv_out, hidden, bias=qkv_bias),
        **linear("v", f"{prefix}.v_proj", kv_out, hidden, bias=qkv_bias),
        **linear("o", f"{prefix}.o_proj", hidden, q_out, bias=o_bias),
        **qk_norms(prefix, attention, names=norm_names),
    }
    if attention.sinks:
        refs["sinks"] = TensorRef(name=f"{prefix}.sinks", shape=(attention.n_heads,))
    return refs


def qk_norms(prefix: str, attention: GroupedQueryAttention, *, names: tuple[str, str] = ("q_norm", "k_norm")) -> dict[str, TensorRef]:
    """The norms of q and k, if the attention has them and they have weights."""
    if attention.qk_norm is None or not attention.qk_norm.weighted:
        return {}
    heads = (attention.n_heads, attention.n_kv_heads) if attention.qk_norm.over == "all_heads" else (1, 1)
    sizes = [n * attention.head_dim for n in heads]
    return {**norm_tensors("q_norm", f"{prefix}.{names[0]}", sizes[0]), **norm_tensors("k_norm", f"{prefix}.{names[1]}", sizes[1])}


def ffn_tensors(prefix: str, hidden: int, width: int, *, slot_prefix: str = "", bias: bool = False) -> dict[str, TensorRef]:
    """gate, up and down projections under `prefix`."""
    return {
        **linear(f"{slot_prefix}gate", f"{prefix}.gate_proj", width, hidden, bias=bias),
        **linear(f"{slot_prefix}up", f"{prefix}.up_proj", width, hidden, bias=bias),
        **linear(f"{slot_prefix}down", f"{prefix}.down_proj", hidden, width, bias=bias),
    }


def expert_tensors(
    prefix: str,
    *,
    n_experts: int,
    hidden: int,
    width: int,
    present: Collection[str],
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> ExpertTensors:
    """Experts under `prefix.{e}` with the given gate, up and down names, or stacked under `prefix` if `present` says so."""
    if f"{prefix}.gate_up_proj" in present:
        return stacked_experts(f"{prefix}.gate_up_proj", f"{prefix}.down_proj", n_experts=n_experts, hidden=hidden, width=width)
    gate, up, down = names
    return ExpertTensors(
        gate=TensorRef(name=f"{prefix}.{{e}}.{gate}.weight", shape=(width, hidden)),
        up=TensorRef(name=f"{prefix}.{{e}}.{up}.weight", shape=(width, hidden)),
        down=TensorRef(name=f"{prefix}.{{e}}.{down}.weight", shape=(hidden, width)),
    )


def stacked_experts(gate_up: str, down: str, *, n_experts: int, hidden: int, width: int) -> ExpertTensors:
    """Experts in two tensors: `[E, 2I, H]` with the rows of gate, then of up, and `[E, H, I]`."""
    shape = (n_experts, 2 * width, hidden)
    return ExpertTensors(
        gate=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(0, width)),
        up=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(width, 2 * width)),
        down=TensorRef(name=down, shape=(n_experts, hidden, width), index=EVERY_EXPERT),
    )


def transposed_expert_tensors(
    prefix: str, *, n_experts: int, hidden: int, width: int, interleaved: bool = False, bias: bool = False
) -> ExpertTensors:
    """Experts stacked under `prefix` as `[E, in, out]`: the columns of `gate_up_proj` are gate's, then up's, or `interleaved` in turns."""
    gate_rows, up_rows, step = ((0, 2 * width), (1, 2 * width), 2) if interleaved else ((0, width), (width, 2 * width), 1)

    def stacked(name: str, *shape: int, rows: tuple[int, int] | None = None) -> TensorRef:
        return TensorRef(
            name=f"{prefix}.{name}",
            shape=(n_experts, *shape),
            index=EVERY_EXPERT,
            transposed=len(shape) == 2,
            rows=rows,
            row_step=step if rows else 1,
        )

    return ExpertTensors(
        gate=stacked("gate_up_proj", hidden, 2 * width, rows=gate_rows),
        up=stacked("gate_up_proj", hidden, 2 * width, rows=up_rows),
        down=stacked("down_proj", width, hidden),
        gate_bias=stacked("gate_up_proj_bias", 2 * width, rows=gate_rows) if bias else None,
        up_bias=stacked("gate_up_proj_bias", 2 * width, rows=up_rows) if bias else None,
        down_bias=stacked("down_proj_bias", hidden) if bias else None,
    )


def grouped_query_attention_sizes(
    config: Config, *, hidden: int, heads: int = 32, kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[int, int, int]:
    """Heads, key-value heads and head size, the arguments being what absent keys mean (None, as null: one a head, and hidden / heads).

    Raises ModelError if the heads do not divide.
    """
    n_heads = config.integer("num_attention_heads", default=heads)
    n_kv_heads = config.optional_integer("num_key_value_heads", default=kv_heads) or n_heads
    head_dim = config.optional_integer("head_dim", default=head_dim)
    if head_dim is None:
        if hidden % n_heads:
            raise config.mismatch("hidden_size", hidden, f"a multiple of num_attention_heads = {n_heads} (or give head_dim)")
        head_dim = hidden // n_heads
    if n_heads % n_kv_heads:
        raise config.mismatch("num_attention_heads", n_heads, f"a multiple of num_key_value_heads = {n_kv_heads}")
    if head_dim % 2:
        raise config.mismatch("head_dim", head_dim, "even, as rotary embeddings need")
    return n_heads, n_kv_heads, head_dim


def layer_types(config: Config, n_layers: int, *, kinds: Collection[str], default: Sequence[str]) -> tuple[str, ...]:
    """`layer_types`, one of `kinds` for each layer, or the family's `default`. Raises ModelError."""
    types = config.strings("layer_types") if config.has("layer_types") else tuple(default)
    unknown = next((kind for kind in types if kind not in kinds), None)
    if unknown is not None:
        raise config.mismatch("layer_types", f"`{unknown}` for a layer", f"one of {', '.join(kinds)}")
    if len(types) != n_layers:
        raise config.mismatch("layer_types", f"a list of {len(types)}", f"one of num_hidden_layers = {n_layers}")
    return types


def layer_windows(config: Config, *, window: int | None, slides: Sequence[bool]) -> tuple[int | None, ...]:
    """The window of each layer: `window` where `layer_types` says so, or without that key the family's `slides`. Raises ModelError."""
    full, sliding = "full_attention", "sliding_attention"
    default = [sliding if window is not None and yes else full for yes in slides]
    types = layer_types(config, len(slides), kinds=(full, sliding), default=default)
    if window is None and sliding in types:
        raise config.mismatch("layer_types", f"`{sliding}` for a layer", f"`{full}` for all, as the configuration has no window")
    return tuple(window if kind == sliding else None for kind in types)


def decoder(
    config: Config,
    *,
    vocab: int,
    hidden: int,
    layers: Sequence[Layer],
    norm: Norm,
    max_positions: int,
    tied: bool = False,
    head_bias: bool = False,
    mtp: tuple[MTPLayer, ...] = (),
    embedding: Embedding = Embedding(),  # noqa: B008, frozen
    head: Head = Head(),  # noqa: B008, frozen
    embed_name: str = "model.embed_tokens",
    ignored: tuple[str, ...] = (),
) -> ModelSpec:
    """The frame around the layers: embedding, final norm, head. `tied` is the family's default for `tie_word_embeddings`."""
    tied = config.boolean("tie_word_embeddings", default=tied)
    embed = TensorRef(name=f"{embed_name}.weight", shape=(vocab, hidden))
    tensors = {"embed": embed, "head": embed if tied else TensorRef(name="lm_head.weight", shape=(vocab, hidden))}
    if head_bias:
        tensors["head_bias"] = TensorRef(name="lm_head.bias", shape=(vocab,))
    return ModelSpec(
        model_type=config.string("model_type"),
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=max_positions,
        layers=tuple(layers),
        norm=norm,
        tensors=tensors | norm_tensors("norm", "model.norm", hidden, bias=norm.kind == "layer"),
        tied=tied,
        mtp=mtp,
        embedding=embedding,
        head=head,
        ignored=ignored,
    )
