"""What a person should be told about a measurement, as sentences: the tables read, nothing measured anew.

It draws nothing (see `terminal.py`) and says nothing the sample is too small for.

    for finding in findings(stats):
        print(finding.label, finding.text)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

# An even share below this many tokens leaves an expert without any too easily by chance (e^-30 if tokens were independent; they are not).
ENOUGH_TOKENS = 30
# A layer is called even while its MaxVio stays below this multiple of what chance alone gives.
_CHANCE_FACTOR = 1.5
_NEARLY_EVEN, _VERY_UNEVEN = 0.3, 1.0
_STANDS_OUT = 1.5  # times the median layer's MaxVio
_SHARED_MORE = 0.02
# Metrics that a run may leave out: they then read as "does not apply".
_OPTIONAL = ("router_entropy", "captured_mass", "margin", "bias_effect", "domain_information_bits")
_STRAY = 4.0  # standard deviations a domain's pick count must lie above chance to be named


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say, under a one-word label."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Attention:
    """A layer that needs a look, and why."""

    layer: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Favourite:
    """The expert a domain picks most above its pick rate over all text."""

    expert: int
    share: float
    lift: float


def findings(stats: RouteStats) -> list[Finding]:
    """Balance, dead experts, router, domains, neighbours and sample: one sentence or two of each that applies."""
    rows = overall_rows(stats)
    return [
        Finding("Balance", _balance(rows, stats)),
        Finding("Dead", _dead(rows, stats)),
        *([Finding("Router", text)] if (text := _router(rows)) else []),
        Finding("Domains", _domains(rows, stats)),
        *([Finding("Neighbours", text)] if (text := _neighbours(rows)) else []),
        Finding("Sample", _sample(rows, stats)),
    ]


def overall_rows(stats: RouteStats) -> pd.DataFrame:
    """The rows of all domains together, one per MoE layer, indexed by layer; metrics that do not apply are NaN."""
    rows: pd.DataFrame = stats.layers[stats.layers["domain"] == "all"].drop(columns="domain").set_index("layer").sort_index()
    numbers: pd.DataFrame = rows.apply(pd.to_numeric)
    return numbers.reindex(columns=[*rows.columns, *(key for key in _OPTIONAL if key not in rows.columns)])


def even_share(stats: RouteStats) -> float:
    """Tokens an evenly used expert runs in the layer that has the fewest: T K / E."""
    return float(_overall_experts(stats).groupby("layer")["tokens"].mean().min())


def attention(stats: RouteStats) -> list[Attention]:
    """Layers that stand out, the worst first."""
    rows = overall_rows(stats)
    experts = _overall_experts(stats)
    supported = even_share(stats) >= ENOUGH_TOKENS
    typical = float(rows["max_vio"].median())
    found: list[tuple[tuple[float, float], Attention]] = []
    for layer, row in rows.iterrows():
        loads = experts[experts["layer"] == layer].sort_values(["relative_load", "expert"])
        n_experts, dead = len(loads), int(row["dead_experts"])
        beyond_chance = row["max_vio"] > 3 * _number(row["max_vio_noise_floor"])
        reasons = []
        if supported and dead:
            reasons.append(f"{_experts(loads['expert'].iloc[:dead].tolist())} never ran")
        if beyond_chance and row["max_vio"] > max(_NEARLY_EVEN, _STANDS_OUT * typical):
            reasons.append(f"expert {loads['expert'].iloc[-1]} runs {1 + row['max_vio']:.1f}x its even share{_interval(row, 'max_vio', 1)}")
        if beyond_chance and row["effective_experts"] < n_experts / 2:
            reasons.append(f"the load spreads like {row['effective_experts']:.1f} of {n_experts} experts")
        if row["bias_effect"] > 0.5:
            reasons.append(f"the balancing bias decides {_percent(row['bias_effect'])} of the picks")
        if reasons:
            severity = (float(dead) if supported else 0.0, float(row["max_vio"]))
            found.append((severity, Attention(int(str(layer)), tuple(reasons))))
    return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0][0], -pair[0][1], pair[1].layer))]


def domain_names(stats: RouteStats) -> list[str]:
    """The domains in their order, without `all`."""
    return [name for name in dict.fromkeys(stats.layers["domain"]) if name != "all"]


def domain_difference(stats: RouteStats) -> pd.DataFrame:
    """Per layer the part of a domain's picks that would have to move to spread like all text (mean over domains), and by chance.

    Columns `difference` (total variation, 0 to 1) and `chance` (its expectation for normal deviations of independent picks).
    """
    everything = _overall_experts(stats).set_index(["layer", "expert"])[["share", "tokens"]]
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
    """Per domain its expert of highest lift, DS(e, d) / DS(e, all), among those it picks beyond chance; None if there is none."""
    experts = stats.experts[stats.experts["layer"] == layer]
    all_share = experts[experts["domain"] == "all"].set_index("expert")["share"]
    chosen: dict[str, Favourite | None] = {}
    for name in domain_names(stats):
        own = experts[experts["domain"] == name].set_index("expert")
        expected = all_share * own["tokens"].sum()
        beyond = (own["tokens"] - expected) / expected.clip(lower=1.0) ** 0.5
        lift = (own["share"] / all_share)[(beyond > _STRAY) & (own["tokens"] >= ENOUGH_TOKENS)]
        if lift.empty:
            chosen[name] = None
        else:
            expert = int(str(lift.idxmax()))
            chosen[name] = Favourite(expert, float(own["share"].loc[expert]), float(lift.loc[expert]))
    return chosen


def _balance(rows: pd.DataFrame, stats: RouteStats) -> str:
    vio, floor = rows["max_vio"], rows["max_vio_noise_floor"]
    typical = float(vio.median())
    if bool((vio <= _CHANCE_FACTOR * floor).all()):
        small = float(floor.median()) > _NEARLY_EVEN
        verdict = "Not to be told from even on so small a sample" if small else "As even as chance allows"
    elif typical <= _NEARLY_EVEN:
        verdict = "Nearly even"
    elif typical <= _VERY_UNEVEN:
        verdict = "Uneven"
    else:
        verdict = "Very uneven"
    text = f"{verdict}: the busiest expert of a typical layer runs {1 + typical:.2f}x its even share, MaxVio {typical:.2f}"
    if len(rows) > 1:
        text += f" (from {vio.min():.2f} in layer {vio.idxmin()} to {vio.max():.2f} in layer {vio.idxmax()})"
    if floor.notna().any():
        text += f". Chance alone would give about {floor.median():.2f}"
    n_experts = len(_overall_experts(stats)["expert"].unique())
    return text + f". A typical load spreads like {rows['effective_experts'].median():.1f} evenly used experts of {n_experts}."


def _dead(rows: pd.DataFrame, stats: RouteStats) -> str:
    share = even_share(stats)
    if share < ENOUGH_TOKENS:
        needed = math.ceil(ENOUGH_TOKENS * float(rows["tokens"].min()) / share) if share > 0 else 0
        more = f" Route at least {needed:,} tokens to tell." if needed else ""
        why = f"an even share is {share:.1f} tokens per expert, and below {ENOUGH_TOKENS} chance decides"
        return f"The sample is too small to tell: {why}.{more}"
    experts = _overall_experts(stats)
    dead, cold = rows["dead_experts"], rows["cold_experts"] - rows["dead_experts"]
    if dead.sum() == 0:
        text = "None: every expert of every layer ran."
    else:
        text = f"{_count(dead.sum(), 'expert')} in {_count((dead > 0).sum(), 'layer')} never ran on this text"
        text += f": {_listed(experts, dead, 0 * dead)}."
    if cold.sum() == 0:
        return f"{text} None{' of the others' if dead.sum() else ''} is cold, that is below a tenth of its even share."
    return (
        f"{text} {_count(cold.sum(), 'expert')} in {_count((cold > 0).sum(), 'layer')} "
        f"{'is' if cold.sum() == 1 else 'are'} cold, that is below a tenth of an even share: {_listed(experts, cold, dead)}."
    )


def _router(rows: pd.DataFrame) -> str:
    parts = []
    if rows["captured_mass"].notna().any():
        parts.append(f"the chosen experts hold {_percent(rows['captured_mass'].median())} of the score")
    if rows["router_entropy"].notna().any():
        parts.append(f"entropy is {rows['router_entropy'].median():.2f} of 1 (1: no preference)")
    if rows["bias_effect"].notna().any():
        parts.append(f"the balancing bias decides {_percent(rows['bias_effect'].median())} of the picks")
    text = "; ".join(parts)
    return f"In a typical layer {text}." if text else ""


def _domains(rows: pd.DataFrame, stats: RouteStats) -> str:
    names = domain_names(stats)
    if len(names) < 2:
        return "One domain, so nothing to compare. Name several: `--data code=src/ --data prose=book.txt`."
    table = domain_difference(stats)
    most = _layer_of_largest(table["difference"])
    text = (
        f"To spread like all text, {_percent(table['difference'].median())} of a domain's picks would have to move in a typical layer, "
        f"{_percent(table['difference'].max())} in layer {most}; chance alone gives {_percent(table['chance'].median())}."
    )
    bits = rows["domain_information_bits"]
    if bits.isna().all():
        return text
    return (
        f"{text} One pick tells {bits.max():.3f} bits of {math.log2(len(names)):.2f} about the domain in layer {_layer_of_largest(bits)}."
    )


def _neighbours(rows: pd.DataFrame) -> str:
    overlap, load = rows["next_token_overlap"], rows["next_token_overlap_load_aware"]
    if overlap.isna().all() or load.isna().all():
        return ""
    excess = overlap - load
    text = (
        f"A token shares {_percent(overlap.median())} of its experts with the next one; the load alone makes that "
        f"{_percent(load.median())}, an even load {_percent(rows['next_token_overlap_uniform'].median())}"
    )
    if float(excess.median()) <= _SHARED_MORE:
        return f"{text}. So neighbours share no more than the load explains."
    most = _layer_of_largest(excess)
    return f"{text}. The excess is largest in layer {most} ({_percent(overlap.loc[most])} against {_percent(load.loc[most])})."


def _sample(rows: pd.DataFrame, stats: RouteStats) -> str:
    share = even_share(stats)
    text = f"An even share is {share:,.{1 if share < ENOUGH_TOKENS else 0}f} tokens per expert"
    floor = rows["max_vio_noise_floor"].median()
    if not math.isnan(floor):
        text += f", so a MaxVio below {floor:.2f} is noise; four times the tokens halve that"
    worst = rows.sort_values("max_vio").iloc[-1]
    interval = _interval(worst, "max_vio", 0)
    if not interval:
        return f"{text}."
    return f"{text}. Layer {worst.name}, the least even, has MaxVio {worst['max_vio']:.2f}{interval}."


def _layer_of_largest(values: pd.Series[float]) -> int:
    return int(str(values.idxmax()))


def _overall_experts(stats: RouteStats) -> pd.DataFrame:
    rows: pd.DataFrame = stats.experts[stats.experts["domain"] == "all"]
    return rows


def _listed(experts: pd.DataFrame, how_many: pd.Series, skip: pd.Series, at_most: int = 4) -> str:
    """`layer 3: 12, 40`: the least loaded experts of each layer after the first `skip`, of the layers that have most of them."""
    layers = how_many[how_many > 0].sort_values(ascending=False, kind="stable").index
    parts = []
    for layer in layers[:at_most]:
        least = experts[experts["layer"] == layer].sort_values(["relative_load", "expert"])["expert"].tolist()
        first = int(skip[layer])
        parts.append(f"layer {layer}: {_few(least[first : first + int(how_many[layer])])}")
    rest = len(layers) - at_most
    return "; ".join(parts) + (f"; and {_count(rest, 'more layer')}" if rest > 0 else "")


def _experts(ids: Sequence[Any]) -> str:
    return f"expert{'s' if len(ids) > 1 else ''} {_few(ids)}"


def _few(ids: Sequence[Any], at_most: int = 5) -> str:
    shown = sorted(ids)[:at_most]
    return ", ".join(str(value) for value in shown) + (f" and {len(ids) - at_most} more" if len(ids) > at_most else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: float, noun: str) -> str:
    return f"{int(number):,} {noun}{'' if number == 1 else 's'}"


def _interval(row: pd.Series, key: str, plus: float) -> str:
    """` (95 %: 1.9 to 2.4)` where the table has an interval for `key`."""
    low, high = _number(row.get(f"{key}_low")), _number(row.get(f"{key}_high"))
    if math.isnan(low) or math.isnan(high):
        return ""
    return f" (95 %: {low + plus:.2f} to {high + plus:.2f})"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
