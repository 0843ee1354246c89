"""Finds images that look alike, and among them copies: one image in another size or format.

In:  images, as files or arrays.
Out: `hashes`, one row per image, and `groups`, the indices of images that look alike;
     `thumbnail`, and `copies`, the indices of copies.

A hash is the image's gray gradients on a 16 x 16 grid, as a vector of norm 1. The distance between
two hashes is 1 - their correlation: 0 between copies, about 1 otherwise. A binary hash of which
neighbor is brighter (dHash) would weight all edges equally. This one weights an edge by its
contrast, so noise on a dark background has little effect, and dark fluorescence images do not
resemble each other. An image without contrast resembles no other.

On 660 nuclei and 159 COCO images, copies (JPEG quality 20, half size, brightened until it clips)
are within 0.19 of the original, and within 0.35 with 2 % cut off at two sides. Different images are
farther apart than 0.5, except for one pair: neighboring slices of one egg.

Images of a fixed camera or of one bench are as close: what they have in common decides. `copies`
tells them apart: it compares thumbnails of 48 x 48 gray values, in which an object that moved
changes a few values by much, and compression or a new size changes all of them by little
(docs/decisions/0022-checking-data.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from PIL import Image

from ..runtime.progress import track
from .read import read_values

GRID = 16
LENGTH = 2 * (GRID - 1) ** 2
DISTANCE = 0.2
"""Images with a smaller distance look alike; 0 = equal, 1 = unrelated."""
THUMBNAIL = 48
"""Side of a thumbnail, in pixels."""
COPY = 8
"""Largest difference of two copies' thumbnails at any pixel, in gray levels of 0..255."""
# An image is blank if the root mean square of its gradients is below this, in gray levels of
# 0..255.
_CONTRAST = 0.1
_ROWS = 1024  # hashes compared with all others at a time
_PROBES = 32  # pixels of thumbnails that are compared first


def hashes(
    images: Sequence[str | Path | np.ndarray], *, progress: bool = False
) -> Float32[np.ndarray, "N D"]:
    """Returns the hash of each image: a row of 450 numbers (1.8 kB), zeros for a blank image.

    Args:
        images: files, or arrays [H, W] or [H, W, C] of any type.
        progress: show a progress bar.

    Raises:
        ImageError: a file cannot be read.
    """
    shown = track(images, "comparing images", show=progress)
    return np.array([image_hash(p) for p in shown], dtype=np.float32).reshape(-1, LENGTH)


def image_hash(image: str | Path | np.ndarray) -> Float32[np.ndarray, "D"]:
    """Returns the hash of one image (see `hashes`)."""
    values = image if isinstance(image, np.ndarray) else read_values(image, at_least=4 * GRID)
    grid = np.asarray(_gray(values).resize((GRID, GRID), Image.Resampling.BOX))
    gradients = np.stack([np.diff(grid, axis=1)[:-1], np.diff(grid, axis=0)[:, :-1]]).reshape(-1)
    norm = float(np.linalg.norm(gradients))
    return gradients / norm if norm > _CONTRAST * LENGTH**0.5 else np.zeros(LENGTH, np.float32)


def thumbnail(image: str | Path | np.ndarray) -> UInt8[np.ndarray, "P"]:
    """Returns the image as 48 x 48 gray values in one row (2.3 kB).

    Args:
        image: a file, or an array [H, W] or [H, W, C] of any type.

    Raises:
        ImageError: the file cannot be read.
    """
    values = image if isinstance(image, np.ndarray) else read_values(image, at_least=4 * THUMBNAIL)
    # A filter without hard edges: rounding a size to whole pixels moves no value by much.
    small = _gray(values).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(small).round().clip(0, 255).astype(np.uint8).reshape(-1)


def groups(hashes: Float32[np.ndarray, "N D"], distance: float = DISTANCE) -> list[list[int]]:
    """Groups images that look alike; a chain of such images links all of a group.

    Takes 450 N^2 multiplications: a second for 10,000 images, minutes for 100,000.

    Args:
        hashes: one row per image, from the function `hashes`.
        distance: largest distance between two that look alike; 0 = equal, 1 = unrelated.

    Returns:
        The images' indices, a list for each group of two or more.
    """
    return _linked(len(hashes), _near(hashes, distance))


def copies(
    hashes: Float32[np.ndarray, "N D"], thumbnails: UInt8[np.ndarray, "N P"]
) -> list[list[int]]:
    """Groups copies: images that look alike and differ nowhere.

    No pixel of the thumbnails may differ by more than 8 gray levels, nor by more than the contrast
    (standard deviation) of the image, so that faint images are not taken for one another. Nothing
    is linked through others: the light of a whole day may change by little from image to image.

    Args:
        hashes: one row per image, from the function `hashes`.
        thumbnails: one row per image, from `thumbnail`.

    Returns:
        The images' indices, a list for each group: an image, then its copies.
    """
    values = thumbnails.astype(np.int16)
    limits = np.minimum(COPY, values.std(axis=1)) if len(values) else np.zeros(0)
    varied = np.argsort(-values.std(axis=0))[:_PROBES] if len(values) else slice(0)
    probes = np.ascontiguousarray(values[:, varied])

    def same(row: int, others: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        for part in (probes, values):  # a few pixels tell most images apart
            difference = np.abs(part[others] - part[row]).max(axis=1, initial=0)
            others = others[difference <= np.minimum(limits[others], limits[row])]
        return others

    found: list[list[int]] = []
    is_copy = np.zeros(len(hashes), dtype=bool)
    for row, others in _near(hashes, DISTANCE):
        if is_copy[row]:
            continue
        own = same(row, others[~is_copy[others]])
        is_copy[own] = True
        if len(own):
            found.append([row, *own.tolist()])
    return found


def _near(
    hashes: Float32[np.ndarray, "N D"], distance: float
) -> Iterator[tuple[int, Int64[np.ndarray, "n"]]]:
    """Yields each image with the later ones that look like it."""
    for start in range(0, len(hashes), _ROWS):
        near: Bool[np.ndarray, "n N"] = (
            hashes[start : start + _ROWS] @ hashes[start:].T >= 1 - distance
        )
        near = np.triu(near, 1)
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            yield start + row, start + np.flatnonzero(near[row])


def _linked(count: int, pairs: Iterable[tuple[int, Int64[np.ndarray, "n"]]]) -> list[list[int]]:
    """The groups of images that pairs link directly or through others.

    Args:
        count: number of images.
        pairs: images, each with others that it is linked with.
    """
    group = np.arange(count)
    for row, others in pairs:
        linked = np.unique(group[np.r_[row, others]])
        if len(linked) > 1:
            group[np.isin(group, linked)] = linked[0]

    # From the group's number per image to the images of each group, in the order of their first
    # image.
    _, first, inverse, sizes = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    return [members[g].tolist() for g in np.argsort(first) if sizes[g] > 1]


def _gray(values: Shaped[np.ndarray, "H W *C"]) -> Image.Image:
    """Converts to floating-point gray, 0..255; deep values are stretched over their own range."""
    if values.dtype == np.uint8:
        single = values.shape[2:] == (1,)
        return Image.fromarray(values.squeeze(-1) if single else values).convert("L").convert("F")

    flat = values.astype(np.float32).reshape(*values.shape[:2], -1).mean(axis=2)
    low, high = np.percentile(flat, (0.1, 99.9))
    return Image.fromarray(np.clip((flat - low) * (255 / max(high - low, 1e-6)), 0, 255))
