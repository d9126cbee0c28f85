"""Ling of the first generation (`bailing_moe`), which transformers lacks: its formulas as a plain model that transformers can load.

Written from the rules of the code published with the weights (github.com/inclusionAI/Ling), at inference. Only tests import this module.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class BailingMoeConfig(PreTrainedConfig):
    model_type = "bailing_moe"

    vocab_size: int = 30592
    hidden_size: int = 1024
    intermediate_size: int | None = None
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 0
    head_dim: int | None = None
    use_qkv_bias: bool = False
    use_bias: bool = True
    rms_norm_eps: float = 1e-5
    norm_head: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 16384
    rope_parameters: dict | None = None
    num_experts: int = 16
    num_shared_experts: int = 0
    num_experts_per_tok: int = 2
    norm_topk_prob: bool = True
    moe_intermediate_size: int | None = None
    first_k_dense_replace: int = 0


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


class Block(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.ModuleList):
    def forward(self, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """sum_k w_k expert_k(x), in float32, rounded once."""
        slots_TKH = x_TH.new_empty(*ids_TK.shape, x_TH.shape[1])
        for e, expert in enumerate(self):
            slots_TKH[ids_TK == e] = expert(x_TH[(ids_TK == e).any(1)])
        return (slots_TKH.float() * weights_TK[..., None]).sum(1).to(x_TH.dtype)


class MoE(nn.Module):
    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__()
        self.config, width = config, config.moe_intermediate_size
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(Block(config.hidden_size, width) for _ in range(config.num_experts))
        if config.num_shared_experts:
            self.shared_experts = Block(config.hidden_size, width * config.num_shared_experts)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_TH = x_BSH.flatten(0, 1)
        top_k = self.config.num_experts_per_tok
        weights_TK, ids_TK = self.gate(x_TH).softmax(-1, dtype=torch.float32).topk(top_k)
        if top_k > 1 and self.config.norm_topk_prob:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        y_BSH = self.experts(x_TH, ids_TK, weights_TK).view_as(x_BSH)
        return y_BSH + self.shared_experts(x_BSH) if self.config.num_shared_experts else y_BSH


class Attention(nn.Module):
    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__()
        self.config, self.heads, self.kv_heads = config, config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim or config.hidden_size // self.heads
        width = (self.heads + 2 * self.kv_heads) * self.size
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.use_qkv_bias)
        self.dense = nn.Linear(self.heads * self.size, config.hidden_size, bias=config.use_bias)

    def forward(self, x_BSH: Tensor) -> Tensor:
        B, S, _ = x_BSH.shape
        heads = self.query_key_value(x_BSH).view(B, S, -1, self.size).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        cos, sin = (table.to(x_BSH.dtype) for table in self._tables(S))
        q, k = (torch.cat((a * cos - b * sin, a * sin + b * cos), -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / math.sqrt(self.size))
        return self.dense(y.transpose(1, 2).reshape(B, S, -1))

    def _tables(self, n_positions: int) -> tuple[Tensor, Tensor]:
        rope, size, most = self.config.rope_parameters, self.size, self.config.max_position_embeddings
        theta, kind, factor, scale = rope["rope_theta"], rope["rope_type"], rope.get("factor", 1.0), 1.0
        if kind == "dynamic" and n_positions > most:
            theta *= (factor * n_positions / most - (factor - 1)) ** (size / (size - 2))
        pair = torch.arange(size // 2)
        frequency = theta ** (-2 * pair / size)
        if kind == "linear":
            frequency = frequency / factor
        if kind == "yarn":
            length = rope.get("original_max_position_embeddings", 4096)
            turns = {key: rope.get(key, usual) for key, usual in (("beta_fast", 32), ("beta_slow", 1))}
            low, high = (size * math.log(length / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in turns.values())
            low, high = max(math.floor(low), 0), min(math.ceil(high), size - 1)
            slow = ((pair - low) / (high - low)).clamp(0, 1)
            frequency = frequency / factor * slow + frequency * (1 - slow)
            mscale, all_dim = (0.1 * rope.get(key, usual) * math.log(factor) + 1 for key, usual in (("mscale", 1), ("mscale_all_dim", 0)))
            scale = mscale / all_dim
        angle = torch.arange(n_positions)[:, None] * frequency
        return angle.cos() * scale, angle.sin() * scale


class DecoderLayer(nn.Module):
    def __init__(self, config: BailingMoeConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(config)
        dense = index < config.first_k_dense_replace
        self.mlp = Block(hidden, config.intermediate_size) if dense else MoE(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_BSH = x_BSH + self.attention(self.input_layernorm(x_BSH))
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


class Decoder(nn.Module):
    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSH = self.word_embeddings(ids_BS)
        for layer in self.layers:
            x_BSH = layer(x_BSH)
        return self.norm(x_BSH)


class BailingMoeForCausalLM(PreTrainedModel):
    config_class = BailingMoeConfig
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_experts_implementation(self, experts_implementation: str) -> None:
        """There is one only."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        head_VH = self.lm_head.weight
        if self.config.norm_head:
            head_VH = (head_VH.float() / (head_VH.float().norm(dim=0) + 1e-7)).to(head_VH.dtype)
        return CausalLMOutput(logits=F.linear(self.model(input_ids), head_VH))


AutoConfig.register("bailing_moe", BailingMoeConfig)
AutoModelForCausalLM.register(BailingMoeConfig, BailingMoeForCausalLM)
