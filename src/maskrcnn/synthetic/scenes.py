"""Drawn scenes with exact truth, for the demo, tests and first experiments without data.

In: a seed.
Out: an image uint8 [size, size, 3] and its objects as COCO annotations: two to five overlapping
balls, stars, rings (with a hole) and figures with limbs on textured, cluttered backgrounds. Masks
and boxes cover only the visible part. A keypoint that another object covers has visibility 1 inside
the box; outside it, nothing tells where the keypoint is, and it is unlabeled.

A figure is drawn from the front (face, bib) or from behind (hair, rucksack), which decides which of
its sides is the left one. A mirror image is therefore a valid scene once left and right keypoints
have been swapped, as with photographs of people.

Everything is drawn as polygons on a canvas of twice the size. Besides the colors, `owner` keeps the
index of the topmost object of each fine pixel, so that occlusion cuts the masks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw

from ..annotations import rle
from ..annotations.categories import category_to_coco
from ..annotations.coco_types import CocoImage
from .shapes import CATEGORIES, SHAPES, Points, Shape, random_color

FINE = 2  # canvas pixels per image pixel and axis: enough for smooth edges

_FREQUENCY = (0.2, 0.2, 0.2, 0.4)  # of the categories: figures are the hardest to learn
_ATTEMPTS = 20  # positions tried for a shape


def draw_scene(
    seed: int | Sequence[int], size: int = 160
) -> tuple[UInt8[np.ndarray, "size size 3"], list[dict[str, Any]]]:
    """Draws one image and annotates it.

    Args:
        seed: the same seed gives the same image.
        size: side of the image in pixels. Objects are 20 to 90 px at 160 and grow with it.

    Returns:
        The image, and its objects as COCO annotations without `id` and `image_id`: `category_id` of
        `CATEGORIES`, `bbox`, `area`, `segmentation` (compressed RLE), and for figures `keypoints`
        (in COCO's convention, where the center of a pixel is a whole number).

    Example:
        >>> from maskrcnn.synthetic.scenes import draw_scene
        >>> image, objects = draw_scene(seed=3, size=96)
        >>> image.shape
        (96, 96, 3)
        >>> 2 <= len(objects) <= 5
        True
    """
    rng = np.random.default_rng(seed)
    canvas = _background(rng, size)
    owner = np.zeros((size * FINE, size * FINE), np.uint8)
    shapes: list[tuple[int, Shape]] = []
    areas = np.zeros(1, np.int64)  # of each object when it was drawn; index 0 is the background

    wanted = int(rng.integers(2, 6))
    for _ in range(3 * wanted):
        label = int(rng.choice(len(CATEGORIES), p=_FREQUENCY))
        shape = _place(rng, SHAPES[label](rng, size * FINE), owner, areas)
        if shape is not None:
            shapes.append((label, shape))
            mask = owner == len(shapes)
            areas = np.append(areas, mask.sum())
            _paint(rng, canvas, mask, shape)
        if len(shapes) == wanted:
            break

    clean = np.asarray(canvas.reduce(FINE), np.float32)
    noise = rng.normal(0, rng.uniform(2, 7), (size, size, 1)).astype(np.float32)
    annotations = [
        _annotation(label, index, shape, owner) for index, (label, shape) in enumerate(shapes, 1)
    ]
    return (clean + noise).clip(0, 255).astype(np.uint8), annotations


def write_scenes(
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: int = 160,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Path:
    """Draws images into `folder`/images and writes their annotations beside that folder.

    Args:
        folder: created if missing; files of the same names are replaced.
        count: number of images.
        seed: another seed gives other images.
        size: side of the images in pixels.
        progress: wraps the iterator over the images, to show a progress bar.

    Returns:
        The COCO annotation file, `folder`/annotations.json.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> annotations = write_scenes("scenes", count=3)
        >>> annotations.name
        'annotations.json'
        >>> len(mr.load_dataset(annotations, "scenes/images"))
        3
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[CocoImage] = []
    annotations: list[dict[str, Any]] = []

    for image_id in progress(range(1, count + 1)):
        name = f"{image_id:05d}.png"
        image, objects = draw_scene((seed, image_id), size)
        Image.fromarray(image).save(folder / "images" / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for number, annotation in enumerate(objects, len(annotations) + 1):
            annotations.append({"id": number, "image_id": image_id, **annotation})

    content = {
        "images": images,
        "annotations": annotations,
        "categories": [category_to_coco(replace(c, sigmas=c.oks_sigmas)) for c in CATEGORIES],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def _annotation(
    label: int, index: int, shape: Shape, owner: UInt8[np.ndarray, "h w"]
) -> dict[str, Any]:
    """The COCO annotation of object number `index` in `owner`, without ids."""
    fine = (owner == index).astype(np.uint8)
    covered = sum(fine[y::FINE, x::FINE] for y in range(FINE) for x in range(FINE))
    mask = covered * 2 >= FINE * FINE  # at least half of the fine pixels
    ys = np.flatnonzero(mask.any(1))
    xs = np.flatnonzero(mask.any(0))

    left, top, right, bottom = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1

    annotation: dict[str, Any] = {
        "category_id": CATEGORIES[label].id,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": rle.encode(mask),
    }
    if len(shape.keypoints):
        box = FINE * np.array([left, top, right, bottom])
        keypoints = [
            v for point in shape.keypoints for v in _coco_keypoint(point, index, owner, box)
        ]
        annotation["keypoints"] = keypoints
        annotation["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])
    return annotation


def _coco_keypoint(
    point: Float[np.ndarray, "2"],
    index: int,
    owner: UInt8[np.ndarray, "h w"],
    box: Int64[np.ndarray, "4"],
) -> list[float]:
    """x, y, visibility of a keypoint of object number `index`.

    2: visible. 1: covered, inside the object's box. 0: outside the image, or covered and outside
    the box, which is xyxy in canvas pixels.
    """
    x, y = point
    if not (0 <= x < owner.shape[1] and 0 <= y < owner.shape[0]):
        return [0, 0, 0]
    is_visible = owner[int(y), int(x)] == index
    is_inside = (box[:2] <= point).all() and (point <= box[2:]).all()
    if not (is_visible or is_inside):
        return [0, 0, 0]
    visibility = 2 if is_visible else 1
    return [round(x / FINE - 0.5, 2), round(y / FINE - 0.5, 2), visibility]


def _place(
    rng: np.random.Generator,
    shape: Shape,
    owner: UInt8[np.ndarray, "h w"],
    areas: Int64[np.ndarray, "n"],
) -> Shape | None:
    """Finds a position that leaves the other objects recognizable, and enters the shape there.

    Args:
        rng: for the position.
        shape: around the origin, in canvas pixels.
        owner: gets the index of the shape.
        areas: of the objects drawn before, the background first.

    Returns:
        The shape at its position; None if there is no such position.
    """
    side = owner.shape[0]
    index = len(areas)
    silhouette, corner = _silhouette(shape)
    high, wide = silhouette.shape
    # How much of each other object must remain visible for a person to recognize it.
    needed = np.maximum(0.5 * areas, 80 * FINE * FINE)[1:]
    visible_areas = np.bincount(owner.ravel(), minlength=index)[1:]

    for _ in range(_ATTEMPTS):
        shift = np.floor(rng.uniform(0.08, 0.92, 2) * side)
        x, y = (corner + shift).astype(int).tolist()
        visible = silhouette[max(-y, 0) : side - y, max(-x, 0) : side - x]
        under = owner[max(y, 0) : y + high, max(x, 0) : x + wide]
        covered = np.bincount(under[visible], minlength=index)[1:]
        mostly_inside = visible.sum() >= 0.8 * silhouette.sum()
        if mostly_inside and (visible_areas - covered >= needed).all():
            under[visible] = index
            return shape.moved(0, shift)
    return None


def _silhouette(shape: Shape) -> tuple[Bool[np.ndarray, "h w"], Float[np.ndarray, "2"]]:
    """The mask of all polygons of a shape together, and the position of its corner (x, y)."""
    points = np.concatenate([p for p, _ in shape.polygons])
    corner = np.floor(points.min(0)) - 1
    wide, high = (np.ceil(points.max(0)) - corner + 2).astype(int).tolist()
    image = Image.new("L", (wide, high))
    draw = ImageDraw.Draw(image)
    for polygon, _ in shape.polygons:
        draw.polygon(_corners(polygon - corner), fill=1)
    return np.asarray(image) > 0, corner


def _corners(polygon: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in polygon.tolist()]


def _paint(
    rng: np.random.Generator,
    canvas: Image.Image,
    mask: Bool[np.ndarray, "h w"],
    shape: Shape,
) -> None:
    """Draws the visible part of a shape, lit from a random side and sometimes striped."""
    ys = np.flatnonzero(mask.any(1))
    xs = np.flatnonzero(mask.any(0))
    x0, x1 = int(xs[0]), int(xs[-1]) + 1
    y0, y1 = int(ys[0]), int(ys[-1]) + 1
    painted = canvas.crop((x0, y0, x1, y1))
    draw = ImageDraw.Draw(painted)
    for polygon, color in shape.polygons:
        draw.polygon(_corners(polygon - (x0, y0)), fill=color)

    # A ramp of light across the object, in a random direction.
    angle = rng.uniform(0, 2 * np.pi)
    extent = max(x1 - x0, y1 - y0)
    across = (np.arange(x1 - x0) - (x1 - x0) / 2)[None] * np.cos(angle)
    down = (np.arange(y1 - y0) - (y1 - y0) / 2)[:, None] * np.sin(angle)
    ramp = across + down
    light = 1 + rng.uniform(0.1, 0.5) * ramp / extent
    if rng.random() < 0.3:
        strength = rng.uniform(0.08, 0.2)
        stripes = np.sign(np.sin(ramp * 2 * np.pi / rng.uniform(0.15, 0.4) / extent))
        light = light + strength * stripes

    lit = np.asarray(painted, np.float32) * light[..., None].astype(np.float32)
    shaded = lit.clip(0, 255).astype(np.uint8)
    canvas.paste(Image.fromarray(shaded), (x0, y0), Image.fromarray(mask[y0:y1, x0:x1]))


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """A cloudy, striped or checked background of three colors, cluttered with bars and scraps.

    The clutter belongs to no category.
    """
    weights = {4: 0.5, 11: 0.3, 36: 0.2}  # of random fields with so many bumps per side
    clouds = sum(_noise(rng, size, bumps) * weight for bumps, weight in weights.items())

    # Stripes in two directions at right angles; their product is a checkerboard.
    x = np.arange(size)[None] / size
    y = np.arange(size)[:, None] / size
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(0.06, 0.3)
    waves = [
        np.sin(2 * np.pi / period * (x * np.cos(angle + turn) + y * np.sin(angle + turn)))
        for turn in (0, np.pi / 2)
    ]
    patterns = (0.0, np.sign(waves[0]), np.sign(waves[0] * waves[1]), waves[0])
    pattern = patterns[int(rng.integers(4))]

    mix = np.clip(clouds + rng.uniform(0.05, 0.25) * pattern, 0, 1)[..., None]
    first, second, third = (np.array(random_color(rng, 0.05, 0.6, 0.15, 0.95)) for _ in range(3))
    tint = (third - first) * 0.5 * _noise(rng, size, 3)[..., None]
    colors = first * (1 - mix) + second * mix + tint
    fine = size * FINE
    image = Image.fromarray(colors.clip(0, 255).astype(np.uint8))
    image = image.resize((fine, fine), Image.Resampling.NEAREST)

    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 3))):
        ends = [*(rng.uniform(-0.2, 1.2, 4) * fine)]
        color = random_color(rng)
        draw.line(ends, fill=color, width=int(rng.uniform(0.01, 0.04) * fine) + 1)
    for _ in range(int(rng.integers(6, 22))):
        center = rng.uniform(0, fine, 2)
        corners = center + rng.uniform(-0.035, 0.035, (int(rng.integers(3, 6)), 2)) * fine
        draw.polygon(_corners(corners), fill=random_color(rng))
    return image


def _noise(rng: np.random.Generator, size: int, bumps: int) -> Float[np.ndarray, "size size"]:
    """A smooth random field, about 0 to 1, with `bumps` bumps per side."""
    coarse = Image.fromarray(rng.random((bumps, bumps)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
