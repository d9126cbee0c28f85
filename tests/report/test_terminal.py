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
    "one layer": {"n_layers": 1},
    "one token": {"tokens": 1, "domains": ("book",), "overlap": None},
    "no token": {"tokens": 0, "overlap": None},
    "large": {
        "n_layers": 40, "n_experts": 32, "top_k": 4, "tokens": 60_000, "skew": 0.6,
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
    next(iter(stats.summary["data"].values()))["tokens"] = 4000
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
    assert "None stands out from the others." in drawn(stats_of(skew=0.05), 80)


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
    def header(**options):
        lines = drawn(stats_of(**options), 160).splitlines()
        return next(line for line in lines if line.startswith("  layer  MaxVio")).split()

    assert header() == ["layer", "MaxVio", "chance", "eff.", "dead", "cold", "CV", "Gini", "next", "by", "load"]
    assert header(tokens=100, overlap=None) == ["layer", "MaxVio", "chance", "eff.", "CV", "Gini"]
    assert "chance" not in header(n_experts=4, top_k=4)


def test_a_value_that_does_not_apply_is_a_dash(stats_of):
    stats = stats_of(metrics={"next_token_overlap": {1: float("nan")}}, n_layers=3)
    row = next(line for line in drawn(stats, 120).split("Layers\n")[-1].splitlines() if line.split()[:1] == ["1"])
    assert "-" in row.split()


def test_one_of_a_thing_is_not_many(stats_of):
    stats = stats_of(tokens=1, domains=("book",), n_layers=1, overlap=None)
    next(iter(stats.summary["data"].values()))["sequences"] = 1
    stats.summary["throughput"]["tokens_per_s"] = 0.1234
    text = drawn(stats, 100)
    assert "1 MoE layer of 2," in text
    assert "\n1 token in 1 sequence: book" in text
    assert "cpu: 0.12 tokens/s" in text


def test_a_line_is_not_spent_on_saying_that_one_more_follows(stats_of):
    def looked_at(n):
        text = drawn(stats_of(n_layers=12, skew=0.1, dead=[(layer, 2) for layer in range(n)]), 80)
        return text.split("Layers to look at\n")[1].split("\n\n")[0].splitlines()

    assert len(looked_at(7)) == 7
    assert "and 2 more, marked ! below" in looked_at(8)[6]


def test_domains_without_favourites_say_so(stats_of):
    assert "None is picked beyond chance by any of them." in drawn(stats_of(skew=0.0, tokens=60_000), 80)
