"""Images that are annotated for only some of the categories: which of them an image entry of a COCO file vouches for.

In:  an image entry and the ids of the categories that have annotations in it.
Out: the ids of the categories whose every object in the image is annotated, None where that is all of them.

Three keys of an entry say so, all lists of category ids: "labeled_categories" names them; LVIS instead gives "neg_category_ids", what was looked
for and is not there (what has annotations was looked for too, nothing else was), and "not_exhaustive_category_ids", of which not all are annotated.

Source of LVIS's keys: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 3, federated data set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .problems import Problem

KEYS = ("labeled_categories", "neg_category_ids", "not_exhaustive_category_ids")


def labeled_ids(
    image: Mapping[str, Any], annotated: Collection[int], known: Collection[int]
) -> frozenset[int] | None:
    """The categories of which every object in the image is annotated.

    Args:
        image: the entry of the image.
        annotated: category ids of its annotations.
        known: all category ids in use; others do not count.

    Returns:
        A part of `known`; None where it is all of it.
    """
    if "labeled_categories" in image:
        looked_for = set(image["labeled_categories"])
    elif "neg_category_ids" in image:
        looked_for = {*image["neg_category_ids"], *annotated}
    else:
        looked_for = set(known)
    labeled = looked_for.intersection(known).difference(
        image.get("not_exhaustive_category_ids", ())
    )
    return None if len(labeled) == len(set(known)) else frozenset(labeled)


def key_problems(images: Sequence[Any], known: Collection[int]) -> list[Problem]:
    """What is wrong with these keys of the entries."""
    problems = []
    for place, image in enumerate(images):
        for key in KEYS if isinstance(image, Mapping) else ():
            given = image.get(key, [])
            whole = isinstance(given, list | tuple) and all(isinstance(i, int) for i in given)
            unknown = (
                sorted(set(given).difference(known))
                if whole and key == "labeled_categories"
                else []
            )
            if not whole or unknown:
                detail = (
                    f"names {unknown[:10]}, which the file does not have"
                    if whole
                    else f"is {given!r:.80}"
                )
                suggestion = f"{key} must be a list of category ids of the file"
                problems.append(
                    Problem(
                        "categories of an image",
                        f"images[{place}]",
                        f"{key} {detail}",
                        suggestion,
                        True,
                        image=place,
                    )
                )
    return problems
