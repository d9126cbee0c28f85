"""How the domains of a run differ in the experts they pick, and whether that is more than chance.

    domain_difference(stats)["difference"]     # a value per MoE layer
    favourites(stats)["code"][3]               # Favourite(expert=12, share=0.062, lift=2.9), of layer 3
    specialists(stats)["code"].layer           # where the favourite gains most

It writes no sentences (see `findings.py`).
"""

# Shapes: D domains, all text first, L MoE layers, E experts of a layer, N experts of all layers.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
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

    @property
    def gain(self) -> float:
        """What its share of the domain's picks is above its share over all text."""
        return self.share * (1 - 1 / self.lift)


@dataclass(frozen=True, slots=True)
class Specialist:
    """The favourite of a domain in the layer where it gains most; `tokens` of the domain that it is most for (see `top_tokens`)."""

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


def favourites(stats: RouteStats, *, stray: float = _STRAY) -> dict[str, dict[int, Favourite]]:
    """Per domain and layer the expert whose share most exceeds that over all text, among those picked beyond chance; layers without one
    are left out.

    Not the expert of the largest lift: with D domains the lift ends at D, and many a rarely used expert reaches it.
    """
    names = list(dict.fromkeys(stats.experts["domain"]))
    tokens_DN, share_DN = (stats.experts[key].to_numpy(np.float64).reshape(len(names), -1) for key in ("tokens", "share"))
    layer_N = stats.experts["layer"].to_numpy()[: tokens_DN.shape[1]]
    starts_L = np.flatnonzero(np.diff(layer_N, prepend=-1))
    slots_DN = np.add.reduceat(tokens_DN, starts_L, axis=1).repeat(np.diff(starts_L, append=len(layer_N)), axis=1)
    expected_DN = share_DN[0] * slots_DN
    beyond_DN = (tokens_DN - expected_DN) / np.maximum(expected_DN, 1.0) ** 0.5
    gain_DN = np.where((beyond_DN > stray) & (tokens_DN >= ENOUGH_TOKENS), share_DN - share_DN[0], -np.inf)
    chosen: dict[str, dict[int, Favourite]] = {name: {} for name in domain_names(stats)}
    for start, gain_DE in zip(starts_L, np.split(gain_DN, starts_L[1:], axis=1), strict=True):
        for name, own in chosen.items():
            d = names.index(name)
            expert = int(gain_DE[d].argmax())
            if gain_DE[d, expert] > -np.inf:
                share = float(share_DN[d, start + expert])
                own[int(layer_N[start])] = Favourite(expert, share, share / float(share_DN[0, start + expert]))
    return chosen


def specialists(stats: RouteStats) -> dict[str, Specialist | None]:
    """Per domain the expert of any layer whose share most exceeds that over all text, the lowest layer of equals; None if none is clear."""
    chosen: dict[str, Specialist | None] = {}
    for name, of_layer in favourites(stats, stray=_STRAY_OF_ALL).items():
        layer = max(of_layer, key=lambda layer: of_layer[layer].gain, default=None)
        if layer is None:
            chosen[name] = None
        else:
            chosen[name] = Specialist(layer, of_layer[layer], top_tokens(stats, layer, of_layer[layer].expert, domain=name))
    return chosen


def top_tokens(stats: RouteStats, layer: int, expert: int, *, domain: str = ALL) -> tuple[str, ...]:
    """The texts of the tokens an expert is most for, by rank: of all, or of those that mostly occur in `domain`.

    None where the run has no table of them, or none for this expert in this domain.
    """
    table: pd.DataFrame | None = getattr(stats, "vocabulary", None)
    if table is None or table.empty:
        return ()
    own = table[(table["layer"] == layer) & (table["expert"] == expert)]
    own = own[(own["kind"] == "input") & (own["domain"] == domain)]
    return tuple(str(token) for token in own.sort_values("rank")["token"])
