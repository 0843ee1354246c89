"""Line charts as a self-contained SVG file.

In: named curves, each a list of (x, y). Out: a file with one panel per group of curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from math import ceil, floor, log10
from pathlib import Path

Curves = Mapping[str, Sequence[tuple[float, float]]]
WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 62
TICKS = 4
ROUND = 20  # larger numbers on the x axis are shown without decimals
LETTER = 6.5  # pixels of a digit
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def save_charts(
    path: Path,
    panels: Mapping[str, tuple[str, Curves]],
    columns: int = 3,
    logarithmic: bool = False,
) -> None:
    """Writes panels in rows, given as title -> (label of the x axis, curves). A curve name has the
    same color in all panels. The x axis begins at 0, or, if it is logarithmic, at the smallest x.
    """
    names = dict.fromkeys(name for _, curves in panels.values() for name in curves)
    colors = dict(zip(names, cycle(COLORS), strict=False))
    size = f"{WIDTH * min(columns, len(panels))} {HEIGHT * ceil(len(panels) / columns)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">'
    ]
    parts.append('<rect width="100%" height="100%" fill="white"/>')

    for number, (title, (x_label, curves)) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        parts.append(
            f'<g transform="translate({column * WIDTH} {row * HEIGHT})">{_panel(title, x_label, curves, colors, logarithmic)}</g>'
        )

    path.write_text("\n".join([*parts, "</svg>\n"]))


def _panel(
    title: str, x_label: str, curves: Curves, colors: Mapping[str, str], logarithmic: bool
) -> str:
    points = [point for curve in curves.values() for point in curve]
    tick = _tick(max(y for _, y in points))
    x_begin = min(x for x, _ in points) if logarithmic else 0.0
    x_end = max(x for x, _ in points)

    def share(x: float) -> float:
        """How far along the axis x is, 0 to 1."""
        if not logarithmic:
            return x / x_end
        return log10(x / x_begin) / log10(x_end / x_begin) if x_end > x_begin else 0.5

    def to_pixel(x: float, y: float) -> tuple[float, float]:
        height = y / (TICKS * tick) * (HEIGHT - TOP - BOTTOM)
        return LEFT + share(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - height

    parts = [
        f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-size="13">{escape(title)}</text>'
    ]

    for step in range(TICKS + 1):
        left, y = to_pixel(x_begin, step * tick)
        parts.append(
            f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{step * tick:g}</text>'
        )

    free = 0.0
    for x in sorted({x for x, _ in points}):
        across = to_pixel(x, 0)[0]
        text = f"{x:.0f}" if x >= ROUND else f"{round(x, 1):g}"
        half = LETTER * len(text) / 2
        if across - half >= free:  # skip labels that would overlap the previous one
            parts.append(
                f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle" fill="#444">{text}</text>'
            )
            free = across + half + LETTER

    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - BOTTOM + 30}" text-anchor="middle" fill="#444">{escape(x_label)}</text>'
    )

    for number, (name, curve) in enumerate(curves.items()):
        color = colors[name]
        pixels = [to_pixel(x, y) for x, y in sorted(curve)]
        parts.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in pixels]
        x = LEFT + (number % 3) * (WIDTH - LEFT) / 3
        parts.append(
            f'<text x="{x:.0f}" y="{HEIGHT - 18 + 14 * (number // 3)}" fill="{color}">{escape(name)}</text>'
        )
    return "\n".join(parts)


def _tick(highest: float) -> float:
    """The smallest round tick distance whose ticks reach the highest value."""
    power = 10.0 ** floor(log10(highest / TICKS))
    return next(
        power * factor for factor in (1, 2, 2.5, 5, 10) if TICKS * power * factor >= highest
    )
