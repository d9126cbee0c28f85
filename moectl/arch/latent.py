"""Latent attention (MLA) of DeepSeek's configuration keys, and where its tensors lie; shared by the families that have it."""

from __future__ import annotations

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import LatentAttention, Norm
from moectl.arch.rope import parse_rope, yarn_softmax_factor
from moectl.arch.tensors import TensorRef

# The norms inside the low-rank projections are built with their class default, whatever rms_norm_eps says.
_LORA_NORM_EPS = 1e-6


def latent_attention(config: Config, *, max_positions: int, heads: int = 128, float32_rope: bool = False) -> LatentAttention:
    """MLA of the DeepSeek keys; raises ModelError. `heads` is the family's default. `head_dim` in files of newer transformers is the
    rotary size and plays no part."""
    nope, rotary = config.integer("qk_nope_head_dim", default=128), config.integer("qk_rope_head_dim", default=64)
    if rotary % 2:
        raise config.mismatch("qk_rope_head_dim", rotary, "even, as rotary embeddings need")
    interleaved = config.boolean("rope_interleave", default=True)
    rope = parse_rope(
        config,
        dim=rotary,
        default_theta=10_000.0,
        max_positions=max_positions,
        layout="interleaved" if interleaved else "half",
        float32=float32_rope,
    )
    return LatentAttention(
        n_heads=config.integer("num_attention_heads", default=heads),
        q_lora_rank=config.optional_integer("q_lora_rank", default=1536),
        kv_lora_rank=config.integer("kv_lora_rank", default=512),
        nope_dim=nope,
        value_dim=config.integer("v_head_dim", default=128),
        scale=(nope + rotary) ** -0.5 * yarn_softmax_factor(config, rope),
        rope=rope,
        lora_norm=Norm(eps=_LORA_NORM_EPS),
    )


def latent_attention_tensors(prefix: str, hidden: int, attention: LatentAttention, *, bias: bool) -> dict[str, TensorRef]:
    """Tensors of MLA. `bias` touches the down-projections and the output only."""
    heads, latent, rotary = attention.n_heads, attention.kv_lora_rank, attention.rope.dim
    query = heads * (attention.nope_dim + rotary)
    if attention.q_lora_rank is None:
        refs = blocks.linear("q", f"{prefix}.q_proj", query, hidden)
    else:
        refs = {
            **blocks.linear("q_a", f"{prefix}.q_a_proj", attention.q_lora_rank, hidden, bias=bias),
            **blocks.norm_tensors("q_a_norm", f"{prefix}.q_a_layernorm", attention.q_lora_rank),
            **blocks.linear("q_b", f"{prefix}.q_b_proj", query, attention.q_lora_rank),
        }
    return {
        **refs,
        **blocks.linear("kv_a", f"{prefix}.kv_a_proj_with_mqa", latent + rotary, hidden, bias=bias),
        **blocks.norm_tensors("kv_a_norm", f"{prefix}.kv_a_layernorm", latent),
        **blocks.linear("kv_b", f"{prefix}.kv_b_proj", heads * (attention.nope_dim + attention.value_dim), latent),
        **blocks.linear("o", f"{prefix}.o_proj", hidden, heads * attention.value_dim, bias=bias),
    }
