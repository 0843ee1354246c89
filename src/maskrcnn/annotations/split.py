"""A part of a data set to judge by, where none was given.

In: a data set, a share, a seed. Out: two data sets without an image, or near-duplicates, in common.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..images.similarity import groups, hashes
from .coco_dataset import CocoDataset
from .problems import DataError

MOST_SPLIT_OFF = 500  # images: more would make the numbers hardly surer and the training poorer


def split_dataset(
    data: CocoDataset, share: float = 0.15, seed: int = 0, progress: bool = False
) -> tuple[CocoDataset, CocoDataset]:
    """The data to learn from and a part to judge by: `share` of the images, at least one and at most 500.

    Images that look alike (the same one twice, neighbors of a film) stay together on one side, and each category comes to lie on both sides in
    proportion, the rarest first. The same seed gives the same parts.

    Args:
        data: what is to be parted.
        share: of the images, above 0 and below 1.
        seed: of the draw.
        progress: show a bar while the images are compared.

    Raises:
        DataError: fewer than two images that differ.
        ImageError: an image cannot be read.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}, must be above 0 and below 1")
    records = [data[i] for i in range(len(data))]
    alike = groups(hashes([r.path for r in records], progress=progress))
    grouped = {i for group in alike for i in group}
    whole = [*alike, *([i] for i in range(len(data)) if i not in grouped)]
    if len(whole) < 2:
        raise DataError(
            f"{data.name}: {len(data)} images, all alike: none can be split off to judge by. Give validation data, or do without (--val none)"
        )
    objects = [
        Counter(a.label for i in group for a in records[i].annotations if not a.ignore)
        for group in whole
    ]
    chosen = _choose([len(group) for group in whole], objects, share, np.random.default_rng(seed))
    held = sorted(i for g in chosen for i in whole[g])
    kept = sorted(set(range(len(data))).difference(held))
    return data.subset(kept), data.subset(held)


def _choose(
    sizes: list[int], objects: list[Counter[int]], share: float, rng: np.random.Generator
) -> list[int]:
    """Groups whose images are about `share` of all and whose objects about `share` of each category.

    Source: Sechidis et al. 2011, "On the Stratification of Multi-Label Data": the rarest category that still lacks objects chooses first.
    """
    total = sum(objects, Counter())
    lacking = {label: count * share for label, count in total.items()}
    room = min(max(1.0, sum(sizes) * share), MOST_SPLIT_OFF)
    order = rng.permutation(len(sizes)).tolist()
    chosen: list[int] = []
    for label in [
        *sorted(total, key=lambda c: (total[c], c)),
        None,
    ]:  # None: images without objects, and what is still free
        for g in order:
            wanted = label is None or (lacking[label] >= objects[g][label] / 2 > 0)
            if (
                wanted
                and g not in chosen
                and sizes[g] <= room + 0.5
                and len(chosen) < len(sizes) - 1
            ):
                chosen.append(g)
                room -= sizes[g]
                for c, count in objects[g].items():
                    lacking[c] -= count
    return chosen or [min(order, key=lambda g: sizes[g])]
