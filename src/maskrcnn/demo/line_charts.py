"""Line charts as SVG text, for a page in light or dark.

In: named curves, each a list of x and one of y. Out: an `<svg>` element; colors are CSS variables `--c0`, `--c1`, .. of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Curve = tuple[Sequence[float], Sequence[float]]

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34


def line_chart(
    curves: Mapping[str, Curve], x_label: str, top: float | None = None, dots: bool = False
) -> str:
    """Draws curves over one pair of axes that begin at 0.

    Args:
        curves: x and y of each; a curve without points is left out.
        x_label: what x counts.
        top: end of the y axis; by default a little above the highest point.
        dots: mark each point.

    Returns:
        SVG; a legend is the page's task (`legend`).
    """
    points = [(x, y) for xs, ys in curves.values() for x, y in zip(xs, ys, strict=True)]
    x_end = _round_up(max((x for x, _ in points), default=1.0))
    y_end = top or _round_up(max((y for _, y in points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x_end * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - min(y / y_end, 1.02) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(curves))} over {escape(x_label)}">'
    ]
    for step in range(5):
        share = step / 4
        (x, floor), (_, y) = place(share * x_end, 0), place(0, share * y_end)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * y_end:.3g}</text>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{floor + 16:.1f}" text-anchor="middle">{share * x_end:.4g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, (xs, ys) in enumerate(curves.values()):
        placed = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline style="stroke: var(--c{index})" points="{line}"/>')
        if dots:
            parts += [
                f'<circle style="fill: var(--c{index})" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                for x, y in placed
            ]
    return "\n".join([*parts, "</svg>"])


def smoothed(curve: Curve, points: int = 120) -> Curve:
    """Means over equal stretches, so that a noisy curve becomes readable."""
    xs, ys = curve
    size = max(1, len(xs) // points)
    chunks = [slice(i, i + size) for i in range(0, len(xs), size)]
    return [sum(xs[c]) / len(xs[c]) for c in chunks], [sum(ys[c]) / len(ys[c]) for c in chunks]


def _round_up(value: float) -> float:
    """The next number of the kind 1, 2, 3, 4, 6, 8 x 10^n, whose quarters are short."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 10.0 ** -len(f"{1 / value:.0f}")
    return next(
        unit * n
        for n in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12, 16, 20, 40, 80, 100)
        if unit * n >= value
    )
