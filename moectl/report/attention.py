"""Which layers a person should look at, and why: the tables read, nothing measured anew.

for entry in attention(stats):
    print(entry.layer, entry.reasons)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moectl.report.rows import ENOUGH_TOKENS, even_share, overall_experts, overall_rows, typical

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

_UNEVEN = 0.3  # MaxVio below this is nobody's concern
_STANDS_OUT = 1.5  # times the median layer's MaxVio
_BEYOND_CHANCE = 3  # times the MaxVio that chance alone gives
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class Attention:
    """A layer that needs a look, and why."""

    layer: int
    reasons: tuple[str, ...]


def attention(stats: RouteStats) -> list[Attention]:
    """Layers that stand out, the worst first."""
    rows = overall_rows(stats)
    experts = overall_experts(stats)
    supported = even_share(stats) >= ENOUGH_TOKENS
    middle = typical(rows["max_vio"])
    found: list[tuple[tuple[float, float], Attention]] = []
    for layer, row in rows.iterrows():
        loads = experts[experts["layer"] == layer].sort_values(["relative_load", "expert"])
        n_experts, dead = len(loads), int(row["dead_experts"]) if supported else 0
        beyond_chance = row["max_vio"] > _BEYOND_CHANCE * row["max_vio_noise_floor"]
        reasons = []
        if dead:
            reasons.append(f"{_experts(loads['expert'].iloc[:dead].tolist(), n_experts)} never ran")
        if beyond_chance and row["max_vio"] > max(_UNEVEN, _STANDS_OUT * middle):
            reasons.append(f"expert {loads['expert'].iloc[-1]} runs {1 + row['max_vio']:.1f}x its even share")
        if beyond_chance and row["effective_experts"] < n_experts / 2:
            reasons.append(f"the load spreads like {row['effective_experts']:.1f} of {n_experts} experts")
        if reasons:
            found.append(((float(dead), float(row["max_vio"])), Attention(int(str(layer)), tuple(reasons))))
    return [entry for _, entry in sorted(found, key=lambda pair: (-pair[0][0], -pair[0][1], pair[1].layer))]


def _experts(ids: Sequence[int], n_experts: int) -> str:
    """`expert 3`, `experts 3 and 9`, `7 of 64 experts`."""
    if len(ids) > _MOST_NAMED:
        return f"{len(ids)} of {n_experts} experts"
    *others, last = (str(expert) for expert in ids)
    return f"experts {', '.join(others)} and {last}" if others else f"expert {last}"
