"""Labeled points: green on their object, red beside it."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageDraw

ON_OBJECT = (60, 220, 60)
BESIDE = (240, 60, 60)
_RADIUS = 3  # pixels, at least
_LARGE = 1 / 130  # of the longer side of a large image, which is shown smaller
_EDGE = (0, 0, 0)


def draw_points(image: Image.Image, points: Iterable[tuple[float, float, bool]]) -> None:
    """Draws points onto an image.

    Args:
        image: changed in place.
        points: x and y in pixels of the image, and whether the point lies on its object.
    """
    pen = ImageDraw.Draw(image)
    radius = max(_RADIUS, _LARGE * max(image.size))
    for x, y, is_on in points:
        ends = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(ends, ON_OBJECT if is_on else BESIDE, _EDGE)
