"""Curves as an SVG file that needs nothing but a browser.

In: named curves, each a list of (x, y). Out: a file with one panel for each group of curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Curves = Mapping[str, Sequence[tuple[float, float]]]
WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 62
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def save_charts(path: Path, panels: Mapping[str, tuple[str, Curves]]) -> None:
    """Writes panels side by side: title -> (what x counts, curves)."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, (title, (x_label, curves)) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{_panel(title, x_label, curves)}</g>')
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _panel(title: str, x_label: str, curves: Curves) -> str:
    points = [point for curve in curves.values() for point in curve]
    x_end, y_end = max(x for x, _ in points), max(y for _, y in points) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / x_end * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / y_end * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-size="13">{escape(title)}</text>']
    for step in range(5):
        left, y = place(0, y_end * step / 4)
        parts.append(f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{y_end * step / 4:.3g}</text>')
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle" fill="#444">{x:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - BOTTOM + 30}" text-anchor="middle" fill="#444">{escape(x_label)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour, placed = COLOURS[number % len(COLOURS)], [place(x, y) for x, y in sorted(curve)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        x = LEFT + (number % 3) * (WIDTH - LEFT) / 3
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 18 + 14 * (number // 3)}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(parts)
