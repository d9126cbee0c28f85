"""Human units: parse `16GB`, `4k` or `90s` from flags, print bytes, counts and durations.

`GB` is 1e9 bytes, `GiB` is 2**30, as in the keys of every JSON file moectl writes.
"""

from __future__ import annotations

import re

from moectl.errors import UsageError

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*", re.ASCII)


def _parse(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = _NUMBER.fullmatch(text)
    scale = units.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise UsageError(f"`{text}` is not {what}", hint=f"write it like {examples}")
    value = round(float(match[1]) * scale) if "." in match[1] else int(match[1]) * scale
    if value <= 0 or value >= 2**63:
        raise UsageError(f"`{text}` is not {what}: it must be above zero and below 2^63", hint=f"write it like {examples}")
    return value


def parse_bytes(text: str) -> int:
    """Bytes in `16GB` (1e9), `16GiB` (2**30), `500mb` or `123`. Raises UsageError."""
    return _parse(text, _BYTE_UNITS, "a size in bytes", "`16GB`, `500MB` or `8GiB`")


def parse_count(text: str) -> int:
    """A count of things such as tokens in `4096`, `4k` (4,000) or `1.5M`. Raises UsageError."""
    return _parse(text, _COUNT_UNITS, "a count", "`4096`, `100k` or `1.5M`")


def format_bytes(n: float) -> str:
    """`1.38 GB`, three significant digits, decimal units."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(n) >= scale * 0.9995:
            return f"{_three(n / scale)} {unit}"
    return f"{n:.0f} B"


def format_count(n: float) -> str:
    """`12.9 B`, `4.1 k`: three significant digits, for parameters and tokens; whole below 1,000."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= scale * 0.9995:
            return f"{_three(n / scale)} {unit}"
    return f"{n:.0f}"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _three(value: float) -> str:
    magnitude = abs(value)
    digits = 2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0
    return f"{value:.{digits}f}"
