"""Which categories are exhaustively annotated in an image of a COCO file.

In:  an image entry and the ids of the categories that have annotations in it.
Out: the ids of the categories whose every object in the image is annotated, None where that is all
     of them.

Three keys of an entry, each a list of category ids, record this. "labeled_categories" lists them
directly. LVIS instead lists "neg_category_ids", which were searched for and are absent (categories
with annotations were searched for too, all others were not), and "not_exhaustive_category_ids", of
which some objects are not annotated.

Source of LVIS's keys: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance
Segmentation", section 3, federated data set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from .coco_types import Json, JsonObject
from .problems import Problem
from .shown_values import shown

KEYS = ("labeled_categories", "neg_category_ids", "not_exhaustive_category_ids")


def labeled_ids(
    image: JsonObject, annotated: Collection[int], known: Collection[int]
) -> frozenset[int] | None:
    """Returns the categories of which every object in the image is annotated.

    Args:
        image: the entry of the image.
        annotated: category ids of its annotations.
        known: all category ids in use; others are ignored.

    Returns:
        A subset of `known`; None where it is all of `known`.
    """
    if "labeled_categories" in image:
        searched = set(image["labeled_categories"])
    elif "neg_category_ids" in image:
        searched = {*image["neg_category_ids"], *annotated}
    else:
        searched = set(known)

    partial = image.get("not_exhaustive_category_ids", ())
    labeled = searched.intersection(known).difference(partial)
    return None if len(labeled) == len(set(known)) else frozenset(labeled)


def find_key_problems(images: Sequence[Json], known: Collection[int]) -> list[Problem]:
    """Returns what is wrong with these keys in all image entries.

    Args:
        images: the list `images` of the file.
        known: all category ids of the file.
    """
    problems = []

    for index, image in enumerate(images):
        if not isinstance(image, Mapping):
            continue

        for key in KEYS:
            if (detail := _problem_of(key, image.get(key, []), known)) is not None:
                problems.append(
                    Problem(
                        kind="invalid labeled categories",
                        where=f"images[{index}]",
                        detail=f"{key} {detail}",
                        suggestion=f"{key} must be a list of category ids of the file",
                        is_error=True,
                        image=index,
                    )
                )
    return problems


def _problem_of(key: str, value: Json, known: Collection[int]) -> str | None:
    if not isinstance(value, list | tuple) or not all(isinstance(i, int) for i in value):
        return f"is {shown(value)}"
    # LVIS lists categories that a file without annotations of them need not define
    if key == "labeled_categories" and (unknown := sorted(set(value).difference(known))):
        return f"lists {unknown[:10]}, which the file does not define"
    return None
