from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from moectl.report.terminal import render


def drawn(stats, width, **options):
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False, **options).print(render(stats, width=width))
    return stream.getvalue()


CASES = {
    "small": {"tokens": 100, "domains": ("book",)},
    "usual": {"n_layers": 16, "n_experts": 64, "top_k": 8, "tokens": 12_288, "domains": ("arxiv", "github", "wikipedia"), "skew": 0.5},
    "large": {
        "n_layers": 40, "n_experts": 64, "top_k": 8, "tokens": 60_000, "skew": 0.6, "bias_effect": 0.3,
        "domains": tuple(f"a-domain-with-a-long-name-{i}" for i in range(12)),
    },
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("case", CASES)
def test_fits_and_is_plain(stats_of, case, width):
    text = drawn(stats_of(**CASES[case]), width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    table = text.split("Layers\n")[-1] if case != "large" else text.split("some between\n")[-1]
    # Cells are never cut: what does not fit is left out as a whole column.
    assert "…" not in table


def test_says_what_was_run(stats_of):
    lines = drawn(stats_of(**CASES["usual"]), 100).splitlines()
    assert lines[0].rstrip() == "tiny-moe  mixtral, 16 MoE layers of 17, 64 experts, 8 per token"
    assert lines[1].rstrip() == "12,288 tokens in 15 sequences: arxiv, github, wikipedia, 4,096 each"
    assert lines[2].rstrip() == "float32 on cpu: 812 tokens/s, 13.8 GB read, peak 3.90 GB, 42 s"


def test_unequal_domains_are_counted_each(stats_of):
    stats = stats_of()
    stats.summary["data"][0]["tokens"] = 4000
    assert "7,000 tokens in 10 sequences: code 4,000, prose 3,000" in drawn(stats, 100)


def test_findings_come_before_tables(stats_of):
    text = drawn(stats_of(), 80)
    order = [
        text.index(part) for part in ("Balance", "Dead", "Sample", "Experts each domain favours", "Layers to look at", "MaxVio  chance")
    ]
    assert order == sorted(order)


def test_layers_to_look_at_are_marked_without_colour(stats_of):
    text = drawn(stats_of(skew=0.1, dead=[(2, 7)]), 80)
    assert "  layer 2  expert 7 never ran" in text
    assert [line.split()[:2] for line in text.splitlines() if line.lstrip().startswith("! ")] == [["!", "2"]]
    assert "None stands out." in drawn(stats_of(skew=0.05), 80)


def test_many_layers_show_the_extremes_and_say_how_to_see_all(stats_of):
    stats = stats_of(n_layers=40, skew=0.1, metrics={"max_vio": {23: 5.0}, "next_token_overlap": {31: 0.9}})
    text = drawn(stats, 80)
    rows = re.findall(r"^ +(?:! )?([0-9]+) +[0-9]", text.split("some between\n")[1], flags=re.MULTILINE)
    layers = [int(layer) for layer in rows]
    assert len(layers) == 16
    assert {0, 23, 31, 39} <= set(layers)
    assert layers == sorted(layers)
    assert "All layers and metrics: `--format csv`, or `--output DIR`" in text


def test_columns_that_do_not_apply_are_left_out(stats_of):
    wide = drawn(stats_of(), 160)
    assert "bias" not in wide
    assert "dead" in wide
    assert "dead" not in drawn(stats_of(tokens=100), 160).split("Layers\n")[-1]
    assert "bias" in drawn(stats_of(bias_effect=0.2), 160)


def test_a_value_that_does_not_apply_is_a_dash(stats_of):
    stats = stats_of(metrics={"captured_mass": {1: None}}, n_layers=3)
    row = next(line for line in drawn(stats, 120).split("Layers\n")[-1].splitlines() if line.split()[:1] == ["1"])
    assert "-" in row.split()


def test_domains_without_favourites_say_so(stats_of):
    assert "None is picked beyond chance by any of them." in drawn(stats_of(skew=0.0, tokens=60_000), 80)
