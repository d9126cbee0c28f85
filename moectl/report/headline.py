"""The dozen figures a routing study quotes, each for a typical layer with its 95 % interval and its range over the layers.

    for figure in headline(stats):
        print(figure.label, figure.value, figure.interval, figure.extremes)

Typical is the median over the layers, and so are the two ends of its interval: the layer in the middle is as sure as that, the whole model
is surer. It draws nothing (see `terminal/`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from moectl.report.numerals import hundredths, percent_tenths, tenths, thousandths, three_digits, three_significant
from moectl.report.rows import ENOUGH_TOKENS, domain_names, even_share, overall_rows, typical, typical_interval
from moectl.routing.frames import ALL

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as text: `value` of a typical layer, its `interval`, its `extremes` over the layers (both may be empty), what it means."""

    label: str
    value: str
    interval: str
    extremes: str
    meaning: str


@dataclass(frozen=True, slots=True)
class _Metric:
    """A column of `stats.layers` and how its values are written; `unit` stands once, after the last number."""

    label: str
    key: str
    number: Callable[[float], str]
    unit: str
    meaning: str


_BALANCE = (
    _Metric("MaxVio", "max_vio", hundredths, "", "busiest expert above its even share; 0 is even"),
    _Metric("effective experts", "effective_experts", tenths, "", "would carry this load evenly"),
)
_ROUTING = (
    _Metric("balance loss", "balance_loss", thousandths, "", "the loss of training; 1 is even"),
    _Metric("router entropy", "router_entropy", thousandths, "", "1: all experts score alike, 0: one has it all"),
    _Metric("captured mass", "captured_mass", percent_tenths, " %", "of the scores are those of the chosen experts"),
    _Metric("margin", "margin", three_significant, "", "from the last chosen expert to the next one"),
    _Metric("fragile tokens", "fragile_tokens", percent_tenths, " %", "margin so small that rounding may change it"),
    _Metric("domain information", "domain_information_bits", thousandths, " bit", "what one pick tells about the domain"),
    _Metric("next-token overlap", "next_token_overlap", percent_tenths, " %", "of a token's experts are the next one's too"),
    _Metric("  from the load", "next_token_overlap_load_aware", percent_tenths, " %", "of them would be by the loads alone"),
    _Metric("vocabulary", "vocabulary_input", percent_tenths, " %", "of an id's tokens ran its favourite expert"),
)


def headline(stats: RouteStats) -> list[Figure]:
    """The figures that apply, in order; none if no token counts."""
    if even_share(stats) == 0:
        return []
    rows = overall_rows(stats)
    figures = [*_of(_BALANCE, rows), *_unused(rows, stats), *_of(_applying(stats, rows), rows)]
    return figures + _perplexity(stats)


def _applying(stats: RouteStats, rows: pd.DataFrame) -> tuple[_Metric, ...]:
    """What compares domains needs two of them, and what neighbours share by the load needs neighbours."""
    left_out = set() if len(domain_names(stats)) > 1 else {"domain_information_bits"}
    if rows["next_token_overlap"].isna().all():
        left_out.add("next_token_overlap_load_aware")
    return tuple(metric for metric in _ROUTING if metric.key not in left_out)


def _of(metrics: tuple[_Metric, ...], rows: pd.DataFrame) -> list[Figure]:
    return [_figure(metric, rows) for metric in metrics if metric.key in rows and rows[metric.key].notna().any()]


def _figure(metric: _Metric, rows: pd.DataFrame) -> Figure:
    value = f"{metric.number(typical(rows[metric.key]))}{metric.unit}"
    interval = typical_interval(rows, metric.key)
    between = "" if interval is None else f"{metric.number(interval[0])} to {metric.number(interval[1])}{metric.unit}"
    return Figure(metric.label, value, between, _extremes(metric, rows[metric.key].dropna()), metric.meaning)


def _extremes(metric: _Metric, values: pd.Series[float]) -> str:
    """`0.36 (3) to 0.51 (5)`, the layers in brackets; empty where all layers read the same."""
    low, high = metric.number(float(values.min())), metric.number(float(values.max()))
    if low == high:
        return ""
    return f"{low} ({values.idxmin()}) to {high} ({values.idxmax()})"


def _unused(rows: pd.DataFrame, stats: RouteStats) -> list[Figure]:
    """Only if an even share is large enough that chance leaves no expert without a token."""
    if even_share(stats) < ENOUGH_TOKENS:
        return []
    dead, cold, all_experts = (int(rows[key].sum()) for key in ("dead_experts", "cold_experts", "n_experts"))
    meaning = "never ran; below a tenth of an even share, dead ones too"
    return [Figure("dead, cold experts", f"{dead:,}, {cold:,}", "", f"of {all_experts:,} in all layers", meaning)]


def _perplexity(stats: RouteStats) -> list[Figure]:
    found = (stats.summary.get("perplexity") or {}).get(ALL)
    if found is None or found["perplexity"] is None:
        return []
    low, high = found["perplexity_low"], found["perplexity_high"]
    interval = "" if low is None else f"{three_digits(low)} to {three_digits(high)}"
    return [Figure("perplexity", three_digits(found["perplexity"]), interval, "", "of the next token, all text")]
