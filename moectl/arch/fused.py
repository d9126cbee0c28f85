"""The layout in which newer transformers has a model in memory: all experts of a layer in `gate_up_proj` `[E, 2I, H]` and `down_proj`
`[E, H, I]`, and some modules under other names. Programs that write a state_dict as it is write it to disk too.

    spec = spec_in_layout(config, "fused", names=names)          # of `registry`

Families whose experts lie stacked on the Hub as well have one layout only, or two that differ in names and in which way round matrices lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

LAYOUTS = ("hub", "fused")
# Codes are in the names of no layout but that of the quantised file itself.
_CODES = "_blocks"


class FusedNames(Collection[str]):
    """Stands for the tensor names of a checkpoint in this layout, which a family asks for one by one to see which layout it has."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and not name.endswith(_CODES)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
