"""Counters -> RouteStats: the one place where the tables of a run and its summary come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moectl.routing.counters import Counters
from moectl.routing.frames import expert_frame, layer_frame, layer_records, overall
from moectl.routing.pair_frames import domain_pair_frame, expert_pair_frame
from moectl.routing.result import RouteStats
from moectl.routing.token_frames import class_frame, vocabulary_frame

if TYPE_CHECKING:
    from moectl.data.tokenizer import TextTokenizer


def assemble(
    counters: Counters,
    domain_names: Sequence[str],
    *,
    provenance: Mapping[str, Any],
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    throughput: Mapping[str, Any],
    perplexity: Mapping[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
) -> RouteStats:
    """The result of a run, whose summary gets the other arguments under their own names; `tokenizer` spells out tokens."""
    layers, coactivation_LEE = layer_frame(counters, domain_names), counters.coactivation_LEE()
    summary = {
        "provenance": dict(provenance),
        "model": dict(model),
        "data": dict(data),
        "perplexity": None if perplexity is None else dict(perplexity),
        "layers": layer_records(layers),
        "overall": overall(layers),
        "throughput": dict(throughput),
    }
    return RouteStats(
        summary=summary,
        experts=expert_frame(counters, domain_names),
        layers=layers,
        coactivation_LEE=coactivation_LEE,
        moe_layers=tuple(info.layer for info in counters.layers),
        vocabulary=vocabulary_frame(counters, domain_names, tokenizer),
        token_classes=class_frame(counters),
        expert_pairs=expert_pair_frame(counters.layers, coactivation_LEE, counters.counts.counted_XL.sum(0)),
        domain_pairs=domain_pair_frame(counters, domain_names),
    )
