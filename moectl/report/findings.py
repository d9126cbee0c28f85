"""What a person should be told about a measurement, as sentences: the tables read, nothing measured anew.

It draws nothing (see `terminal/`) and says nothing the sample is too small for.

    for finding in findings(stats):
        print(finding.label, finding.text)
"""

# Shapes: L MoE layers (by position), E experts (padded to the largest layer).

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from moectl.report.domains import domain_difference
from moectl.report.numerals import counted, percent, three_digits
from moectl.report.rows import (
    ENOUGH_TOKENS,
    domain_names,
    even_share,
    layer_of_largest,
    overall_rows,
    typical,
    typical_interval,
)
from moectl.routing.counting.blocks import MAX_BLOCKS
from moectl.routing.frames import ALL
from moectl.routing.metrics.coactivation import Pair, strongest_pair

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

# What stays below this multiple of what chance alone gives is not told from chance.
_CHANCE_FACTOR = 1.5
_NEARLY_EVEN, _VERY_UNEVEN = 0.3, 1.0
_SHARED_MORE = 0.02
# Experts that are hardly used make pairs of huge lift: a pair must meet on this part of an even share.
_PAIR_SHARE = 0.125
# Standard deviations and lift a pair needs: it is the largest of very many, and neighbouring tokens are not independent.
_PAIR_BEYOND_CHANCE = 6.0
_PAIR_LIFT = 1.5
_MOST_DOMAINS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say, under a one-word label."""

    label: str
    text: str


def findings(stats: RouteStats) -> list[Finding]:
    """Balance, dead experts, domains, neighbours, pairs, sample and certainty: one sentence or two of each that applies."""
    if even_share(stats) == 0:
        return [Finding("Sample", "No token counts, so there is nothing to tell.")]
    rows = overall_rows(stats)
    texts = {
        "Balance": _balance(rows),
        "Dead": _dead(rows, stats),
        "Domains": _domains(stats),
        "Neighbours": _neighbours(rows),
        "Pairs": _pairs(rows, stats),
        "Perplexity": _perplexity(stats),
        "Sample": _sample(rows, stats),
        "Certainty": _certainty(rows, stats),
    }
    return [Finding(label, text) for label, text in texts.items() if text]


def _balance(rows: pd.DataFrame) -> str:
    vio, floor = rows["max_vio"], rows["max_vio_noise_floor"]
    middle, chance = typical(vio), typical(floor)
    within_chance = bool((vio <= _CHANCE_FACTOR * floor).all())
    if within_chance and chance > _NEARLY_EVEN:
        verdict = "Not to be told from even on so small a sample"
    elif within_chance:
        verdict = "As even as chance allows"
    elif middle <= _NEARLY_EVEN:
        verdict = "Nearly even"
    elif middle <= _VERY_UNEVEN:
        verdict = "Uneven"
    else:
        verdict = "Very uneven"
    where = " of a typical layer" if len(rows) > 1 else ""
    text = f"{verdict}: the busiest expert{where} runs {1 + middle:.2f}x its even share, MaxVio {middle:.2f}"
    if f"{vio.min():.2f}" != f"{vio.max():.2f}":
        text += f" (from {vio.min():.2f} in layer {vio.idxmin()} to {vio.max():.2f} in layer {vio.idxmax()})"
    if not math.isnan(chance):
        text += f". Chance alone would give about {chance:.2f}"
    if within_chance:
        return f"{text}."
    return f"{text}. The load spreads like {typical(rows['effective_experts']):.1f} evenly used experts of {rows['n_experts'].max()}."


def _dead(rows: pd.DataFrame, stats: RouteStats) -> str:
    share = even_share(stats)
    if share < ENOUGH_TOKENS:
        text = f"Too few tokens to tell: below {ENOUGH_TOKENS} per expert chance decides."
        return f"{text} Route at least {math.ceil(ENOUGH_TOKENS * float(rows['tokens'].min()) / share):,} tokens."
    dead, cold = rows["dead_experts"], rows["cold_experts"] - rows["dead_experts"]
    if dead.sum() == 0:
        text = f"None: every expert{' of every layer' if len(rows) > 1 else ''} ran."
    else:
        text = f"{_experts(dead)} never ran on this text{_most(dead)}."
    meaning = "below a tenth of its even share"
    if cold.sum() == 0:
        return f"{text} None{' of the others' if dead.sum() else ''} is cold, {meaning}."
    return f"{text} {_experts(cold)} {'is' if cold.sum() == 1 else 'are'} cold, {meaning.replace('its', 'an')}{_most(cold)}."


def _domains(stats: RouteStats) -> str:
    if len(domain_names(stats)) < 2:
        return "One domain, so nothing to compare. Name several: `--data code=src/ --data prose=book.txt`."
    table = domain_difference(stats)
    difference, chance = table["difference"], table["chance"]
    text = f"{percent(typical(difference))} of a domain's picks would have to move to spread like all text"
    if len(table) > 1:
        text += f" in a typical layer, {percent(difference.max())} in layer {layer_of_largest(difference)}"
    if bool((difference <= _CHANCE_FACTOR * chance).all()):
        return f"Not to be told apart: {text}, and chance alone gives {percent(typical(chance))}."
    return f"{text}; chance alone gives {percent(typical(chance))}."


def _neighbours(rows: pd.DataFrame) -> str:
    """Empty where there are no neighbours, in sequences of one token."""
    overlap, load = rows["next_token_overlap"], rows["next_token_overlap_load_aware"]
    if overlap.isna().all():
        return ""
    excess = overlap - load
    text = (
        f"A token shares {percent(typical(overlap))} of its experts with the next one; the load alone makes that "
        f"{percent(typical(load))}, an even load {percent(typical(rows['next_token_overlap_uniform']))}"
    )
    if typical(excess) <= _SHARED_MORE:
        return f"{text}. So neighbours share no more than the load explains."
    if len(rows) == 1:
        return f"{text}."
    most = layer_of_largest(excess)
    return f"{text}. The excess is largest in layer {most} ({percent(overlap.loc[most])} against {percent(load.loc[most])})."


def _pairs(rows: pd.DataFrame, stats: RouteStats) -> str:
    """The pair of the largest lift in any layer, if it is clearly beyond chance; else empty."""
    tokens, n_experts = rows["tokens"], rows["n_experts"]
    best: tuple[int, Pair] | None = None
    for layer, counts_EE in zip(stats.moe_layers, stats.coactivation_LEE, strict=True):
        share = float(counts_EE.diagonal().sum() / n_experts[layer])
        pair = strongest_pair(counts_EE, int(tokens[layer]), min_count=math.ceil(max(ENOUGH_TOKENS, _PAIR_SHARE * share)))
        if pair is None or (best is not None and pair.lift <= best[1].lift):
            continue
        expected = pair.count / pair.lift
        if pair.lift >= _PAIR_LIFT and pair.count - expected > _PAIR_BEYOND_CHANCE * expected**0.5:
            best = layer, pair
    if best is None:
        return ""
    layer, pair = best
    return (
        f"{f'Layer {layer}: e' if len(rows) > 1 else 'E'}xperts {pair.first} and {pair.second} run together "
        f"{pair.lift:.1f}x as often as their loads explain, on {pair.count:,} of {tokens[layer]:,} tokens."
    )


def _perplexity(stats: RouteStats) -> str:
    found = stats.summary.get("perplexity")
    if found is None or found[ALL]["perplexity"] is None:
        return ""
    whole = found[ALL]
    text = f"{three_digits(whole['perplexity'])}, {whole['loss']:.3f} nats a token"
    if whole["perplexity_low"] is not None:
        text += f" (perplexity {three_digits(whole['perplexity_low'])} to {three_digits(whole['perplexity_high'])} with 95 % confidence)"
    domains = [f"{name} {three_digits(row['perplexity'])}" for name, row in found.items() if name != ALL and row["perplexity"] is not None]
    return text + (f": {', '.join(domains[:_MOST_DOMAINS])}" if len(domains) > 1 else "") + "."


def _sample(rows: pd.DataFrame, stats: RouteStats) -> str:
    share, floor = even_share(stats), typical(rows["max_vio_noise_floor"])
    text = f"An even share is {share:,.{1 if share < ENOUGH_TOKENS else 0}f} tokens per expert"
    return f"{text}." if math.isnan(floor) else f"{text}, so a MaxVio below {floor:.2f} is noise; four times the tokens halve that."


def _certainty(rows: pd.DataFrame, stats: RouteStats) -> str:
    """How wide the 95 % intervals of a typical layer are, and on how many sequences they rest."""
    sequences_D = [int(row["sequences"]) for row in stats.summary["data"].values()]
    said = [_between(rows, "MaxVio", "max_vio", 1, 2, ""), _between(rows, "next-token overlap", "next_token_overlap", 100, 0, " %")]
    intervals = ", ".join(text for text in said if text)
    if not intervals:
        return "No interval can be given: it takes several sequences, and whole texts rather than parts of one."
    where = ", of a typical layer" if len(rows) > 1 else ""
    text = f"With 95 % confidence{where}: {intervals}"
    blocks = sum(min(sequences, MAX_BLOCKS) for sequences in sequences_D)
    dealt = f", dealt to {counted(blocks, 'block')}" if blocks < sum(sequences_D) else ""
    return f"{text}. This rests on {counted(sum(sequences_D), 'sequence')}{dealt}; four times as many halve the widths."


def _between(rows: pd.DataFrame, name: str, key: str, scale: float, digits: int, unit: str) -> str:
    """`MaxVio 0.39 (0.31 to 0.47)`; empty without an interval."""
    interval = typical_interval(rows, key)
    if interval is None:
        return ""
    middle, low, high = (f"{scale * value:.{digits}f}" for value in (typical(rows[key]), *interval))
    return f"{name} {middle}{unit} ({low} to {high}{unit})"


def _experts(how_many: pd.Series[float]) -> str:
    """`3 experts in 2 layers`, `3 experts in layer 7`, or without a layer if the model has only one."""
    text, n_layers = counted(how_many.sum(), "expert"), int((how_many > 0).sum())
    if len(how_many) == 1:
        return text
    return f"{text} in layer {layer_of_largest(how_many)}" if n_layers == 1 else f"{text} in {n_layers} layers"


def _most(how_many: pd.Series[float]) -> str:
    """`, most in layer 4 (12)` where one layer has more than the others."""
    ordered = how_many.sort_values(ascending=False)
    if len(ordered) < 2 or ordered.iloc[1] in (0, ordered.iloc[0]):
        return ""
    return f", most in layer {ordered.index[0]} ({ordered.iloc[0]:.0f})"
