from __future__ import annotations

import pytest

from moectl.arch.active_experts import with_active_experts
from moectl.arch.registry import build_spec
from moectl.errors import UsageError

MIXED = {
    "model_type": "qwen3_moe", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 24, "moe_intermediate_size": 8, "num_experts": 6, "num_experts_per_tok": 2,
    "mlp_only_layers": [1],
}  # fmt: skip
GROUPED = {
    "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "moe_intermediate_size": 8, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip


def top_ks(spec):
    return [layer.ffn.router.top_k for layer in [*spec.moe_layers, *(mtp.layer for mtp in spec.mtp)]]


@pytest.mark.parametrize(("config", "ks", "n_moe"), [(MIXED, (1, 2, 6), 2), (GROUPED, (1, 3, 6), 2)])
def test_every_moe_layer_gets_it_and_nothing_else_changes(config, ks, n_moe):
    spec = build_spec(config)
    before = top_ks(spec)
    for k in ks:
        changed = with_active_experts(spec, k)
        assert top_ks(changed) == [k] * n_moe
        assert with_active_experts(changed, before[0]) == spec
    assert top_ks(spec) == before


@pytest.mark.parametrize(
    ("config", "k", "message"),
    [
        (MIXED, 7, "`7` active experts are too many for layer 0: it has 6"),
        (MIXED, 0, "`0` active experts are too few for layer 0: it has 6"),
        (GROUPED, 7, "`7` active experts are too many for layer 1: it has 6 in the 2 groups of 3 open to a token"),
    ],
)
def test_a_number_the_router_cannot_pick_is_refused(config, k, message):
    with pytest.raises(UsageError) as caught:
        with_active_experts(build_spec(config), k)
    assert caught.value.message == message
    assert caught.value.hint == f"choose 1 to 6; the configuration says {config['num_experts_per_tok']}"
