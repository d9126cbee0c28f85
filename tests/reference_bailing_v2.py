"""Ling 2.0 (`bailing_moe_v2`), which transformers lacks: its formulas as a plain model that transformers can load.

Written from the rules of the code published with the weights (github.com/inclusionAI/Ling-V2), at inference; prediction layers follow the
main stack, as in the files that the serving engines load. Only tests import this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reference_bailing import Block, Experts, Norm
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class BailingMoeV2Config(PreTrainedConfig):
    model_type = "bailing_moe_v2"

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    use_qkv_bias: bool = False
    use_bias: bool = False
    use_qk_norm: bool = True
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    rope_parameters: dict | None = None
    num_experts: int = 256
    num_shared_experts: int | None = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    moe_intermediate_size: int = 512
    first_k_dense_replace: int = 1
    num_nextn_predict_layers: int = 0
    default_theta = 600_000.0


class Gate(nn.Module):
    def __init__(self, config: BailingMoeV2Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.expert_bias = nn.Buffer(torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        p_TE = torch.sigmoid(x_TH.float() @ self.weight.float().T)
        c_TGX = (p_TE + self.expert_bias).unflatten(1, (config.n_group, -1))
        best_TG = c_TGX.topk(2, -1).values.sum(-1).topk(config.topk_group).indices
        allowed_TG = F.one_hot(best_TG, config.n_group).sum(1).bool()
        ids_TK = c_TGX.where(allowed_TG[..., None], -torch.inf).flatten(1).topk(config.num_experts_per_tok).indices
        weights_TK = p_TE.gather(1, ids_TK)
        if config.num_experts_per_tok > 1:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        return ids_TK, weights_TK * config.routed_scaling_factor


class MoE(nn.Module):
    def __init__(self, config: BailingMoeV2Config) -> None:
        super().__init__()
        self.gate, shape = Gate(config), (config.hidden_size, config.moe_intermediate_size)
        self.experts = Experts(Block(*shape) for _ in range(config.num_experts))
        self.shared_experts = None
        if config.num_shared_experts is not None:
            self.shared_experts = Block(config.hidden_size, config.moe_intermediate_size * config.num_shared_experts)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_TH = x_BSH.flatten(0, 1)
        y_BSH = self.experts(x_TH, *self.gate(x_TH)).view_as(x_BSH)
        return y_BSH if self.shared_experts is None else y_BSH + self.shared_experts(x_BSH)


class Attention(nn.Module):
    def __init__(self, config: BailingMoeV2Config) -> None:
        super().__init__()
        self.config, self.size = config, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = (self.heads + 2 * self.kv_heads) * self.size
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=config.use_qkv_bias)
        self.dense = nn.Linear(self.heads * self.size, config.hidden_size, bias=config.use_bias)
        if config.use_qk_norm:
            self.query_layernorm, self.key_layernorm = Norm(self.size, config.rms_norm_eps), Norm(self.size, config.rms_norm_eps)

    def forward(self, x_BSH: Tensor) -> Tensor:
        B, S, _ = x_BSH.shape
        heads = self.query_key_value(x_BSH).view(B, S, -1, self.size).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.config.use_qk_norm:
            q, k = self.query_layernorm(q), self.key_layernorm(k)
        q, k = self._rotate(q), self._rotate(k)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dense(y.transpose(1, 2).reshape(B, S, -1))

    def _rotate(self, x: Tensor) -> Tensor:
        """The first values of a head rotate, the others stay."""
        rope = self.config.rope_parameters
        dim = int(self.size * rope.get("partial_rotary_factor", 1.0))
        frequency = rope["rope_theta"] ** (-2 * torch.arange(dim // 2) / dim) / rope.get("factor", 1.0)
        angle = torch.arange(x.shape[-2])[:, None] * frequency
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b, rest = x.split([dim // 2, dim // 2, self.size - dim], -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)


class DecoderLayer(nn.Module):
    def __init__(self, config: BailingMoeV2Config, index: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.attention = Attention(config)
        self.mlp = MoE(config) if index >= config.first_k_dense_replace else Block(hidden, config.intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = Norm(hidden, eps), Norm(hidden, eps)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_BSH = x_BSH + self.attention(self.input_layernorm(x_BSH))
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


class PredictionLayer(DecoderLayer):
    """Fed with the embeddings of the tokens one further on, and the normed states before it."""

    def __init__(self, config: BailingMoeV2Config, index: int) -> None:
        super().__init__(config, index)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm, self.final_layernorm = (Norm(hidden, eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)

    def forward(self, embedded_BSH: Tensor, x_BSH: Tensor) -> Tensor:  # type: ignore[override]
        x_BSH = self.eh_proj(torch.cat([self.enorm(embedded_BSH), self.hnorm(x_BSH)], -1))
        return self.final_layernorm(super().forward(x_BSH))


class Decoder(nn.Module):
    def __init__(self, config: BailingMoeV2Config) -> None:
        super().__init__()
        n, ahead = config.num_hidden_layers, config.num_nextn_predict_layers
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = [*(DecoderLayer(config, i) for i in range(n)), *(PredictionLayer(config, n + i) for i in range(ahead))]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class BailingMoeV2ForCausalLM(PreTrainedModel):
    config_class = BailingMoeV2Config
    _tied_weights_keys = {"lm_head.weight": "model.word_embeddings.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ("expert_bias",)

    def __init__(self, config: BailingMoeV2Config) -> None:
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

    def hidden(self, input_ids: Tensor) -> Tensor:
        x_BSH = self.model.word_embeddings(input_ids)
        for layer in self.model.layers[: self.config.num_hidden_layers]:
            x_BSH = layer(x_BSH)
        return self.model.norm(x_BSH)

    def predict_ahead(self, n: int, x_BSH: Tensor, next_ids: Tensor) -> Tensor:
        return self.model.layers[self.config.num_hidden_layers + n](self.model.word_embeddings(next_ids), x_BSH)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.hidden(input_ids)))


AutoConfig.register("bailing_moe_v2", BailingMoeV2Config)
AutoModelForCausalLM.register(BailingMoeV2Config, BailingMoeV2ForCausalLM)
