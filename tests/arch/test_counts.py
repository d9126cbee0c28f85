"""What is counted from a spec, against the tensors that transformers itself has, for every configuration of every family."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle

from moectl.arch import counts
from moectl.arch.parts import DenseFFN, GroupedQueryAttention, LatentAttention, MoE
from moectl.arch.registry import build_spec
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef

# The first that is found in a name tells the part.
PARTS = {
    "embedding": r"(embed_tokens|word_embeddings)\.",
    "head": r"^lm_head\.",
    "attention": r"\.(self_attn|attention)\.",
    "shared_experts": r"shared",
    "routed_experts": r"experts\.(gate_up|down|gate_proj|up_proj|\d)",
    "router": r"(\.gate\.(weight|wg|expert_bias|e_score)|router|correction_bias)",
    "norms": r"(norm)\.",
    "dense_ffn": r"\.(mlp|feed_forward)\.",
}


def part_of(name: str) -> str:
    return next(part for part, pattern in PARTS.items() if re.search(pattern, name))


def tensors_of(case: str) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    oracle = make_oracle(*CASES[case])
    tensors = dict(oracle.state_dict())
    if oracle.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return build_spec(json.loads(oracle.config.to_json_string(use_diff=False))), tensors


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_counted_once_and_in_its_part(case: str) -> None:
    spec, tensors = tensors_of(case)
    parameters = counts.count_parameters(spec)
    assert parameters.total == sum(ref.numel for ref in spec.refs()) == sum(tensor.numel() for tensor in tensors.values())
    expected = dict.fromkeys(PARTS, 0)
    for name, tensor in tensors.items():
        expected[part_of(name)] += tensor.numel()
    assert {part: getattr(parameters, part) for part in PARTS} == expected
    assert parameters.total == sum(expected.values())


@pytest.mark.parametrize("case", CASES)
def test_active_leaves_out_what_a_token_does_not_touch(case: str) -> None:
    spec, _ = tensors_of(case)
    idle = 0 if spec.tied else spec.tensors["embed"].numel
    for layer in spec.layers:
        if isinstance(layer.ffn, MoE):
            for expert in range(layer.ffn.router.top_k, layer.ffn.router.n_experts):
                idle += sum(ref.numel for ref in layer.ffn.experts.refs(expert))
    assert counts.count_parameters(spec).active == counts.count_parameters(spec).total - idle


def layer(attention: GroupedQueryAttention | LatentAttention) -> Layer:
    spec = build_spec({"model_type": "llama"})
    return replace(spec.layers[0], attention=attention)


@pytest.mark.parametrize("context", [1, 7, 12, 30])
def test_mean_keys_are_those_seen(context: int) -> None:
    """Counted token by token; half of its own key is left out, which makes it context / 2 where nothing limits the view."""
    attention = build_spec({"model_type": "llama"}).layers[0].attention
    assert isinstance(attention, GroupedQueryAttention)
    assert counts.mean_keys(layer(attention), context) == context / 2
    for window in (1, 5, 12, 40):
        seen = sum(min(position, window - 1) + 1 for position in range(context)) / context
        got = counts.mean_keys(layer(replace(attention, window=window)), context)
        assert got == pytest.approx(seen - 0.5 * min(window, context) / context)
    for chunk in (1, 5, 12, 40):
        seen = sum(position % chunk + 1 for position in range(context)) / context
        assert counts.mean_keys(layer(replace(attention, chunk=chunk)), context) == pytest.approx(seen - 0.5)


def test_a_window_saves_arithmetic_only_in_attention() -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 2}
    whole, windowed = (build_spec({**config, "sliding_window": window}) for window in (None, 512))
    attention = whole.layers[0].attention
    assert isinstance(attention, GroupedQueryAttention)
    saved = counts.forward_flops_per_token(whole, 8192) - counts.forward_flops_per_token(windowed, 8192)
    keys = 8192 / 2 - (512 - 512**2 / (2 * 8192))
    assert saved == pytest.approx(2 * 2 * 2 * attention.n_heads * attention.head_dim * keys)
    assert isinstance(whole.layers[0].ffn, DenseFFN)


def test_widths_are_of_what_a_layer_computes() -> None:
    def first(model_type: str, **keys: int | None) -> Layer:
        return build_spec({"model_type": model_type, "num_hidden_layers": 1, **keys}).layers[0]

    grouped = first("qwen3", num_attention_heads=12, num_key_value_heads=4, head_dim=10, intermediate_size=77)
    assert (counts.query_width(grouped), counts.attention_width(grouped), counts.ffn_values(grouped)) == (120, 200, 4 * 77)
    sizes = {"num_attention_heads": 3, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14, "kv_lora_rank": 5}
    latent = first("deepseek_v3", **sizes, first_k_dense_replace=0, moe_intermediate_size=7, n_shared_experts=4)
    assert (counts.query_width(latent), counts.attention_width(latent), counts.ffn_values(latent)) == (48, 3 * (16 + 16 + 14), 4 * 28)
    clamped = first("gpt_oss", intermediate_size=9)
    assert counts.ffn_values(clamped) == 5 * 9


def test_reading_a_part_of_a_matrix_holds_the_whole() -> None:
    rows = TensorRef(name="a", shape=(6, 10, 4), index=2, rows=(0, 5))
    assert counts.read_values(rows) == 20
    assert counts.read_values(TensorRef(name="a", shape=(6, 4, 10), index=2, transposed=True, rows=(0, 5))) == 3 * 40
    assert counts.read_values(TensorRef(name="a", shape=(6, 10, 4), index=2, rows=(1, 10), row_step=2)) == 3 * 40
