"""Configurations of published models (huggingface.co), where they differ from their family's defaults. Only tests import this."""

from __future__ import annotations

from typing import Any

DEEPSEEK_MOE_16B: dict[str, Any] = {
    "model_type": "deepseek", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "softmax",
}  # fmt: skip
DEEPSEEK_V2: dict[str, Any] = {
    "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60,
    "num_attention_heads": 128, "n_routed_experts": 160, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
    "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3, "routed_scaling_factor": 16.0,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}
DEEPSEEK_67B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 102400, "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 95,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
MIXTRAL_8X7B: dict[str, Any] = {"model_type": "mixtral"}
OLMOE_1B_7B: dict[str, Any] = {"model_type": "olmoe", "intermediate_size": 1024}
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8,
}  # fmt: skip
GPT_OSS_120B: dict[str, Any] = {"model_type": "gpt_oss"}
