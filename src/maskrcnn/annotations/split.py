"""Splits validation data off a data set that comes without any.

In:  a data set, a share, a seed.
Out: two data sets that have no image, no copies, and no images that look alike in common. If most
     images look alike, as those of a fixed camera do, runs of them are split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ..images.similarity import copies, groups, hashes, thumbnail
from .coco_dataset import CocoDataset, require_datasets
from .problems import DataError

_CAMERA = 8  # images that look alike may be those of a fixed camera
_RUN = 1 / 3  # of the validation images: the length of a run of images of a fixed camera
MAX_VALIDATION_IMAGES = 500  # more would hardly improve the metrics and would cost training data


def split_dataset(
    data: CocoDataset, share: float = 0.15, seed: int = 0, progress: bool = False
) -> tuple[CocoDataset, CocoDataset]:
    """Splits a data set into training and validation data.

    Images that look alike (copies, neighboring frames of a video) stay on the same side. If more
    than half of all look alike (8 or more), as those of a fixed camera or a bench do, only copies
    and runs of images that follow each other stay together. Each category is on both sides in
    proportion, the rarest first. The same seed gives the same split.

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
        DataError: fewer than two images that are not copies of one, or no folder of images.
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
    require_datasets(data=data)
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number above 0 and below 1, got {share}")
    if len(data):
        data.require_images()
    records = [data[i] for i in range(len(data))]

    units = _units([r.path for r in records], share, progress)
    if len(units) < 2:
        raise DataError(
            f"{data.name}: cannot split off validation data: expected two images or more, got "
            f"{len(data)}, without copies {len(units)}. "
            "Pass validation data (--val), or train without it (--no-val)"
        )

    objects = [
        Counter(a.label for i in unit for a in records[i].annotations if not a.ignore)
        for unit in units
    ]
    chosen = _choose([len(unit) for unit in units], objects, share, np.random.default_rng(seed))
    validation = sorted(i for u in chosen for i in units[u])
    training = sorted(set(range(len(data))).difference(validation))
    return data.subset(training), data.subset(validation)


def _units(paths: Sequence[Path], share: float, progress: bool) -> list[list[int]]:
    """The images that stay on one side, together; each image is in one unit."""
    found = hashes(paths, progress=progress)
    similar = groups(found)
    units: list[list[int]] = []
    for group in similar:
        is_most = 2 * len(group) > len(paths) and len(group) >= _CAMERA
        if is_most or len(group) == len(paths):  # what is alike is the background
            units += _runs(group, found, paths, share)
        else:
            units.append(group)

    in_group = {i for group in similar for i in group}
    return units + [[i] for i in range(len(paths)) if i not in in_group]


def _runs(
    group: Sequence[int], found: Float32[np.ndarray, "N D"], paths: Sequence[Path], share: float
) -> list[list[int]]:
    """A large group in runs of images that follow each other; copies are in the same run."""
    small = np.stack([thumbnail(paths[i]) for i in group])
    same = {group[first]: others for first, *others in copies(found[list(group)], small)}
    copied = {group[i] for others in same.values() for i in others}
    originals = [i for i in group if i not in copied]

    length = max(1, round(len(originals) * share * _RUN))
    runs = [originals[n : n + length] for n in range(0, len(originals), length)]
    return [[*run, *(group[k] for i in run for k in same.get(i, ()))] for run in runs]


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
