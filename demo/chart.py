"""Lines over a common x axis as a small SVG file, without a plotting library.

line_chart([Line("loss", [(0, 7.6), (250, 3.3)])], title="Loss", x_label="step", y_label="nats a token")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 40, 44
# Told apart by the colour-blind too (Okabe and Ito).
COLOURS = ("#999999", "#d55e00", "#0072b2", "#009e73")


@dataclass(frozen=True)
class Line:
    """A named line through `points`, x ascending."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_label: str) -> str:
    """At most four lines, x from 0 and y between whole numbers, the names above. A white ground, for dark pages too."""
    x_ticks = _ticks(0.0, max(x for line in lines for x, _ in line.points))
    values = [y for line in lines for _, y in line.points]
    y_ticks = _ticks(float(np.floor(min(values))), float(np.ceil(max(values))))

    def x_of(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / x_ticks[-1], 1)

    def y_of(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for y in y_ticks:
        parts.append(f'<path d="M{LEFT} {y_of(y)}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y_of(y) + 4}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{x_of(x)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.0f}</text>')
    for place, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
        path = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in line.points)
        left = LEFT + place * (WIDTH - LEFT - RIGHT) // len(lines)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts.append(
            f'<path d="M{left} 20h24" stroke="{colour}" stroke-width="2"{dashes}/><text x="{left + 30}" y="24">{escape(line.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to at least `high`, about six of them."""
    rough = (high - low) / 6
    power = 10.0 ** np.floor(np.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - rough))
    return [float(low + i * step) for i in range(int(np.ceil((high - low) / step - 1e-9)) + 1)]
