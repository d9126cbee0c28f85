"""Tiny random checkpoints made by transformers, and what transformers itself computes with them.

Every norm, bias and correction bias is randomised: left at ones and zeros, a forgotten one would not be noticed. Sizes are not powers of
two. Only tests import this module; the package never imports transformers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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

CASES: dict[str, tuple[str, dict[str, Any]]] = {
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
    "deepseek_v3-groups-yarn-biases": (
        "deepseek_v3",
        {
            **DEEPSEEK,
            "q_lora_rank": 22,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
            "rms_norm_eps": 1e-3,
        },
    ),
    "deepseek_v3-plain-q-unnormed-tied": (
        "deepseek_v3",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "n_routed_experts": 7,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "rope_interleave": False,
            "tie_word_embeddings": True,
        },
    ),
}


@dataclass
class OracleRun:
    """What transformers computed: logits `[B, S, V]`, and per MoE layer the executed expert ids and weights `[T, K]`."""

    logits_BSV: torch.Tensor
    ids: dict[int, torch.Tensor]
    weights: dict[int, torch.Tensor]


def make_oracle(family: str, keys: dict[str, Any], *, seed: int = 0) -> Any:
    """A random float32 model of transformers in evaluation mode, with every tensor far from its default."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{"num_nextn_predict_layers": 0, **keys} if family == "deepseek_v3" else keys)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            elif "correction_bias" in name:
                tensor.copy_(0.2 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(noise * (1.5 / tensor.shape[-1] ** 0.5))
    return model


def save(model: Any, folder: Path, *, hub_style: bool, shard: str = "40KB") -> Path:
    """Write the checkpoint in several shards; `hub_style` rewrites config.json with the keys that files on the Hub carry."""
    model.save_pretrained(folder, max_shard_size=shard)
    if hub_style:
        path = folder / "config.json"
        path.write_text(json.dumps(to_hub_style(json.loads(path.read_text()))))
    return folder


def to_hub_style(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` + `rope_scaling`, `torch_dtype`, `num_experts`, and no key that only newer transformers writes."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] == "deepseek_v3":
        for key in ("head_dim", "qk_head_dim"):
            config.pop(key)
        if config["rope_interleave"]:
            config.pop("rope_interleave")
    return config


def run_oracle(model: Any, ids_BS: torch.Tensor, *, implementation: str = "eager") -> OracleRun:
    """Forward pass; what the experts modules are called with is what was executed."""
    ids: dict[int, torch.Tensor] = {}
    weights: dict[int, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.experts", name)
        if match:

            def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = int(match[1])) -> None:
                called = [*args, *kwargs.values()]
                ids[layer], weights[layer] = called[1].clone(), called[2].clone()

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        logits = model(ids_BS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return OracleRun(logits, ids, weights)


def weight_map(ids_TK: torch.Tensor, weights_TK: torch.Tensor, n_experts: int) -> torch.Tensor:
    """Combine weights scattered to `[T, E]`: independent of the order of slots."""
    return torch.zeros(ids_TK.shape[0], n_experts).scatter_(1, ids_TK, weights_TK.float())
