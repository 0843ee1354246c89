"""Overlays: masks, contours, boxes, names and skeletons drawn on the image.

In:  Instances (N objects in an image [H, W, 3]).
Out: a PIL image of the same size; on request, a tiny image is enlarged by a whole factor.

Lines and letters are measured in a unit that grows with the image, so that a 4000-px photograph and
a 100-px crop are both readable. Neighbors get different colors. Names shrink or move to cover
neither each other nor small objects, and are left out where objects are crowded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from ..config import Category
from .labels import CROWD, label_texts, place_labels
from .style import Color, Colors, FontChoice, mixed, object_colors, readable_on

SMALLEST_CANVAS = 640
"""Images whose longer side is below this many pixels are enlarged on request."""
OPACITY = 0.4
"""Opacity of a mask's fill, 0..1."""
KEYPOINT_SCORE = 0.05
"""Keypoints scored below this (0..1) are not drawn; Detectron2 has the same limit."""
THIN = 8
"""A line is at most this part of the shorter side of its object, unless the user sets its width."""
TINY = 8
"""Boxes whose shorter side is below this many pixels are drawn around their object, not on it."""


class Drawable(Protocol):
    """The part of `Instances` that `draw_instances` reads.

    A protocol, because `instances` imports this module and not the other way round.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        ...

    @property
    def boxes(self) -> Tensor:
        """xyxy in pixels of the image, [N, 4]."""
        ...

    @property
    def labels(self) -> Tensor:
        """Indices into `categories`, [N]."""
        ...

    @property
    def scores(self) -> Tensor:
        """0..1, [N]."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """The model's categories."""
        ...

    @property
    def mask_grids(self) -> Tensor | None:
        """Probabilities over a grid on each box, [N, S, S]; None: no masks."""
        ...

    @property
    def keypoints(self) -> Tensor | None:
        """x, y, score, [N, J, 3]; None: no keypoints."""
        ...

    @property
    def names(self) -> np.ndarray:
        """The category name of each object, [N]."""
        ...

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image that contains the objects."""
        ...

    @property
    def masks(self) -> Any:
        """The masks, as an iterable of crops."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Drawable: ...


def draw_instances(
    instances: Drawable,
    image: UInt8[np.ndarray, "H W 3"] | Image.Image | None = None,
    *,
    boxes: bool = True,
    masks: bool = True,
    keypoints: bool = True,
    names: bool = True,
    scores: bool = True,
    colors: Colors | None = None,
    font: FontChoice | None = None,
    font_size: float | None = None,
    line_width: float | None = None,
    opacity: float = OPACITY,
    enlarge: bool = False,
) -> Image.Image:
    """Returns the image with its objects drawn on it.

    Args:
        instances: the objects to draw, best first.
        image: the image; by default the one that `instances` carries.
        boxes: draw boxes.
        masks: draw masks, if the instances have them.
        keypoints: draw skeletons, if the instances have keypoints.
        names: write category names where there is room.
        scores: write scores after the names.
        colors: one color for all objects; a list, from which neighbors get different colors; or a
            mapping from category names. A color is a name ("orange"), "#rrggbb", or three numbers 0
            to 255. None: twelve colors, neighbors in different ones.
        font: of the names: a TrueType or OpenType file, or a font of Pillow. None: Pillow's own.
        font_size: height of the letters in pixels. None: grows with the image.
        line_width: of boxes, contours and limbs in pixels. None: grows with the image, and is thin
            in crowds and on small objects.
        opacity: of the fill of masks, 0 (contours only) to 1.
        enlarge: draw on a copy that is enlarged by a whole factor, to about 640 px, if the image is
            smaller.

    Raises:
        ValueError: no image, or one whose size differs from that of the instances' image; or a
            color, font, width or opacity is invalid.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(0, (96, 128))[0])
        >>> mr.draw_instances(instances, names=False).size
        (128, 96)
        >>> mr.draw_instances(instances, colors={"nucleus": "yellow"}, enlarge=True).size
        (640, 480)
    """
    pixels = _checked(instances.image if image is None else image, instances.size)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity!r}")
    if line_width is not None and not 0 < line_width < np.inf:
        raise ValueError(f"line_width: expected a number of pixels above 0, got {line_width!r}")
    factor = max(1, round(SMALLEST_CANVAS / max(instances.size))) if enlarge else 1
    if factor > 1:
        pixels, instances = _enlarged(pixels, instances, factor)

    unit = max(1.0, max(instances.size) / 800)
    corners = instances.boxes.cpu().numpy()
    labels = instances.labels.tolist()
    inks = object_colors(colors, corners, labels, instances.categories)
    order = _largest_first(corners)

    canvas = np.array(pixels)
    if masks and instances.mask_grids is not None:
        width = max(1, round(line_width or unit * (1.5 if len(instances) <= 100 else 1)))
        _draw_masks(canvas, instances, order, inks, opacity, width, THIN if not line_width else 1)
    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)

    width = max(1, round(line_width or unit * (1.5 if len(instances) <= CROWD else 0.75)))
    frames = _frames(corners, 1 + width)
    for n in order if boxes else ():
        side = round(min(frames[n, 2:] - frames[n, :2]))
        thin = width if line_width else min(width, max(1, side // THIN))
        _draw_rectangle(pen, frames[n], inks[n], thin)
    if keypoints and instances.keypoints is not None:
        _draw_skeletons(pen, instances, order, inks, unit, line_width)
    if names:
        texts = label_texts(instances.names.tolist(), instances.scores.tolist(), scores)
        for label in place_labels(frames, texts, instances.size, unit, font, font_size):
            _draw_rectangle(pen, label.rectangle, inks[label.index])
            pen.text(label.origin, label.text, readable_on(inks[label.index]), label.font)
    return drawn


def _checked(
    image: UInt8[np.ndarray, "H W 3"] | Image.Image, size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels to draw on."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"image: expected an RGB array [H, W, 3] of uint8, got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    if pixels.shape[:2] != size:
        raise ValueError(
            f"expected the instances' image of {size[0]}x{size[1]} pixels "
            f"(height x width), got {pixels.shape[0]}x{pixels.shape[1]}"
        )
    return pixels


def _enlarged(
    pixels: UInt8[np.ndarray, "H W 3"], instances: Drawable, factor: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Drawable]:
    height, width = (side * factor for side in instances.size)
    larger = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    keypoints = instances.keypoints
    if keypoints is not None:
        keypoints = keypoints * keypoints.new_tensor([factor, factor, 1])
    return larger, replace(
        instances, size=(height, width), boxes=instances.boxes * factor, keypoints=keypoints
    )


def _largest_first(corners: Float[np.ndarray, "N 4"]) -> list[int]:
    """Returns the order of drawing, in which small objects come on top of large ones."""
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    return np.argsort(-areas, kind="stable").tolist()


def _draw_masks(
    canvas: UInt8[np.ndarray, "H W 3"],
    instances: Drawable,
    order: list[int],
    colors: list[Color],
    opacity: float,
    thickness: int,
    thin: int,
) -> None:
    """Draws each mask's fill, and its contour, up to a part (1 / thin) of its shorter side."""
    for n, crop in zip(order, instances[order].masks, strict=True):
        height, width = crop.mask.shape
        part = canvas[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width]
        color = np.array(colors[n])
        part[crop.mask] = (part[crop.mask] * (1 - opacity) + color * opacity).astype(np.uint8)
        steps = min(thickness, max(1, min(height, width) // thin))
        part[crop.mask & ~_eroded(crop.mask, steps)] = color


def _eroded(mask: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    """Removes the mask's pixels within `steps` pixels of its outside, which includes all beyond the
    crop."""
    inner = np.pad(mask, 1)
    for _ in range(steps):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return inner[1:-1, 1:-1]


def _frames(corners: Float[np.ndarray, "N 4"], around: int) -> Float[np.ndarray, "N 4"]:
    """Returns the boxes in whole pixels, as they are drawn: those of tiny objects go around them.

    Args:
        corners: xyxy of the boxes.
        around: pixels on each side of a tiny object.
    """
    frames = corners.round()
    is_tiny = (frames[:, 2:] - frames[:, :2]).min(axis=1) < TINY
    frames[is_tiny] += np.array([-around, -around, around, around])
    return frames


def _draw_rectangle(
    pen: ImageDraw.ImageDraw, corners: Sequence[float], color: Color, width: int | None = None
) -> None:
    """Draws a rectangle inside its corners, filled unless it has a width of its line."""
    x0, y0, x1, y1 = (round(corner) for corner in corners)
    inner = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))  # Pillow draws the last pixels too
    if width is None:
        pen.rectangle(inner, fill=color)
    else:
        pen.rectangle(inner, None, color, width)


def _draw_skeletons(
    pen: ImageDraw.ImageDraw,
    instances: Drawable,
    order: list[int],
    colors: list[Color],
    unit: float,
    line_width: float | None,
) -> None:
    assert instances.keypoints is not None
    for n in order:
        category = instances.categories[int(instances.labels[n])]
        x0, y0, x1, y1 = instances.boxes[n].tolist()
        size = min(2.5 * unit, max(1.0, 0.03 * max(x1 - x0, y1 - y0)))  # small object, thin limbs
        keypoints = instances.keypoints[n].tolist()
        _draw_skeleton(pen, keypoints, category, colors[n], line_width or size)


def _draw_skeleton(
    pen: ImageDraw.ImageDraw,
    keypoints: list[list[float]],
    category: Category,
    color: Color,
    size: float,
) -> None:
    """Draws limbs with a dark edge, and keypoints as light dots with the object's color inside."""
    limbs = [
        (keypoints[a], keypoints[b])
        for a, b in category.skeleton
        if min(keypoints[a][2], keypoints[b][2]) >= KEYPOINT_SCORE
    ]
    bright = mixed(color, (255, 255, 255), 0.35)

    for ink, width in (((20, 20, 20), size * 1.8), (bright, size)):
        for start, end in limbs:
            points = [(start[0], start[1]), (end[0], end[1])]
            pen.line(points, ink, max(1, round(width)), "curve")

    for x, y, score in keypoints[: len(category.keypoints)]:
        if score >= KEYPOINT_SCORE:
            for ink, radius in (
                ((20, 20, 20), size * 1.7),
                ((255, 255, 255), size * 1.35),
                (color, size * 0.8),
            ):
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
