"""Which experts of a layer are used together.

strongest_pair(counts_EE, tokens, min_count=100)      # Pair(first=3, second=17, count=812, lift=6.4)
"""

# Shapes: E experts.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts, `first` < `second`; `count` tokens ran both, `lift` times as many as if they were independent."""

    first: int
    second: int
    count: int
    lift: float


def strongest_pair(counts_EE: NDArray[np.int64], tokens: int, *, min_count: int) -> Pair | None:
    """The pair with the largest lift N_ij T / (N_i N_j) among those that at least `min_count` tokens ran together.

    `counts_EE`: co-activation, diagonal = tokens of the expert; `tokens`: T. Ties go to the larger count, then the lower ids.
    None if no pair has that many. `min_count` keeps two experts that met once from winning.
    """
    first_P, second_P = np.triu_indices(counts_EE.shape[0], k=1)
    enough_P = counts_EE[first_P, second_P] >= max(min_count, 1)
    first_P, second_P = first_P[enough_P], second_P[enough_P]
    if len(first_P) == 0:
        return None
    count_P = counts_EE[first_P, second_P]
    n_E = np.diagonal(counts_EE).astype(np.float64)
    lift_P = count_P * float(tokens) / (n_E[first_P] * n_E[second_P])
    best = np.lexsort((second_P, first_P, -count_P, -lift_P))[0]
    return Pair(int(first_P[best]), int(second_P[best]), int(count_P[best]), float(lift_P[best]))
