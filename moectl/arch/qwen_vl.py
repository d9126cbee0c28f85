"""Text models of the Qwen vision-language models (arXiv 2409.12191, 2502.13923, 2511.21631): those of Qwen2, Qwen3 and Qwen3-MoE.

They differ in what absent keys mean, in positions for images, which on text alone are the usual ones, and in Qwen3-VL-MoE in experts that
lie stacked on disk, `[in, out]`, and are always normalised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from moectl.arch import blocks, qwen2, qwen3, qwen3_moe
from moectl.arch.config import Config
from moectl.arch.fused import FusedNames
from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec

_QWEN2_VL: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "max_window_layers": 80,
}
_QWEN3_VL: dict[str, Any] = {"max_position_embeddings": 128_000, "rope_theta": 500_000.0}
_QWEN3_VL_MOE: dict[str, Any] = {
    **_QWEN3_VL,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 4,
    "tie_word_embeddings": True,
}
# Keys of the text-only families that these have no use for.
_NO_WINDOW = {"use_sliding_window": False, "layer_types": None}


def qwen2_vl(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of the text model of Qwen2-VL and Qwen2.5-VL. Raises ModelError."""
    return qwen2.spec(_text_only(config, _QWEN2_VL), present)


def qwen3_vl(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of the text model of Qwen3-VL. Raises ModelError."""
    return qwen3.spec(_text_only(config, _QWEN3_VL, _NO_WINDOW), present)


def qwen3_vl_moe(config: Config, present: Collection[str]) -> ModelSpec:
    """ModelSpec of the text model of Qwen3-VL-MoE. Raises ModelError."""
    experts = {config.first("num_experts", "num_local_experts"): 60}
    config = _text_only(config, {**_QWEN3_VL_MOE, **experts}, {**_NO_WINDOW, "norm_topk_prob": True})
    spec = qwen3_moe.spec(config, present)
    return replace(spec, layers=tuple(_with_transposed_experts(layer, spec.hidden_size, present) for layer in spec.layers))


def _text_only(config: Config, defaults: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> Config:
    """The keys as the text-only family reads them; for text the three positions of an image patch are one and the same."""
    values = {**defaults, **config.values, **(fixed or {})}
    for key in ("rope_parameters", "rope_scaling"):
        section = values.get(key)
        if isinstance(section, dict):
            values[key] = {name: "default" if value == "mrope" else value for name, value in section.items()}
    return Config(values, where=config.where)


def _with_transposed_experts(layer: Layer, hidden: int, present: Collection[str]) -> Layer:
    """As on the Hub, unless `present` is of the fused layout, which the shapes tell."""
    ffn = layer.ffn
    if not isinstance(ffn, MoE):
        return layer
    prefix, n_experts = f"model.layers.{layer.index}.mlp.experts", ffn.router.n_experts
    shape = (n_experts, 2 * ffn.expert_width, hidden)
    if isinstance(present, FusedNames) or (isinstance(present, Mapping) and present.get(f"{prefix}.gate_up_proj") == shape):
        return layer
    experts = blocks.transposed_expert_tensors(prefix, n_experts=n_experts, hidden=hidden, width=ffn.expert_width)
    return replace(layer, ffn=replace(ffn, experts=experts))
