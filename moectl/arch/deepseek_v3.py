"""deepseek_v3: DeepSeek-V3, R1, V3.1, Moonlight (arXiv 2412.19437).

Latent attention, dense first layers, shared experts, sigmoid scores with a correction bias that only selects, group-limited top-k.
Multi-token-prediction layers follow the main stack on disk and are not part of it (ModelSpec.mtp).
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.rope import parse_rope, yarn_softmax_factor
from moectl.arch.spec import DenseFFN, LatentAttention, Layer, ModelSpec, MoE, MTPLayer, Norm, Router, TensorRef

# The norms inside the low-rank projections are built with their class default, whatever rms_norm_eps says.
_LORA_NORM_EPS = 1e-6


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a DeepSeek-V3 checkpoint. Raises ModelError."""
    hidden = config.integer("hidden_size", default=7168)
    vocab = config.integer("vocab_size", default=129280)
    max_positions = config.integer("max_position_embeddings", default=4096)
    eps = config.positive("rms_norm_eps", default=1e-6)
    attention = latent_attention(config, max_positions=max_positions)
    router = _router(config)
    n_layers = config.integer("num_hidden_layers", default=61)
    n_dense = config.integer("first_k_dense_replace", default=3, minimum=0)
    n_mtp = config.integer(config.first("num_nextn_predict_layers", "num_mtp_layers"), default=0, minimum=0)

    def layer(index: int, *, dense: bool) -> Layer:
        prefix = f"model.layers.{index}"
        bias = config.boolean("attention_bias", default=False)
        ffn, ffn_tensors = _ffn(config, f"{prefix}.mlp", hidden, router=None if dense else router, present=present)
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **latent_attention_tensors(f"{prefix}.self_attn", hidden, attention, bias=bias),
            **ffn_tensors,
        }
        return Layer(index=index, attention=attention, ffn=ffn, norm=Norm(eps=eps), tensors=tensors)

    layers = [layer(i, dense=i < n_dense) for i in range(n_layers)]
    # A prediction layer has experts even where first_k_dense_replace leaves none in the main stack.
    mtp = tuple(
        MTPLayer(layer=layer(i, dense=False), tensors=_mtp_tensors(f"model.layers.{i}", vocab, hidden))
        for i in range(n_layers, n_layers + n_mtp)
    )
    return blocks.decoder(config, vocab=vocab, hidden=hidden, layers=layers, eps=eps, max_positions=max_positions, mtp=mtp)


def _ffn(
    config: Config, prefix: str, hidden: int, *, router: Router | None, present: Collection[str]
) -> tuple[DenseFFN | MoE, dict[str, TensorRef]]:
    """The feed-forward block of one layer, dense without a `router`, and its tensors but the routed experts'."""
    dense_width = config.integer("intermediate_size", default=18432)
    expert_width = config.integer("moe_intermediate_size", default=2048)
    n_shared = config.integer("n_shared_experts", default=1, minimum=0)
    act = config.choice("hidden_act", *blocks.ACTIVATIONS, default="silu")
    if router is None:
        return DenseFFN(width=dense_width, act=act), blocks.ffn_tensors(prefix, hidden, dense_width)
    n_experts, bias_name = router.n_experts, f"{prefix}.gate.e_score_correction_bias"
    moe = MoE(
        router=router,
        expert_width=expert_width,
        act=act,
        experts=blocks.expert_tensors(f"{prefix}.experts", n_experts=n_experts, hidden=hidden, width=expert_width, present=present),
        shared_width=n_shared * expert_width,
        n_shared_experts=n_shared,
    )
    tensors = blocks.linear("router", f"{prefix}.gate", n_experts, hidden)
    tensors["correction_bias"] = TensorRef(name=bias_name, shape=(n_experts,), keep_float32=True)
    if n_shared:
        tensors |= blocks.ffn_tensors(f"{prefix}.shared_experts", hidden, moe.shared_width, slot_prefix="shared_")
    return moe, tensors


def _mtp_tensors(prefix: str, vocab: int, hidden: int) -> dict[str, TensorRef]:
    """What a prediction layer has beside an ordinary layer's tensors, under the same prefix."""
    return {
        **blocks.norm("enorm", f"{prefix}.enorm", hidden),
        **blocks.norm("hnorm", f"{prefix}.hnorm", hidden),
        **blocks.linear("eh_proj", f"{prefix}.eh_proj", hidden, 2 * hidden),
        **blocks.norm("norm", f"{prefix}.shared_head.norm", hidden),
        **blocks.linear("embed", f"{prefix}.embed_tokens", vocab, hidden),
        **blocks.linear("head", f"{prefix}.shared_head.head", vocab, hidden),
    }


def latent_attention(config: Config, *, max_positions: int) -> LatentAttention:
    """MLA of the DeepSeek keys. `head_dim` in files of newer transformers is the rotary size and plays no part."""
    nope, rotary = config.integer("qk_nope_head_dim", default=128), config.integer("qk_rope_head_dim", default=64)
    if rotary % 2:
        raise config.mismatch("qk_rope_head_dim", rotary, "even, as rotary embeddings need")
    interleaved = config.boolean("rope_interleave", default=True)
    rope = parse_rope(
        config, dim=rotary, default_theta=10_000.0, max_positions=max_positions, layout="interleaved" if interleaved else "half"
    )
    return LatentAttention(
        n_heads=config.integer("num_attention_heads", default=128),
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
            **blocks.norm("q_a_norm", f"{prefix}.q_a_layernorm", attention.q_lora_rank),
            **blocks.linear("q_b", f"{prefix}.q_b_proj", query, attention.q_lora_rank),
        }
    return {
        **refs,
        **blocks.linear("kv_a", f"{prefix}.kv_a_proj_with_mqa", latent + rotary, hidden, bias=bias),
        **blocks.norm("kv_a_norm", f"{prefix}.kv_a_layernorm", latent),
        **blocks.linear("kv_b", f"{prefix}.kv_b_proj", heads * (attention.nope_dim + attention.value_dim), latent),
        **blocks.linear("o", f"{prefix}.o_proj", hidden, heads * attention.value_dim, bias=bias),
    }


def _router(config: Config) -> Router:
    n_experts = config.integer(config.first("n_routed_experts", "num_local_experts"), default=256)
    n_group = config.integer("n_group", default=8)
    if n_experts % n_group:
        raise config.mismatch("n_routed_experts", n_experts, f"a multiple of n_group = {n_group}")
    return Router(
        n_experts=n_experts,
        top_k=config.integer("num_experts_per_tok", default=8),
        score="sigmoid",
        logits_dtype="float32",
        weight_dtype="float32",
        renormalize=config.boolean("norm_topk_prob", default=True),
        renormalize_eps=1e-20,
        correction_bias=True,
        scale=config.positive("routed_scaling_factor", default=2.5),
        n_group=n_group,
        topk_group=config.integer("topk_group", default=4),
    )
