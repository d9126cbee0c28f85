"""Tiny configurations of the dense families, with the awkward switches on: at least two of each family. See oracle_models.py."""

from __future__ import annotations

from typing import Any

from oracle_sizes import LLAMA, LLAMA3, YARN

_SMALL = {**LLAMA, "num_key_value_heads": 2, "head_dim": 12}
_PHI = {**LLAMA, "num_attention_heads": 3, "pad_token_id": None, "eos_token_id": 2}
# For the six pairs of dimensions that rotate in a head of 12, or in three fifths of one of 20.
_LONG_FACTORS = [1.5, 2.0, 3.0, 5.0, 8.0, 9.0]
_SHORT_FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5]

DENSE_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa-llama3-biases": (
        "llama",
        {**LLAMA, "num_key_value_heads": 2, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    ),
    "llama-tied-linear-headdim": (
        "llama",
        {
            **LLAMA,
            "head_dim": 14,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 7e3, "factor": 3.0},
        },
    ),
    "llama-yarn": ("llama", {**LLAMA, "rope_parameters": {**YARN, "truncate": False}}),
    "llama-dynamic-beyond-the-original-length": (
        "llama",
        {**LLAMA, "max_position_embeddings": 20, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.5}},
    ),
    "llama-plain-gelu": ("llama", {**LLAMA, "hidden_act": "gelu", "num_key_value_heads": 1}),
    "mistral-window-headdim": ("mistral", {**_SMALL, "sliding_window": 7, "rms_norm_eps": 1e-3}),
    "mistral-no-window-tied-yarn": (
        "mistral",
        {**LLAMA, "num_key_value_heads": 3, "sliding_window": None, "tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "qwen2-upper-layers-slide": (
        "qwen2",
        {**LLAMA, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2-tied-yarn-no-window": (
        "qwen2",
        {**LLAMA, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_window_layers": 0, "rope_parameters": YARN},
    ),
    "qwen3-layer-types-biases": (
        "qwen3",
        {
            **_SMALL,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rms_norm_eps": 1e-2,
        },
    ),
    "qwen3-tied-no-window": ("qwen3", {**_SMALL, "tie_word_embeddings": True, "max_window_layers": 1}),
    "phi3-partial-longrope-beyond-the-original-length": (
        "phi3",
        {
            **_PHI,
            "num_key_value_heads": 1,
            "max_position_embeddings": 80,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 50.0,
                "partial_rotary_factor": 0.6,
                "short_factor": _SHORT_FACTORS,
                "long_factor": _LONG_FACTORS,
            },
            "rms_norm_eps": 1e-3,
        },
    ),
    "phi3-longrope-within-the-original-length-window": (
        "phi3",
        {
            **_PHI,
            "num_attention_heads": 5,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 33,
            "sliding_window": 9,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 50.0,
                "short_factor": _SHORT_FACTORS,
                "long_factor": _LONG_FACTORS,
            },
        },
    ),
    "phi3-plain-partial": ("phi3", {**_PHI, "rope_parameters": {"rope_type": "default", "rope_theta": 99.0, "partial_rotary_factor": 0.7}}),
    "gemma2-caps-window": (
        "gemma2",
        {
            **_SMALL,
            "sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 33,
            "rms_norm_eps": 1e-3,
        },
    ),
    "gemma2-uncapped-untied-biases-layer-types": (
        "gemma2",
        {
            **_SMALL,
            "sliding_window": 9,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "linear", "rope_theta": 77.0, "factor": 3.0},
        },
    ),
    "gemma3_text-two-thetas": (
        "gemma3_text",
        {
            **_SMALL,
            "num_hidden_layers": 7,
            "sliding_window": 6,
            "query_pre_attn_scalar": 33,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            },
        },
    ),
    "gemma3_text-pattern-untied-biases-capped": (
        "gemma3_text",
        {
            **_SMALL,
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "final_logit_softcapping": 2.0,
            "hidden_activation": "gelu",
            "rope_parameters": {
                "full_attention": {**YARN, "truncate": True},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
            },
        },
    ),
}
