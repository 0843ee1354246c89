"""Names and scores beside their objects: where there is room, and what is left out.

In:  the boxes of N objects, best first, and the text of each.
Out: rectangles that cover neither each other nor more than a small share of any object.

A label lies above, below or beside its object, and inside only an object that is large. Text
becomes smaller or shorter before a label is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .style import AnyFont, FontChoice, fonts_of

CROWD = 12
"""From this many objects on, a label that is large beside its object is left out."""
MOST_COVERED = 0.05
"""Largest share of any object's box that one label may cover."""
_LONGEST = 40
"""Characters of a name that are written."""


class Label(NamedTuple):
    """A text and where it is written."""

    index: int
    """Of its object."""
    text: str
    rectangle: tuple[float, float, float, float]
    """xyxy of the background, in pixels."""
    origin: tuple[float, float]
    """Where the text starts."""
    font: AnyFont


def place_labels(
    boxes: Float[np.ndarray, "N 4"],
    texts: Sequence[Sequence[str]],
    size: tuple[int, int],
    unit: float,
    font: FontChoice | None = None,
    font_size: float | None = None,
) -> Iterator[Label]:
    """Yields the labels that find room, in the order of the objects.

    Args:
        boxes: xyxy in pixels of the overlay.
        texts: for each object the text to write, and shorter ones to try if there is no room.
        size: (height, width) of the overlay.
        unit: pixels per unit of length; grows with the image.
        font: the user's choice.
        font_size: height of the letters in pixels. None: by `unit`.
    """
    fonts = fonts_of(font, font_size, unit)
    crowded = len(boxes) >= CROWD
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    taken = np.zeros((len(boxes), 4))
    count = 0

    for n, (box, options) in enumerate(zip(boxes, texts, strict=True)):
        for text, sized in ((text, sized) for text in options for sized in fonts):
            left, top, right, bottom = sized.getbbox(text)
            pad_x, pad_y = 0.25 * _letters(sized), 0.2 * _letters(sized)
            w = right - left + 2 * pad_x
            h = bottom - top + 2 * pad_y
            if crowded and _large_beside(box, w, h):
                continue

            places = _positions(box, w, h, size[1])
            free = _inside(places, size) & ~_overlap(places, taken[:count]).any(axis=1)
            free &= (_overlap(places, boxes) <= MOST_COVERED * areas).all(axis=1)
            if free.any():
                x0, y0, x1, y1 = taken[count] = places[free.argmax()]
                count += 1
                origin = (round(x0 + pad_x - left), round(y0 + pad_y - top))
                yield Label(n, text, (x0, y0, x1, y1), origin, sized)
                break


def label_texts(
    names: Sequence[str], scores: Sequence[float], with_scores: bool
) -> list[tuple[str, ...]]:
    """Returns for each object what may be written beside it, the longest first.

    In a crowd of a single category, the name would be the same everywhere, and is left out.
    """
    single = len(names) >= CROWD and len(set(names)) == 1
    texts: list[tuple[str, ...]] = []
    for name, score in zip(names, scores, strict=True):
        short = " ".join(name.split())
        short = short if len(short) <= _LONGEST else f"{short[: _LONGEST - 3]}..."
        percent = f"{100 * score:.0f}%"
        if not with_scores:
            texts.append((short,))
        else:
            texts.append((percent,) if single else (f"{short} {percent}", short))
    return texts


def _letters(font: AnyFont) -> float:
    return getattr(font, "size", 10)  # a bitmap font has no size


def _large_beside(box: Float[np.ndarray, "4"], w: float, h: float) -> bool:
    """Whether a text of w x h is large in comparison with its object."""
    width, height = box[2:] - box[:2]
    return bool(w > 1.15 * width or w * h > 0.4 * width * height)


def _positions(
    box: Float[np.ndarray, "4"], w: float, h: float, width: int
) -> Float[np.ndarray, "P 4"]:
    """Returns rectangles of w x h at a box, the best first.

    Above and below, from its left edge or to its right edge; beside it; then inside. They are moved
    sideways into an image of the given width.
    """
    x0, y0, x1, y1 = box
    corners = np.array(
        [
            (x0, y0 - h),
            (x0, y1),
            (x1 - w, y0 - h),
            (x1 - w, y1),
            (x1, y0),
            (x0 - w, y0),
            (x0, y0),
            (x0, y1 - h),
        ]
    )

    corners[:, 0] = np.clip(corners[:, 0], 0, width - w)
    return np.concatenate([corners, corners + np.array([w, h])], axis=1)


def _inside(places: Float[np.ndarray, "P 4"], size: tuple[int, int]) -> Bool[np.ndarray, "P"]:
    height, width = size
    starts_inside = np.all(places[:, :2] >= 0, axis=1)
    return np.asarray(starts_inside & np.all(places[:, 2:] <= (width, height), axis=1))


def _overlap(
    places: Float[np.ndarray, "P 4"], others: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "P n"]:
    """Returns the areas that rectangles share."""
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
