"""Tiny quantised checkpoints, and twins of them that hold the same weights decoded, by formulas that share nothing with the package's.

    twins = deepseek_fp8(tmp_path)
    twins.quantised, twins.bfloat16, twins.float32      # folders

Weights are random and quantised here. Only tests import this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from moectl.arch.parts import MoE
from moectl.arch.registry import build_spec

# Shapes: R rows, C columns; E experts, G groups of 32 values, B bytes.

Tensors = dict[str, torch.Tensor]
BLOCK = (16, 16)
DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": 103, "hidden_size": 44, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 6, "intermediate_size": 72, "moe_intermediate_size": 20, "q_lora_rank": 22, "kv_lora_rank": 18,
    "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 14, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 1, "rope_theta": 100.0,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": list(BLOCK),
    "modules_to_not_convert": ["lm_head"],
}
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 103, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 64, "num_local_experts": 5, "num_experts_per_tok": 2,
    "sliding_window": 7, "max_position_embeddings": 256, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# What DeepSeek leaves in bfloat16 or float32.
_PLAIN = re.compile(r".*(norm|embed_tokens|lm_head|shared_head|eh_proj|mlp\.gate\.|bias).*")


class Twins(NamedTuple):
    """One model three times."""

    quantised: Path
    bfloat16: Path
    float32: Path


def deepseek_fp8(root: Path, *, wrapped: bool = False, everything: bool = False, scales: torch.dtype = torch.float32) -> Twins:
    """A DeepSeek-V3 in FP8 with a multi-token-prediction layer; `wrapped` in a Kimi-K2.5, `everything` with embedding and head in FP8."""
    quantised, narrow, wide = (dict[str, torch.Tensor]() for _ in range(3))
    prefix = "language_model." if wrapped else ""
    for name, tensor in random_weights(DEEPSEEK).items():
        stored = prefix + name
        if _PLAIN.fullmatch(name) and not (everything and name in ("model.embed_tokens.weight", "lm_head.weight")):
            plain = tensor if "correction_bias" in name else tensor.bfloat16()
            quantised[stored] = narrow[stored] = plain
            wide[stored] = plain.float()
            continue
        codes, factors = quantise_fp8(tensor, scales)
        quantised[stored], quantised[f"{stored}_scale_inv"] = codes, factors
        wide[stored] = dequantise_fp8(codes, factors)
        narrow[stored] = wide[stored].bfloat16()
    config: dict[str, Any] = DEEPSEEK
    if wrapped:
        config = {"model_type": "kimi_k25", "text_config": DEEPSEEK, "tie_word_embeddings": False}
        for tensors in (quantised, narrow, wide):
            tensors["vision_tower.patch_embed.weight"] = torch.zeros(3, 5)
    return _write(root, config, FP8, quantised, narrow, wide)


def gpt_oss_mxfp4(root: Path) -> Twins:
    """A gpt-oss whose experts are in MXFP4; in the twins they lie transposed."""
    quantised, narrow, wide = (dict[str, torch.Tensor]() for _ in range(3))
    for name, tensor in random_weights(GPT_OSS).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            quantised[name] = narrow[name] = tensor.bfloat16()
            wide[name] = quantised[name].float()
            continue
        quantised[f"{name}_blocks"], quantised[f"{name}_scales"] = quantise_mxfp4(tensor.transpose(1, 2).contiguous())
        decoded = dequantise_mxfp4(quantised[f"{name}_blocks"], quantised[f"{name}_scales"]).transpose(1, 2).contiguous()
        wide[name], narrow[name] = decoded, decoded.bfloat16()
    return _write(root, GPT_OSS, MXFP4, quantised, narrow, wide)


def random_weights(config: Mapping[str, Any]) -> Tensors:
    """A float32 tensor of every name a checkpoint of `config` holds, multi-token-prediction layers included."""
    spec = build_spec(config)
    refs = [*spec.refs(), *spec.mtp_refs()]
    for layer in (*spec.layers, *(ahead.layer for ahead in spec.mtp)):
        if isinstance(layer.ffn, MoE):
            refs += [ref for expert in range(layer.ffn.router.n_experts) for ref in layer.ffn.experts.refs(expert)]
    generator = torch.Generator().manual_seed(3)
    tensors: Tensors = {}
    for ref in refs:
        if ref.name not in tensors:
            noise = torch.randn(ref.shape, generator=generator)
            stacked = len(ref.shape) > 2 or not ref.name.endswith(("norm.weight", "bias", "sinks"))
            spread = ref.shape[-1] ** -0.5 if stacked else 0.2
            tensors[ref.name] = 1 + 0.3 * noise if ref.name.endswith("norm.weight") else noise * spread * 1.5
    return tensors


def quantise_fp8(weight_RC: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales; the largest value of a block gets the largest code."""
    R, C = weight_RC.shape
    scales_YX = torch.empty(-(-R // BLOCK[0]), -(-C // BLOCK[1]))
    for y, rows in enumerate(weight_RC.split(BLOCK[0])):
        for x, block in enumerate(rows.split(BLOCK[1], dim=1)):
            scales_YX[y, x] = block.abs().max() / 440
    if dtype == torch.float8_e8m0fnu:
        scales_YX = scales_YX.log2().ceil().exp2()
    scales_YX = scales_YX.to(dtype)
    return (weight_RC / _spread(scales_YX, R, C)).to(torch.float8_e4m3fn), scales_YX


def dequantise_fp8(codes_RC: torch.Tensor, scales_YX: torch.Tensor) -> torch.Tensor:
    """Code times scale, in float32."""
    return codes_RC.float() * _spread(scales_YX, *codes_RC.shape)


def _spread(scales_YX: torch.Tensor, R: int, C: int) -> torch.Tensor:
    return scales_YX.float().repeat_interleave(BLOCK[0], 0)[:R].repeat_interleave(BLOCK[1], 1)[:, :C]


def quantise_mxfp4(weight_ERC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`blocks` uint8 [E, R, G, 16] and `scales` uint8 [E, R, G]; the nearest of the eight values and their negatives."""
    E, R, C = weight_ERC.shape
    groups = weight_ERC.view(E, R, C // 32, 32)
    exponents_ERG = (groups.abs().amax(-1) / 6).log2().ceil()
    scaled = groups / exponents_ERG.exp2()[..., None]
    codes = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1) + 8 * (scaled < 0)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), (exponents_ERG + 127).to(torch.uint8)


def dequantise_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [E, R, C]."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    values = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], dim=-1).flatten(-2)
    return (values * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


def write_shards(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """Scales in a shard of their own, as a shard's end may leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards = [{}, {}]
    for name, tensor in tensors.items():
        shards[name.endswith(("_scale_inv", "_scales"))][name] = tensor.contiguous()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        if shard:
            save_file(shard, folder / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Edit the tensors of a quantised checkpoint."""
    from safetensors.torch import load_file

    tensors: Tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    edit(tensors)
    write_shards(folder, json.loads((folder / "config.json").read_text()), tensors)


def _write(root: Path, config: Mapping[str, Any], quantisation: Mapping[str, Any], *tensors: Tensors) -> Twins:
    quantised, narrow, wide = tensors
    return Twins(
        write_shards(root / "quantised", {**config, "quantization_config": quantisation}, quantised),
        write_shards(root / "bfloat16", config, narrow),
        write_shards(root / "float32", config, wide),
    )
