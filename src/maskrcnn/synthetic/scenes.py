"""Drawn images with exact truth, for the demo, the tests and first experiments without any data.

In: a seed. Out: an image uint8 [size, size, 3] and its objects as COCO annotations: two to five overlapping balls, stars, rings (with a hole)
and jointed figures on textured, littered grounds. Masks show the visible part only; keypoints that another object covers have visibility 1.

A figure is seen from the front (face, bib) or from behind (hair, rucksack), and that decides which of its sides is the left one. A mirror image is
therefore a scene of the same kind once left and right keypoints have changed their names, as it is with photographs of people.

Everything is drawn as polygons on a canvas of twice the size. Beside the colors, `owner` keeps for each fine pixel the index of the object
that is on top there, so that occlusion cuts the masks by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from ..annotations import rle
from ..config import Category
from .shapes import CATEGORIES, SHAPES, Points, Shape, random_color

FINE = 2  # canvas pixels per image pixel and axis: enough for smooth edges

_FREQUENCY = (0.2, 0.2, 0.2, 0.4)  # of the categories: figures have most to learn


def draw_scene(
    seed: int | Sequence[int], size: int = 160
) -> tuple[UInt8[np.ndarray, "size size 3"], list[dict[str, Any]]]:
    """Draws one image and annotates it.

    Args:
        seed: the same seed gives the same image.
        size: side of the image in pixels; objects are 20 to 90 px at 160 and grow with it.

    Returns:
        The image, and its objects as COCO annotations without `id` and `image_id`: `category_id` of `CATEGORIES`, `bbox`, `area`,
        `segmentation` (compressed RLE), for figures `keypoints` (COCO's convention: a pixel's center is a whole number).
    """
    rng = np.random.default_rng(seed)
    canvas = _ground(rng, size)
    owner = np.zeros((size * FINE, size * FINE), np.uint8)
    placed: list[tuple[int, Shape]] = []
    areas = np.zeros(1, np.int64)  # of each object when it was drawn; the ground is number 0
    wanted = int(rng.integers(2, 6))
    for _ in range(3 * wanted):
        label = int(rng.choice(len(CATEGORIES), p=_FREQUENCY))
        shape = _place(rng, SHAPES[label](rng, size * FINE), owner, areas)
        if shape is not None:
            placed.append((label, shape))
            mask = owner == len(placed)
            areas = np.append(areas, mask.sum())
            _paint(rng, canvas, mask, shape)
        if len(placed) == wanted:
            break
    noisy = np.asarray(canvas.reduce(FINE), np.float32) + rng.normal(
        0, rng.uniform(2, 7), (size, size, 1)
    ).astype(np.float32)
    annotations = [
        _annotation(label, index, shape, owner) for index, (label, shape) in enumerate(placed, 1)
    ]
    return noisy.clip(0, 255).astype(np.uint8), annotations


def write_scenes(
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: int = 160,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Path:
    """Draws `count` images into `folder`/images and their annotations beside them.

    Args:
        folder: made where it is missing; images of equal names are replaced.
        count: number of images.
        seed: images of different seeds differ from each other.
        size: side of the images in pixels.
        progress: wraps the iterator over the images, to show a bar.

    Returns:
        The COCO annotation file, `folder`/annotations.json.
    """
    images_folder = Path(folder) / "images"
    images_folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in progress(range(1, count + 1)):
        name = f"{image_id:05d}.png"
        image, objects = draw_scene((seed, image_id), size)
        Image.fromarray(image).save(images_folder / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        annotations += [
            {"id": len(annotations) + i, "image_id": image_id, **a}
            for i, a in enumerate(objects, 1)
        ]
    path = Path(folder) / "annotations.json"
    path.write_text(
        json.dumps(
            {
                "images": images,
                "annotations": annotations,
                "categories": [_coco_category(c) for c in CATEGORIES],
            }
        )
    )
    return path


def _coco_category(category: Category) -> dict[str, Any]:
    skeleton = [[a + 1, b + 1] for a, b in category.skeleton]  # COCO counts keypoints from 1
    keypoints = (
        {
            "keypoints": list(category.keypoints),
            "skeleton": skeleton,
            "sigmas": list(category.oks_sigmas),
        }
        if category.keypoints
        else {}
    )
    return {"id": category.id, "name": category.name, **keypoints}


def _annotation(
    label: int, index: int, shape: Shape, owner: UInt8[np.ndarray, "h w"]
) -> dict[str, Any]:
    """The COCO annotation of the object that is number `index` in `owner`."""
    fine = (owner == index).astype(np.uint8)
    mask = sum(fine[y::FINE, x::FINE] for y in range(FINE) for x in range(FINE)) * 2 >= FINE * FINE
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
    found: dict[str, Any] = {
        "category_id": CATEGORIES[label].id,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": rle.encode(mask),
    }
    if len(shape.keypoints):
        values: list[float] = []
        for x, y in shape.keypoints:
            inside = 0 <= x < owner.shape[1] and 0 <= y < owner.shape[0]
            visibility = 0 if not inside else 2 if owner[int(y), int(x)] == index else 1
            values += (
                [round(x / FINE - 0.5, 2), round(y / FINE - 0.5, 2), visibility]
                if inside
                else [0, 0, 0]
            )
        found |= {"keypoints": values, "num_keypoints": sum(v > 0 for v in values[2::3])}
    return found


def _place(
    rng: np.random.Generator, shape: Shape, owner: UInt8[np.ndarray, "h w"], areas: np.ndarray
) -> Shape | None:
    """Finds a spot that leaves the other objects recognisable and enters the shape into `owner`; None where there is none."""
    side, index = owner.shape[0], len(areas)
    silhouette, corner = _silhouette(shape)
    high, wide = silhouette.shape
    needed = np.maximum(0.5 * areas, 80 * FINE * FINE)[
        1:
    ]  # what must stay in sight of each other object for a person to name it
    in_sight = np.bincount(owner.ravel(), minlength=index)[1:]
    for _ in range(20):
        shift = np.floor(rng.uniform(0.08, 0.92, 2) * side)
        x, y = (corner + shift).astype(int).tolist()
        visible = silhouette[max(-y, 0) : side - y, max(-x, 0) : side - x]
        under = owner[max(y, 0) : y + high, max(x, 0) : x + wide]
        covered = np.bincount(under[visible], minlength=index)[1:]
        if visible.sum() >= 0.8 * silhouette.sum() and (in_sight - covered >= needed).all():
            under[visible] = index
            return shape.moved(0, shift)
    return None


def _silhouette(shape: Shape) -> tuple[np.ndarray, Points]:
    """Mask of all the polygons together, and where its corner lies."""
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


def _paint(rng: np.random.Generator, canvas: Image.Image, mask: np.ndarray, shape: Shape) -> None:
    """Draws the shape into the canvas, lit from a random side and sometimes striped."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
    under = canvas.crop((x0, y0, x1, y1))
    over = under.copy()
    draw = ImageDraw.Draw(over)
    for polygon, color in shape.polygons:
        draw.polygon(_corners(polygon - (x0, y0)), fill=color)
    angle, spread = rng.uniform(0, 2 * np.pi), max(x1 - x0, y1 - y0)
    ramp = (np.arange(x1 - x0) - (x1 - x0) / 2)[None] * np.cos(angle) + (
        np.arange(y1 - y0) - (y1 - y0) / 2
    )[:, None] * np.sin(angle)
    light = 1 + rng.uniform(0.1, 0.5) * ramp / spread
    if rng.random() < 0.3:
        light = light + rng.uniform(0.08, 0.2) * np.sign(
            np.sin(ramp * 2 * np.pi / rng.uniform(0.15, 0.4) / spread)
        )
    shaded = (
        (np.asarray(over, np.float32) * light[..., None].astype(np.float32))
        .clip(0, 255)
        .astype(np.uint8)
    )
    canvas.paste(Image.fromarray(shaded), (x0, y0), Image.fromarray(mask[y0:y1, x0:x1]))


def _ground(rng: np.random.Generator, size: int) -> Image.Image:
    """Cloudy, striped or checked ground of three colors, with crumbs, bars and strokes that belong to no category."""
    cloud = sum(
        _noise(rng, size, cells) * weight for cells, weight in ((4, 0.5), (11, 0.3), (36, 0.2))
    )
    x, y = np.arange(size)[None] / size, np.arange(size)[:, None] / size
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.3)
    waves = [
        np.sin(2 * np.pi / period * (x * np.cos(angle + turn) + y * np.sin(angle + turn)))
        for turn in (0, np.pi / 2)
    ]
    kind = rng.integers(4)
    pattern = {0: 0.0, 1: np.sign(waves[0]), 2: np.sign(waves[0] * waves[1]), 3: waves[0]}[
        int(kind)
    ]
    mix = (cloud + rng.uniform(0.05, 0.25) * pattern).clip(0, 1)[..., None]
    first, second, third = (np.array(random_color(rng, 0.05, 0.6, 0.15, 0.95)) for _ in range(3))
    colors = (
        first * (1 - mix) + second * mix + (third - first) * 0.5 * _noise(rng, size, 3)[..., None]
    )
    image = Image.fromarray(colors.clip(0, 255).astype(np.uint8)).resize(
        (size * FINE, size * FINE), Image.Resampling.NEAREST
    )
    draw, fine = ImageDraw.Draw(image), size * FINE
    for _ in range(int(rng.integers(0, 3))):
        draw.line(
            [*(rng.uniform(-0.2, 1.2, 4) * fine)],
            fill=random_color(rng),
            width=int(rng.uniform(0.01, 0.04) * fine) + 1,
        )
    for _ in range(int(rng.integers(6, 22))):
        corners = (
            rng.uniform(0, fine, 2)
            + rng.uniform(-0.035, 0.035, (int(rng.integers(3, 6)), 2)) * fine
        )
        draw.polygon(_corners(corners), fill=random_color(rng))
    return image


def _noise(rng: np.random.Generator, size: int, cells: int) -> Float[np.ndarray, "size size"]:
    """Smooth random field, about 0..1, with `cells` bumps a side."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
