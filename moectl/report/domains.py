"""How the domains of a run differ in the experts they pick, and whether that is more than chance.

    domain_difference(stats)["difference"]     # a value per MoE layer
    favourites(stats, layer=3)["code"]         # Favourite(expert=12, share=0.062, lift=2.9)

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


@dataclass(frozen=True, slots=True)
class Favourite:
    """The expert that gains most in a domain: its `share` of the domain's picks, which is `lift` times its share over all text."""

    expert: int
    share: float
    lift: float


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


def favourites(stats: RouteStats, layer: int) -> dict[str, Favourite | None]:
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
        gain = (own["share"] - all_share)[(beyond > _STRAY) & (own["tokens"] >= ENOUGH_TOKENS)]
        if gain.empty:
            chosen[name] = None
        else:
            expert = int(str(gain.idxmax()))
            share = float(own["share"].loc[expert])
            chosen[name] = Favourite(expert, share, share / float(all_share.loc[expert]))
    return chosen
