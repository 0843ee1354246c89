"""Random views of a training image: `draw_view(...) -> AugmentedView`, then `warp(image, view)`.

In:  uint8 [H, W, 3].
Out: uint8 [h, w, 3] and the matrix from original to view pixels, which moves boxes, masks and
     keypoints (training_set.py).

A view is one matrix and one color change. Order: the model's resize rule times a random scale;
flips; rotation by right angles; rotation about the center, which keeps the frame; crop.

Four crops in five contain the center of a random object, the fifth lies anywhere. Empty crops are
therefore rare, but background still occurs. An image smaller than the crop is kept whole; the batch
pads it like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ..config import AugmentConfig, InputConfig
from ..images.read import LUMA
from ..preprocess import input_size
from . import geometry

_OBJECT_CROPS = 0.8  # probability


@dataclass(frozen=True)
class AugmentedView:
    """A region of an image, how it is moved to the pixels of an example, and its color change."""

    matrix: Float64[np.ndarray, "3 3"]
    """From original to view pixels."""
    size: tuple[int, int]
    """(height, width)."""
    whole: bool = True
    """Whether it shows the whole image: not cropped, rotated at most by right angles."""
    color: tuple[float, float, float, float] | None = None
    """Factors of brightness, contrast and saturation, and the rotation of the hue in radians."""


def draw_view(
    config: AugmentConfig,
    rule: InputConfig,
    size: tuple[int, int],
    boxes: Float64[np.ndarray, "n 4"],
    rng: np.random.Generator,
) -> AugmentedView:
    """Draws a random view of an image.

    Args:
        config: ranges and probabilities of the changes.
        rule: the model's resize rule.
        size: (height, width) of the image.
        boxes: xyxy of its objects; crops prefer them.
        rng: the only source of randomness.
    """
    # scale
    low, high = np.log(config.scale)
    factor = np.exp(rng.uniform(low, high))
    height, width = (max(1, int(side * factor + 0.5)) for side in input_size(*size, rule))
    matrix = geometry.scale(width / size[1], height / size[0])

    # flips and rotations
    if rng.random() < config.flip_horizontal:
        matrix = geometry.flip_horizontal(width) @ matrix
    if rng.random() < config.flip_vertical:
        matrix = geometry.flip_vertical(height) @ matrix
    if config.right_angles:
        turns = int(rng.integers(4))
        matrix = geometry.quarter_turns(turns, (height, width)) @ matrix
        if turns % 2:
            height, width = width, height
    if config.rotation:
        degrees = rng.uniform(-config.rotation, config.rotation)
        matrix = geometry.rotate(degrees, (width / 2, height / 2)) @ matrix
    whole = not config.rotation

    # crop
    if config.crop is not None and max(height, width) > config.crop:
        window = (min(config.crop, height), min(config.crop, width))
        moved = geometry.move_boxes(matrix, boxes)
        x0, y0 = _draw_corner((height, width), window, moved, rng)
        matrix = geometry.translate(-x0, -y0) @ matrix
        height, width = window
        whole = False

    return AugmentedView(matrix, (height, width), whole, _draw_color(config, rng))


def _draw_corner(
    size: tuple[int, int], window: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """Returns the left and upper end (x, y) of a crop."""
    first = np.zeros(2, int)
    last = np.array([size[1] - window[1], size[0] - window[0]])
    if len(boxes) and rng.random() < _OBJECT_CROPS:
        box = boxes[rng.integers(len(boxes))]
        center = np.clip(((box[:2] + box[2:]) / 2).astype(int), 0, (size[1] - 1, size[0] - 1))
        first = np.maximum(first, center - (window[1] - 1, window[0] - 1))
        last = np.minimum(last, center)
    x0, y0 = rng.integers(first, last + 1)
    return int(x0), int(y0)


def _draw_color(
    config: AugmentConfig, rng: np.random.Generator
) -> tuple[float, float, float, float] | None:
    amounts = (config.brightness, config.contrast, config.saturation)
    if not any(amounts) and not config.hue:
        return None
    brightness, contrast, saturation = (float(rng.uniform(max(0.0, 1 - a), 1 + a)) for a in amounts)
    return brightness, contrast, saturation, float(rng.uniform(-config.hue, config.hue) * 2 * np.pi)


def warp(
    image: UInt8[np.ndarray, "H W 3"], view: AugmentedView, rule: InputConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of a view, at a cost that grows with the view, not with the image.

    Shrinking is antialiased where the model's own resize is. Pixels beyond the image get the
    model's mean color, which padding has too.

    Args:
        image: RGB.
        view: as `draw_view` returns it.
        rule: the model's resize rule.
    """
    antialias = rule.resize == "pillow"
    if geometry.is_axis_aligned(view.matrix):
        pixels = _warp_axis_aligned(image, view, antialias)
    else:
        pixels = _warp_rotated(image, view, antialias, _padding_color(rule))

    if view.color is not None:
        gray = float(pixels[::4, ::4].reshape(-1, 3).mean(axis=0) @ np.array(LUMA))
        matrix = color_matrix(view.color, gray)
        pixels = np.asarray(Image.fromarray(pixels).convert("RGB", tuple(matrix.reshape(-1))))
    return pixels


def color_matrix(
    color: tuple[float, float, float, float], gray: float
) -> Float64[np.ndarray, "3 4"]:
    """Returns a color change as one affine map of (r, g, b, 1).

    Args:
        color: factors of brightness, contrast and saturation, and the rotation of the hue (about
            the gray axis) in radians.
        gray: the value, 0 to 255, that a change of contrast keeps.
    """
    brightness, contrast, saturation, hue = color
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(np.array(LUMA), (3, 1))

    # Rodrigues' rotation formula
    axis = np.ones((3, 3)) / 3
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = axis + np.cos(hue) * (np.eye(3) - axis) + np.sin(hue) * across

    linear = brightness * contrast * turn @ saturate
    return np.concatenate([linear, np.full((3, 1), brightness * (1 - contrast) * gray)], axis=1)


def _padding_color(rule: InputConfig) -> tuple[int, int, int]:
    red, green, blue = rule.mean if rule.channel_order == "rgb" else rule.mean[::-1]
    return round(red), round(green), round(blue)


def _warp_axis_aligned(image: np.ndarray, view: AugmentedView, antialias: bool) -> np.ndarray:
    """Resizes a part of the image, then reverses or exchanges its rows and columns."""
    (a, b), (c, d) = view.matrix[:2, :2]
    is_transposed = abs(b) > abs(a)
    height, width = view.size[::-1] if is_transposed else view.size

    frame = np.array([0.0, 0.0, view.size[1], view.size[0]])
    window = geometry.move_boxes(np.linalg.inv(view.matrix), frame)
    part = _resize(image, window, (height, width), antialias)
    if is_transposed:
        part = part.transpose(1, 0, 2)

    x_sign, y_sign = (b, c) if is_transposed else (a, d)
    x_step = -1 if x_sign < 0 else 1
    y_step = -1 if y_sign < 0 else 1
    return np.ascontiguousarray(part[::y_step, ::x_step])


def _warp_rotated(
    image: np.ndarray, view: AugmentedView, antialias: bool, padding: tuple[int, int, int]
) -> np.ndarray:
    """Resizes the part of the image that is needed, then rotates it."""
    scales = np.linalg.norm(view.matrix[:2, :2], axis=0)
    to_scaled = geometry.scale(*scales) @ np.linalg.inv(view.matrix)

    # the part under the view, in pixels of the scaled image, with a margin for the interpolation
    whole = np.round(scales * (image.shape[1], image.shape[0]))
    frame = np.array([0.0, 0.0, view.size[1], view.size[0]])
    hull = geometry.move_boxes(to_scaled, frame)
    first = np.clip(np.floor(hull[:2]) - 2, 0, whole - 1)
    last = np.clip(np.ceil(hull[2:]) + 2, 1, whole)
    width, height = (last - first).astype(int)
    window = np.concatenate([first / scales, last / scales])
    part = _resize(image, window, (height, width), antialias)

    coefficients = (geometry.translate(*-first) @ to_scaled)[:2].reshape(-1)
    rotated = Image.fromarray(part).transform(
        (view.size[1], view.size[0]),
        Image.Transform.AFFINE,
        tuple(coefficients),
        resample=Image.Resampling.BILINEAR,
        fillcolor=padding,
    )
    return np.asarray(rotated)


def _resize(
    image: np.ndarray, window: np.ndarray, size: tuple[int, int], antialias: bool
) -> np.ndarray:
    """Resizes a window (xyxy) of an image to (height, width); reads only needed pixels."""
    limits = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float64)
    window = np.clip(window, 0, limits)
    filter_reach = np.ceil((window[2:] - window[:2]) / (size[1], size[0])) + 1
    left, top = np.maximum(np.floor(window[:2] - filter_reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(window[2:] + filter_reach), limits[:2]).astype(int)
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))

    x0, y0, x1, y1 = (float(v) for v in window - (left, top, left, top))
    target = (size[1], size[0])
    bilinear = Image.Resampling.BILINEAR
    if antialias:
        return np.asarray(part.resize(target, bilinear, box=(x0, y0, x1, y1)))
    coefficients = ((x1 - x0) / size[1], 0, x0, 0, (y1 - y0) / size[0], y0)
    return np.asarray(
        part.transform(target, Image.Transform.AFFINE, coefficients, resample=bilinear)
    )
