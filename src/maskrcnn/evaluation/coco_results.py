"""A model's predictions on a dataset as COCO results, with the dataset's own ids.

The model's categories are matched to the data's by name, and the keypoints of a category likewise.
Detections of categories that the data does not annotate are left out: they cannot be evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..annotations.categories import are_numbered, plain_keypoint, similar_names
from ..annotations.coco_types import CocoContent, CocoResult
from ..config import Category
from ..images.read import ImageError
from ..prediction.predictor import ImageSource, Predictor
from ..runtime.counted import counted
from ..runtime.progress import track

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..instances import Instances

Match = tuple[int, list[int]]
"""The data's category id for a label, and for each of the data's keypoints the model's."""


def coco_results(
    predictor: Predictor,
    data: CocoDataset,
    truth: CocoContent,
    categories: Sequence[Category],
    *,
    batch_size: int = 1,
    progress: bool = False,
    advance: Callable[[int], None] = lambda _: None,
    note_unreadable: Callable[[int, str], None] | None = None,
) -> list[CocoResult]:
    """COCO results for every image of a dataset, down to the Predictor's `min_score`.

    Args:
        predictor: runs the model.
        data: the images.
        truth: its annotations, with the images in the same order.
        categories: those of `truth`.
        batch_size: up to this many images of equal padded shape share one forward pass.
        progress: show a progress bar.
        advance: called with 1 after each image, for a caller that shows progress itself.
        note_unreadable: called with id and reason for each image that cannot be read, which is
            skipped; None = it is an error.

    Raises:
        ValueError: the model and the data have no category in common, or their keypoints differ.
        ImageError: an image cannot be read.
    """
    config = predictor.config
    matches = match_categories(config.categories, categories)
    names = {c.id: c.name for c in categories}
    sources = _sources(data, truth, config.input.intensity_range, note_unreadable)
    stream = predictor.stream(sources, batch_size)

    results: list[CocoResult] = []
    for instances in track(stream, "evaluating", total=len(data), show=None if progress else False):
        results += matched_results(instances, matches, names)
        advance(1)
    return results


def matched_results(
    instances: Instances, matches: Sequence[Match | None], names: Mapping[int, str]
) -> list[CocoResult]:
    """COCO results of one image, with the data's categories and order of keypoints.

    Args:
        instances: with the image's id in the data.
        matches: of each label, as `match_categories` returns them.
        names: of the data's categories, by id.
    """
    results: list[CocoResult] = []
    for entry, label in zip(instances.to_coco(), instances.labels.tolist(), strict=True):
        match = matches[label]
        if match is None:
            continue
        entry["category_id"], keypoint_order = match
        entry["category_name"] = names[match[0]]
        if "keypoints" in entry:
            values = entry["keypoints"]
            entry["keypoints"] = [v for j in keypoint_order for v in values[3 * j : 3 * j + 3]]
        results.append(entry)
    return results


def match_categories(ours: Sequence[Category], theirs: Sequence[Category]) -> list[Match | None]:
    """The data's category for each label of the model.

    Args:
        ours: the model's categories.
        theirs: the data's categories.

    Returns:
        For each label the data's category id and, for each of the data's keypoints, the model's
        keypoint; None if the data does not annotate the category.

    Raises:
        ValueError: no category in common, or different numbers of keypoints.
    """
    by_name = {c.name: c for c in theirs}
    if similar := similar_names([c.name for c in ours], by_name):
        raise ValueError(
            f'the model detects "{similar[0]}", the data annotate "{similar[1]}"; '
            "give both the same spelling, or load the model with categories=[...]"
        )
    if any(c.name in by_name for c in ours):
        return [_match(c, by_name.get(c.name)) for c in ours]

    # a model without names has numbers instead; it is matched by its ids
    by_id = {c.id: c for c in theirs}
    if all(c.name.isdigit() for c in ours) and any(c.id in by_id for c in ours):
        return [_match(c, by_id.get(c.id)) for c in ours]
    raise ValueError(
        f"no category in common: the model detects {_listed(ours)}, the data annotates "
        f"{_listed(theirs)}. Rename the categories of the annotation file, or load the model with "
        "categories=[...]"
    )


def _match(ours: Category, theirs: Category | None) -> Match | None:
    return None if theirs is None else (theirs.id, _keypoint_order(ours, theirs))


def _keypoint_order(ours: Category, theirs: Category) -> list[int]:
    if not ours.keypoints or not theirs.keypoints:
        return list(range(len(ours.keypoints)))
    known = {plain_keypoint(name): j for j, name in enumerate(ours.keypoints)}
    if all(plain_keypoint(name) in known for name in theirs.keypoints):
        return [known[plain_keypoint(name)] for name in theirs.keypoints]

    # Without names on one side, the order decides.
    unnamed = are_numbered(ours.keypoints) or are_numbered(theirs.keypoints)
    if unnamed and len(ours.keypoints) == len(theirs.keypoints):
        return list(range(len(ours.keypoints)))
    raise ValueError(
        f'category "{ours.name}": expected {counted(len(ours.keypoints), "keypoint")}, '
        f"as the model predicts ({', '.join(ours.keypoints):.200}), "
        f"got {len(theirs.keypoints)} in the data "
        f"({', '.join(theirs.keypoints):.200}); use data with the same keypoints, by name"
    )


def _sources(
    data: CocoDataset,
    truth: CocoContent,
    intensity_range: tuple[float, float] | None,
    note_unreadable: Callable[[int, str], None] | None,
) -> Iterator[ImageSource]:
    for n, image in enumerate(truth["images"]):
        try:
            pixels = data.image(n, intensity_range)
        except ImageError as error:
            if note_unreadable is None:
                raise
            note_unreadable(image["id"], str(error))
            continue
        yield ImageSource(pixels, image["id"], image["file_name"])


def _listed(categories: Sequence[Category]) -> str:
    names = [c.name for c in categories]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
