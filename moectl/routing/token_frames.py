"""Counters -> tables of what each expert reads: its tokens by lift, and its classes of tokens.

    vocabulary = vocabulary_frame(counters, tokenizer)
    vocabulary[vocabulary["rank"] == 1]["token"]

All domains together: ids are counted over all text. `layer` is the decoder layer's own index.
"""

# Shapes: L MoE layers, M token ids, C token classes, E experts.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moectl.routing.counters import Counters
from moectl.routing.metrics.vocabulary import class_lift, top_tokens
from moectl.routing.token_classes import CLASSES

if TYPE_CHECKING:
    from moectl.data.tokenizer import TextTokenizer

TOP_TOKENS = 10
VOCABULARY_DTYPES = {
    "layer": "int32", "expert": "int32", "kind": "object", "rank": "int32", "token_id": "int64", "token": "object", "count": "int64",
    "share": "float64", "lift": "float64",
}  # fmt: skip
CLASS_DTYPES = {"layer": "int32", "expert": "int32", "token_class": "object", "tokens": "int64", "share": "float64", "lift": "float64"}


def vocabulary_frame(counters: Counters, tokenizer: TextTokenizer | None) -> pd.DataFrame:
    """A row per (kind, layer, expert, rank): the ids an expert is most for, by lift (see `metrics.vocabulary.top_tokens`).

    `kind`: the token that ran it ("input"), the one that followed ("next"), the one the model predicted ("predicted"). `count` tokens of
    the id ran the expert, `share` of all there are; `token` is the id's text, `<123>` without a tokenizer.
    """
    rows: list[tuple[int, int, str, int, int, str, int, float, float]] = []
    texts: dict[int, str] = {}
    tokens_LE, counted_L = counters.counts.tokens_XLE.sum(0), counters.counts.counted_XL.sum(0)
    for kind, tracked in counters.tracked.items():
        table_LME = counters.arrays()[f"{kind}_LME"][:, : len(tracked.ids_M)]
        for position, info in enumerate(counters.layers):
            for expert in range(info.n_experts):
                top = top_tokens(
                    table_LME[position],
                    tracked.tokens_M,
                    tokens_LE[position],
                    int(counted_L[position]),
                    expert=expert,
                    n=TOP_TOKENS,
                )
                for rank, found in enumerate(top, start=1):
                    token_id = int(tracked.ids_M[found.row])
                    if token_id not in texts:
                        texts[token_id] = f"<{token_id}>" if tokenizer is None else tokenizer.token(token_id)
                    rows.append((info.layer, expert, kind, rank, token_id, texts[token_id], found.count, found.share, found.lift))
    return pd.DataFrame(rows, columns=list(VOCABULARY_DTYPES)).astype(VOCABULARY_DTYPES)


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
