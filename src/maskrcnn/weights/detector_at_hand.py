"""A published detector that is on this machine already, to start a short training from.

In: the categories of a data set. Out: a name of the catalog. Nothing is downloaded: the file comes
with the package or lies in the cache folder. ImageNet trunks: `at_hand` in trunk_weights.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Category
from .catalog import COCO_NAMES, Weights, weights
from .load import read_category_names


def detector_at_hand(categories: Sequence[Category]) -> str | None:
    """The name of the detector on this machine that suits a data set best; None if none does.

    A detector of this package knows a single kind of images; it suits data that share one of its
    categories. Detectors trained on COCO suit all data, but those with a shared category come
    first, and then those with a keypoint head exactly if the data have keypoints.

    Args:
        categories: those of the data.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.weights.detector_at_hand import detector_at_hand
        >>> detector_at_hand([mr.Category("nucleus", 1)])
        'nuclei'
    """
    wanted = {category.name.lower() for category in categories}
    has_skeleton = any(category.keypoints for category in categories)

    suitable: list[tuple[bool, bool, float, str]] = []
    for record in weights():
        if record.kind != "model" or record.local is None:
            continue
        shares = not wanted.isdisjoint(_known_categories(record))
        if shares or not record.shipped:
            has_head = ("keypoint" in record.metrics) == has_skeleton
            suitable.append((shares, has_head, record.metrics["box"], record.name))
    return max(suitable)[-1] if suitable else None


def _known_categories(record: Weights) -> tuple[str, ...]:
    """Names of the categories that a detector predicts."""
    if record.shipped:
        return tuple(name.lower() for name in read_category_names(record.shipped))
    return ("person",) if "keypoint" in record.metrics else COCO_NAMES
