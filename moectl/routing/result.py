"""What `route_stats` returns.

stats.layers[["layer", "max_vio"]]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class RouteStats:
    """Routing statistics of one run.

    `summary`: the content of summary.json. `experts`: a row per (domain, layer, expert), `layers`: a row per (domain, layer), both with
    the rows of `domain="all"` first. `coactivation_LEE` int64: tokens that ran both experts, diagonal = tokens of the expert, padded to the
    largest layer. `moe_layers`: the decoder layer's own index of each of its L blocks. `vocabulary`: the tokens that each expert is most
    for; `token_classes`: how much of each class of tokens it runs (see `token_frames`). `expert_pairs`: which experts of a layer run
    together, and which avoid each other; `domain_pairs`: how differently two domains are routed (see `pair_frames`).
    """

    summary: dict[str, Any]
    experts: pd.DataFrame
    layers: pd.DataFrame
    coactivation_LEE: NDArray[np.int64]
    moe_layers: tuple[int, ...]
    vocabulary: pd.DataFrame = field(default_factory=pd.DataFrame)
    token_classes: pd.DataFrame = field(default_factory=pd.DataFrame)
    expert_pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    domain_pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
