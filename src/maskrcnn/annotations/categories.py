"""The categories of a COCO file, with their skeletons.

In:  the list `categories` of the file, [{"id": 1, "name": "person", "keypoints": ["nose", ...],
     "skeleton": [[16, 14], ...]}, ...].
Out: one `Category` each, sorted by id; the label of a category is its index. `category_to_coco` is
     the way back.

Three keys go beyond COCO's own files: "sigmas" (an OKS standard deviation per keypoint), "flip"
(for each keypoint the one it becomes in a mirror image, counted from 0), and "flip_pairs" (pairs of
keypoints, by name or counted from 0). Without a flip, left and right are inferred from the names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ..config import Category
from .coco_types import CocoCategory, Json, JsonObject
from .shown_values import shown

_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def parse_categories(entries: Sequence[Json]) -> tuple[Category, ...]:
    """Returns the categories, sorted by id.

    Args:
        entries: the list `categories` of a COCO file.

    Raises:
        ValueError: the categories are invalid; the message has one line per problem.
    """
    problems: list[str] = []
    by_id: dict[int, Category] = {}
    for index, entry in enumerate(entries):
        try:
            category = _parse_category(entry)
            if category.id in by_id:
                raise ValueError(
                    f'id {category.id} is used twice, by "{by_id[category.id].name}" '
                    f'and "{category.name}"; each category needs its own'
                )
            by_id[category.id] = category
        except ValueError as error:
            problems.append(f"categories[{index}]: {error}")
        except (TypeError, OverflowError):  # None, a list or infinity where a number is expected
            numbers = {key: entry.get(key) for key in ("flip", "sigmas")}
            problems.append(f"categories[{index}]: expected lists of numbers, got {shown(numbers)}")

    names = [c.name for c in by_id.values()]
    problems += [
        f'category name "{name}" is used {names.count(name)} times; each category needs its own'
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    if not by_id and not problems:
        problems = ['"categories" is empty; list at least one, as {"id": 1, "name": "cell"}']
    if problems:
        raise ValueError("\n".join(problems))

    return tuple(by_id[i] for i in sorted(by_id))


def category_to_coco(category: Category) -> CocoCategory:
    """Returns a category as an entry of a COCO file, which `parse_categories` reads back.

    Keys about keypoints are present only for a category with keypoints, and "sigmas" only where it
    has its own.
    """
    entry: CocoCategory = {"id": category.id, "name": category.name}
    if category.keypoints:
        entry["keypoints"] = list(category.keypoints)
        entry["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
        entry["flip"] = list(category.mirrored)
        if category.sigmas:
            entry["sigmas"] = list(category.sigmas)
    return entry


def plain_keypoint(name: str) -> str:
    """A keypoint's name without case and separators: "left_eye" and "Left Eye" are one."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def are_numbered(keypoints: Sequence[str]) -> bool:
    """Whether keypoints are numbered instead of named: "3", "keypoint 3"."""
    return all(re.fullmatch(r"(keypoint[ _]?)?\d+", name) for name in keypoints)


def similar_names(ours: Collection[str], theirs: Collection[str]) -> tuple[str, str] | None:
    """The first two names that differ only in case or spaces, while neither is on both sides."""
    by_plain = {unspaced(name): name for name in theirs if name not in ours}
    for name in ours:
        if name in theirs:
            continue
        if (other := by_plain.get(unspaced(name))) is not None:
            return name, other
    return None


def unspaced(name: str) -> str:
    """A category's name without case and spaces."""
    return "".join(name.casefold().split())


def mirrored_keypoints(names: Sequence[str]) -> tuple[int, ...]:
    """Infers from the names which keypoint each one becomes in a mirror image.

    It recognizes left_eye and right_eye, "eye L" and "eye R", LEye and REye.

    Args:
        names: of the keypoints.

    Returns:
        For each keypoint the index of its counterpart, its own index if there is none.
    """
    index = {name: i for i, name in enumerate(names)}
    return tuple(
        next((index[other] for other in _counterparts(name) if other in index), i)
        for i, name in enumerate(names)
    )


def _counterparts(name: str) -> list[str]:
    """Returns possible names of the keypoint on the other side.

    A wrong guess has no effect: no keypoint has that name.
    """

    def opposite(match: re.Match[str]) -> str:
        return _with_case_of(match[0], _OPPOSITE[match[0].lower()])

    words = re.sub("left|right", opposite, name, flags=re.IGNORECASE)
    # a single letter between separators or ends, or a capital before a capitalized word
    letters = re.sub(r"(?<![^\W_])[lrLR](?![^\W_])", opposite, name)
    capital = re.sub(r"^[LR](?=[A-Z])", opposite, name)
    return [other for other in (words, letters, capital) if other != name]


def _with_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def _parse_category(entry: Json) -> Category:
    if not isinstance(entry, Mapping) or type(entry.get("id")) is not int:
        raise ValueError(
            f'expected an object with a whole-number "id" and a "name", got {shown(entry)}'
        )
    for key in ("keypoints", "skeleton", "flip", "flip_pairs", "sigmas"):
        if not isinstance(entry.get(key) or [], list | tuple):
            raise ValueError(f"{key}: expected a list, got {shown(entry[key])}")
    keypoints = tuple(str(name) for name in entry.get("keypoints") or ())
    if len(set(keypoints)) != len(keypoints):
        raise ValueError(f"keypoint names must be unique, got {', '.join(keypoints)}")

    has_name = entry.get("name") not in (None, "")
    return Category(
        name=str(entry["name"] if has_name else entry["id"]),
        id=entry["id"],
        keypoints=keypoints,
        skeleton=_parse_skeleton(entry.get("skeleton") or ()) if keypoints else (),
        flip=_parse_flip(entry, keypoints),
        sigmas=tuple(float(s) for s in entry.get("sigmas") or ()),
    )


def _parse_skeleton(limbs: Json) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((int(a) - 1, int(b) - 1) for a, b in limbs)
    except (TypeError, ValueError):
        raise ValueError(
            "skeleton: expected pairs of keypoints counted from 1, such as [[1, 2], [2, 3]], "
            f"got {shown(limbs)}"
        ) from None


def _parse_flip(entry: JsonObject, keypoints: tuple[str, ...]) -> tuple[int, ...]:
    if entry.get("flip"):
        return tuple(int(i) for i in entry["flip"])
    if "flip_pairs" not in entry:
        return mirrored_keypoints(keypoints)

    flip = list(range(len(keypoints)))
    for pair in entry["flip_pairs"]:
        try:
            a, b = (_keypoint_index(keypoint, keypoints) for keypoint in pair)
        except (ValueError, IndexError, TypeError):
            raise ValueError(
                f"flip_pairs: expected two of the keypoints {', '.join(keypoints)}, "
                f"by name or counted from 0, got {shown(pair)}"
            ) from None
        flip[a] = b
        flip[b] = a
    return tuple(flip)


def _keypoint_index(keypoint: Json, keypoints: tuple[str, ...]) -> int:
    if isinstance(keypoint, str):
        return keypoints.index(keypoint)
    return range(len(keypoints))[keypoint]  # negative indices count from the end
