"""Layers in words: runs, patterns, and what is only said where it is so."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_cases import CASES
from rich.console import Console

import moectl
from moectl.arch.registry import build_spec
from moectl.inspection.layers import layer_groups, layer_infos, ranges, routing_rules
from moectl.report.inspection import render


def test_ranges() -> None:
    assert ranges([0, 1, 2]) == "0-2"
    assert ranges([7]) == "7"
    assert ranges([0, 2, 3, 7]) == "0, 2-3, 7"
    assert ranges([0, 2, 4]) == "0, 2, 4"
    assert ranges(list(range(0, 36, 2))) == "0, 2, ... 34"
    assert ranges([0, 1, 3, 4, 6, 7, 9]) == "0-1, 3-4, ... 9"
    assert ranges([0, 2, 4, 8, 10]) == "0, 2, 4, 8, 10"
    assert ranges([0, 1, 3, 5, 6]) == "0-1, 3, 5-6"
    assert ranges([0, 2, 4, 6, 7]) == "0, 2, 4, 6-7"


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_can_be_read_back(indices: set[int]) -> None:
    text = ranges(sorted(indices))
    runs = [(int(first), int(last or first)) for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", text)]
    if "..." in text:
        (start, end), (second, _), (_, stop) = runs
        step, length = second - start, end - start
        runs = [(at, min(at + length, stop)) for at in range(start, stop + 1, step)]
    assert {index for first, last in runs for index in range(first, last + 1)} == indices


def test_layers_that_differ_are_apart() -> None:
    v3 = layer_groups(build_spec({"model_type": "deepseek_v3"}))
    assert [(group.layers, group.count, group.ffn) for group in v3] == [
        ("0-2", 3, "dense, width 18,432"),
        ("3-60", 58, "MoE, 8 of 256 experts of width 2,048 + 1 shared"),
    ]
    assert {group.attention for group in v3} == {"latent attention (MLA), 128 heads, cache of 512 + 64 values"}
    oss = layer_groups(build_spec({"model_type": "gpt_oss"}))
    assert [(group.layers, group.attention.endswith("window 128")) for group in oss] == [("0, 2, ... 34", True), ("1, 3, ... 35", False)]
    qwen = layer_groups(build_spec({"model_type": "qwen2_moe"}))
    assert qwen[0].ffn == "MoE, 4 of 60 experts of width 1,408 + 1 shared of 5,632, gated"
    llama4 = layer_groups(build_spec({"model_type": "llama4_text", "num_hidden_layers": 4}))
    assert [group.attention.partition("size 128, ")[2] for group in llama4] == ["chunks of 8,192", "no positions"]


def test_infos_say_what_each_layer_is() -> None:
    infos = layer_infos(build_spec({"model_type": "deepseek_v3"}))
    assert [info.layer for info in infos] == list(range(61))
    assert (infos[0].kind, infos[0].ffn_width, infos[0].experts, infos[0].attention) == ("dense", 18432, None, "latent")
    assert (infos[3].kind, infos[3].ffn_width, infos[3].experts, infos[3].shared_width) == ("moe", None, 256, 2048)
    windows = [(info.window, info.window_kind) for info in layer_infos(build_spec({"model_type": "gpt_oss"}))][:2]
    assert windows == [(128, "sliding"), (None, None)]


def test_rules_that_differ_are_apart() -> None:
    config = {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4}
    rules = routing_rules(build_spec({**config, "num_experts": [4, 8, 4], "moe_topk": [2, 2, 2]}))
    assert [(rule.layers, rule.count, rule.experts) for rule in rules] == [("0, 2", 2, 4), ("1", 1, 8)]
    assert rules[0].formula.startswith("top-2 of 4 by")


@pytest.mark.parametrize("case", CASES)
def test_every_configuration_of_every_family_has_its_page(tmp_path: Path, case: str) -> None:
    family, keys = CASES[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **keys}))
    found = moectl.inspect(tmp_path)
    assert sum(group.count for group in found.layer_groups) == len(found.layers)
    assert sum(rule.count for rule in found.rules) == sum(info.kind == "moe" for info in found.layers)
    assert found.total_bytes > found.parameters.total
    json.dumps(found.to_json(), allow_nan=False)
    console = Console(file=StringIO(), width=80, no_color=True)
    console.print(render(found))
    text = console.file.getvalue()
    assert "Parameters" in text
    assert ("Routing" in text) == bool(found.rules)
