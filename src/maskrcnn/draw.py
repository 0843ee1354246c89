"""Overlays: masks, contours, boxes, names and skeletons drawn on the image.

In:  Instances (N objects in an image [H, W, 3]).
Out: a PIL image, of the same size, or a whole number of times larger where the image is tiny.

Lines and letters are measured in a unit that grows with the image, so that a 4000-px photograph and
a 100-px crop are both readable. Neighbors get different colors. Names shrink or move to avoid each
other, and are left out where objects are crowded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .config import Category
from .images.read import LUMA

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
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
SMALLEST_CANVAS = 640
"""Images whose longer side is below this many pixels are enlarged before drawing."""
OPACITY = 0.4
"""Opacity of a mask's fill, 0..1."""
KEYPOINT_SCORE = 0.05
"""Keypoints scored below this (0..1) are not drawn; Detectron2 has the same limit."""
CROWD = 12
"""From this many objects on, a name that does not fit its object is left out."""


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
    def names(self) -> list[str]:
        """The category name of each object."""
        ...

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image that contains the objects."""
        ...

    def masks(self) -> Any:
        """The masks, as an iterable of crops."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Drawable: ...


def draw_instances(
    instances: Drawable,
    image: UInt8[np.ndarray, "H W 3"] | None = None,
    *,
    boxes: bool = True,
    names: bool = True,
    scores: bool = True,
) -> Image.Image:
    """Returns the image with its objects drawn on it.

    Masks and skeletons are drawn if the instances have them. Images smaller than `SMALLEST_CANVAS`
    are enlarged first.

    Args:
        instances: the objects to draw.
        image: the image; by default the one that `instances` carries.
        boxes: draw boxes.
        names: write category names.
        scores: write scores after the names.

    Raises:
        ValueError: no image, or one whose size differs from that of the instances' image.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.draw import draw_instances
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> instances = mr.predict(mr.load("nuclei"), draw_micrograph(seed=0)[0])
        >>> draw_instances(instances, names=False).size
        (640, 512)
    """
    pixels = instances.image if image is None else image
    if pixels.shape[:2] != instances.size:
        raise ValueError(
            f"expected the instances' image of {instances.size[0]}x{instances.size[1]} pixels "
            f"(height x width), got {pixels.shape[0]}x{pixels.shape[1]}"
        )
    factor = max(1, round(SMALLEST_CANVAS / max(instances.size)))
    if factor > 1:
        pixels, instances = _enlarged(pixels, instances, factor)

    unit = max(1.0, max(instances.size) / 800)
    colors = [PALETTE[i] for i in _distinct(instances.boxes.cpu().numpy())]
    canvas = np.array(pixels)
    if instances.mask_grids is not None:
        thickness = max(1, round(unit * (1.5 if len(instances) <= 100 else 1)))
        _draw_masks(canvas, instances, colors, thickness)

    drawn = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawn)
    if boxes:
        width = max(1, round(unit * (1.5 if len(instances) <= CROWD else 0.75)))
        corners = instances.boxes.tolist()
        for n in _largest_first(instances):
            pen.rectangle(_pixels(corners[n]), None, colors[n], width)
    _draw_skeletons(pen, instances, colors, unit)
    if names:
        _draw_names(pen, instances, colors, unit, scores)
    return drawn


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


def _distinct(boxes: Float[np.ndarray, "N 4"]) -> Int64[np.ndarray, "N"]:
    """Returns palette indices, equal for neighboring boxes only if the palette is exhausted."""
    reach = 0.25 * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0, keepdims=True)
    low = boxes[:, :2] - reach
    high = boxes[:, 2:] + reach
    chosen = np.zeros(len(boxes), dtype=np.int64)
    times = np.zeros(len(PALETTE))

    # Each box takes the color that is rarest among its neighbors, then rarest overall.
    for n in range(len(boxes)):
        near = ((low[:n] < high[n]) & (high[:n] > low[n])).all(axis=1)
        taken = np.bincount(chosen[:n][near], minlength=len(PALETTE))
        chosen[n] = np.lexsort((times, taken))[0]
        times[chosen[n]] += 1
    return chosen


def _largest_first(instances: Drawable) -> list[int]:
    extent = instances.boxes[:, 2:] - instances.boxes[:, :2]
    return extent.prod(dim=1).argsort(descending=True).tolist()


def _draw_masks(
    canvas: UInt8[np.ndarray, "H W 3"], instances: Drawable, colors: list[Color], thickness: int
) -> None:
    """Draws each mask's fill and contour, small objects on top of large ones."""
    for n in _largest_first(instances):
        (crop,) = instances[n].masks()
        height, width = crop.mask.shape
        part = canvas[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width]
        color = np.array(colors[n])
        part[crop.mask] = (part[crop.mask] * (1 - OPACITY) + color * OPACITY).astype(np.uint8)
        part[crop.mask & ~_eroded(crop.mask, thickness)] = color


def _eroded(mask: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    """Removes the mask's pixels within `steps` pixels of its outside, which includes all beyond the
    crop."""
    inner = np.pad(mask, 1)
    for _ in range(steps):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return inner[1:-1, 1:-1]


def _draw_skeletons(
    pen: ImageDraw.ImageDraw, instances: Drawable, colors: list[Color], unit: float
) -> None:
    if instances.keypoints is None:
        return
    for n in _largest_first(instances):
        category = instances.categories[int(instances.labels[n])]
        x0, y0, x1, y1 = instances.boxes[n].tolist()
        size = min(2.5 * unit, max(1.0, 0.03 * max(x1 - x0, y1 - y0)))  # small object, thin limbs
        _draw_skeleton(pen, instances.keypoints[n].tolist(), category, colors[n], size)


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
    bright = _mixed(color, (255, 255, 255), 0.35)

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


def _draw_names(
    pen: ImageDraw.ImageDraw, instances: Drawable, colors: list[Color], unit: float, scores: bool
) -> None:
    """Writes names, best object first, each where it covers no other.

    In a crowd, a name is written only if it is small compared with its object.
    """
    height, width = instances.size
    crowded = len(instances) >= CROWD
    single = crowded and len(set(instances.names)) == 1
    taken = np.zeros((0, 4))

    for box, name, score, color in zip(
        instances.boxes.tolist(), instances.names, instances.scores.tolist(), colors, strict=True
    ):
        percent = f"{100 * score:.0f}%"
        if not scores:
            texts = (name,)
        elif single:  # the name would be the same everywhere
            texts = (percent,)
        else:
            texts = (f"{name} {percent}", name)

        for text in texts:
            label = _label(text, box, unit, crowded, (height, width), taken)
            if label is not None:
                rectangle, origin, font = label
                taken = np.vstack([taken, rectangle])
                pen.rectangle(rectangle, fill=color)
                pen.text(origin, text, fill=_readable_on(color), font=font)
                break


def _label(
    text: str,
    box: list[float],
    unit: float,
    crowded: bool,
    size: tuple[int, int],
    taken: Float[np.ndarray, "n 4"],
) -> tuple[Rectangle, tuple[float, float], ImageFont.FreeTypeFont | ImageFont.ImageFont] | None:
    """Finds a free rectangle for a text beside its box.

    Returns:
        The rectangle, where the text starts in it, and the font; None if the text fits nowhere.
    """
    for letters in (round(13 * unit), max(9, round(10 * unit))):
        font = _font(letters)
        left, top, right, bottom = font.getbbox(text)
        w = right - left + 0.5 * letters
        h = bottom - top + 0.4 * letters
        too_wide = w > 1.15 * (box[2] - box[0])
        too_large = w * h > 0.4 * (box[2] - box[0]) * (box[3] - box[1])
        if crowded and (too_wide or too_large):
            continue

        for rectangle in _positions(box, w, h, *size):
            if not _overlaps(rectangle, taken):
                x = round(rectangle[0] + 0.25 * letters - left)
                y = round(rectangle[1] + 0.2 * letters - top)
                return rectangle, (x, y), font
    return None


def _positions(
    box: list[float], w: float, h: float, height: int, width: int
) -> Iterator[Rectangle]:
    """Yields the positions of a text of w x h that lie in the image.

    In this order: above the box, below it, inside its top, inside its bottom.
    """
    x = min(max(0.0, box[0]), width - w)
    for y in (box[1] - h, box[3], box[1], box[3] - h):
        if x >= 0 and 0 <= y <= height - h:
            yield x, y, x + w, y + h


def _overlaps(rectangle: Rectangle, taken: Float[np.ndarray, "n 4"]) -> bool:
    x0, y0, x1, y1 = rectangle
    return bool(
        ((taken[:, 0] < x1) & (taken[:, 2] > x0) & (taken[:, 1] < y1) & (taken[:, 3] > y0)).any()
    )


def _pixels(box: list[float]) -> Rectangle:
    """Returns the first and last whole pixels that a box touches, as Pillow expects them."""
    x0, y0, x1, y1 = (round(v) for v in box)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _readable_on(color: Color) -> Color:
    """Returns black or white, whichever is readable on the color."""
    luma = sum(weight * channel for weight, channel in zip(LUMA, color, strict=True))
    return (0, 0, 0) if luma > 120 else (255, 255, 255)


def _mixed(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (
        round(a * (1 - share) + b * share) for a, b in zip(color, other, strict=True)
    )
    return red, green, blue
