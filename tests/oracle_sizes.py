"""Small sizes that the oracle's configurations share: none a power of two, so that no two dimensions can be confused."""

from __future__ import annotations

# A small theta spreads the ramp over several pairs, so that its ends matter.
YARN = {"rope_type": "yarn", "rope_theta": 10.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA = {"vocab_size": 103, "hidden_size": 60, "intermediate_size": 92, "num_hidden_layers": 3, "num_attention_heads": 6}
MOE = {"vocab_size": 103, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
QWEN = {**MOE, "intermediate_size": 56, "moe_intermediate_size": 28, "head_dim": 10}
DEEPSEEK = {
    **MOE,
    "num_key_value_heads": 6,
    "intermediate_size": 72,
    "moe_intermediate_size": 20,
    "kv_lora_rank": 18,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
}
