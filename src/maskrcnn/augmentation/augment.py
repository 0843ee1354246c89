"""How a training image is seen: `draw_view(..) -> View`, one matrix and one change of colors, then `warp(image, view)`.

In: uint8 [H, W, 3]. Out: uint8 [h, w, 3] and the matrix from original to view pixels, by which boxes, masks and keypoints are moved (dataset.py).
Order: the model's resize rule times a random scale; flips; right angles; a turn about the center that keeps the frame; a crop.

A crop is drawn in two ways: four times in five it holds the center of an object drawn at random, else it lies anywhere. So empty crops are rare, and
background is still seen. An image smaller than the crop is taken whole; the batch pads it like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from ..config import AugmentConfig, InputConfig
from ..preprocess import input_size
from . import geometry

_AROUND_AN_OBJECT = 0.8
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's gray


@dataclass(frozen=True)
class View:
    """What is seen of an image."""

    matrix: Float64[np.ndarray, "3 3"]
    """From original to view pixels."""
    size: tuple[int, int]
    """(height, width)."""
    whole: bool = True
    """The whole image is seen, upright or turned by right angles: nothing was cropped or rotated."""
    color: tuple[float, float, float, float] | None = None
    """Factors of brightness, contrast and saturation, and the turn of the hue in radians."""


def draw_view(
    config: AugmentConfig,
    rule: InputConfig,
    size: tuple[int, int],
    boxes: Float64[np.ndarray, "n 4"],
    rng: np.random.Generator,
) -> View:
    """Draws a view.

    Args:
        config: what may happen.
        rule: the model's resize rule.
        size: (height, width) of the image.
        boxes: of its objects; crops prefer them.
        rng: the only source of randomness.
    """
    low, high = np.log(config.scale)
    factor = np.exp(rng.uniform(low, high))
    height, width = (max(1, int(side * factor + 0.5)) for side in input_size(*size, rule))
    matrix = geometry.scale(width / size[1], height / size[0])
    if rng.random() < config.flip_horizontal:
        matrix = geometry.flip_horizontal(width) @ matrix
    if rng.random() < config.flip_vertical:
        matrix = geometry.flip_vertical(height) @ matrix
    if config.right_angles:
        turns = int(rng.integers(4))
        matrix = geometry.quarter_turns(turns, (height, width)) @ matrix
        height, width = (width, height) if turns % 2 else (height, width)
    if config.rotation:
        matrix = (
            geometry.rotate(rng.uniform(-config.rotation, config.rotation), (width / 2, height / 2))
            @ matrix
        )
    whole = not config.rotation
    if config.crop is not None and max(height, width) > config.crop:
        window = (min(config.crop, height), min(config.crop, width))
        x0, y0 = _corner((height, width), window, geometry.move_boxes(matrix, boxes), rng)
        matrix = geometry.translate(-x0, -y0) @ matrix
        (height, width), whole = window, False
    return View(matrix, (height, width), whole, _draw_color(config, rng))


def _corner(
    size: tuple[int, int], window: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int]:
    """The left and upper end of a crop."""
    last = np.array([size[1] - window[1], size[0] - window[0]])
    first = np.zeros(2, int)
    if len(boxes) and rng.random() < _AROUND_AN_OBJECT:
        box = boxes[rng.integers(len(boxes))]
        center = np.clip(((box[:2] + box[2:]) / 2).astype(int), 0, (size[1] - 1, size[0] - 1))
        first, last = (
            np.maximum(first, center - (window[1] - 1, window[0] - 1)),
            np.minimum(last, center),
        )
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
    image: UInt8[np.ndarray, "H W 3"], view: View, rule: InputConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as the view shows it, at a cost that grows with the view, not with the image.

    Shrinking is antialiased where the model's own resize is. What lies beyond the image has the model's mean color, as if it were padding.
    """
    antialias = rule.resize == "pillow"
    seen = (
        _warp_straight(image, view, antialias)
        if geometry.straight(view.matrix)
        else _warp_rotated(image, view, antialias, _padding(rule))
    )
    if view.color is not None:
        matrix = color_matrix(view.color, float(seen[::4, ::4].reshape(-1, 3).mean(axis=0) @ _LUMA))
        seen = np.asarray(Image.fromarray(seen).convert("RGB", tuple(matrix.reshape(-1))))
    return seen


def color_matrix(
    color: tuple[float, float, float, float], gray: float
) -> Float64[np.ndarray, "3 4"]:
    """Brightness, contrast about a gray, saturation and hue (a turn about the gray axis) as one affine map of (r, g, b, 1)."""
    brightness, contrast, saturation, hue = color
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    axis = np.ones((3, 3)) / 3
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = axis + np.cos(hue) * (np.eye(3) - axis) + np.sin(hue) * across  # Rodrigues
    linear = brightness * contrast * turn @ saturate
    return np.concatenate([linear, np.full((3, 1), brightness * (1 - contrast) * gray)], axis=1)


def _padding(rule: InputConfig) -> tuple[int, int, int]:
    red, green, blue = rule.mean if rule.channel_order == "rgb" else rule.mean[::-1]
    return round(red), round(green), round(blue)


def _warp_straight(image: np.ndarray, view: View, antialias: bool) -> np.ndarray:
    """A resized part of the image, then its rows and columns reversed or exchanged."""
    (a, b), (c, d) = view.matrix[:2, :2]
    turned = abs(b) > abs(a)
    height, width = view.size[::-1] if turned else view.size
    window = geometry.move_boxes(
        np.linalg.inv(view.matrix), np.array([0.0, 0.0, view.size[1], view.size[0]])
    )
    part = _resize(image, window, (height, width), antialias)
    if turned:
        part = part.transpose(1, 0, 2)
    across, down = (b, c) if turned else (a, d)
    return np.ascontiguousarray(part[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _warp_rotated(
    image: np.ndarray, view: View, antialias: bool, padding: tuple[int, int, int]
) -> np.ndarray:
    """The part of the image that is needed, resized, then turned."""
    scales = np.linalg.norm(view.matrix[:2, :2], axis=0)
    to_scaled = geometry.scale(*scales) @ np.linalg.inv(view.matrix)
    whole = np.round(scales * (image.shape[1], image.shape[0]))
    hull = geometry.move_boxes(to_scaled, np.array([0.0, 0.0, view.size[1], view.size[0]]))
    first, last = (
        np.clip(np.floor(hull[:2]) - 2, 0, whole - 1),
        np.clip(np.ceil(hull[2:]) + 2, 1, whole),
    )
    width, height = (last - first).astype(int)
    part = _resize(
        image, np.concatenate([first / scales, last / scales]), (height, width), antialias
    )
    coefficients = (geometry.translate(*-first) @ to_scaled)[:2].reshape(-1)
    size = (view.size[1], view.size[0])
    turned = Image.fromarray(part).transform(
        size,
        Image.Transform.AFFINE,
        tuple(coefficients),
        resample=Image.Resampling.BILINEAR,
        fillcolor=padding,
    )
    return np.asarray(turned)


def _resize(
    image: np.ndarray, window: np.ndarray, size: tuple[int, int], antialias: bool
) -> np.ndarray:
    """A window (xyxy) of an image at a size; only the pixels that it needs are touched."""
    limits = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float64)
    window = np.clip(window, 0, limits)
    reach = np.ceil((window[2:] - window[:2]) / (size[1], size[0])) + 1  # of the filter
    left, top = np.maximum(np.floor(window[:2] - reach), 0).astype(int)
    right, bottom = np.minimum(np.ceil(window[2:] + reach), limits[:2]).astype(int)
    part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    x0, y0, x1, y1 = (float(v) for v in window - (left, top, left, top))
    if antialias:
        return np.asarray(
            part.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
        )
    coefficients = ((x1 - x0) / size[1], 0, x0, 0, (y1 - y0) / size[0], y0)
    return np.asarray(
        part.transform(
            (size[1], size[0]),
            Image.Transform.AFFINE,
            coefficients,
            resample=Image.Resampling.BILINEAR,
        )
    )
