from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import moectl.report
from moectl.report import headline
from moectl.report.attention import attention
from moectl.report.domains import domain_difference
from moectl.report.findings import findings
from moectl.report.rows import even_share
from moectl.report.terminal import layers as terminal_layers
from moectl.routing.frames import BOUND_KEYS, METRIC_KEYS


def said(stats):
    return {finding.label: finding.text for finding in findings(stats)}


def test_the_report_reads_only_what_a_run_measures(stats_of):
    stats = stats_of()
    assert tuple(stats.layers.columns) == ("domain", "layer", "n_experts", "top_k", "tokens", *METRIC_KEYS, *BOUND_KEYS)
    known = {*stats.layers.columns, *stats.experts.columns, *stats.summary["throughput"], *stats.summary["provenance"]}
    known |= {*stats.summary["model"], *next(iter(stats.summary["data"].values())), *stats.summary, "difference", "chance"}
    known |= {"loss", "perplexity", "perplexity_low", "perplexity_high"}  # of `summary["perplexity"]`, checked where it is made
    known |= {"kind", "token"}  # of `stats.vocabulary`, an optional table
    read = {column.key for column in (*terminal_layers._COLUMNS, *headline._BALANCE, *headline._ROUTING)}
    folder = Path(moectl.report.__path__[0])
    for path in (*folder.glob("*.py"), *folder.glob("terminal/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                read.add(node.slice.value)
    assert {"max_vio", "next_token_overlap_uniform", "share"} <= read
    assert read - known == set()


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({"skew": 0.0, "tokens": 60_000}, "As even as chance allows: "),
        ({"skew": 0.0, "tokens": 100}, "Not to be told from even on so small a sample: "),
        ({"skew": 0.08, "tokens": 60_000}, "Nearly even: "),
        ({"skew": 0.25, "tokens": 60_000}, "Uneven: "),
        ({"skew": 1.0, "tokens": 60_000}, "Very uneven: "),
    ],
)
def test_balance_is_judged_beside_chance(stats_of, options, verdict):
    assert said(stats_of(**options))["Balance"].startswith(verdict)


def test_balance_names_the_extremes_and_the_noise_floor(stats_of):
    stats = stats_of(metrics={"max_vio": {0: 0.5, 1: 0.9, 2: 2.25, 3: 0.7}, "max_vio_noise_floor": dict.fromkeys(range(4), 0.06)})
    text = said(stats)["Balance"]
    assert "runs 1.80x its even share, MaxVio 0.80 (from 0.50 in layer 0 to 2.25 in layer 2). Chance alone would give about 0.06." in text


def test_dead_and_cold_experts_are_counted(stats_of):
    text = said(stats_of(dead=[(1, 3), (1, 9), (2, 4)], cold=[(0, 7)], skew=0.1))["Dead"]
    assert text == (
        "3 experts in 2 layers never ran on this text, most in layer 1 (2). 1 expert in layer 0 is cold, below a tenth of an even share."
    )


def test_no_dead_expert(stats_of):
    text = said(stats_of(skew=0.1))["Dead"]
    assert text == "None: every expert of every layer ran. None is cold, below a tenth of its even share."


def test_no_cold_expert_beside_dead_ones(stats_of):
    text = said(stats_of(dead=[(0, 5), (2, 6)], skew=0.1))["Dead"]
    assert text == "2 experts in 2 layers never ran on this text. None of the others is cold, below a tenth of its even share."


def test_a_small_sample_accuses_no_expert(stats_of):
    stats = stats_of(tokens=100, dead=[(0, 1)], skew=0.1)
    text = said(stats)["Dead"]
    assert even_share(stats) == 12.5
    assert text == "Too few tokens to tell: below 30 per expert chance decides. Route at least 240 tokens."
    assert not any("never ran" in reason for entry in attention(stats) for reason in entry.reasons)


def test_one_domain_has_nothing_to_compare(stats_of):
    assert said(stats_of(domains=("book",)))["Domains"].startswith("One domain, so nothing to compare.")


def test_domains_name_the_most_telling_layer(stats_of):
    stats = stats_of(domains=("a", "b", "c", "d"))
    layer = domain_difference(stats)["difference"].idxmax()
    assert f" % in layer {layer}; chance alone gives " in said(stats)["Domains"]


def test_domains_that_differ_by_chance_only(stats_of):
    assert said(stats_of(skew=0.0))["Domains"].startswith("Not to be told apart: ")


def test_neighbours_are_judged_beyond_the_load(stats_of):
    load = dict.fromkeys(range(4), 0.16)
    more = said(stats_of(metrics={"next_token_overlap": {2: 0.45}, "next_token_overlap_load_aware": load}))["Neighbours"]
    assert more.startswith("A token shares 31 % of its experts with the next one; the load alone makes that 16 %, an even load 12 %.")
    assert more.endswith("The excess is largest in layer 2 (45 % against 16 %).")
    same = said(stats_of(overlap=0.165, metrics={"next_token_overlap_load_aware": load}))["Neighbours"]
    assert same.endswith("So neighbours share no more than the load explains.")


def test_sequences_of_one_token_have_no_neighbours(stats_of):
    assert "Neighbours" not in said(stats_of(overlap=None))


def test_the_pair_of_the_largest_lift_is_named(stats_of):
    stats = stats_of(skew=0.0, pairs={(1, 2, 5): 400, (3, 0, 9): 300})
    n_2, n_5 = stats.coactivation_LEE[1, 2, 2], stats.coactivation_LEE[1, 5, 5]
    lift = 400 * 6000 / (n_2 * n_5)
    assert said(stats)["Pairs"] == (
        f"Layer 1: experts 2 and 5 run together {lift:.1f}x as often as their loads explain, on 400 of 6,000 tokens."
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pairs": {(0, 1, 2): 95}, "skew": 0.0}, "as often as chance"),
        ({"pairs": {(0, 1, 2): 35}, "cold": [(0, 1), (0, 2)]}, "on few tokens of an even share, though of huge lift"),
        ({"pairs": {(0, 1, 2): 29}, "tokens": 400}, "on fewer than 30 tokens"),
        ({"pairs": {}}, "never"),
    ],
)
def test_a_pair_is_named_only_if_clearly_beyond_chance(stats_of, options, why):
    assert "Pairs" not in said(stats_of(**options)), why


def test_one_layer_is_not_called_typical(stats_of):
    texts = said(stats_of(n_layers=1, dead=[(0, 3)], cold=[(0, 4)], pairs={(0, 1, 2): 500}))
    assert not any("layer" in text for text in texts.values())
    assert texts["Dead"].startswith("1 expert never ran on this text. 1 expert is cold")
    assert texts["Pairs"].startswith("Experts 1 and 2 run together ")


def test_one_token(stats_of):
    stats = stats_of(tokens=1, domains=("book",), overlap=None)
    texts = said(stats)
    assert list(texts) == ["Balance", "Dead", "Domains", "Sample", "Certainty"]
    assert texts["Balance"].startswith("Not to be told from even on so small a sample: ")
    assert "spreads" not in texts["Balance"]
    assert attention(stats) == []


def test_no_token_tells_nothing(stats_of):
    stats = stats_of(tokens=0, overlap=None)
    assert said(stats) == {"Sample": "No token counts, so there is nothing to tell."}
    assert attention(stats) == []


def perplexity(loss, *, interval=True):
    low, high = (loss - 0.1, loss + 0.1) if interval and loss is not None else (None, None)
    values = {"loss": loss, "loss_low": low, "loss_high": high}
    return {**values, **{key.replace("loss", "perplexity"): None if x is None else math.exp(x) for key, x in values.items()}, "tokens": 9}


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ((2.0, 1.0, 3.0), "7.39, 2.000 nats a token (perplexity 6.69 to 8.17 with 95 % confidence): code 2.72, prose 20.1."),
        ((7.0, 6.0, None), "1,097, 7.000 nats a token (perplexity 992 to 1,212 with 95 % confidence)."),
    ],
)
def test_perplexity(stats_of, rows, text):
    stats = stats_of()
    assert "Perplexity" not in said(stats)
    stats.summary["perplexity"] = {name: perplexity(loss) for name, loss in zip(("all", "code", "prose"), rows, strict=True)}
    assert said(stats)["Perplexity"] == text


def test_perplexity_without_an_interval_or_a_prediction(stats_of):
    stats = stats_of()
    stats.summary["perplexity"] = {"all": perplexity(2.0, interval=False), "code": perplexity(2.0, interval=False)}
    assert said(stats)["Perplexity"] == "7.39, 2.000 nats a token."
    stats.summary["perplexity"] = {"all": perplexity(None), "code": perplexity(None)}
    assert "Perplexity" not in said(stats)


def test_certainty_says_how_wide_the_intervals_are_and_why(stats_of):
    stats = stats_of()
    for key, low, high in (("max_vio", 0.31, 0.47), ("next_token_overlap", 0.28, 0.34)):
        stats.layers[f"{key}_low"], stats.layers[f"{key}_high"] = low, high
    stats.layers["max_vio"] = 0.39
    for row, sequences in zip(stats.summary["data"].values(), (200, 5), strict=True):
        row["sequences"] = sequences
    assert said(stats)["Certainty"] == (
        "With 95 % confidence, of a typical layer: MaxVio 0.39 (0.31 to 0.47), next-token overlap 31 % (28 to 34 %). "
        "This rests on 205 sequences, dealt to 69 blocks; four times as many halve the widths."
    )
    stats.summary["data"]["code"]["sequences"] = 64
    assert "rests on 69 sequences; four" in said(stats)["Certainty"]


def test_certainty_without_intervals(stats_of):
    stats = stats_of()
    stats.layers.loc[:, list(BOUND_KEYS)] = math.nan
    assert said(stats)["Certainty"].startswith("No interval can be given: ")
    for key in BOUND_KEYS:  # as an older version wrote the table
        del stats.layers[key]
    assert said(stats)["Certainty"].startswith("No interval can be given: ")
