"""The textbook question, multiplied out by hand."""

from __future__ import annotations

import pytest

from moectl.arch.registry import build_spec
from moectl.errors import UsageError
from moectl.inspection.what_if import WhatIf, answer, parse_what_if

LLAMA = {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
V3 = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0}


def test_a_dense_model_as_an_moe() -> None:
    """32,000 x 64 embedding and head, 3 layers; the FFN of 96 as 8 experts of 24, 4 of them and a shared one per token."""
    found = answer(build_spec(LLAMA), WhatIf(experts=8, top_k=4, granularity=4, shared=1), context=100)
    attention, ffn, norms = 4 * 64 * 64, 3 * 64 * 96, 2 * 64
    rest = 2 * 32000 * 64 + 3 * (attention + norms) + 64
    assert found.now == found.dense
    assert (found.dense.parameters, found.dense.active_parameters) == (rest + 3 * ffn, rest + 3 * ffn - 32000 * 64)
    expert, router = ffn // 4, 8 * 64
    assert found.moe.parameters == rest + 3 * (9 * expert + router)
    assert found.moe.active_parameters == rest + 3 * (5 * expert + router) - 32000 * 64
    assert found.moe.flops_per_token - found.dense.flops_per_token == 2 * 3 * (expert + router)
    assert (found.layers, found.dense_width, found.expert_width) == (3, 96, 24)


def test_as_many_of_the_fine_as_before_cost_the_router_only() -> None:
    found = answer(build_spec(LLAMA), WhatIf(experts=64, top_k=8, granularity=8), context=4096)
    assert found.moe.active_parameters - found.dense.active_parameters == 3 * 64 * 64
    assert found.moe.flops_per_token - found.dense.flops_per_token == 2 * 3 * 64 * 64


def test_an_moe_asked_for_as_it_is_stays_as_it_is() -> None:
    """DeepSeek-V3's experts are a ninth of its dense layers; but for its correction bias and its three dense layers it is this answer."""
    spec = build_spec(V3)
    found = answer(spec, WhatIf(experts=256, top_k=8, granularity=9, shared=1), context=4096)
    assert found.dense_width_from == "its dense layers"
    assert (found.layers, found.dense_width, found.expert_width) == (58, 18432, 2048)
    assert found.now.parameters - found.moe.parameters == 58 * 256
    assert found.dense.parameters < 60e9
    mixtral = answer(build_spec({"model_type": "mixtral"}), WhatIf(experts=8, top_k=2, granularity=2), context=4096)
    assert (mixtral.now, mixtral.dense_width, mixtral.dense_width_from) == (mixtral.moe, 2 * 14336, "what a token runs through now")
    qwen = answer(build_spec({"model_type": "qwen2_moe"}), WhatIf(experts=60, top_k=4), context=4096)
    assert qwen.dense_width == 4 * 1408 + 5632
    # Of the 24 layers, 2048 wide: experts, shared ones, their gate and the router go, one FFN comes.
    ffn, moe = 3 * 2048 * qwen.dense_width, 3 * 2048 * (60 * 1408 + 5632) + 2048 + 60 * 2048
    assert qwen.now.parameters - qwen.dense.parameters == 24 * (moe - ffn)


def test_gelu_biases_go_with_the_ffn() -> None:
    oss = build_spec({"model_type": "gpt_oss", "num_hidden_layers": 1})
    found = answer(oss, WhatIf(experts=1, top_k=1), context=1)
    assert found.moe.parameters - found.dense.parameters == 2880


def test_the_form() -> None:
    assert parse_what_if("64,8") == WhatIf(experts=64, top_k=8)
    assert parse_what_if("64, 8, shared=0, granularity=16") == WhatIf(experts=64, top_k=8, granularity=16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64", "does not say how many experts a token runs"),
        ("64,shared=1", "does not say how many"),
        ("64,8,4", "`4` in `64,8,4` is not understood"),
        ("64,8,fine=4", "`fine=4` in"),
        ("64,8,shared=1,shared=2", "`shared=2` in"),
        ("64,8,granularity=0", "`0` is not a number of granularity"),
        ("0,8", "`0` is not a number of experts"),
        ("x,8", "`x` is not a number of experts"),
        ("64,-1", "`-1` is not a number of top-k"),
        ("4,8", "a token cannot run 8 of 4 experts"),
    ],
)
def test_other_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_what_if(text)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_granularity_must_divide() -> None:
    with pytest.raises(UsageError, match="a granularity of 5 does not divide the width of the FFN, 96"):
        answer(build_spec(LLAMA), WhatIf(experts=8, top_k=2, granularity=5), context=1)
