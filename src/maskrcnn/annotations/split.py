"""Splits validation data off a data set that comes without any.

In:  a data set, a share, a seed.
Out: two data sets that have no image, and no near-duplicates, in common.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..images.similarity import groups, hashes
from .coco_dataset import CocoDataset
from .problems import DataError

MAX_VALIDATION_IMAGES = 500  # more would hardly improve the metrics and would cost training data


def split_dataset(
    data: CocoDataset, share: float = 0.15, seed: int = 0, progress: bool = False
) -> tuple[CocoDataset, CocoDataset]:
    """Splits a data set into training and validation data.

    Images that look alike (duplicates, neighboring frames of a video) stay on the same side. Each
    category is on both sides in proportion, the rarest first. The same seed gives the same split.

    Args:
        data: the data set to split.
        share: part of the images to validate on, above 0 and below 1. At least one image and at
            most 500 are chosen.
        seed: of the random choice.
        progress: show a progress bar while images are compared.

    Returns:
        The data set to train on and the data set to validate on.

    Raises:
        ValueError: `share` is not between 0 and 1.
        DataError: fewer than two images that differ.
        ImageError: an image cannot be read.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.annotations.split import split_dataset
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> path = write_scenes("scenes", count=10)
        >>> train, val = split_dataset(mr.CocoDataset(path, "scenes/images"), share=0.2)
        >>> len(train), len(val)
        (8, 2)
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number above 0 and below 1, got {share}")
    records = [data[i] for i in range(len(data))]

    similar = groups(hashes([r.path for r in records], progress=progress))
    in_group = {i for group in similar for i in group}
    units = [*similar, *([i] for i in range(len(data)) if i not in in_group)]
    if len(units) < 2:
        raise DataError(
            f"{data.name}: cannot split off validation data: all {len(data)} images look alike. "
            "Pass validation data, or train without it (--no-val)"
        )

    objects = [
        Counter(a.label for i in unit for a in records[i].annotations if not a.ignore)
        for unit in units
    ]
    chosen = _choose([len(unit) for unit in units], objects, share, np.random.default_rng(seed))
    validation = sorted(i for u in chosen for i in units[u])
    training = sorted(set(range(len(data))).difference(validation))
    return data.subset(training), data.subset(validation)


def _choose(
    sizes: list[int], objects: list[Counter[int]], share: float, rng: np.random.Generator
) -> list[int]:
    """Returns units with about `share` of all images and of the objects of each category.

    Args:
        sizes: number of images of each unit.
        objects: number of objects of each label in each unit.
        share: part to choose.
        rng: source of randomness.

    Source: Sechidis et al. 2011, "On the Stratification of Multi-Label Data": the rarest category
    that still lacks objects chooses first.
    """
    total = sum(objects, Counter())
    lacking = {label: count * share for label, count in total.items()}
    images_left = min(max(1.0, sum(sizes) * share), MAX_VALIDATION_IMAGES)
    order = rng.permutation(len(sizes)).tolist()

    # None stands for images without objects and for the remaining room
    labels = [*sorted(total, key=lambda label: (total[label], label)), None]
    chosen: list[int] = []
    for label in labels:
        for unit in order:
            is_wanted = label is None or lacking[label] >= objects[unit][label] / 2 > 0
            fits = sizes[unit] <= images_left + 0.5 and len(chosen) < len(sizes) - 1
            if is_wanted and fits and unit not in chosen:
                chosen.append(unit)
                images_left -= sizes[unit]
                for each, count in objects[unit].items():
                    lacking[each] -= count

    return chosen or [min(order, key=lambda unit: sizes[unit])]
