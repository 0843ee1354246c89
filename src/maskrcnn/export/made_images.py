"""Images on which an exported file is compared with its model: several sizes and batch sizes.

Drawn ones, because nothing is known about the model's own kind of image, and empty ones, alone and
beside others in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..synthetic.micrograph import draw_micrograph


@dataclass(frozen=True)
class ImageGroup:
    """Images of one size, which go through the network as one batch."""

    name: str
    images: list[UInt8[np.ndarray, "H W 3"]]
    image_ids: Sequence[int] = ()
    """Ids in the annotation file, if the images are from one."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images[0].shape[0], self.images[0].shape[1]


def made_groups() -> list[ImageGroup]:
    """Returns the images to compare, group by group."""
    gray = np.full((203, 331, 3), 128, np.uint8)
    long = [draw_blobs((32, 320), seed) for seed in range(13)]
    empty = [np.full((32, 320, 3), level, np.uint8) for level in (0, 128, 255)]
    return [
        ImageGroup("landscape", [draw_micrograph(1, (480, 640), nuclei=100)[0]]),
        ImageGroup("portrait, one of two empty", [draw_blobs((416, 300), 2), _black((416, 300))]),
        ImageGroup("32 px", [draw_blobs((32, 32), 3)]),
        ImageGroup(
            "odd sides, one of three empty", [*(draw_blobs((203, 331), s) for s in (4, 5)), gray]
        ),
        ImageGroup("larger than the model's input", [draw_blobs((710, 1500), 6)]),
        ImageGroup("sixteen, three of them empty", [*long, *empty]),
        ImageGroup("empty", [_black((240, 320))]),
    ]


def draw_blobs(size: tuple[int, int], seed: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draws smooth blobs of several sizes and colors.

    Args:
        size: (height, width).
        seed: the same seed gives the same image.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for cells in (4, 12, 40):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(noise.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    blobs = np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0)
    return np.clip(blobs * 2 - 128, 0, 255).astype(np.uint8)


def _black(size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    return np.zeros((*size, 3), np.uint8)
