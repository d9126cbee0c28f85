"""Counters -> tables of what each expert reads: its tokens by lift, and its classes of tokens.

    vocabulary = vocabulary_frame(counters, ["wiki", "code"], tokenizer)
    vocabulary[(vocabulary["domain"] == "all") & (vocabulary["rank"] == 1)]["token"]

Counts and lifts are over all text, whatever ids a row chooses from. `layer` is the decoder layer's own index.
"""

# Shapes: D domains, L MoE layers, M token ids, C token classes, E experts.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moectl.routing.counters import Counters
from moectl.routing.counting.vocabulary import Kind
from moectl.routing.frames import ALL
from moectl.routing.metrics.vocabulary import class_lift, top_tokens
from moectl.routing.token_classes import CLASSES

if TYPE_CHECKING:
    from moectl.data.tokenizer import TextTokenizer

TOP_TOKENS = 10
SPECIALISTS = 3
"""Experts of each layer whose tokens of a domain are listed."""
VOCABULARY_DTYPES = {
    "layer": "int32", "expert": "int32", "kind": "object", "domain": "object", "rank": "int32", "token_id": "int64", "token": "object",
    "count": "int64", "share": "float64", "lift": "float64",
}  # fmt: skip
CLASS_DTYPES = {"layer": "int32", "expert": "int32", "token_class": "object", "tokens": "int64", "share": "float64", "lift": "float64"}


def vocabulary_frame(counters: Counters, domain_names: Sequence[str], tokenizer: TextTokenizer | None) -> pd.DataFrame:
    """A row per (kind, layer, expert, rank): the ids an expert is most for, by lift (see `metrics.vocabulary.top_tokens`).

    `kind`: the token that ran it ("input"), the one that followed ("next"), the one the model predicted ("predicted"). `count` tokens of
    the id ran the expert, `share` of all there are; `token` is the id's text, `<123>` without a tokenizer. With several domains rows of
    kind "input" follow for the three experts of each layer that gain most in a domain (its share there less its share of all text): the
    same among the ids that mostly occur there, more than half of whose tokens it has, under the `domain`'s name instead of "all".
    """
    rows = [
        row
        for kind, tracked in counters.tracked.items()
        for position, info in enumerate(counters.layers)
        for row in _top_rows(counters, kind, position, range(info.n_experts), np.arange(len(tracked.ids_M)), ALL)
    ]
    for domain, position, experts in _specialists(counters):
        of_domain = np.flatnonzero(counters.input_home_M == domain)
        rows += _top_rows(counters, "input", position, experts, of_domain, domain_names[domain])
    frame = pd.DataFrame(rows, columns=[name for name in VOCABULARY_DTYPES if name != "token"])
    texts = {token_id: f"<{token_id}>" if tokenizer is None else tokenizer.token(token_id) for token_id in set(frame["token_id"])}
    frame["token"] = frame["token_id"].map(texts)
    return frame[list(VOCABULARY_DTYPES)].astype(VOCABULARY_DTYPES)


def _top_rows(
    counters: Counters, kind: Kind, position: int, experts: Iterable[int], among: NDArray[np.int64], domain: str
) -> Iterator[tuple[int, int, str, str, int, int, int, float, float]]:
    """The rows of some experts of a layer, of the ids in the rows `among` of the tables of `kind`."""
    tracked = counters.tracked[kind]
    ids, tokens, counts_ME = tracked.ids_M[among], tracked.tokens_M[among], counters.arrays()[f"{kind}_LME"][position][among]
    expert_tokens_E, counted = counters.counts.tokens_XLE[:, position].sum(0), int(counters.counts.counted_XL[:, position].sum())
    layer = counters.layers[position].layer
    for expert in experts:
        top = top_tokens(counts_ME, tokens, expert_tokens_E, counted, expert=expert, n=TOP_TOKENS)
        for rank, found in enumerate(top, start=1):
            yield layer, expert, kind, domain, rank, int(ids[found.row]), found.count, found.share, found.lift


def _specialists(counters: Counters) -> Iterator[tuple[int, int, list[int]]]:
    """(domain, position of a layer, its experts that gain most, ascending; ties to the lowest); nothing unless two domains have picks."""
    tokens_DLE = counters.by_domain(counters.counts.tokens_XLE)
    slots_DL = tokens_DLE.sum(-1)
    picking = [domain for domain in range(counters.n_domains) if slots_DL[domain].any()]
    for domain in picking if len(picking) > 1 else ():
        for position, info in enumerate(counters.layers):
            if not slots_DL[domain, position]:
                continue
            counts_DE = tokens_DLE[:, position, : info.n_experts]
            gain_E = counts_DE[domain] / slots_DL[domain, position] - counts_DE.sum(0) / slots_DL[:, position].sum()
            yield domain, position, sorted(np.argsort(-gain_E, kind="stable")[:SPECIALISTS].tolist())


def class_frame(counters: Counters) -> pd.DataFrame:
    """A row per (layer, expert, class of the token that ran it): `tokens`, their `share` of the class, and `lift`, that share over the
    same of all text. Classes that do not occur are left out; without a tokenizer there is no row."""
    occurs_C = counters.class_tokens_C > 0
    names = np.array(CLASSES[: len(occurs_C)], dtype=object)[occurs_C]
    tokens_C = counters.class_tokens_C[occurs_C]
    columns: dict[str, list[np.ndarray[Any, Any]]] = {name: [np.empty(0, dtype)] for name, dtype in CLASS_DTYPES.items()}
    for position, info in enumerate(counters.layers):
        E = info.n_experts
        counts_CE = counters.counts.classes_LCE[position, : len(occurs_C), :E][occurs_C]
        tokens_E = counters.counts.tokens_XLE[:, position, :E].sum(0)
        lift_CE = class_lift(counts_CE, tokens_E, tokens_C, counters.counts.counted_XL[:, position].sum(keepdims=False))
        columns["layer"].append(np.full(counts_CE.size, info.layer))
        columns["expert"].append(np.arange(E).repeat(len(names)))
        columns["token_class"].append(np.tile(names, E))
        columns["tokens"].append(counts_CE.T.reshape(-1))
        columns["share"].append((counts_CE / tokens_C[:, None]).T.reshape(-1))
        columns["lift"].append(lift_CE.T.reshape(-1))
    return pd.DataFrame({name: np.concatenate(parts).astype(CLASS_DTYPES[name]) for name, parts in columns.items()})
