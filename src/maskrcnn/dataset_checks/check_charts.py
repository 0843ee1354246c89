"""Charts of a report as SVG text, for a page in light or dark: colors are the page's CSS variables.

In: numbers. Out: `<svg>` elements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 22, 40
_ROW = 22


def histogram(
    values: Sequence[float] | np.ndarray,
    x_label: str,
    *,
    band: tuple[float, float] | None = None,
    lines: Sequence[float] = (),
    note: str = "",
) -> str:
    """How many values lie in each of some ranges, on a logarithmic axis.

    Args:
        values: positive ones; others are left out.
        x_label: what they are.
        band: a range to shade.
        lines: places to mark.
        note: what band and lines are.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return _empty(x_label)
    shown = np.log2(np.concatenate([values, [*(band or ()), *lines]]))
    low, high = np.floor(shown.min() * 2) / 2, np.ceil(shown.max() * 2 + 1e-9) / 2
    high = max(high, low + 2)
    bins = np.linspace(low, high, int(np.clip((high - low) * 4, 8, 48)) + 1)
    counts, _ = np.histogram(np.log2(values), bins)
    top = max(int(counts.max()), 1)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = _axes(top, x_label, aria=f"{len(values)} values, {x_label}")
    if band is not None:
        a, b = (float(np.clip(np.log2(v), low, high)) for v in band)
        parts.insert(
            1,
            f'<rect class="band" x="{x(a):.1f}" y="{TOP}" width="{x(b) - x(a):.1f}" height="{HEIGHT - TOP - BOTTOM}"/>',
        )
    for start, end, count in zip(bins[:-1], bins[1:], counts.tolist(), strict=True):
        if count:
            y = _y(count, top)
            title = f"{2**start:.3g} to {2**end:.3g}: {count:,}"
            parts.append(_bar(x(start) + 0.5, y, x(end) - x(start) - 1, HEIGHT - BOTTOM - y, title))
    for value in lines:
        at = x(np.log2(value))
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
    step = max(1, round((high - low) / 8))
    for power in range(int(np.ceil(low)), int(np.floor(high)) + 1, step):
        parts.append(
            f'<text x="{x(power):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(2.0**power)}</text>'
        )
    if note:
        parts.append(
            f'<text class="note" x="{WIDTH - RIGHT}" y="{TOP - 8}" text-anchor="end">{escape(note)}</text>'
        )
    return _close(parts)


def sizes(images: np.ndarray) -> str:
    """Images by width and height: a disc for each size, its area as their number."""
    if len(images) == 0:
        return _empty("width")
    counts = Counter((int(w), int(h)) for h, w in images.tolist())
    end_x, end_y = (_round_up(max(side) * 1.05) for side in zip(*counts, strict=True))
    most = max(counts.values())

    def place(w: float, h: float) -> tuple[float, float]:
        return LEFT + w / end_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - h / end_y * (
            HEIGHT - TOP - BOTTOM
        )

    parts = _axes(end_y, "width, px", aria="sizes of the images")
    for (w, h), count in counts.most_common(2000):
        x, y = place(w, h)
        radius = 3 + 15 * (count / most) ** 0.5
        parts.append(
            f'<circle class="disc" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{w} x {h}: {count:,}</title></circle>'
        )
    for step in range(5):
        x, _ = place(end_x * step / 4, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(end_x * step / 4)}</text>'
        )
    parts.append(
        f'<text class="note" x="{WIDTH - RIGHT}" y="{TOP - 8}" text-anchor="end">height, px, over width; a disc for each size</text>'
    )
    return _close(parts)


def bars(rows: Sequence[tuple[str, int]], most: int = 16) -> str:
    """Counts by name, largest first; the rest in one row."""
    rows = sorted(rows, key=lambda row: -row[1])
    if len(rows) > most:
        rows = [
            *rows[: most - 1],
            (f"{len(rows) - most + 1} more", sum(count for _, count in rows[most - 1 :])),
        ]
    top = max((count for _, count in rows), default=1) or 1
    height, start = _ROW * len(rows) + 6, 150
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="objects of each category">'
    ]
    for n, (name, count) in enumerate(rows):
        y = n * _ROW + 4
        width = count / top * (WIDTH - start - 70)
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<text x="{start - 8}" y="{y + 13}" text-anchor="end">{escape(short)}<title>{escape(name)}</title></text>'
        )
        parts.append(_bar(start, y, max(width, 1), _ROW - 7, f"{name}: {count:,}"))
        parts.append(f'<text x="{start + width + 6:.1f}" y="{y + 13}">{count:,}</text>')
    return _close(parts)


def heat_map(centers: np.ndarray, cells: int = 24) -> str:
    """Where in their images objects are: centers (x, y), each 0..1."""
    counts, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=cells, range=((0, 1), (0, 1)))
    top = max(float(counts.max()), 1.0)
    side = (HEIGHT - 12) / cells
    left = (WIDTH - side * cells) / 2
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="centers of the objects">']
    parts.append(
        f'<rect class="frame" x="{left:.1f}" y="6" width="{side * cells:.1f}" height="{side * cells:.1f}"/>'
    )
    for (row, column), count in np.ndenumerate(counts):
        if count:
            x, y = left + column * side, 6 + row * side
            shade = 0.12 + 0.88 * (count / top) ** 0.5
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" opacity="{shade:.2f}">'
                f"<title>{int(count):,}</title></rect>"
            )
    return _close(parts)


def _axes(top: float, x_label: str, aria: str) -> list[str]:
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(aria)}">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share, 1)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        if top >= 4 or share in (0, 1):
            parts.append(
                f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_short(share * top)}</text>'
            )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return parts


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _bar(x: float, y: float, width: float, height: float, title: str) -> str:
    frame = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="1.5"'
    return f'<rect class="bar" {frame}><title>{escape(title)}</title></rect>'


def _round_up(value: float) -> float:
    """The next number whose quarters have two digits."""
    unit = 10.0 ** np.floor(np.log10(value / 4) - 1)
    return float(np.ceil(value / 4 / unit) * unit * 4)


def _short(value: float) -> str:
    """A number in at most four characters or so."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _empty(x_label: str) -> str:
    text = f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing to show</text>'
    return _close([*_axes(1, x_label, "nothing to show"), text])


def _close(parts: list[str]) -> str:
    return "\n".join([*parts, "</svg>"])
