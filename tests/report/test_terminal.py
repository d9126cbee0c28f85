from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from moectl.report.terminal.specialists import quoted
from moectl.report.terminal.summary import render


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


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("case", CASES)
def test_fits_and_is_plain(stats_of, case, width):
    text = drawn(stats_of(**CASES[case]), width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    table = text.split("Layers\n")[-1] if case != "large" else text.split("some between\n")[-1]
    assert "…" not in "".join(text.partition("The model in figures")[2].partition("Balance ")[:1])
    # Cells are never cut: what does not fit is left out as a whole column.
    assert "…" not in table


def test_says_what_was_run(stats_of):
    lines = drawn(stats_of(**CASES["usual"]), 100).splitlines()
    assert lines[0].rstrip() == "tiny-moe  mixtral, 16 MoE layers of 17, 64 experts, 8 per token"
    assert lines[1].rstrip() == "12,288 tokens in 15 sequences: arxiv, github, wikipedia, 4,096 each"
    assert lines[2].rstrip() == "float32 on cpu: 812 tokens/s, 13.8 GB read, peak 3.90 GB, 42 s"


def test_layers_of_different_sizes_are_all_counted(stats_of):
    stats = stats_of()
    stats.layers.loc[stats.layers["layer"] == stats.moe_layers[-1], ["n_experts", "top_k"]] = [64, 6]
    assert re.search(r"\d+ to 64 experts, \d to 6 per token", drawn(stats, 100).splitlines()[0])


def test_unequal_domains_are_counted_each(stats_of):
    stats = stats_of()
    next(iter(stats.summary["data"].values()))["tokens"] = 4000
    assert "7,000 tokens in 10 sequences: code 4,000, prose 3,000" in drawn(stats, 100)


def test_findings_come_before_tables(stats_of):
    text = drawn(stats_of(), 80)
    order = [
        text.index(part)
        for part in (
            "The model in figures",
            "Balance",
            "Sample",
            "Certainty",
            "The clearest specialist",
            "Layers to look at",
            "MaxVio  chance",
        )
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
    assert "No expert of any layer is picked clearly beyond chance." in drawn(stats_of(skew=0.0, tokens=60_000), 80)


class WithVocabulary:
    """A measurement that also has the table of tokens."""

    def __init__(self, stats, vocabulary):
        self.stats, self.vocabulary = stats, vocabulary

    def __getattr__(self, name):
        return getattr(self.stats, name)


def tokens_of(*rows):
    return pd.DataFrame(rows, columns=["layer", "expert", "kind", "domain", "rank", "token"])


def test_figures_stand_beside_their_interval_and_extremes(stats_of):
    no_scores = dict.fromkeys(range(4), float("nan"))
    stats = stats_of(metrics={"max_vio": {0: 0.5, 1: 0.9, 2: 2.25, 3: 0.7}, "balance_loss": no_scores})
    stats.layers["max_vio_low"], stats.layers["max_vio_high"] = 0.61, 1.04
    lines = {line.split("  ")[1].strip(): line for line in drawn(stats, 100).splitlines() if line.startswith("  ")}
    assert lines["MaxVio"].split() == ["MaxVio", "0.80", "0.61", "to", "1.04", "0.50", "(0)", "to", "2.25", "(2)"]
    assert lines["dead, cold experts"].split()[3:] == ["0,", "0", "of", "64", "in", "all", "layers"]
    assert lines["next-token overlap"].split()[2:4] == ["31.0", "%"]
    assert "balance loss" not in lines
    assert "0 is even" in drawn(stats, 140)


def test_figures_leave_out_what_the_sample_cannot_tell(stats_of):
    text = drawn(stats_of(tokens=100, domains=("book",), overlap=None), 100)
    for label in ("dead, cold experts", "domain information", "from the load"):
        assert label not in text
    assert "The model in figures" not in drawn(stats_of(tokens=0, overlap=None), 80)


def test_perplexity_is_a_figure_if_measured(stats_of):
    stats = stats_of()
    stats.summary["perplexity"] = {"all": {"loss": 2.0, "perplexity": 7.389, "perplexity_low": 6.69, "perplexity_high": 8.17}}
    line = next(line for line in drawn(stats, 80).splitlines() if line.startswith("  perplexity"))
    assert line.split() == ["perplexity", "7.39", "6.69", "to", "8.17"]


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("case", ["usual", "large"])
def test_specialists_show_as_many_tokens_as_fit(stats_of, case, width):
    stats = stats_of(**{**CASES[case], "n_layers": 3})
    experts = range(CASES[case]["n_experts"])
    words = [f"token{i}" for i in range(40)]
    rows = [
        (layer, expert, "input", domain, rank, word)
        for layer in stats.moe_layers
        for expert in experts
        for domain in CASES[case]["domains"]
        for rank, word in enumerate(words, 1)
    ]
    text = drawn(WithVocabulary(stats, tokens_of(*rows)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    table = text.split("of each domain\n")[1].split("Layers to look at")[0]
    rows = [line for line in table.splitlines() if "'token0' 'token1' " in line]
    assert len(rows) == min(10, len(CASES[case]["domains"]))
    assert all(line.rstrip().endswith("'") and len(line.rstrip()) > width - 12 for line in rows)


def test_a_run_without_tokens_still_names_specialists(stats_of):
    stats = stats_of(skew=0.5)
    assert "tokens of the domain" not in drawn(WithVocabulary(stats, tokens_of()), 80)
    assert drawn(WithVocabulary(stats, None), 80) == drawn(stats, 80)
    assert re.search(r"code +[0-9]+ +[0-9]+ +[0-9.]+ % +[0-9.]+x", drawn(stats, 80))


def test_tokens_are_quoted_escaped_and_cut():
    assert quoted([" the", "it's", "\n\x1b"], 80) == "' the' \"it's\" '\\n\\x1b'"
    assert quoted(["\\n"], 80) == "'\\n'"  # escaped already
    assert quoted(["x" * 40], 80) == f"'{'x' * 13}…'"
    assert cell_len(quoted(["漢字" * 20], 80)) <= 16
    assert quoted(["\\n" + " " * 16, "\\n" + " " * 12, "   x"], 80) == "'\\n \u00d716' '\\n \u00d712' '   x'"
    assert quoted(["ab", "cd"], 8) == "'ab'"
    assert quoted(["ab"], 3) == ""
