"""Tiny configurations of families with machinery of their own (sinks, input weighting, sparsemixer); see oracle_models.py."""

from __future__ import annotations

from typing import Any

from oracle_sizes import LLAMA3, MOE, YARN

# Five pairs of dimensions rotate; the texts of the tests stay below the original length.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 50.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0],
    "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 64,
}

SINGULAR_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss-windows-yarn": (
        "gpt_oss",
        {
            **MOE,
            "head_dim": 10,
            "intermediate_size": 36,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "sliding_window": 7,
            "swiglu_alpha": 1.3,
            "swiglu_limit": 0.9,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "gpt_oss-unbiased-tied-layer-types": (
        "gpt_oss",
        {
            **MOE,
            "head_dim": 8,
            "intermediate_size": 44,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "llama4_text-dense-between-llama3": (
        "llama4_text",
        {
            **MOE,
            "num_hidden_layers": 4,
            "head_dim": 10,
            "intermediate_size": 28,
            "intermediate_size_mlp": 52,
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 7,
            "floor_scale": 5,
            "attn_scale": 0.3,
            "attention_bias": True,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
        },
    ),
    "llama4_text-lists-plain-tied": (
        "llama4_text",
        {
            **MOE,
            "head_dim": 8,
            "intermediate_size": 36,
            "intermediate_size_mlp": 44,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "moe_layers": [0, 2],
            "no_rope_layers": [0, 1, 1],
            "layer_types": ["full_attention", "chunked_attention", "full_attention"],
            "attention_chunk_size": 4,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "tie_word_embeddings": True,
        },
    ),
    "phimoe-longrope-biases-window": (
        "phimoe",
        {
            **MOE,
            "head_dim": 10,
            "intermediate_size": 28,
            "num_local_experts": 7,
            "router_jitter_noise": 0.3,
            "sliding_window": 6,
            "attention_bias": True,
            "lm_head_bias": True,
            "rms_norm_eps": 1e-2,
            "rope_parameters": LONGROPE,
        },
    ),
    "phimoe-plain-tied": (
        "phimoe",
        {**MOE, "intermediate_size": 36, "num_local_experts": 5, "tie_word_embeddings": True},
    ),
}
