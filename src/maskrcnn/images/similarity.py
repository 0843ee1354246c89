"""Finds near-duplicates: the same image in another size, format, quality or brightness.

In:  images, as files or arrays.
Out: `hashes`, one row per image, and `groups`, the indices of near-duplicates.

A hash is the image's gray gradients on a 16 x 16 grid, as a vector of norm 1. The distance between
two hashes is 1 - their correlation: 0 between copies, about 1 otherwise. A binary hash of which
neighbor is brighter (dHash) would weight all edges equally. This one weights an edge by its
contrast, so noise on a dark background has little effect, and dark fluorescence images do not
resemble each other. An image without contrast resembles no other.

On 660 nuclei and 159 COCO images, copies (JPEG quality 20, half size, brightened until it clips)
are within 0.19 of the original, and within 0.35 with 2 % cut off at two sides. Different images are
farther apart than 0.5, except for one pair: neighboring slices of one egg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from ..runtime.progress import track
from .read import read_values

GRID = 16
LENGTH = 2 * (GRID - 1) ** 2
DISTANCE = 0.2
"""Images with a smaller distance are near-duplicates; 0 = equal, 1 = unrelated."""
# An image is blank if the root mean square of its gradients is below this, in gray levels of
# 0..255.
_CONTRAST = 0.1
_ROWS = 1024  # hashes compared with all others at a time


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


def groups(hashes: Float32[np.ndarray, "N D"], distance: float = DISTANCE) -> list[list[int]]:
    """Groups near-duplicates; a chain of near-duplicates links all images of a group.

    Takes 450 N^2 multiplications: a second for 10,000 images, minutes for 100,000.

    Args:
        hashes: one row per image, from the function `hashes`.
        distance: largest distance between two near-duplicates; 0 = equal, 1 = unrelated.

    Returns:
        The images' indices, a list for each group of two or more.
    """
    group = np.arange(len(hashes))
    for start in range(0, len(hashes), _ROWS):
        near = hashes[start : start + _ROWS] @ hashes[start:].T >= 1 - distance
        near = np.triu(near, 1)
        for row in np.flatnonzero(near.any(axis=1)):
            linked = np.unique(group[start + np.r_[row, np.flatnonzero(near[row])]])
            if len(linked) > 1:
                group[np.isin(group, linked)] = linked[0]

    # From the group's number per image to the images of each group, in the order of their first
    # image.
    _, first, inverse, count = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(count)[:-1])
    return [members[g].tolist() for g in np.argsort(first) if count[g] > 1]


def _gray(values: Shaped[np.ndarray, "H W *C"]) -> Image.Image:
    """Converts to floating-point gray, 0..255; deep values are stretched over their own range."""
    if values.dtype == np.uint8:
        single = values.shape[2:] == (1,)
        return Image.fromarray(values.squeeze(-1) if single else values).convert("L").convert("F")

    flat = values.astype(np.float32).reshape(*values.shape[:2], -1).mean(axis=2)
    low, high = np.percentile(flat, (0.1, 99.9))
    return Image.fromarray(np.clip((flat - low) * (255 / max(high - low, 1e-6)), 0, 255))
