"""The rows of a measurement that the report reads, and how many tokens they rest on.

    overall_rows(stats)["max_vio"]     # a value per MoE layer

It judges nothing (see `findings.py` and `attention.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from moectl.routing.frames import ALL

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

# An even share below this many tokens leaves an expert without any too easily by chance (e^-30 if tokens were independent; they are not).
ENOUGH_TOKENS = 30


def overall_rows(stats: RouteStats) -> pd.DataFrame:
    """The layer rows of all domains together, one per MoE layer, indexed by layer; metrics that do not apply are NaN."""
    rows: pd.DataFrame = stats.layers[stats.layers["domain"] == ALL].drop(columns="domain").set_index("layer").sort_index()
    return rows


def overall_experts(stats: RouteStats) -> pd.DataFrame:
    """The expert rows of all domains together."""
    rows: pd.DataFrame = stats.experts[stats.experts["domain"] == ALL]
    return rows


def domain_names(stats: RouteStats) -> list[str]:
    """The domains of which any token counts, in their order, without `all`."""
    rows = stats.layers[(stats.layers["domain"] != ALL) & (stats.layers["tokens"] > 0)]
    return list(dict.fromkeys(rows["domain"]))


def even_share(stats: RouteStats) -> float:
    """Tokens an evenly used expert runs in the layer that has the fewest: T K / E."""
    return float(overall_experts(stats).groupby("layer")["tokens"].mean().min())


def typical(values: pd.Series[float]) -> float:
    """The median over the layers where a metric applies; NaN if there is none."""
    known = values.dropna()
    return float(known.median()) if len(known) else math.nan


def typical_interval(rows: pd.DataFrame, key: str) -> tuple[float, float] | None:
    """The median of the ends of a metric's 95 % intervals over the layers that have one; None if none has."""
    ends = [f"{key}_low", f"{key}_high"]
    if not set(ends) <= set(rows.columns):  # tables written before there were intervals
        return None
    known = rows[ends].dropna()
    return (float(known[ends[0]].median()), float(known[ends[1]].median())) if len(known) else None


def layer_of_largest(values: pd.Series[float]) -> int:
    """The layer of the largest value, the first of equal ones."""
    return int(str(values.idxmax()))
