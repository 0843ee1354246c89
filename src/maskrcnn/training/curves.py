"""The curves of a run as an image: losses, learning rate and validation APs over the steps.

In: the rows of metrics.csv. Out: a PNG. Drawn with Pillow, so that no plotting package is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.atomic_files import replacing

WIDTH, HEIGHT = 640, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 34, 30
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")

Curve = tuple[np.ndarray, np.ndarray]


def draw_curves(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Writes a PNG with a panel for each kind of number in the rows.

    Args:
        rows: rows of metrics.csv.
        path: the PNG.
    """

    def curves(prefix: str) -> dict[str, Curve]:
        names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
        return {name.removeprefix(prefix): _curve(rows, name) for name in names}

    panels = {
        "training loss (smoothed)": {name: _smooth(c) for name, c in curves("loss/").items()},
        "learning rate": {"": _curve(rows, "learning_rate")},
        "validation loss": curves("val_loss/"),
        "validation AP": {name: c for name, c in curves("val/").items() if name.endswith("AP")},
    }
    panels = {
        title: named for title, named in panels.items() if any(len(x) for x, _ in named.values())
    }

    columns = min(2, len(panels))
    sheet = Image.new("RGB", (WIDTH * columns, HEIGHT * -(-len(panels) // 2)), "white")
    for i, (title, named) in enumerate(panels.items()):
        sheet.paste(_panel(title, named), (WIDTH * (i % 2), HEIGHT * (i // 2)))
    with replacing(Path(path)) as partial:
        sheet.save(partial, "PNG")


def _curve(rows: Sequence[Mapping[str, float]], name: str) -> Curve:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


def _smooth(curve: Curve) -> Curve:
    """Means over about 200 parts of the run: single steps are noisy."""
    parts = max(1, min(len(curve[0]), 200))

    def means(numbers: np.ndarray) -> np.ndarray:
        if not len(numbers):
            return numbers
        return np.array([part.mean() for part in np.array_split(numbers, parts)])

    steps, values = curve
    return means(steps), means(values)


def _panel(title: str, named: Mapping[str, Curve]) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    width = WIDTH - LEFT - RIGHT
    height = HEIGHT - TOP - BOTTOM

    # Values are not negative; the top leaves out the few highest points of the first steps.
    xs = np.concatenate([steps for steps, _ in named.values()])
    ys = np.concatenate([values for _, values in named.values()])
    x0 = xs.min()
    x1 = max(xs.max(), x0 + 1)
    y0 = 0.0
    y1 = float(np.quantile(ys, 0.995)) * 1.08 or 1.0

    # Title, grid and labels of the axes.
    draw.text((LEFT, 8), title, fill="black", font=ImageFont.load_default(15))
    for part in np.linspace(0, 1, 5):
        y = TOP + height * (1 - part)
        draw.line([(LEFT, y), (LEFT + width, y)], fill="#dddddd")
        draw.text(
            (LEFT - 6, y), f"{y0 + part * (y1 - y0):.3g}", fill="#555555", font=font, anchor="rm"
        )
    for step in sorted({int(x) for x in np.linspace(x0, xs.max(), 5)}):
        draw.text(
            (LEFT + width * (step - x0) / (x1 - x0), HEIGHT - BOTTOM + 6),
            f"{step}",
            fill="#555555",
            font=font,
            anchor="mt",
        )

    # Curves and their names.
    for i, (name, (steps, values)) in enumerate(named.items()):
        color = COLORS[i % len(COLORS)]
        points = [
            (
                LEFT + width * (x - x0) / (x1 - x0),
                TOP + height * (1 - min(1.0, max(0.0, (y - y0) / (y1 - y0)))),
            )
            for x, y in zip(steps, values, strict=True)
        ]
        draw.line(points, fill=color, width=2)
        if len(points) <= 60:
            for x, y in points:
                draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=color)
        draw.text((LEFT + width + 8, TOP + 18 * i), name, fill=color, font=font)
    return image
