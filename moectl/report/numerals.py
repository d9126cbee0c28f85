"""Numbers as the report writes them, on the terminal and on the page alike.

tenths(15.72)            # "15.7"
percent(0.386)           # "39 %"
counted(3, "layer")      # "3 layers"
"""

from __future__ import annotations

from collections.abc import Iterable


def whole(value: float) -> str:
    """`12`."""
    return f"{value:.0f}"


def tenths(value: float) -> str:
    """`15.7`."""
    return f"{value:.1f}"


def hundredths(value: float) -> str:
    """`0.46`."""
    return f"{value:.2f}"


def thousandths(value: float) -> str:
    """`1.026`."""
    return f"{value:.3f}"


def three_significant(value: float) -> str:
    """`0.0975`, `0.131`."""
    return f"{value:.3g}"


def three_digits(value: float) -> str:
    """`2.72`, `20.1`, `1,097`."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float) -> str:
    """`39 %` of a share of 0.386."""
    return f"{100 * share:.0f} %"


def percent_tenths(share: float) -> str:
    """`38.6` of a share of 0.386, for where the unit stands elsewhere."""
    return f"{100 * share:.1f}"


def times(factor: float) -> str:
    """`2.9x`."""
    return f"{factor:.1f}x"


def counted(number: float, noun: str) -> str:
    """`1 layer`, `1,200 layers`."""
    return f"{int(number):,} {noun}{'' if number == 1 else 's'}"


def extent(values: Iterable[int]) -> str:
    """`64`, or `16 to 64` where they differ."""
    known = [int(value) for value in values]
    low, high = min(known), max(known)
    return f"{low}" if low == high else f"{low} to {high}"
