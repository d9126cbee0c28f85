"""Building blocks that families share: tensor names of attention, feed-forward and experts, and the frame around the layers.

Names are the Hub's. Where a checkpoint stacks its experts in memory layout (`experts.gate_up_proj` `[E, 2I, H]`), the tensors that are
there decide.
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch.config import Config
from moectl.arch.spec import EVERY_EXPERT, ExpertTensors, GroupedQueryAttention, Layer, ModelSpec, MTPLayer, Norm, TensorRef

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def linear(slot: str, name: str, n_out: int, n_in: int, *, bias: bool = False) -> dict[str, TensorRef]:
    """A projection and, if it has one, its bias."""
    refs = {slot: TensorRef(name=f"{name}.weight", shape=(n_out, n_in))}
    if bias:
        refs[f"{slot}_bias"] = TensorRef(name=f"{name}.bias", shape=(n_out,))
    return refs


def norm(slot: str, name: str, size: int) -> dict[str, TensorRef]:
    """A norm's weight."""
    return {slot: TensorRef(name=f"{name}.weight", shape=(size,))}


def layer_norms(prefix: str, hidden: int) -> dict[str, TensorRef]:
    """The two norms in front of attention and feed-forward."""
    return {
        **norm("attention_norm", f"{prefix}.input_layernorm", hidden),
        **norm("ffn_norm", f"{prefix}.post_attention_layernorm", hidden),
    }


def attention_tensors(
    prefix: str, hidden: int, attention: GroupedQueryAttention, *, qkv_bias: bool = False, o_bias: bool = False
) -> dict[str, TensorRef]:
    """Separate q, k, v, o projections under `prefix`, with per-head norms of q and k if the attention has them."""
    d = attention.head_dim
    refs = {
        **linear("q", f"{prefix}.q_proj", attention.n_heads * d, hidden, bias=qkv_bias),
        **linear("k", f"{prefix}.k_proj", attention.n_kv_heads * d, hidden, bias=qkv_bias),
        **linear("v", f"{prefix}.v_proj", attention.n_kv_heads * d, hidden, bias=qkv_bias),
        **linear("o", f"{prefix}.o_proj", hidden, attention.n_heads * d, bias=o_bias),
    }
    if attention.qk_norm is not None:
        refs |= {**norm("q_norm", f"{prefix}.q_norm", d), **norm("k_norm", f"{prefix}.k_norm", d)}
    return refs


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
        gate_up = f"{prefix}.gate_up_proj"
        shape = (n_experts, 2 * width, hidden)
        return ExpertTensors(
            gate=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(0, width)),
            up=TensorRef(name=gate_up, shape=shape, index=EVERY_EXPERT, rows=(width, 2 * width)),
            down=TensorRef(name=f"{prefix}.down_proj", shape=(n_experts, hidden, width), index=EVERY_EXPERT),
        )
    gate, up, down = names
    return ExpertTensors(
        gate=TensorRef(name=f"{prefix}.{{e}}.{gate}.weight", shape=(width, hidden)),
        up=TensorRef(name=f"{prefix}.{{e}}.{up}.weight", shape=(width, hidden)),
        down=TensorRef(name=f"{prefix}.{{e}}.{down}.weight", shape=(hidden, width)),
    )


def grouped_query_attention_sizes(config: Config, *, hidden: int, kv_heads: int | None = None) -> tuple[int, int, int]:
    """Heads, key-value heads (`kv_heads` if the key is absent) and head size. Raises ModelError if the heads do not divide."""
    n_heads = config.integer("num_attention_heads", default=32)
    n_kv_heads = config.optional_integer("num_key_value_heads", default=kv_heads) or n_heads
    if not config.has("head_dim") and hidden % n_heads:
        raise config.mismatch("hidden_size", hidden, f"a multiple of num_attention_heads = {n_heads} (or give head_dim)")
    head_dim = config.integer("head_dim", default=hidden // n_heads)
    if n_heads % n_kv_heads:
        raise config.mismatch("num_attention_heads", n_heads, f"a multiple of num_key_value_heads = {n_kv_heads}")
    if head_dim % 2:
        raise config.mismatch("head_dim", head_dim, "even, as rotary embeddings need")
    return n_heads, n_kv_heads, head_dim


def decoder(
    config: Config, *, vocab: int, hidden: int, layers: list[Layer], eps: float, max_positions: int, mtp: tuple[MTPLayer, ...] = ()
) -> ModelSpec:
    """The frame around the layers: embedding, final norm, head."""
    tied = config.boolean("tie_word_embeddings", default=False)
    embed = TensorRef(name="model.embed_tokens.weight", shape=(vocab, hidden))
    head = embed if tied else TensorRef(name="lm_head.weight", shape=(vocab, hidden))
    return ModelSpec(
        model_type=config.string("model_type"),
        vocab_size=vocab,
        hidden_size=hidden,
        max_positions=max_positions,
        layers=tuple(layers),
        norm=Norm(eps=eps),
        tensors={"embed": embed, **norm("norm", "model.norm", hidden), "head": head},
        tied=tied,
        mtp=mtp,
    )
