"""Checks that content has the lists of a COCO file: `check_structure(content, name)`.

Each error says what was found instead, and what to do about it: a results file is no annotation
file, and captions are no objects.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..runtime.counted import counted
from .coco_types import Json, JsonObject
from .problems import DataError
from .shown_values import shown

KEYS = ("images", "annotations", "categories")
_EXAMPLES = {
    "images": '"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}]',
    "annotations": '"annotations": [] for images without objects',
    "categories": '"categories": [{"id": 1, "name": "cell"}]',
}


def resembles_coco(content: Json) -> bool:
    """Whether content is meant to be COCO's: annotations, perhaps incomplete, or results."""
    if isinstance(content, list):
        return _are_results(content)
    if not isinstance(content, Mapping):
        return False
    if sum(key in content for key in KEYS) >= 2 and "annotations" in content:
        return True
    first = _first(content.get("annotations"))
    return isinstance(first, Mapping) and "image_id" in first


def check_structure(content: Json, name: str) -> None:
    """Checks for the three lists of a COCO file.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        DataError: a list is missing, or is something else.
    """
    if _are_results(content):
        raise DataError(
            f"{name}: expected annotations, got a list of {counted(len(content), 'result')} "
            '(image_id, category_id, score). To measure them, use evaluate("'
            f'{name}", ANNOTATIONS) or maskrcnn evaluate {name} --data ANNOTATIONS'
        )
    if not isinstance(content, Mapping):
        raise DataError(
            f"{name}: expected a COCO object with images, annotations and categories, "
            f"got a {type(content).__name__}; export it again from the tool"
        )
    if missing := [key for key in KEYS if key not in content]:
        raise DataError(
            f"{name}: expected COCO format, but it has no list {' and no list '.join(missing)}; "
            f"its keys are {shown_keys(content)}. {_suggestion(content, missing)}"
        )

    for key in KEYS:
        if not isinstance(content[key], list):
            raise DataError(
                f'{name}: "{key}": expected a list, got {shown(content[key], 60)}; '
                f"write {_EXAMPLES[key]}"
            )
    if not content["categories"] and not content["annotations"]:
        raise DataError(
            f'{name}: "categories" is empty, and so is "annotations"; list the categories that '
            f"were looked for, even if no image has an object: write {_EXAMPLES['categories']}"
        )
    if not content["categories"]:
        ids = {shown(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
        used = ", ".join(sorted(ids)[:10])
        raise DataError(
            f'{name}: "categories" is empty, but annotations '
            f"have the category_id {used or 'none'}; write {_EXAMPLES['categories']}"
        )


def shown_keys(content: JsonObject) -> str:
    """The keys of an object for a message."""
    return shown(list(content), 200)[1:-1].replace("'", "") or "none"


def _suggestion(content: JsonObject, missing: list[str]) -> str:
    first = _first(content.get("annotations"))
    first = first if isinstance(first, Mapping) else {}
    if "caption" in first and "bbox" not in first:
        return "It holds captions; use the file of the instances"
    if "segments_info" in first:
        return "It is COCO panoptic, whose objects are PNG files; use the file of the instances"
    return f"Add {', '.join(_EXAMPLES[key] for key in missing)}"


def _are_results(content: Json) -> bool:
    first = _first(content)
    return isinstance(first, Mapping) and "image_id" in first and "category_id" in first


def _first(values: Json) -> Json:
    return values[0] if isinstance(values, list) and values else None
