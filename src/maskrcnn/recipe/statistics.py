"""What annotated images look like, in numbers: what a recipe is chosen from.

In: a data set. Out: `Statistics`: sizes of images and objects, crowding, rarity of categories, and whether the images have an up and a down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..annotations.annotation import mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError

_READ = 5_000  # images whose annotations are read, evenly over the data set
_SEEN = 48  # images that are decoded, for color and light
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
_COLORED = 4.0  # mean difference of the channels, in gray levels: below it an image is gray, perhaps with the noise of a camera or of JPEG
_VARIED = (
    50.0  # standard deviation of the images' mean grays: nuclei of several microscopes 68, COCO 30
)

# How unlike a data set may be to its turned self without having an up and a down. Measured: nuclei, whole and tenths: shape <= 0.06, place <= 0.07,
# perspective <= 0.03, light <= 0.07; 80 and 56 images of COCO: shape 0.08..0.13, place 0.07..0.14, perspective 0.14..0.16, light 0.24..0.35.
_LIMITS = {"shape": 0.08, "place": 0.08, "perspective": 0.1, "light": 0.15}
_FEWEST_IMAGES, _FEWEST_OBJECTS = 20, 300  # for such a judgment


@dataclass(frozen=True)
class Statistics:
    """Numbers of a data set; large ones are sampled."""

    images: int
    sizes: Int[np.ndarray, "n 2"]
    """(height, width) of the images whose annotations were read."""
    sides: Float[np.ndarray, "N 2"]
    """(width, height) of the objects in their image's own pixels."""
    image: Int[np.ndarray, "N"]
    """The row of `sizes` that is an object's image."""
    counts: Int[np.ndarray, "n"]
    """Objects in each of these images."""
    category_share: Float[np.ndarray, "C"]
    """The share of the images that show a category."""
    masks: bool
    keypoints: bool
    """Whether any object has them."""
    colored: bool
    varied: bool
    """The images are of several kinds, dark and bright ones."""
    upright: dict[str, float]
    """How unlike the data are to themselves turned by right angles, 0 = alike: `shape` (heights against widths), `place` (heights in the image
    against depths), `perspective` (correlation of an object's size with its height in the image), `light` (the upper half against the lower)."""

    @property
    def has_up(self) -> bool:
        """Whether the images have an up and a down, which is also said where there is too little to tell."""
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
    found = [
        (row, a, box)
        for row, r in enumerate(records)
        for a in r.annotations
        if not a.ignore and (box := a.box or mask_bounds(a))
    ]
    if not found:
        raise DataError(
            f"{data.name}: no object with a box or a mask in {len(records)} images; there is nothing to choose settings from"
        )
    boxes, image = (
        np.array([box for *_, box in found], dtype=np.float64),
        np.array([row for row, *_ in found]),
    )
    pairs = np.array(list({(row, a.label) for row, a, _ in found}))
    sizes = np.array([(r.height, r.width) for r in records])
    colored, varied, light = _color_and_light(data)
    return Statistics(
        images=len(data),
        sizes=sizes,
        sides=boxes[:, 2:] - boxes[:, :2],
        image=image,
        counts=np.bincount(image, minlength=len(records)),
        category_share=np.bincount(pairs[:, 1], minlength=len(data.categories)) / len(records),
        masks=any(a.polygons is not None or a.rle is not None for _, a, _ in found),
        keypoints=any(a.keypoints is not None for r in records for a in r.annotations),
        colored=colored,
        varied=varied,
        upright=_uprightness(boxes, sizes[image]) | {"light": light},
    )


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, evenly over all."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _color_and_light(data: CocoDataset) -> tuple[bool, bool, float]:
    """Whether the images are colored and varied, and by what part of their contrast the upper half is on average unlike the lower."""
    difference, light, mean = [], [], []
    for i in _spread(len(data), _SEEN):
        image = data.image(i, data.intensity_range())[::2, ::2].astype(np.float32)
        difference.append(np.ptp(image, axis=2).mean())
        gray, middle = image @ _LUMA, (image.shape[0] + 1) // 2
        light.append((gray[:middle].mean() - gray[-middle:].mean()) / (gray.std() + 1))
        mean.append(gray.mean())
    return (
        bool(np.mean(np.array(difference) > _COLORED) > 0.05),
        bool(np.std(mean) > _VARIED),
        float(abs(np.mean(light))),
    )


def _uprightness(
    boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]
) -> dict[str, float]:
    """The first three numbers of `Statistics.upright`."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    ratio, height = np.log(sides[:, 1] / sides[:, 0]), (boxes[:, 1] + boxes[:, 3]) / 2 / sizes[:, 0]
    varied = len(boxes) > 1 and height.std() > 0 and np.ptp(sides.prod(axis=1)) > 0
    perspective = (
        abs(float(np.corrcoef(height, np.log(sides.prod(axis=1)))[0, 1])) if varied else 0.0
    )
    return {
        "shape": _asymmetry(ratio),
        "place": _asymmetry(height - 0.5),
        "perspective": perspective,
    }


def _asymmetry(values: Float[np.ndarray, "N"]) -> float:
    """How far values are from being as often positive as negative: the Kolmogorov-Smirnov distance to their negatives."""
    at = np.sort(np.concatenate([values, -values]))
    share, mirrored = (
        np.searchsorted(np.sort(v), at, side="right") / len(values) for v in (values, -values)
    )
    return float(np.abs(share - mirrored).max())
