"""Charts of the report as SVG text, for a page in light or dark mode.

In: numbers. Out: `<svg>` elements. Colors come from the CSS classes of the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

from ..runtime.counted import counted

WIDTH = 520
HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 22, 40  # margins around the plot
_PLOT_WIDTH = WIDTH - LEFT - RIGHT
_PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
_ROW = 22  # pixels per row of `bars`
_NAME_WIDTH = 150  # room for text on the left of `bars`
_COUNT_WIDTH = 70  # and on the right
_MAX_DISCS = 2000  # image sizes shown


def histogram(
    values: Sequence[float] | np.ndarray,
    x_label: str,
    *,
    band: tuple[float, float] | None = None,
    lines: Sequence[float] = (),
    note: str = "",
) -> str:
    """A histogram with a logarithmic x axis.

    Args:
        values: to count; values that are not positive are left out.
        x_label: what the values are.
        band: a range to shade.
        lines: values to mark.
        note: what the band and the lines are.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return _empty(x_label)

    # The axis covers the values, the band and the lines, in steps of half a power of two.
    shown = np.log2(np.concatenate([values, [*(band or ()), *lines]]))
    low = np.floor(shown.min() * 2) / 2
    high = max(np.ceil(shown.max() * 2 + 1e-9) / 2, low + 2)
    bins = np.linspace(low, high, int(np.clip((high - low) * 4, 8, 48)) + 1)
    counts, _ = np.histogram(np.log2(values), bins)
    top = max(int(counts.max()), 1)

    def x(power: float) -> float:
        return LEFT + (power - low) / (high - low) * _PLOT_WIDTH

    parts = _axes(top, x_label, aria=f"{counted(len(values), 'value')}, {x_label}")
    if band is not None:
        start, end = (x(float(np.clip(np.log2(v), low, high))) for v in band)
        shade = (
            f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" '
            f'height="{_PLOT_HEIGHT}"/>'
        )
        parts.insert(1, shade)

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
        parts.append(_text(f"{x(power):.1f}", HEIGHT - BOTTOM + 16, "middle", _short(2.0**power)))
    if note:
        parts.append(_note(note))
    return _close(parts)


def image_sizes(sizes: np.ndarray) -> str:
    """Image heights over widths: one disc per size, whose area shows how many images have it.

    Args:
        sizes: (height, width) of each image.
    """
    if len(sizes) == 0:
        return _empty("width")
    counts = Counter((int(w), int(h)) for h, w in sizes.tolist())
    end_x, end_y = (_round_up(max(side) * 1.05) for side in zip(*counts, strict=True))
    most = max(counts.values())

    def x(width: float) -> float:
        return LEFT + width / end_x * _PLOT_WIDTH

    parts = _axes(end_y, "width, px", aria="sizes of the images")
    for (width, height), count in counts.most_common(_MAX_DISCS):
        radius = 3 + 15 * (count / most) ** 0.5
        parts.append(
            f'<circle class="disc" cx="{x(width):.1f}" cy="{_y(height, end_y):.1f}" '
            f'r="{radius:.1f}"><title>{width} x {height}: {count:,}</title></circle>'
        )

    for step in range(5):
        width = end_x * step / 4
        parts.append(_text(f"{x(width):.1f}", HEIGHT - BOTTOM + 16, "middle", _short(width)))
    parts.append(_note("height (px) over width; one disc per size"))
    return _close(parts)


def bars(rows: Sequence[tuple[str, int]], most: int = 16) -> str:
    """One bar per name, largest first.

    Args:
        rows: names and their counts.
        most: how many bars to draw; the last one sums up the remaining names.
    """
    rows = sorted(rows, key=lambda row: -row[1])
    if len(rows) > most:
        rest = rows[most - 1 :]
        rows = [*rows[: most - 1], (f"{len(rest)} more", sum(count for _, count in rest))]
    top = max((count for _, count in rows), default=1) or 1
    height = _ROW * len(rows) + 6

    parts = [_open(height, "objects per category")]
    for n, (name, count) in enumerate(rows):
        y = n * _ROW + 4
        width = count / top * (WIDTH - _NAME_WIDTH - _COUNT_WIDTH)
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<text x="{_NAME_WIDTH - 8}" y="{y + 13}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
        )
        parts.append(_bar(_NAME_WIDTH, y, max(width, 1), _ROW - 7, f"{name}: {count:,}"))
        parts.append(f'<text x="{_NAME_WIDTH + width + 6:.1f}" y="{y + 13}">{count:,}</text>')
    return _close(parts)


def heat_map(centers: np.ndarray, cells: int = 24) -> str:
    """Where objects are in their images.

    Args:
        centers: (x, y) of each object, 0 to 1 across its image.
        cells: rows and columns of the map.
    """
    counts, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=cells, range=((0, 1), (0, 1)))
    top = max(float(counts.max()), 1.0)
    side = (HEIGHT - 12) / cells
    left = (WIDTH - side * cells) / 2

    parts = [_open(HEIGHT, "centers of the objects")]
    parts.append(
        f'<rect class="frame" x="{left:.1f}" y="6" width="{side * cells:.1f}" '
        f'height="{side * cells:.1f}"/>'
    )
    for (row, column), count in np.ndenumerate(counts):
        if count:
            x = left + column * side
            y = 6 + row * side
            shade = 0.12 + 0.88 * (count / top) ** 0.5
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" '
                f'height="{side:.1f}" opacity="{shade:.2f}"><title>{int(count):,}</title></rect>'
            )
    return _close(parts)


def _axes(top: float, x_label: str, aria: str) -> list[str]:
    """The opening tag, horizontal grid lines with their values, and the label of the x axis."""
    parts = [_open(HEIGHT, aria)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share, 1)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        if top >= 4 or share in (0, 1):
            parts.append(_text(LEFT - 7, f"{y + 4:.1f}", "end", _short(share * top)))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "middle", x_label))
    return parts


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * _PLOT_HEIGHT


def _bar(x: float, y: float, width: float, height: float, title: str) -> str:
    frame = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="1.5"'
    return f'<rect class="bar" {frame}><title>{escape(title)}</title></rect>'


def _text(x: float | str, y: float | str, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _note(text: str) -> str:
    """A remark above the plot, right-aligned."""
    return (
        f'<text class="note" x="{WIDTH - RIGHT}" y="{TOP - 8}" text-anchor="end">'
        f"{escape(text)}</text>"
    )


def _round_up(value: float) -> float:
    """The next number whose quarters have two digits."""
    unit = 10.0 ** np.floor(np.log10(value / 4) - 1)
    return float(np.ceil(value / 4 / unit) * unit * 4)


def _short(value: float) -> str:
    """A number in about four characters."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _empty(x_label: str) -> str:
    text = _text(WIDTH / 2, HEIGHT / 2, "middle", "nothing to show")
    return _close([*_axes(1, x_label, "nothing to show"), text])


def _open(height: float, aria: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(aria)}">'


def _close(parts: list[str]) -> str:
    return "\n".join([*parts, "</svg>"])
