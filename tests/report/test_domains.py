from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from moectl.report.domains import Favourite, domain_difference, favourites, specialists, top_tokens
from moectl.report.rows import ENOUGH_TOKENS, domain_names


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
    assert favourites(stats_of(skew=0.0, tokens=60_000)) == {"code": {}, "prose": {}}
    chosen = favourites(with_picks(stats_of(skew=0.0, tokens=60_000), {6: 9000}))
    assert list(chosen["code"]) == [0]
    assert chosen["code"][0].expert == 6
    assert chosen["code"][0].share == pytest.approx((3750 + 9000) / 69_000, rel=0.02)
    assert chosen["code"][0].lift == pytest.approx(chosen["code"][0].share * 16, rel=0.05)
    assert chosen["prose"] == {}


def test_a_favourite_gains_most_not_relative_to_its_load(stats_of):
    stats = with_picks(stats_of(skew=0.0, tokens=60_000, cold=[(0, 2)]), {2: 900, 6: 9000})
    assert favourites(stats)["code"][0].expert == 6


def obvious_favourites(stats, stray):
    """A layer, a domain and an expert at a time."""
    chosen = {name: {} for name in domain_names(stats)}
    for layer in stats.moe_layers:
        of_layer = stats.experts[stats.experts["layer"] == layer]
        for name, own in chosen.items():
            table = of_layer[of_layer["domain"] == name].set_index("expert")
            most = 0.0
            for expert, row in table.iterrows():
                everywhere = of_layer[(of_layer["domain"] == "all") & (of_layer["expert"] == expert)]["share"].item()
                expected = everywhere * table["tokens"].sum()
                beyond = (row["tokens"] - expected) / max(expected, 1.0) ** 0.5 > stray
                if beyond and row["tokens"] >= ENOUGH_TOKENS and row["share"] - everywhere > most:
                    most, own[layer] = row["share"] - everywhere, Favourite(expert, row["share"], row["share"] / everywhere)
    return chosen


def with_fewer_experts(stats, layer, n_experts):
    """`stats` as of a model whose `layer` has fewer experts than the others."""
    kept = (stats.experts["layer"] != layer) | (stats.experts["expert"] < n_experts)
    return SimpleNamespace(experts=stats.experts[kept], layers=stats.layers, moe_layers=stats.moe_layers)


@pytest.mark.parametrize("stray", [4.0, 8.0])
def test_favourites_are_those_of_the_obvious_way(stats_of, stray):
    stats = stats_of(skew=0.3, tokens=9000, n_layers=5, domains=("code", "prose", "tables"), dead=[(1, 3)])
    stats.layers.loc[stats.layers["domain"] == "prose", "tokens"] = 0  # not among the names, still among the rows
    stats = with_fewer_experts(stats, 2, 7)
    found = favourites(stats, stray=stray)
    assert found == obvious_favourites(stats, stray)
    assert 0 < sum(len(own) for own in found.values()) < (10 if stray > 4 else 11)
    assert list(found) == ["code", "tables"]


def test_a_domain_without_picks_has_no_favourite(stats_of):
    stats = stats_of(skew=0.3, tokens=9000)
    empty = (stats.experts["domain"] == "prose") & (stats.experts["layer"] == 1)
    stats.experts.loc[empty, ["tokens", "share"]] = (0, np.nan)
    assert 1 not in favourites(stats)["prose"]
    assert 2 in favourites(stats)["prose"]


def test_a_domain_without_counted_tokens_is_left_out(stats_of):
    stats = stats_of()
    stats.layers.loc[stats.layers["domain"] == "prose", "tokens"] = 0
    assert domain_names(stats) == ["code"]


def test_a_specialist_is_the_clearest_favourite_of_all_layers(stats_of):
    assert set(specialists(stats_of(skew=0.0, tokens=60_000)).values()) == {None}
    stats = stats_of(skew=0.3, tokens=60_000)
    every = favourites(stats)
    for name, found in specialists(stats).items():
        gains = {layer: one.share - one.share / one.lift for layer, one in every[name].items()}
        assert found.layer == max(gains, key=gains.get)
        assert found.favourite == every[name][found.layer]
        assert found.favourite.gain == pytest.approx(gains[found.layer])
        assert found.tokens == ()


def test_a_specialist_comes_with_tokens_of_its_domain(stats_of):
    stats = stats_of(skew=0.3, tokens=60_000)
    one = specialists(stats)["code"]
    place = {"layer": one.layer, "expert": one.favourite.expert}
    rows = [
        {**place, "kind": kind, "domain": domain, "rank": rank, "token": f"{kind} {domain} {rank}"}
        for kind, domain in (("input", "all"), ("input", "code"), ("next", "all"))
        for rank in (2, 1)
    ]
    with_tokens = SimpleNamespace(experts=stats.experts, layers=stats.layers, moe_layers=stats.moe_layers, vocabulary=pd.DataFrame(rows))
    assert specialists(with_tokens)["code"].tokens == ("input code 1", "input code 2")
    assert specialists(with_tokens)["prose"].tokens == ()
    assert top_tokens(with_tokens, **place) == ("input all 1", "input all 2")
    assert top_tokens(with_tokens, one.layer, one.favourite.expert + 1) == ()
    assert top_tokens(stats, **place) == ()
