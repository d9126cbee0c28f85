"""DeepSeekMoE-16B (`deepseek`), which transformers lacks: its formulas as a plain model that transformers can load.

Written from the rules of the code published with the weights (github.com/deepseek-ai/DeepSeek-MoE), at inference: llama's attention, a
router that stays in the model's dtype. Only tests import this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reference_bailing import Block, Norm
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class DeepseekConfig(PreTrainedConfig):
    model_type = "deepseek"

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 30
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False


class Experts(nn.ModuleList):
    """Outputs weighted in the model's dtype and added in it, one expert after another, or as transformers' grouped experts add them."""

    implementation = "eager"

    def forward(self, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if self.implementation == "grouped_mm":
            slots_TKH = x_TH.new_empty(*ids_TK.shape, x_TH.shape[1])
            for e, expert in enumerate(self):
                slots_TKH[ids_TK == e] = expert(x_TH[(ids_TK == e).any(1)])
            return (slots_TKH * weights_TK[..., None]).sum(1)
        y_TH = torch.zeros_like(x_TH)
        for e, expert in enumerate(self):
            rows, slots = torch.where(ids_TK == e)
            y_TH = y_TH.index_add(0, rows, expert(x_TH[rows]) * weights_TK[rows, slots, None])
        return y_TH


class MoE(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config, hidden, width = config, config.hidden_size, config.moe_intermediate_size
        self.gate = nn.Linear(hidden, config.n_routed_experts, bias=False)
        self.experts = Experts(Block(hidden, width) for _ in range(config.n_routed_experts))
        if config.n_shared_experts is not None:
            self.shared_experts = Block(hidden, width * config.n_shared_experts)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_TH, top_k = x_BSH.flatten(0, 1), self.config.num_experts_per_tok
        weights_TK, ids_TK = self.gate(x_TH).softmax(-1).topk(top_k)
        if top_k > 1 and self.config.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        y_BSH = self.experts(x_TH, ids_TK, weights_TK).view_as(x_BSH)
        return y_BSH if self.config.n_shared_experts is None else y_BSH + self.shared_experts(x_BSH)


class Attention(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config, self.size, hidden = config, config.hidden_size // config.num_attention_heads, config.hidden_size
        self.heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        for name, heads in self.heads.items():
            self.add_module(f"{name}_proj", nn.Linear(hidden, heads * self.size, bias=config.attention_bias))
        self.o_proj = nn.Linear(hidden, hidden, bias=config.attention_bias)

    def forward(self, x_BSH: Tensor) -> Tensor:
        B, S, H = x_BSH.shape
        q, k, v = (getattr(self, f"{name}_proj")(x_BSH).view(B, S, n, self.size).transpose(1, 2) for name, n in self.heads.items())
        angle = torch.arange(S)[:, None] * self._frequencies(S)
        cos, sin = angle.cos().to(x_BSH.dtype), angle.sin().to(x_BSH.dtype)
        q, k = (torch.cat((a * cos - b * sin, a * sin + b * cos), -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        k, v = (each.repeat_interleave(self.heads["q"] // self.heads["k"], 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, S, H))

    def _frequencies(self, n_positions: int) -> Tensor:
        rope, size, most = self.config.rope_parameters, self.size, self.config.max_position_embeddings
        theta, factor = rope["rope_theta"], rope.get("factor", 1.0)
        if rope["rope_type"] == "dynamic" and n_positions > most:
            theta *= (factor * n_positions / most - (factor - 1)) ** (size / (size - 2))
        frequency = theta ** (-2 * torch.arange(size // 2) / size)
        return frequency / factor if rope["rope_type"] == "linear" else frequency


class DecoderLayer(nn.Module):
    def __init__(self, config: DeepseekConfig, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        routed = config.n_routed_experts is not None and index >= config.first_k_dense_replace and index % config.moe_layer_freq == 0
        self.mlp = MoE(config) if routed else Block(hidden, config.intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH))
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


class Decoder(nn.Module):
    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class DeepseekForCausalLM(PreTrainedModel):
    config_class = DeepseekConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_experts_implementation(self, experts_implementation: str) -> None:
        for module in self.modules():
            if isinstance(module, Experts):
                module.implementation = experts_implementation

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        x_BSH = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x_BSH = layer(x_BSH)
        return CausalLMOutput(logits=self.lm_head(self.model.norm(x_BSH)))


AutoConfig.register("deepseek", DeepseekConfig)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM)
