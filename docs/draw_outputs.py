"""Draws docs/images/outputs.png, the figure of docs/deploy.md: `python docs/draw_outputs.py`.

What the outputs of an exported file mean, on one drawn scene. Its truth stands in for predictions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from maskrcnn.annotations.rle import decode
from maskrcnn.ops.paste_masks import paste_masks
from maskrcnn.synthetic.scenes import CATEGORIES, draw_scene

OUT = Path(__file__).parent / "images" / "outputs.png"
SEED = 59
SIDE = 160  # of the scene, in pixels
ZOOM = 4
GRID = 14  # side of the drawn mask grid; real files have 28
GAP = 40
INK = "#1d2128"
SOFT = "#626975"
BLUE = "#0f62c4"
ORANGE = "#c2410c"


def main() -> None:
    """Draws and saves the figure."""
    image, objects = draw_scene(seed=SEED, size=SIDE)
    figure = next(o for o in objects if "keypoints" in o)
    x, y, width, height = figure["bbox"]
    mask = decode(figure["segmentation"])
    grid = grid_of(mask, (x, y, x + width, y + height))

    panel = SIDE * ZOOM
    canvas = Image.new("RGB", (3 * panel + 4 * GAP, panel + 470), "white")
    draw = ImageDraw.Draw(canvas)
    big = Image.fromarray(image).resize((panel, panel), Image.Resampling.NEAREST)
    top = 90
    corners = [(x, y), (x + width, y + height)]

    # 1: boxes and keypoints.
    left = GAP
    canvas.paste(big, (left, top))
    box = [(left + ZOOM * a, top + ZOOM * b) for a, b in corners]
    frame(draw, [*box[0], *box[1]], BLUE, 3)
    write(draw, (box[0][0], box[0][1] - 24), f"x0, y0 = {x:.1f}, {y:.1f}", BLUE)
    write(
        draw, (box[1][0] - 150, box[1][1] + 4), f"x1, y1 = {x + width:.1f}, {y + height:.1f}", BLUE
    )
    points = np.array(figure["keypoints"], float).reshape(-1, 3)
    for px, py, visible in points:
        if visible:
            at = (left + ZOOM * (px + 0.5), top + ZOOM * (py + 0.5))
            for radius, color in ((7, "white"), (6, ORANGE)):
                draw.ellipse(
                    [at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=color
                )
    title(
        draw,
        left,
        "boxes[b, d] and keypoints[b, d, j]",
        "pixels of the image; pixel i covers i to i + 1",
    )

    # 2: the mask grid on its box.
    left = 2 * GAP + panel
    cell = min(panel / width, panel / height)
    size = (width * cell, height * cell)
    offset = (left + (panel - size[0]) / 2, top + (panel - size[1]) / 2)
    for row in range(GRID):
        for column in range(GRID):
            value = grid[row, column]
            shade = tuple(round(255 + (c - 255) * value) for c in (15, 98, 196))
            corner = (offset[0] + column * size[0] / GRID, offset[1] + row * size[1] / GRID)
            end = (corner[0] + size[0] / GRID, corner[1] + size[1] / GRID)
            draw.rectangle([*corner, *end], fill=shade)
            frame(draw, [*corner, *end], "#d0d4da", 1)
            if min(size) / GRID > 26:
                dark = value > 0.5
                write(
                    draw,
                    (corner[0] + 4, corner[1] + 4),
                    f"{value:.1f}",
                    "white" if dark else SOFT,
                    12,
                )
    frame(draw, [*offset, offset[0] + size[0], offset[1] + size[1]], BLUE, 3)
    title(
        draw,
        left,
        "masks[b, d], an S x S grid on the box",
        "probability of each cell, 0 to 1 (S = 28; here 14)",
    )

    # 3: pasted.
    left = 3 * GAP + 2 * panel
    boxes = torch.tensor([[x, y, x + width, y + height]])
    (crop,) = paste_masks(torch.from_numpy(grid)[None], boxes, (SIDE, SIDE), "border", 0.5)
    shown = np.asarray(image).copy()
    window = shown[crop.y0 : crop.y0 + crop.mask.shape[0], crop.x0 : crop.x0 + crop.mask.shape[1]]
    window[crop.mask] = (0.4 * window[crop.mask] + 0.6 * np.array([15, 98, 196])).astype(np.uint8)
    canvas.paste(
        Image.fromarray(shown).resize((panel, panel), Image.Resampling.NEAREST), (left, top)
    )
    title(
        draw,
        left,
        "the mask, pasted",
        "grid sampled at each pixel's center, at least the mask threshold",
    )

    other = next(o for o in objects if "keypoints" not in o)
    rows(draw, top + panel + 40, figure, other, points)
    canvas.save(OUT, optimize=True)


def rows(
    draw: ImageDraw.ImageDraw, top: float, figure: dict, other: dict, points: np.ndarray
) -> None:
    """The arrays of one image: rows of objects, best first, then zeros."""
    heads = ("d", "valid", "scores", "labels", "boxes", "masks", "keypoints", "keypoint_logits")
    at = (40, 110, 220, 320, 540, 880, 1080, 1560)
    first = f"{points[0, 0] + 0.5:.1f}, {points[0, 1] + 0.5:.1f}, 0.87; ..."
    table = [
        ("0", "True", "0.98", *described(figure), "S x S", first, "9.1; ..."),
        (
            "1",
            "True",
            "0.95",
            *described(other),
            "S x S",
            "0, 0, 0; ...",
            "0; ...",
        ),
        ("2", "False", "0", "0", "0, 0, 0, 0", "zeros", "zeros", "zeros"),
        ("...", "False", "0", "0", "0, 0, 0, 0", "zeros", "zeros", "zeros"),
        ("D - 1", "False", "0", "0", "0, 0, 0, 0", "zeros", "zeros", "zeros"),
    ]
    write(draw, (40, top), "One image of a batch: D rows, the objects first", INK, 24)
    for column, head in zip(at, heads, strict=True):
        write(draw, (column, top + 50), head, SOFT, 20)
    for n, line in enumerate(table):
        height_ = top + 90 + 42 * n
        draw.line([(40, height_ - 6), (2040, height_ - 6)], fill="#e3e4e0")
        for column, text in zip(at, line, strict=True):
            write(draw, (column, height_), text, INK if line[1] == "True" else SOFT, 20)


def described(thing: dict) -> tuple[str, str]:
    """The label and the box of an object, as text."""
    x, y, width, height = thing["bbox"]
    label = [c.id for c in CATEGORIES].index(thing["category_id"])
    box = f"{x:.1f}, {y:.1f}, {x + width:.1f}, {y + height:.1f}"
    return f"{label} ({CATEGORIES[label].name})", box


def grid_of(mask: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Share of each cell of a grid on a box that a mask covers."""
    x0, y0, x1, y1 = box
    fine = 16
    steps = (np.arange(GRID * fine) + 0.5) / (GRID * fine)
    rows = np.clip((y0 + steps * (y1 - y0)).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip((x0 + steps * (x1 - x0)).astype(int), 0, mask.shape[1] - 1)
    sampled = mask[np.ix_(rows, columns)].astype(np.float32)
    return sampled.reshape(GRID, fine, GRID, fine).mean(axis=(1, 3))


def frame(draw: ImageDraw.ImageDraw, box: list[float], color: str, width: int) -> None:
    """Draws the edges of a box."""
    x0, y0, x1, y1 = box
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    draw.line(corners, fill=color, width=width)


def title(draw: ImageDraw.ImageDraw, left: float, text: str, below: str) -> None:
    """Writes the two lines above a panel."""
    write(draw, (left, 12), text, INK, 26)
    write(draw, (left, 50), below, SOFT, 20)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, color: str, size: int = 18
) -> None:
    """Writes a line of text."""
    draw.text(at, text, fill=color, font=ImageFont.load_default(size))


if __name__ == "__main__":
    main()
