"""deepseek_v3 and kimi_k2: DeepSeek-V3, R1, V3.1 (arXiv 2412.19437), Moonlight, Kimi K2 (arXiv 2507.20534).

Latent attention, dense first layers, shared experts, sigmoid scores with a correction bias that only selects, group-limited top-k.
Multi-token-prediction layers follow the main stack on disk and are not part of it (ModelSpec.mtp).
"""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.deepseek_ffn import deepseek_ffn, noaux_router, routes
from moectl.arch.latent import latent_attention, latent_attention_tensors
from moectl.arch.mtp import mtp_layers
from moectl.arch.parts import Norm
from moectl.arch.spec import Layer, ModelSpec


def spec(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of a DeepSeek-V3 checkpoint. Raises ModelError."""
    hidden, vocab = config.integer("hidden_size", default=7168), config.integer("vocab_size", default=129280)
    max_positions = config.integer("max_position_embeddings", default=4096)
    norm = Norm(eps=config.positive("rms_norm_eps", default=1e-6))
    attention = latent_attention(config, max_positions=max_positions)
    bias = config.boolean("attention_bias", default=False)
    router = noaux_router(config, n_experts=256, top_k=8, n_group=8, topk_group=4, renormalize=True, scale=2.5)
    dense_width = config.integer("intermediate_size", default=18432)
    expert_width = config.integer("moe_intermediate_size", default=2048)
    n_shared = config.integer("n_shared_experts", default=1, minimum=0)

    def layer(index: int, *, dense: bool = False) -> Layer:
        prefix = f"model.layers.{index}"
        ffn, ffn_tensors = deepseek_ffn(
            config,
            f"{prefix}.mlp",
            hidden,
            router=None if dense else router,
            dense_width=dense_width,
            expert_width=expert_width,
            n_shared=n_shared,
            present=present,
        )
        tensors = {
            **blocks.layer_norms(prefix, hidden),
            **latent_attention_tensors(f"{prefix}.self_attn", hidden, attention, bias=bias),
            **ffn_tensors,
        }
        return Layer(index=index, attention=attention, ffn=ffn, norm=norm, tensors=tensors)

    n_layers = config.integer("num_hidden_layers", default=61)
    return blocks.decoder(
        config,
        vocab=vocab,
        hidden=hidden,
        layers=[layer(i, dense=not routed) for i, routed in enumerate(routes(config, n_layers, n_dense=3))],
        norm=norm,
        max_positions=max_positions,
        # A prediction layer has experts even where first_k_dense_replace leaves none in the main stack.
        mtp=mtp_layers(config, first=n_layers, vocab=vocab, hidden=hidden, layer=layer),
    )
