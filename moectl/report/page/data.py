"""What the page knows, as one object for JSON: the tables of a run, packed, within a size.

    page_data(stats)["experts"]["tokens"]      # {"type": "u2", "data": "..."}: [domain, layer, expert] in the order of `stats.experts`

What every figure needs always goes in. The rest is added in order of use while there is room; what is left out is said in `left_out`, in
words. Shares and relative loads are quotients of token counts and are not stored.
"""

# Shapes: D domains ("all" first), L MoE layers, E experts of a layer, P pairs of experts i < j.

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moectl.report.attention import attention
from moectl.report.domains import domain_difference, favourites, top_tokens
from moectl.report.page.chance import ordered_band
from moectl.report.page.metrics import describe
from moectl.report.page.packing import LIFT_ONE, LIFT_STEPS, pack, packed_bytes, quantised_lifts
from moectl.report.plain_json import null_for_nan
from moectl.report.rows import ENOUGH_TOKENS, domain_names, overall_rows
from moectl.routing.frames import ALL
from moectl.routing.metrics.coactivation import strongest_pairs

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

# The part of the page's 6 MB that is data; the rest is for what draws it.
MOST_BYTES = 5_800_000
_PAIRS = 20  # strongest pairs listed per layer
_PAIR_SHARE = 0.125  # of an even share a pair must meet on, as in `findings.py`
_SPECIALISTS = 3  # of each domain
_TOKENS_PER_EXPERT = (5, 3)  # of the vocabulary: the most there is room for
_UNSAFE = re.compile("[<\ud800-\udfff]")


def page_data(stats: RouteStats, *, limit: int = MOST_BYTES) -> dict[str, Any]:
    """The page's data block; at most `limit` bytes as JSON, unless what every figure needs is more."""
    data = _needed(stats)
    left_out: list[str] = []
    room = limit - json_size(data) - 1000

    def add(name: str, words: str, make: Callable[[], dict[str, Any] | None]) -> None:
        nonlocal room
        part = make()
        size = 0 if part is None else json_size(part)
        if part is None or size > room:
            left_out.append(words)
        else:
            data[name] = part
            room -= size

    add("weights", "mean weights", lambda: {"mean": pack(stats.experts["mean_weight"].to_numpy(np.float32))})
    add("pairs", "strongest pairs of experts", lambda: _strongest_pairs(stats))
    if {"share_low", "share_high"} <= set(stats.experts.columns):
        columns = stats.experts[["share_low", "share_high"]].astype(np.float16)
        add("intervals", "intervals of the experts' shares", lambda: {str(key): pack(columns[key].to_numpy()) for key in columns})
    vocabulary: pd.DataFrame | None = getattr(stats, "vocabulary", None)
    if vocabulary is not None and len(vocabulary):
        add("vocabulary", "tokens of the experts", lambda: _vocabulary(vocabulary, stats, room))
    add("coactivation", "co-activation matrices", lambda: _coactivation(stats, room))
    missing = len(stats.moe_layers) - len(data.get("coactivation", {"layers": stats.moe_layers})["layers"])
    if missing:
        left_out.append(f"co-activation matrices of {missing} of {len(stats.moe_layers)} layers")
    return {**data, "left_out": left_out}


def json_text(value: Any) -> str:
    """JSON that can stand in a script element of a UTF-8 page. Raises ValueError for an infinite number."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # These characters stand inside strings only.
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def json_size(value: Any) -> int:
    """Bytes of `value` in the page."""
    return len(json_text(value).encode())


def _needed(stats: RouteStats) -> dict[str, Any]:
    summary, rows = stats.summary, overall_rows(stats)
    names = list(dict.fromkeys(stats.layers["domain"]))
    ordered = stats.layers.set_index(["domain", "layer"]).reindex(pd.MultiIndex.from_product([names, stats.moe_layers]))
    metrics = {str(key): ordered[key] for key in ordered.columns if pd.api.types.is_numeric_dtype(ordered[key].dtype)}
    columns = {key: describe(key) for key in metrics}
    difference = domain_difference(stats) if len(domain_names(stats)) > 1 else None
    bands = {int(n): ordered_band(int(n)) for n in sorted(set(rows["n_experts"]))}
    return {
        **{key: null_for_nan(summary.get(key, {})) for key in ("model", "data", "provenance", "throughput")},
        "domains": names,
        "layers": list(stats.moe_layers),
        "n_experts": [int(n) for n in rows["n_experts"]],
        "top_k": [int(k) for k in rows["top_k"]],
        "columns": [[key, column.label, column.unit, column.group, column.text] for key, column in columns.items()],
        "metrics": {key: pack(values.to_numpy()) for key, values in metrics.items()},
        "experts": {"tokens": pack(stats.experts["tokens"].to_numpy())},
        "chance": {str(n): {"low": pack(low), "high": pack(high)} for n, (low, high) in bands.items()},
        "attention": [[entry.layer, *entry.reasons] for entry in attention(stats)],
        "domain_difference": None if difference is None else {key: pack(difference[key].to_numpy()) for key in difference},
        **(_of_domains(stats) if difference is not None else {"favourites": {}, "specialists": {}}),
    }


def _of_domains(stats: RouteStats) -> dict[str, dict[str, list[list[Any]]]]:
    """Per domain each layer's favourite that is beyond chance, [layer, expert, share, lift], and of the clearest ones also [...,
    ends of the share's interval, share of all text, tokens]."""
    found = favourites(stats)
    rows = stats.experts.set_index(["domain", "layer", "expert"])
    bounded = {"share_low", "share_high"} <= set(rows.columns)

    def more(name: str, layer: int, expert: int) -> list[Any]:
        ends = [null_for_nan(float(rows[key].loc[name, layer, expert])) for key in ("share_low", "share_high")] if bounded else [None, None]
        return [*ends, float(rows["share"].loc[ALL, layer, expert]), list(top_tokens(stats, layer, expert, domain=name))]

    every = {name: [[layer, one.expert, one.share, one.lift] for layer, one in own.items()] for name, own in found.items()}
    clearest = {name: sorted(own, key=lambda layer: (-own[layer].gain, layer))[:_SPECIALISTS] for name, own in found.items()}
    specialists = {
        name: [
            [layer, own[layer].expert, own[layer].share, own[layer].lift, *more(name, layer, own[layer].expert)] for layer in clearest[name]
        ]
        for name, own in found.items()
    }
    return {"favourites": every, "specialists": specialists}


def _strongest_pairs(stats: RouteStats) -> dict[str, Any]:
    """Per layer [i, j, tokens that ran both], by lift; only pairs that met often enough to be told from chance."""
    tokens_L = overall_rows(stats)["tokens"]
    pairs, least = [], []
    for layer, counts_EE in zip(stats.moe_layers, _matrices(stats), strict=True):
        enough = math.ceil(max(ENOUGH_TOKENS, _PAIR_SHARE * float(counts_EE.diagonal().mean())))
        found = strongest_pairs(counts_EE, int(tokens_L[layer]), n=_PAIRS, min_count=enough)
        pairs.append([[pair.first, pair.second, pair.count] for pair in found])
        least.append(enough)
    return {"layers": pairs, "least_tokens": least}


def _coactivation(stats: RouteStats, room: int) -> dict[str, Any] | None:
    """The lifts of all pairs, of as many layers as there is room for, evenly spread."""
    tokens_L, matrices = overall_rows(stats)["tokens"], _matrices(stats)
    sizes = [len(matrix) * (len(matrix) - 1) // 2 for matrix in matrices]
    n_layers = len(sizes)
    for n_kept in range(n_layers, 0, -1):
        kept = sorted({round(step * (n_layers - 1) / max(n_kept - 1, 1)) for step in range(n_kept)})
        if packed_bytes(sum(sizes[at] for at in kept), 1) + 200 + 8 * n_layers <= room:
            break
    else:
        return None
    lifts = [quantised_lifts(matrices[at], int(tokens_L.iloc[at])) for at in kept]
    return {"layers": kept, "steps": LIFT_STEPS, "one": LIFT_ONE, "lifts": pack(np.concatenate(lifts))}


def _matrices(stats: RouteStats) -> list[NDArray[np.int64]]:
    """Each layer's co-activation without padding."""
    n_experts_L = overall_rows(stats)["n_experts"]
    return [counts_EE[:n, :n] for counts_EE, n in zip(stats.coactivation_LEE, n_experts_L, strict=True)]


def _vocabulary(vocabulary: pd.DataFrame, stats: RouteStats, room: int) -> dict[str, Any] | None:
    """Per kind the top tokens of each expert over all text, as places in `words`; 0: none."""
    vocabulary = vocabulary[vocabulary["domain"] == ALL]
    order = stats.experts[stats.experts["domain"] == ALL][["layer", "expert"]]
    place = pd.Series(np.arange(len(order)), index=pd.MultiIndex.from_frame(order))
    for most in _TOKENS_PER_EXPERT:
        top = vocabulary.sort_values(["kind", "layer", "expert", "rank"], kind="stable")
        top = top.assign(at=top.groupby(["kind", "layer", "expert"]).cumcount())
        top = top[top["at"] < most]
        words = list(dict.fromkeys(top["token"]))
        number = {word: 1 + at for at, word in enumerate(words)}
        kinds = {}
        for kind, rows in top.groupby("kind", sort=True):
            table = np.zeros((len(order), most), np.int64)
            table[place.loc[pd.MultiIndex.from_frame(rows[["layer", "expert"]])], rows["at"]] = [number[word] for word in rows["token"]]
            kinds[str(kind)] = pack(table)
        part = {"most": most, "words": words, "kinds": kinds}
        if json_size(part) <= room:
            return part
    return None
