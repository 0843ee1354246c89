"""A model's answers on a data set as COCO results, in the data set's own ids.

The model's categories are found in the data by name, and keypoints by name within a category; what the data does not annotate is left out, since it
cannot be judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import track

from ..config import Category
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import Source, answering, stream

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset


def results_on(
    model: MaskRCNN,
    data: CocoDataset,
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    *,
    batch_size: int = 1,
    device: str | None = None,
    tta: str | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """COCO results for every image of `data`, with all that the model gives down to its own score threshold.

    Args:
        model: any form of the network.
        data: the images.
        truth: its annotations, with the images in the same order.
        categories: those of `truth`.
        batch_size: images of equal padded shape that go through the model together.
        device: where to run; by default where the model is.
        tta: test-time augmentation, see `predict`.
        progress: show a progress bar.

    Raises:
        ValueError: the model and the data have no category in common, or its skeletons differ.
    """
    matches = match_categories(model.config.categories, categories)
    found = stream(
        answering(model, device=device, tta=tta),
        _images(data, truth, model.config.input.intensity_range),
        batch_size=batch_size,
    )
    results: list[Any] = []
    for instances in track(
        found, "Evaluating", total=len(data), disable=not progress, transient=True
    ):
        for entry, label in zip(instances.to_coco(), instances.labels.tolist(), strict=True):
            if (match := matches[label]) is None:
                continue
            entry["category_id"], order = match
            if "keypoints" in entry:
                entry["keypoints"] = [
                    value for j in order for value in entry["keypoints"][3 * j : 3 * j + 3]
                ]
            results.append(entry)
    return results


def match_categories(
    ours: Sequence[Category], theirs: Sequence[Category]
) -> list[tuple[int, list[int]] | None]:
    """For each label of the model the data's category id and, keypoint by keypoint of the data, the model's keypoint; None where the data lacks it.

    Raises:
        ValueError: nothing in common, or different skeletons.
    """
    by_name = {c.name: c for c in theirs}
    if not any(c.name in by_name for c in ours):
        # a model without names (numbers stand in) is matched by its ids
        if not all(c.name.isdigit() for c in ours) or not {c.id for c in ours} & {
            c.id for c in theirs
        }:
            raise ValueError(
                f"the model knows {_listed(ours)}, the data annotates {_listed(theirs)}: no category in common; "
                "rename those of the annotation file, or load the model with categories=[...]"
            )
        ids = {c.id: c for c in theirs}
        return [(c.id, _keypoint_order(c, ids[c.id])) if c.id in ids else None for c in ours]
    return [
        (by_name[c.name].id, _keypoint_order(c, by_name[c.name])) if c.name in by_name else None
        for c in ours
    ]


def _keypoint_order(ours: Category, theirs: Category) -> list[int]:
    if not ours.keypoints or not theirs.keypoints:
        return list(range(len(ours.keypoints)))
    if set(ours.keypoints) == set(theirs.keypoints):
        return [ours.keypoints.index(name) for name in theirs.keypoints]
    if len(ours.keypoints) == len(theirs.keypoints):
        return list(range(len(ours.keypoints)))
    raise ValueError(
        f'category "{ours.name}": the model has {len(ours.keypoints)} keypoints, the data {len(theirs.keypoints)}; they cannot be compared'
    )


def _images(
    data: CocoDataset, truth: Mapping[str, Any], intensity_range: tuple[float, float] | None
) -> Iterator[Source]:
    return (
        Source(data.image(n, intensity_range), image["id"], image["file_name"])
        for n, image in enumerate(truth["images"])
    )


def _listed(categories: Sequence[Category]) -> str:
    names = [c.name for c in categories]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
