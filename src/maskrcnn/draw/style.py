"""The colors and fonts of an overlay, as a user chooses them.

In:  colors by name, as "#ff8800" or as numbers; a font file, a font, or nothing.
Out: one color per object, neighbors in different ones, and fonts of any size.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from PIL import ImageColor, ImageFont

from ..config import Category
from ..images.read import LUMA

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
ColorChoice = str | Color
"""A color by name ("orange"), as "#ff8800", or as numbers."""
Colors = ColorChoice | Sequence[ColorChoice] | Mapping[str, ColorChoice]
"""One color for all objects, colors to choose from, or a color for each category name."""
FontChoice = str | Path | ImageFont.FreeTypeFont
"""A TrueType or OpenType file, or a font of Pillow."""
AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Twelve hues that are easy to tell apart on photographs; the first few differ most.
PALETTE: tuple[Color, ...] = (
    (255, 64, 64),
    (0, 174, 255),
    (255, 196, 0),
    (64, 220, 96),
    (214, 92, 255),
    (255, 128, 0),
    (0, 230, 214),
    (255, 105, 180),
    (158, 224, 0),
    (96, 120, 255),
    (205, 133, 80),
    (150, 255, 200),
)

_LETTERS = (13, 10)
"""Heights of letters that are tried, in units of the overlay."""
_SMALLEST = 9
"""Letters below this many pixels are hard to read."""


def object_colors(
    colors: Colors | None,
    boxes: Float[np.ndarray, "N 4"],
    labels: Sequence[int],
    categories: Sequence[Category],
) -> list[Color]:
    """Returns a color for each object.

    Args:
        colors: the user's choice. None: the palette.
        boxes: xyxy; boxes that are near each other get different colors of a palette.
        labels: of the objects, indices into `categories`.
        categories: what a mapping names. Categories it does not name get colors of the palette.

    Raises:
        ValueError: a color is unknown, no color is given, or a mapping names an unknown category.
    """
    is_several = isinstance(colors, Iterable) and not isinstance(colors, str)
    if colors is not None and (not is_several or _is_numbers(colors)):
        return [one_color(colors)] * len(boxes)
    if not isinstance(colors, Mapping):
        palette = PALETTE if colors is None else [one_color(color) for color in colors]
        if not palette:
            raise ValueError("colors: expected at least one color, got none")
        return [palette[i] for i in distinct(boxes, len(palette))]

    names = [category.name for category in categories]
    for name in colors:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=3) or names[:10]
            raise ValueError(
                f'colors: unknown category "{name}"; expected one of {", ".join(near)}'
            )
    chosen = {name: one_color(color) for name, color in colors.items()}
    rest = [color for color in PALETTE if color not in chosen.values()] or PALETTE
    return [chosen.get(names[label], rest[label % len(rest)]) for label in labels]


def distinct(boxes: Float[np.ndarray, "N 4"], count: int) -> Int64[np.ndarray, "N"]:
    """Returns color indices, equal for neighboring boxes only if the colors are exhausted.

    Args:
        boxes: xyxy.
        count: number of colors.
    """
    reach = 0.25 * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0, keepdims=True)
    low = boxes[:, :2] - reach
    high = boxes[:, 2:] + reach
    chosen = np.zeros(len(boxes), dtype=np.int64)
    times = np.zeros(count)

    # Each box takes the color that is rarest among its neighbors, then rarest overall.
    for n in range(len(boxes)):
        near = ((low[:n] < high[n]) & (high[:n] > low[n])).all(axis=1)
        taken = np.bincount(chosen[:n][near], minlength=count)
        chosen[n] = np.lexsort((times, taken))[0]
        times[chosen[n]] += 1
    return chosen


def one_color(color: Any) -> Color:
    """Returns red, green and blue of one color.

    Raises:
        ValueError: it is not a color; the message lists near names.
    """
    if isinstance(color, str):
        return _named(color)
    is_rgb = _is_numbers(color) and len(color) == 3
    if not is_rgb or not all(isinstance(c, Integral) and 0 <= c <= 255 for c in color):
        raise ValueError(
            f"expected a color: a name, #rrggbb, or three whole numbers 0 to 255, got {color!r}"
        )
    red, green, blue = map(int, color)
    return red, green, blue


def fonts_of(font: FontChoice | None, font_size: float | None, unit: float) -> list[AnyFont]:
    """Returns the fonts to try for a label, the largest first.

    Args:
        font: the user's choice. None: the font that comes with Pillow.
        font_size: height of the letters in pixels. None: that of a font of Pillow, else by `unit`.
        unit: pixels per unit of length of the overlay.

    Raises:
        ValueError: the size is not positive, or the file is not a font or is not found.
    """
    if font_size is not None and not 0 < font_size < np.inf:
        raise ValueError(f"font_size: expected a number of pixels above 0, got {font_size!r}")
    if isinstance(font, ImageFont.FreeTypeFont):
        return [font if font_size is None else font.font_variant(size=font_size)]

    heights = [max(_SMALLEST, round(letters * unit)) for letters in _LETTERS]
    sizes = dict.fromkeys(heights) if font_size is None else [font_size]
    return [_font(None if font is None else str(font), size) for size in sizes]


@lru_cache(maxsize=32)
def _font(file: str | None, size: float) -> AnyFont:
    if file is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise ValueError(
            f"font: {file}: cannot be read ({error}); expected a TrueType or OpenType file, "
            "such as DejaVuSans.ttf"
        ) from None


def readable_on(color: Color) -> Color:
    """Returns black or white, whichever is readable on the color."""
    luma = sum(weight * channel for weight, channel in zip(LUMA, color, strict=True))
    return (0, 0, 0) if luma > 120 else (255, 255, 255)


def mixed(color: Color, other: Color, share: float) -> Color:
    """Returns a color between two, with a share of 0 to 1 of the second."""
    red, green, blue = (
        round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True)
    )
    return red, green, blue


def _named(name: str) -> Color:
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        near = difflib.get_close_matches(name.lower(), ImageColor.colormap, n=3)
        suggestion = f"did you mean {', '.join(near)}?" if near else "write #rrggbb"
        raise ValueError(f'unknown color "{name}"; {suggestion}') from None
    return red, green, blue


def _is_numbers(value: object) -> bool:
    """Whether a value is one color as numbers, rather than several colors."""
    is_row = isinstance(value, tuple | list | np.ndarray) and len(value) > 0
    return is_row and all(isinstance(part, Real) for part in value)
