"""The statistics of a data set that a recipe is chosen from.

In: a data set. Out: `Statistics`: sizes of images and objects, crowding, rarity of categories, and
whether the images have a canonical orientation (an up and a down).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..annotations.annotation import is_unmasked, mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError
from ..images.read import LUMA
from ..runtime.counted import counted

_READ = 5_000  # images whose annotations are read, spread evenly over the data set
_DECODED = 48  # images that are decoded, for color and light
# Mean difference of the channels, in gray levels. Below it an image is gray, perhaps with the noise
# of a camera or of JPEG.
_COLORED = 4.0
# Standard deviation of the images' mean grays: nuclei of several microscopes 68, COCO 30.
_VARIED = 50.0

# How much a data set without a canonical orientation may differ from itself rotated. Measured:
# nuclei, all and tenths of them: shape <= 0.06, position <= 0.07, perspective <= 0.03,
# light <= 0.07;
# 80 and 56 images of COCO: shape 0.08 to 0.13, position 0.07 to 0.14, perspective 0.14 to 0.16,
# light 0.24 to 0.35.
_LIMITS = {"shape": 0.08, "position": 0.08, "perspective": 0.1, "light": 0.15}
_FEWEST_IMAGES = 20  # to find that there is no canonical orientation
_FEWEST_OBJECTS = 300  # likewise


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set; of a large one those of a sample."""

    images: int
    sizes: Int[np.ndarray, "n 2"]
    """(height, width) of the images whose annotations were read."""
    sides: Float[np.ndarray, "N 2"]
    """(width, height) of the objects in their image's own pixels."""
    image: Int[np.ndarray, "N"]
    """For each object the row of `sizes` of its image."""
    counts: Int[np.ndarray, "n"]
    """Number of objects in each of these images."""
    category_share: Float[np.ndarray, "C"]
    """For each category the share of images that show it."""
    masks: bool
    """Whether any object has a mask."""
    points: bool
    """Whether any object has labeled points instead of a mask."""
    unmasked: float
    """Share of the objects that have a box and no mask (0..1)."""
    keypoints: bool
    """Whether any object has keypoints."""
    colored: bool
    """Whether some images are colored."""
    varied: bool
    """Whether the images are of several kinds, dark and bright ones."""
    upright: dict[str, float]
    """How much the data differ from themselves rotated by right angles; 0 = not at all.

    `shape`: heights of objects against widths; `position`: positions above the middle of the image
    against those below; `perspective`: correlation of an object's size with its height in the
    image; `light`: upper half of the image against the lower.
    """

    @property
    def has_up(self) -> bool:
        """Whether the images have a canonical orientation; also true with too few to decide."""
        few = len(self.sizes) < _FEWEST_IMAGES or len(self.sides) < _FEWEST_OBJECTS
        return (
            few
            or self.keypoints
            or any(self.upright[name] > limit for name, limit in _LIMITS.items())
        )


def statistics_of(data: CocoDataset) -> Statistics:
    """Measures a data set: reads the annotations of at most 5,000 images and decodes at most 48.

    Raises:
        DataError: no images, or no object with a box or a mask.
        ImageError: an image cannot be read.
    """
    records = [data[i] for i in _spread(len(data), _READ)]
    objects = [
        (row, a, box)
        for row, r in enumerate(records)
        for a in r.annotations
        if not a.ignore and (box := a.box or mask_bounds(a))
    ]
    if not objects:
        raise DataError(
            f"{data.name}: no object with a box or a mask in {counted(len(records), 'image')}; "
            "the recipe needs annotated objects"
        )

    boxes = np.array([box for *_, box in objects], dtype=np.float64)
    image = np.array([row for row, *_ in objects])
    pairs = np.array(list({(row, a.label) for row, a, _ in objects}))
    sizes = np.array([(r.height, r.width) for r in records])
    colored, varied, light = _color_and_light(data)
    return Statistics(
        images=len(data),
        sizes=sizes,
        sides=boxes[:, 2:] - boxes[:, :2],
        image=image,
        counts=np.bincount(image, minlength=len(records)),
        category_share=np.bincount(pairs[:, 1], minlength=len(data.categories)) / len(records),
        masks=any(a.polygons is not None or a.rle is not None for _, a, _ in objects),
        points=any(a.points is not None for r in records for a in r.annotations),
        unmasked=float(np.mean([is_unmasked(a) for _, a, _ in objects])),
        keypoints=any(a.keypoints is not None for r in records for a in r.annotations),
        colored=colored > 0.05,
        varied=varied,
        upright=_uprightness(boxes, sizes[image]) | {"light": light},
    )


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices, spread evenly over all."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _color_and_light(data: CocoDataset) -> tuple[float, bool, float]:
    """The share of colored images, whether they vary, and how much their upper and lower halves
    differ.

    The difference is relative to the contrast of the image.
    """
    difference = []
    light = []
    mean = []
    for i in _spread(len(data), _DECODED):
        image = data.image(i, data.intensity_range())[::2, ::2].astype(np.float32)
        difference.append(np.ptp(image, axis=2).mean())
        gray = image @ np.array(LUMA)
        middle = (image.shape[0] + 1) // 2
        light.append((gray[:middle].mean() - gray[-middle:].mean()) / (gray.std() + 1))
        mean.append(gray.mean())

    return (
        float(np.mean(np.array(difference) > _COLORED)),
        bool(np.std(mean) > _VARIED),
        float(abs(np.mean(light))),
    )


def _uprightness(
    boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]
) -> dict[str, float]:
    """The first three numbers of `Statistics.upright`."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    ratio = np.log(sides[:, 1] / sides[:, 0])
    height = (boxes[:, 1] + boxes[:, 3]) / 2 / sizes[:, 0]
    area = sides.prod(axis=1)

    # The correlation is undefined where all heights or all areas are equal.
    perspective = 0.0
    if len(boxes) > 1 and height.std() > 0 and np.ptp(area) > 0:
        perspective = abs(float(np.corrcoef(height, np.log(area))[0, 1]))
    return {
        "shape": _asymmetry(ratio),
        "position": _asymmetry(height - 0.5),
        "perspective": perspective,
    }


def _asymmetry(values: Float[np.ndarray, "N"]) -> float:
    """Asymmetry of values around zero: the Kolmogorov-Smirnov distance to their negatives."""
    at = np.sort(np.concatenate([values, -values]))
    share, mirrored = (
        np.searchsorted(np.sort(v), at, side="right") / len(values) for v in (values, -values)
    )
    return float(np.abs(share - mirrored).max())
