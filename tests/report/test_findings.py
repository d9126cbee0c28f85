from __future__ import annotations

import math

import pytest

from moectl.report.findings import attention, domain_difference, even_share, favourites, findings, overall_rows


def said(stats):
    return {finding.label: finding.text for finding in findings(stats)}


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


def test_dead_and_cold_experts_are_listed(stats_of):
    stats = stats_of(dead=[(1, 3), (1, 9), (2, 4)], skew=0.1)
    assert said(stats)["Dead"].startswith(
        "3 experts in 2 layers never ran on this text: layer 1: 3, 9; layer 2: 4. None of the others is cold"
    )


def test_no_dead_expert(stats_of):
    text = said(stats_of(skew=0.1))["Dead"]
    assert text == "None: every expert of every layer ran. None is cold, that is below a tenth of its even share."


def test_cold_experts_do_not_count_the_dead_twice(stats_of):
    stats = stats_of(dead=[(0, 5)], skew=0.1)
    frame = stats.experts
    rows = (frame["layer"] == 0) & (frame["domain"] == "all") & (frame["expert"] == 7)
    frame.loc[rows, "relative_load"] = 0.05
    stats.layers.loc[(stats.layers["layer"] == 0) & (stats.layers["domain"] == "all"), "cold_experts"] = 2
    assert "1 expert in 1 layer is cold, that is below a tenth of an even share: layer 0: 7." in said(stats)["Dead"]


def test_a_small_sample_accuses_no_expert(stats_of):
    stats = stats_of(tokens=100, dead=[(0, 1)], skew=0.1)
    text = said(stats)["Dead"]
    assert even_share(stats) == 12.5
    assert text.startswith("The sample is too small to tell: an even share is 12.5 tokens per expert")
    assert text.endswith("Route at least 240 tokens to tell.")
    assert not any("never ran" in reason for entry in attention(stats) for reason in entry.reasons)


def test_one_domain_has_nothing_to_compare(stats_of):
    assert said(stats_of(domains=("book",)))["Domains"].startswith("One domain, so nothing to compare.")


def test_domains_are_compared_beside_chance(stats_of):
    even = domain_difference(stats_of(skew=0.0, tokens=60_000))
    assert even["difference"].to_numpy() == pytest.approx(even["chance"].to_numpy(), rel=0.5)
    apart = domain_difference(stats_of(skew=0.5, tokens=60_000))
    assert (apart["difference"] > 5 * apart["chance"]).all()


def test_the_difference_of_domains_is_a_total_variation(stats_of):
    stats = stats_of(n_layers=1)
    share = stats.experts.pivot(index="expert", columns="domain", values="share")
    expected = (share["code"] - share["all"]).abs().sum() / 4 + (share["prose"] - share["all"]).abs().sum() / 4
    assert domain_difference(stats)["difference"].tolist() == pytest.approx([expected])


def test_domains_name_the_most_telling_layer(stats_of):
    stats = stats_of(domains=("a", "b", "c", "d"))
    layer = domain_difference(stats)["difference"].idxmax()
    text = said(stats)["Domains"]
    assert f" in layer {layer}; chance alone gives " in text
    assert text.endswith("One pick tells 0.040 bits of 2.00 about the domain in layer 3.")


def test_metrics_a_run_leaves_out_read_as_not_applying(stats_of):
    stats = stats_of()
    missing = ["router_entropy", "captured_mass", "margin", "bias_effect", "domain_information_bits"]
    stats.layers = stats.layers.drop(columns=missing)
    text = said(stats)
    assert "Router" not in text
    assert "bits" not in text["Domains"]


def test_neighbours_are_judged_beyond_the_load(stats_of):
    more = said(stats_of(metrics={"next_token_overlap": {2: 0.45}}))["Neighbours"]
    assert more.endswith("The excess is largest in layer 2 (45 % against 16 %).")
    same = said(stats_of(next_token_overlap=0.165))["Neighbours"]
    assert same.endswith("So neighbours share no more than the load explains.")


def test_what_does_not_apply_is_left_out(stats_of):
    text = said(stats_of(bias_effect=None, next_token_overlap=None))
    assert "bias" not in text["Router"]
    assert "Neighbours" not in text
    assert "Router" not in said(stats_of(captured_mass=None, router_entropy=None, bias_effect=None))


def test_attention_ranks_dead_layers_first_and_gives_reasons(stats_of):
    stats = stats_of(skew=0.1, dead=[(1, 3)], metrics={"max_vio": {2: 3.0}, "max_vio_low": {2: 2.8}, "max_vio_high": {2: 3.3}})
    entries = attention(stats)
    assert [entry.layer for entry in entries] == [1, 2]
    assert entries[0].reasons == ("expert 3 never ran",)
    assert entries[1].reasons[0].endswith("runs 4.0x its even share (95 %: 3.80 to 4.30)")


def test_attention_to_collapse_and_bias(stats_of):
    stats = stats_of(skew=0.1, metrics={"effective_experts": {0: 5.0}, "max_vio": {0: 0.5}, "bias_effect": {3: 0.75}})
    reasons = {entry.layer: entry.reasons for entry in attention(stats)}
    assert "the load spreads like 5.0 of 16 experts" in reasons[0]
    assert reasons[3] == ("the balancing bias decides 75 % of the picks",)


def test_favourites_are_beyond_chance(stats_of):
    assert set(favourites(stats_of(skew=0.0, tokens=60_000), 0).values()) == {None}
    stats = stats_of(skew=0.0, tokens=60_000)
    code = (stats.experts["layer"] == 0) & (stats.experts["domain"] == "code")
    counts = stats.experts.loc[code, "tokens"].tolist()
    counts[6] += 9000
    stats.experts.loc[code, "tokens"] = counts
    stats.experts.loc[code, "share"] = [count / sum(counts) for count in counts]
    chosen = favourites(stats, 0)
    assert chosen["code"].expert == 6
    assert chosen["code"].share == pytest.approx(counts[6] / sum(counts))
    assert chosen["code"].lift > 2


def test_rows_of_metrics_that_do_not_apply_are_nan(stats_of):
    assert all(math.isnan(value) for value in overall_rows(stats_of(bias_effect=None))["bias_effect"])
