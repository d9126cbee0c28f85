"""Parameters from bare configurations against what papers and model cards state, with the convention of each; and bytes and caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_configs import (
    DEEPSEEK_67B,
    DEEPSEEK_MOE_16B,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GPT_OSS_120B,
    MIXTRAL_8X7B,
    OLMOE_1B_7B,
    QWEN3_30B_A3B,
)

import moectl
from moectl.inspection.result import PARTS, Inspection

# Billions, total and active as published; whether "active" counts the embedding table, the head or neither is what differs.
PUBLISHED: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "DeepSeek-V3": (DEEPSEEK_V3, 671, 37, "embedding and head"),
    "DeepSeek-V2": (DEEPSEEK_V2, 236, 21, "head"),
    "DeepSeekMoE-16B": (DEEPSEEK_MOE_16B, 16.4, 2.8, "embedding and head"),
    "Mixtral-8x7B": (MIXTRAL_8X7B, 46.7, 12.9, "embedding and head"),
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, 30.5, 3.3, "embedding and head"),
    "OLMoE-1B-7B": (OLMOE_1B_7B, 6.9, 1.3, "embedding and head"),
    "gpt-oss-120b": (GPT_OSS_120B, 117, 5.1, "head"),
}


def of_config(folder: Path, config: dict[str, Any], **options: Any) -> Inspection:
    (folder / "config.json").write_text(json.dumps(config))
    return moectl.inspect(folder, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(tmp_path: Path, name: str) -> None:
    config, total, active, convention = PUBLISHED[name]
    parameters = of_config(tmp_path, config).parameters
    ours = parameters.active + (parameters.embedding if convention == "embedding and head" else 0)
    assert parameters.total / 1e9 == pytest.approx(total, abs=0.5 if total > 100 else 0.05)
    assert ours / 1e9 == pytest.approx(active, abs=0.6 if active > 10 and total > 100 else 0.06)
    assert parameters.total == sum(getattr(parameters, part) for part in PARTS)


def test_published_totals_to_the_last_parameter(tmp_path: Path) -> None:
    """Multiplied out by hand from the sizes of Mixtral-8x7B: 32 layers, width 4096, 8 experts of 14336, 32 heads of 128 over 8."""
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
    expert = 3 * 4096 * 14336
    parameters = of_config(tmp_path, MIXTRAL_8X7B).parameters
    assert (parameters.attention, parameters.routed_experts, parameters.active_routed_experts) == (attention, 256 * expert, 64 * expert)
    assert parameters.total == attention + 256 * expert + 32 * 8 * 4096 + 65 * 4096 + 2 * 32000 * 4096 == 46_702_792_704
    assert parameters.active == parameters.total - 192 * expert - 32000 * 4096


def test_mtp_is_never_in_the_total(tmp_path: Path) -> None:
    """DeepSeek-V3's card: 685 B on the Hub, 671 B of the main model and 14 B of the MTP module with its copies of embedding and head."""
    with_mtp = of_config(tmp_path, DEEPSEEK_V3)
    parameters = with_mtp.parameters
    without = of_config(tmp_path, DEEPSEEK_V3 | {"num_nextn_predict_layers": 0})
    assert (with_mtp.mtp_layers, without.mtp_layers, without.parameters.mtp) == (1, 0, 0)
    assert parameters.total == without.parameters.total
    assert (parameters.mtp + parameters.embedding + parameters.head) / 1e9 == pytest.approx(13.5, abs=0.05)


def test_the_cache_of_deepseek_v2_against_deepseek_67b(tmp_path: Path) -> None:
    """The abstract of arXiv 2405.04434 says that it is 93.3 % smaller. 82.2 % of that is at equal precision, the rest is 6 bits for 16."""
    latent, grouped = of_config(tmp_path, DEEPSEEK_V2), of_config(tmp_path, DEEPSEEK_67B)
    six_bits = of_config(tmp_path, DEEPSEEK_V2, cache_bits=6)
    assert latent.kv_cache.values_per_token == 576 * 60
    assert grouped.kv_cache.values_per_token == 2 * 8 * 128 * 95
    assert 1 - latent.kv_cache.bytes_per_token / grouped.kv_cache.bytes_per_token == pytest.approx(0.822, abs=5e-4)
    assert 1 - six_bits.kv_cache.bytes_per_token / grouped.kv_cache.bytes_per_token == pytest.approx(0.933, abs=5e-4)
    # Table 1 of the same paper: "equal to GQA with only 2.25 groups".
    assert latent.kv_cache.equivalent_kv_heads == 2.25
    assert latent.kv_cache.ratio_to_multi_head == 576 / (128 * (192 + 128))
    assert latent.kv_cache.ratio_to_grouped_8 == 576 / (8 * (192 + 128))
    assert (grouped.kv_cache.ratio_to_multi_head, grouped.kv_cache.ratio_to_grouped_8) == (8 / 64, 1.0)


def test_windows_bound_the_cache(tmp_path: Path) -> None:
    found = of_config(tmp_path, {"model_type": "gpt_oss"}, context=1000)
    cache, layer = found.kv_cache, 2 * 8 * 64 * 2
    assert (cache.bytes_per_token, cache.bytes_per_token_beyond_windows) == (36 * layer, 18 * layer)
    assert (cache.window_layers, cache.window_bytes) == (18, 18 * 128 * layer)
    assert cache.bytes_at_context == 18 * layer * (128 + 1000)
    assert of_config(tmp_path, {"model_type": "gpt_oss"}, context=100).kv_cache.bytes_at_context == 36 * layer * 100
    chunks = of_config(tmp_path, {"model_type": "llama4_text", "num_hidden_layers": 4}, context=10_000).kv_cache
    assert (chunks.window_layers, chunks.window_bytes) == (3, 3 * 8192 * 2 * 8 * 128 * 2)


def test_flops_are_two_per_active_weight_and_the_scores(tmp_path: Path) -> None:
    found = of_config(tmp_path, {"model_type": "mixtral"}, context=1000)
    assert found.attention_flops_per_token == 32 * 2 * (2 * 4096) * 500
    # The final norm is the one active part that no layer or head holds.
    assert found.flops_per_token == 2 * (found.parameters.active - 4096) + found.attention_flops_per_token
    assert found.context_tokens == 1000


def test_bytes_of_a_bare_configuration(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "num_hidden_layers": 2}
    for dtype, name, itemsize in (("float32", "F32", 4), ("bfloat16", "BF16", 2), ("float16", "F16", 2)):
        for key in ("dtype", "torch_dtype"):
            found = of_config(tmp_path, {**config, key: dtype})
            assert found.bytes == {name: itemsize * found.parameters.total}
            assert found.notes == ()
    found = of_config(tmp_path, config)
    assert (found.bytes, found.source) == ({"BF16": 2 * found.parameters.total}, "config")
    assert found.notes == ("config.json names no dtype: bytes are those of bfloat16",)


def test_ranks_of_expert_parallelism(tmp_path: Path) -> None:
    """DeepSeek-V3 over 64 ranks: 4 of 256 experts each; over 100 the fullest has 3."""
    found = of_config(tmp_path, DEEPSEEK_V3, ranks=64)
    parallel, parameters = found.expert_parallel, found.parameters
    assert parallel is not None
    assert (parallel.experts_per_rank, parallel.even) == (4, True)
    assert parallel.routed_bytes_per_rank == 2 * parameters.routed_experts // 64
    assert parallel.replicated_bytes_per_rank == 2 * (parameters.total - parameters.routed_experts)
    assert parallel.bytes_per_rank == parallel.routed_bytes_per_rank + parallel.replicated_bytes_per_rank
    uneven = of_config(tmp_path, DEEPSEEK_V3, ranks=100).expert_parallel
    assert uneven is not None
    assert (uneven.experts_per_rank, uneven.even, uneven.routed_bytes_per_rank) == (3, False, 2 * parameters.routed_experts * 3 // 256)


def test_memory_is_planned_as_runs_are(tmp_path: Path) -> None:
    found = of_config(tmp_path, DEEPSEEK_V3, context=1000)
    memory = found.memory
    assert memory.weights_bytes == 2 * found.parameters.total
    # One MoE layer without its routed experts is smaller than a dense one; one expert. In bf16, and as stored: the correction
    # bias is in float32, and plans take the widest.
    dense = 3 * 7168 * 18432 + found.parameters.attention // 61 + 2 * 7168
    floor = (2 + 4) * (dense + 3 * 7168 * 2048)
    assert floor < memory.streamed_bytes < floor + 1000 * 1_500_000 < memory.resident_bytes
    assert memory.weights_bytes < memory.resident_bytes < memory.weights_bytes + 8e9
