"""How the domains of a run differ in the experts they pick, and whether that is more than chance.

    domain_difference(stats)["difference"]     # a value per MoE layer
    favourites(stats, layer=3)["code"]         # Favourite(expert=12, share=0.062, lift=2.9)
    specialists(stats)["code"].layer           # where the favourite gains most

It writes no sentences (see `findings.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from moectl.report.rows import ENOUGH_TOKENS, domain_names, overall_experts
from moectl.routing.frames import ALL

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_STRAY = 4.0  # standard deviations a domain's pick count must lie above chance to be named
_STRAY_OF_ALL = 6.0  # the same for the largest of all layers, so of very many


@dataclass(frozen=True, slots=True)
class Favourite:
    """The expert that gains most in a domain: its `share` of the domain's picks, which is `lift` times its share over all text."""

    expert: int
    share: float
    lift: float


@dataclass(frozen=True, slots=True)
class Specialist:
    """The favourite of a domain in the layer where it gains most, with the texts of the tokens it is most for (see `top_tokens`)."""

    layer: int
    favourite: Favourite
    tokens: tuple[str, ...]


def domain_difference(stats: RouteStats) -> pd.DataFrame:
    """Per layer the part of a domain's picks that would have to move to spread like all text (mean over domains), and by chance.

    Columns `difference` (total variation, 0 to 1) and `chance` (its expectation for normal deviations of independent picks).
    """
    everything = overall_experts(stats).set_index(["layer", "expert"])[["share", "tokens"]]
    picks = everything.groupby("layer")["tokens"].sum()
    differences, chances = [], []
    for name in domain_names(stats):
        own = stats.experts[stats.experts["domain"] == name].set_index(["layer", "expert"])
        own_picks = own.groupby("layer")["tokens"].sum()
        differences.append((own["share"] - everything["share"]).abs().groupby("layer").sum() / 2)
        spread = (everything["share"] * (1 - everything["share"])) ** 0.5
        # The domain is part of the whole it is compared with.
        scale = (2 / math.pi * (1 / own_picks - 1 / picks)) ** 0.5
        chances.append(spread.groupby("layer").sum() * scale / 2)
    return pd.DataFrame({"difference": sum(differences) / len(differences), "chance": sum(chances) / len(chances)})


def favourites(stats: RouteStats, layer: int, *, stray: float = _STRAY) -> dict[str, Favourite | None]:
    """Per domain the expert whose share most exceeds that over all text, among those picked beyond chance; None if there is none.

    Not the expert of the largest lift: with D domains the lift ends at D, and many a rarely used expert reaches it.
    """
    experts = stats.experts[stats.experts["layer"] == layer]
    all_share = experts[experts["domain"] == ALL].set_index("expert")["share"]
    chosen: dict[str, Favourite | None] = {}
    for name in domain_names(stats):
        own = experts[experts["domain"] == name].set_index("expert")
        expected = all_share * own["tokens"].sum()
        beyond = (own["tokens"] - expected) / expected.clip(lower=1.0) ** 0.5
        gain = (own["share"] - all_share)[(beyond > stray) & (own["tokens"] >= ENOUGH_TOKENS)]
        if gain.empty:
            chosen[name] = None
        else:
            expert = int(str(gain.idxmax()))
            share = float(own["share"].loc[expert])
            chosen[name] = Favourite(expert, share, share / float(all_share.loc[expert]))
    return chosen


def specialists(stats: RouteStats) -> dict[str, Specialist | None]:
    """Per domain the expert of any layer whose share most exceeds that over all text, the lowest layer of equals; None if none is clear."""
    chosen: dict[str, Specialist | None] = dict.fromkeys(domain_names(stats))
    most = dict.fromkeys(chosen, 0.0)
    for layer in stats.moe_layers:
        for name, favourite in favourites(stats, layer, stray=_STRAY_OF_ALL).items():
            gain = 0.0 if favourite is None else favourite.share * (1 - 1 / favourite.lift)
            if favourite is not None and gain > most[name]:
                most[name], chosen[name] = gain, Specialist(layer, favourite, top_tokens(stats, layer, favourite.expert))
    return chosen


def top_tokens(stats: RouteStats, layer: int, expert: int) -> tuple[str, ...]:
    """The texts of the tokens an expert is most for, by rank; none where the run has no table of them."""
    table: pd.DataFrame | None = getattr(stats, "vocabulary", None)
    if table is None or table.empty:
        return ()
    own = table[(table["layer"] == layer) & (table["expert"] == expert) & (table["kind"] == "input")]
    return tuple(str(token) for token in own.sort_values("rank")["token"])
