"""What the generations of Ling (`bailing_moe`, `bailing_moe_v2`) share: the names of their tensors."""

from __future__ import annotations

from moectl.arch import blocks
from moectl.arch.parts import GroupedQueryAttention
from moectl.arch.tensors import TensorRef

EMBED_NAME = "model.word_embeddings"


def bailing_attention_tensors(
    prefix: str, hidden: int, attention: GroupedQueryAttention, *, qkv_bias: bool, o_bias: bool
) -> dict[str, TensorRef]:
    """One matrix with the rows of all queries, then keys, then values; norms of q and k if the attention has them."""
    q_out, kv_out = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
    return {
        **blocks.fused_linear(f"{prefix}.query_key_value", hidden, {"q": q_out, "k": kv_out, "v": kv_out}, bias=qkv_bias),
        **blocks.linear("o", f"{prefix}.dense", hidden, q_out, bias=o_bias),
        **blocks.qk_norms(prefix, attention, names=("query_layernorm", "key_layernorm")),
    }
