from __future__ import annotations

import pytest

from moectl.report.domains import domain_difference, favourites, specialists
from moectl.report.rows import domain_names


def with_picks(stats, picks):
    """`stats` with more tokens for some experts of layer 0 in `code`, {expert: tokens}, taken from nobody."""
    experts = stats.experts
    code = (experts["layer"] == 0) & (experts["domain"] == "code")
    for expert, tokens in picks.items():
        experts.loc[code & (experts["expert"] == expert), "tokens"] += tokens
    experts.loc[code, "share"] = experts.loc[code, "tokens"] / experts.loc[code, "tokens"].sum()
    return stats


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


def test_favourites_are_beyond_chance(stats_of):
    assert set(favourites(stats_of(skew=0.0, tokens=60_000), 0).values()) == {None}
    chosen = favourites(with_picks(stats_of(skew=0.0, tokens=60_000), {6: 9000}), 0)
    assert chosen["code"].expert == 6
    assert chosen["code"].share == pytest.approx((3750 + 9000) / 69_000, rel=0.02)
    assert chosen["code"].lift == pytest.approx(chosen["code"].share * 16, rel=0.05)
    assert chosen["prose"] is None


def test_a_favourite_gains_most_not_relative_to_its_load(stats_of):
    stats = with_picks(stats_of(skew=0.0, tokens=60_000, cold=[(0, 2)]), {2: 900, 6: 9000})
    assert favourites(stats, 0)["code"].expert == 6


def test_a_domain_without_counted_tokens_is_left_out(stats_of):
    stats = stats_of()
    stats.layers.loc[stats.layers["domain"] == "prose", "tokens"] = 0
    assert domain_names(stats) == ["code"]


def test_a_specialist_is_the_clearest_favourite_of_all_layers(stats_of):
    assert set(specialists(stats_of(skew=0.0, tokens=60_000)).values()) == {None}
    stats = stats_of(skew=0.3, tokens=60_000)
    every = {layer: favourites(stats, layer) for layer in stats.moe_layers}
    for name, found in specialists(stats).items():
        gains = {layer: of[name].share - of[name].share / of[name].lift for layer, of in every.items() if of[name] is not None}
        assert found.layer == max(gains, key=gains.get)
        assert found.favourite == every[found.layer][name]
        assert found.tokens == ()
