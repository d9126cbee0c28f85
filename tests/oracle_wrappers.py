"""Tiny multimodal models of transformers: keys of their text model, of their vision tower, and of the wrapper. See oracle_models.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from oracle_sizes import DEEPSEEK
from transformers import AutoConfig, AutoModelForImageTextToText

_TEXT = {
    "vocab_size": 103, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_VISION = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_QWEN_VISION = {
    "depth": 1, "hidden_size": 24, "num_heads": 2, "intermediate_size": 20, "out_hidden_size": 48, "patch_size": 14,
    "deepstack_visual_indexes": [0],
}  # fmt: skip
_MROPE = {"rope_parameters": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 99.0}}
_INTERLEAVED_MROPE = {
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 99.0}
}

WRAPPER_CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({**_TEXT, "sliding_window": 6, "num_hidden_layers": 7}, _VISION, {"mm_tokens_per_image": 4}),
    "idefics3": (_TEXT, _VISION, {"pad_token_id": 0}),
    "internvl": (_TEXT, {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]}, {}),
    "kimi_k25": (
        {
            **DEEPSEEK, "q_lora_rank": 22, "n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 2, "topk_group": 1,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
        },
        {key: _VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
        {},
    ),
    "llama4": (
        {**_TEXT, "intermediate_size_mlp": 44, "num_local_experts": 5, "attention_chunk_size": 5, "interleave_moe_layer_step": 2},
        {**_VISION, "projector_input_dim": 20, "projector_output_dim": 20, "vision_output_dim": 20},
        {},
    ),
    "llava": (_TEXT, {**_VISION, "model_type": "clip_vision_model"}, {}),
    "llava_next": ({**_TEXT, "model_type": "mistral", "sliding_window": 7}, {**_VISION, "model_type": "clip_vision_model"}, {}),
    "llava_onevision": (_TEXT, {**_VISION, "model_type": "siglip_vision_model"}, {}),
    "mistral3": ({**_TEXT, "sliding_window": 7}, {**_VISION, "head_dim": 12}, {}),
    "qwen2_5_vl": ({**_TEXT, **_MROPE}, _QWEN_VISION, {}),
    "qwen2_vl": ({**_TEXT, **_MROPE}, {**_QWEN_VISION, "embed_dim": 24, "hidden_size": 48}, {}),
    "qwen3_vl": ({**_TEXT, **_INTERLEAVED_MROPE}, _QWEN_VISION, {}),
    "qwen3_vl_moe": (
        {**_TEXT, **_INTERLEAVED_MROPE, "moe_intermediate_size": 28, "num_experts": 5, "num_experts_per_tok": 2, "mlp_only_layers": [1]},
        _QWEN_VISION,
        {},
    ),
    "smolvlm": (_TEXT, _VISION, {"pad_token_id": 0}),
}  # fmt: skip


def make_wrapper(model_type: str, *, tied: bool) -> Any:
    """A random float32 multimodal model in evaluation mode, with every tensor far from its default."""
    text, vision, keys = WRAPPER_CASES[model_type]
    config = AutoConfig.for_model(
        model_type, text_config={**text, "tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied, **keys
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            spread = 0.3 * noise + 1 if "norm" in name else 0.1 * noise if tensor.ndim < 2 else noise * (1.5 / tensor.shape[-1] ** 0.5)
            tensor.copy_(spread)
        for name, tensor in model.named_buffers():
            if "correction_bias" in name:
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


def save_in_memory_names(model: Any, folder: Path) -> Path:
    """Write the tensors under the names that they have inside transformers, in several shards."""
    model.config.save_pretrained(folder)
    tied = model.config.tie_word_embeddings
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name.endswith("lm_head.weight"))}
    save_torch_state_dict(tensors, folder, max_shard_size="60KB")
    return folder
