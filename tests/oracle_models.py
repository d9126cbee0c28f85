"""Tiny random checkpoints made by transformers, and what transformers itself computes with them.

Every norm, bias and correction bias is randomised: left at ones and zeros, a forgotten one would not be noticed. Sizes are not powers of
two. Only tests import this module; the package never imports transformers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import reference_bailing  # noqa: F401, makes transformers know the family
import reference_bailing_v2  # noqa: F401, so does this
import reference_deepseek  # noqa: F401, and this
import torch
from huggingface_hub import save_torch_state_dict
from oracle_hub_styles import HUB_STYLES
from transformers import AutoConfig, AutoModelForCausalLM


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
            if "inv_freq" in name or "embed_scale" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name and not name.endswith("bias"):
                tensor.copy_(1 + 0.3 * noise)
            elif "correction_bias" in name:
                tensor.copy_(0.2 * noise)
            elif "sinks" in name:
                tensor.copy_(noise)
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


def save_in_memory_layout(model: Any, folder: Path) -> Path:
    """Write the tensors under the names that they have inside transformers 5: what it loads, not what it saves."""
    model.config.save_pretrained(folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    save_torch_state_dict(tensors, folder, max_shard_size="40KB")
    return folder


def to_hub_style(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` + `rope_scaling`, `torch_dtype`, `num_experts`, and no key that only newer transformers writes."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    if "sliding_attention" in rope:
        config["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], dict(rope["full_attention"])
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] in HUB_STYLES:
        HUB_STYLES[config["model_type"]](config)
    if config["model_type"] == "deepseek_v3":
        for key in ("head_dim", "qk_head_dim"):
            config.pop(key)
        if config["rope_interleave"]:
            config.pop("rope_interleave")
        config |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    return config


def run_oracle(model: Any, ids_BS: torch.Tensor, *, implementation: str = "eager") -> OracleRun:
    """Forward pass; what the experts modules are called with is what was executed."""
    ids: dict[int, torch.Tensor] = {}
    weights: dict[int, torch.Tensor] = {}
    handles = []

    def keep_scores(_module: Any, _args: Any, output: Any, layer: int) -> None:
        """llama 4: scores `[T, E]` that weigh the input of every expert, zero where a token does not go."""
        scores_TE, top_k = output[0], model.config.num_experts_per_tok
        assert (scores_TE.count_nonzero(-1) == top_k).all()
        weights[layer], ids[layer] = scores_TE.topk(top_k, dim=-1)

    weighs_input = model.config.model_type == "llama4_text"
    for name, module in model.named_modules():
        match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\." + ("router" if weighs_input else "experts"), name)
        if match and weighs_input:
            handles.append(module.register_forward_hook(partial(keep_scores, layer=int(match[1]))))
        elif match:

            def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = int(match[1])) -> None:
                called = [*args, *kwargs.values()]
                ids[layer], weights[layer] = called[1].clone(), called[2].clone()

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    if not weighs_input:
        model.set_experts_implementation(implementation)
    with torch.no_grad():
        logits = model(ids_BS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return OracleRun(logits, ids, weights)


def weight_map(ids_TK: torch.Tensor, weights_TK: torch.Tensor, n_experts: int) -> torch.Tensor:
    """Combine weights scattered to `[T, E]`: independent of the order of slots."""
    return torch.zeros(ids_TK.shape[0], n_experts).scatter_(1, ids_TK, weights_TK.float())
