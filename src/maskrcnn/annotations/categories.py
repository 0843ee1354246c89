"""The categories of a COCO file, with their skeletons.

In: the list `categories` of the file, [{"id": 1, "name": "person", "keypoints": ["nose", ..], "skeleton": [[16, 14], ..]}, ..].
Out: one `Category` each, sorted by id; the label of a category is its place.

A file may say more than COCO's do: "sigmas" (one OKS deviation a keypoint), "flip" (for each keypoint the one that it becomes in a mirror image, counted
from 0), or "flip_pairs" (pairs of keypoints, by name or counted from 0). Without these, left and right are found in the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Category

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def parse_categories(entries: Sequence[Any]) -> tuple[Category, ...]:
    """The categories, sorted by id.

    Raises:
        ValueError: everything that is wrong with them, a line each.
    """
    problems, found = [], {}
    for place, entry in enumerate(entries):
        try:
            category = _category(entry)
            if category.id in found:
                raise ValueError(
                    f'id {category.id} is used twice, by "{found[category.id].name}" and "{category.name}"; give each its own'
                )
            found[category.id] = category
        except ValueError as error:
            problems.append(f"categories[{place}]: {error}")
    names = [c.name for c in found.values()]
    problems += [
        f'category name "{name}" is used {names.count(name)} times; give each its own'
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    if not found and not problems:
        problems = ['"categories" is empty; list at least one, as {"id": 1, "name": "cell"}']
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(found[i] for i in sorted(found))


def mirrored_keypoints(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the one that it becomes in a mirror image, from the names: left_eye and right_eye, "eye L" and "eye R", LEye and REye."""
    place = {name: j for j, name in enumerate(names)}
    return tuple(
        next((place[other] for other in _counterparts(name) if other in place), j)
        for j, name in enumerate(names)
    )


def _counterparts(name: str) -> list[str]:
    """What the keypoint on the other side could be called. A wrong guess does no harm: no keypoint has that name."""
    words = re.sub(
        "left|right", lambda m: _in_case_of(m[0], _OTHER[m[0].lower()]), name, flags=re.IGNORECASE
    )
    # one letter, alone between separators or ends, or a capital before a capitalised word
    letters = re.sub(
        r"(?<![^\W_])[lrLR](?![^\W_])", lambda m: _in_case_of(m[0], _OTHER[m[0].lower()]), name
    )
    capital = re.sub(r"^[LR](?=[A-Z])", lambda m: _in_case_of(m[0], _OTHER[m[0].lower()]), name)
    return [other for other in (words, letters, capital) if other != name]


def _in_case_of(model: str, word: str) -> str:
    return word.upper() if model.isupper() else word.capitalize() if model[0].isupper() else word


def _category(entry: Any) -> Category:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), int):
        raise ValueError(
            f'got {entry!r:.80}, must be an object with a whole-number "id" and a "name"'
        )
    keypoints = tuple(str(j) for j in entry.get("keypoints") or ())
    if len(set(keypoints)) != len(keypoints):
        raise ValueError(f"two keypoints have one name: {', '.join(keypoints)}")
    return Category(
        name=str(entry["id"] if entry.get("name") in (None, "") else entry["name"]),
        id=entry["id"],
        keypoints=keypoints,
        skeleton=_skeleton(entry.get("skeleton") or ()) if keypoints else (),
        flip=_flip(entry, keypoints),
        sigmas=tuple(float(s) for s in entry.get("sigmas") or ()),
    )


def _skeleton(bones: Any) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((int(a) - 1, int(b) - 1) for a, b in bones)
    except (TypeError, ValueError):
        raise ValueError(
            f"skeleton is {bones!r:.80}, must be pairs of keypoints, counted from 1: [[1, 2], [2, 3]]"
        ) from None


def _flip(entry: Mapping[str, Any], keypoints: tuple[str, ...]) -> tuple[int, ...]:
    if entry.get("flip"):
        return tuple(int(j) for j in entry["flip"])
    if "flip_pairs" not in entry:
        return mirrored_keypoints(keypoints)
    flip = list(range(len(keypoints)))
    for pair in entry["flip_pairs"]:
        try:
            a, b = (
                keypoints.index(j) if isinstance(j, str) else range(len(keypoints))[j] for j in pair
            )
        except (ValueError, IndexError, TypeError):
            raise ValueError(
                f"flip_pairs has {pair!r}, must be two of the keypoints {', '.join(keypoints)}, by name or counted from 0"
            ) from None
        flip[a], flip[b] = b, a
    return tuple(flip)
