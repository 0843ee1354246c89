"""Line charts as SVG text, for a page in light or dark mode.

In: named curves, each a list of x and one of y.
Out: an `<svg>` element; colors are the page's CSS variables `--c0`, `--c1`, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Curve = tuple[Sequence[float], Sequence[float]]

WIDTH = 560
HEIGHT = 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34  # margins around the plot


def line_chart(
    curves: Mapping[str, Curve], x_label: str, top: float | None = None, dots: bool = False
) -> str:
    """Draws curves over common axes that start at 0.

    Args:
        curves: x and y of each curve.
        x_label: what x is.
        top: end of the y axis; by default a little above the highest point.
        dots: mark each point.

    Returns:
        SVG without a legend; the page adds one.
    """
    points = [(x, y) for xs, ys in curves.values() for x, y in zip(xs, ys, strict=True)]
    x_end = _round_up(max((x for x, _ in points), default=1.0))
    y_end = top or _round_up(max((y for _, y in points), default=1.0))

    def position(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / x_end * (WIDTH - LEFT - RIGHT)
        # A point above the axis is drawn just beyond its end.
        down = HEIGHT - BOTTOM - min(y / y_end, 1.02) * (HEIGHT - TOP - BOTTOM)
        return across, down

    label = f"{escape(', '.join(curves))} over {escape(x_label)}"
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']

    for step in range(5):
        share = step / 4
        x, floor = position(share * x_end, 0)
        _, y = position(0, share * y_end)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(LEFT - 8, y + 4, "end", f"{share * y_end:.3g}"))
        parts.append(_text(x, floor + 16, "middle", f"{share * x_end:.4g}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "middle", x_label))

    for index, (xs, ys) in enumerate(curves.values()):
        positions = [position(x, y) for x, y in zip(xs, ys, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
        parts.append(f'<polyline style="stroke: var(--c{index})" points="{line}"/>')
        if dots:
            parts += [
                f'<circle style="fill: var(--c{index})" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                for x, y in positions
            ]
    return "\n".join([*parts, "</svg>"])


def smoothed(curve: Curve, points: int = 120) -> Curve:
    """Averages a noisy curve over equal stretches, to about `points` points."""
    xs, ys = curve
    size = max(1, len(xs) // points)
    chunks = [slice(start, start + size) for start in range(0, len(xs), size)]
    return [sum(xs[c]) / len(xs[c]) for c in chunks], [sum(ys[c]) / len(ys[c]) for c in chunks]


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next number such as 1, 1.2, 2 or 4 times a power of ten, whose quarters are short."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 10.0 ** -len(f"{1 / value:.0f}")
    factors = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12, 16, 20, 40, 80, 100)
    return next(unit * factor for factor in factors if unit * factor >= value)
