"""Tiny configurations of families whose routers take the top K of a softmax, and kin; see oracle_models.py."""

from __future__ import annotations

from typing import Any

from oracle_sizes import LLAMA3, MOE, QWEN, YARN

GRANITE = {**MOE, "intermediate_size": 28, "num_local_experts": 7, "num_experts_per_tok": 3}
MULTIPLIERS = {"embedding_multiplier": 3.7, "attention_multiplier": 0.11, "residual_multiplier": 0.6, "logits_scaling": 2.3}
LING = {**MOE, "moe_intermediate_size": 28, "num_experts": 7}

CLASSIC_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-window": ("mixtral", {**MOE, "intermediate_size": 52, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7}),
    "mixtral-tied-headdim-yarn": (
        "mixtral",
        {
            **MOE,
            "intermediate_size": 36,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "head_dim": 12,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
    "qwen3_moe-normed-mixed-layers": (
        "qwen3_moe",
        {**QWEN, "num_experts": 9, "num_experts_per_tok": 4, "norm_topk_prob": True, "mlp_only_layers": [1], "attention_bias": True},
    ),
    "qwen3_moe-unnormed-window-tied": (
        "qwen3_moe",
        {
            **QWEN,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_moe-window-rule-mixed-layers": (
        "qwen2_moe",
        {
            **QWEN,
            "num_hidden_layers": 5,
            "shared_expert_intermediate_size": 36,
            "num_experts": 9,
            "num_experts_per_tok": 4,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 4,
        },
    ),
    "qwen2_moe-window-list-normed-tied-yarn": (
        "qwen2_moe",
        {
            **MOE,
            "intermediate_size": 56,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 44,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
    "qwen2_moe-no-window": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 36, "num_experts": 5, "num_experts_per_tok": 1}),
    "olmoe-clip-biases-llama3": (
        "olmoe",
        {
            **MOE,
            "intermediate_size": 28,
            "num_experts": 9,
            "num_experts_per_tok": 4,
            "clip_qkv": 0.9,
            "attention_bias": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "olmoe-normed-tied-linear": (
        "olmoe",
        {
            **MOE,
            "num_key_value_heads": None,
            "intermediate_size": 20,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 7e3, "factor": 3.0},
        },
    ),
    "granitemoe-multipliers-tied-biases": (
        "granitemoe",
        {**GRANITE, **MULTIPLIERS, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    ),
    "granitemoe-headdim-dynamic": (
        "granitemoe",
        {
            **GRANITE,
            "head_dim": 10,
            "attention_multiplier": 0.3,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
        },
    ),
    "granitemoeshared-multipliers": (
        "granitemoeshared",
        {**GRANITE, **MULTIPLIERS, "shared_intermediate_size": 36, "tie_word_embeddings": True},
    ),
    "granitemoeshared-none-biases-yarn": (
        "granitemoeshared",
        {**GRANITE, "shared_intermediate_size": 0, "attention_multiplier": 0.2, "attention_bias": True, "rope_parameters": YARN},
    ),
    "hunyuan_v1_moe-alpha-topk-list": (
        "hunyuan_v1_moe",
        {
            **MOE,
            "intermediate_size": 28,
            "head_dim": 10,
            "num_experts": 7,
            "moe_topk": [1, 3, 2],
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 1.0, "alpha": 50.0},
        },
    ),
    "hunyuan_v1_moe-biases-dynamic": (
        "hunyuan_v1_moe",
        {
            **MOE,
            "intermediate_size": 20,
            "head_dim": 8,
            "num_experts": 5,
            "moe_topk": 2,
            "attention_bias": True,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
        },
    ),
    "bailing_moe-norm-head-shared": (
        "bailing_moe",
        {
            **LING,
            "head_dim": 10,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "norm_head": True,
            "use_qkv_bias": True,
            "use_bias": False,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
            "max_position_embeddings": 16,
        },
    ),
    "bailing_moe-unnormed-tied-dense-first-yarn": (
        "bailing_moe",
        {
            **LING,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "first_k_dense_replace": 1,
            "intermediate_size": 56,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN, "mscale": 0.7},
        },
    ),
    "bailing_moe-one-expert-linear": (
        "bailing_moe",
        {**LING, "num_experts_per_tok": 1, "rope_parameters": {"rope_type": "linear", "rope_theta": 7e3, "factor": 3.0}},
    ),
}
