"""Pictures that are annotated for only some of the categories: which of them an image entry of a COCO file vouches for.

In:  an image entry and the ids of the categories that have annotations in it.
Out: the ids of the categories whose every object in the picture is annotated, None where that is all of them.

Three keys of an entry say so, all lists of category ids: "labelled_categories" names them; LVIS instead gives "neg_category_ids", what was looked
for and is not there (what has annotations was looked for too, nothing else was), and "not_exhaustive_category_ids", of which not all are annotated.

Source of LVIS's keys: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 3, federated data set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .check import Problem

KEYS = ("labelled_categories", "neg_category_ids", "not_exhaustive_category_ids")


def labelled_ids(image: Mapping[str, Any], annotated: Collection[int], known: Collection[int]) -> frozenset[int] | None:
    """The categories of which every object in the picture is annotated.

    Args:
        image: the entry of the picture.
        annotated: category ids of its annotations.
        known: all category ids in use; others do not count.

    Returns:
        A part of `known`; None where it is all of it.
    """
    if "labelled_categories" in image:
        looked_for = set(image["labelled_categories"])
    elif "neg_category_ids" in image:
        looked_for = {*image["neg_category_ids"], *annotated}
    else:
        looked_for = set(known)
    labelled = looked_for.intersection(known).difference(image.get("not_exhaustive_category_ids", ()))
    return None if len(labelled) == len(set(known)) else frozenset(labelled)


def key_problems(images: Sequence[Any], known: Collection[int]) -> list[Problem]:
    """What is wrong with these keys of the entries."""
    problems = []
    for place, image in enumerate(images):
        for key in KEYS if isinstance(image, Mapping) else ():
            given = image.get(key, [])
            whole = isinstance(given, list | tuple) and all(isinstance(i, int) for i in given)
            unknown = sorted(set(given).difference(known)) if whole and key == "labelled_categories" else []
            if not whole or unknown:
                detail = f"names {unknown[:10]}, which the file does not have" if whole else f"is {given!r:.80}"
                cure = f"{key} must be a list of category ids of the file"
                problems.append(Problem("categories of a picture", f"images[{place}]", f"{key} {detail}", cure, True, image=place))
    return problems
