"""Says why a JSON file has no known format: `why_unknown(content)`.

The reason names what the file looks like: the known format whose keys it has or nearly has, a tool
whose format is not read, or else its own keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from ..annotations.coco_types import Json, JsonObject
from ..annotations.shown_values import shown
from ..annotations.structure import shown_keys
from ..runtime.counted import counted

_ROOTS: dict[str, dict[str, type]] = {
    "LabelMe": {"shapes": list, "imagePath": str},
    "VIA": {"_via_img_metadata": dict},
    "GeoJSON": {"features": list},
    "COCO": {"images": list, "annotations": list},
}
"""The keys of an object by which a known format is recognized, and the type of their values."""

_NAMES: dict[type, str] = {list: "a list", dict: "an object", str: "text"}

_OTHER_TOOLS: dict[str, tuple[set[str], str]] = {
    "SA-1B, one file per image": ({"image", "annotations"}, "convert it to COCO"),
    "Supervisely": ({"objects", "size"}, "export COCO"),
    "Datumaro": ({"items", "categories"}, "export COCO"),
    "V7 Darwin": ({"item", "annotations"}, "export COCO"),
    "VoTT": ({"asset", "regions"}, "export Pascal VOC"),
    "a VoTT project": ({"assets", "tags"}, "export Pascal VOC"),
    "Labelbox": ({"data_row", "projects"}, "convert it to COCO"),
}
"""Tools whose objects are not read: the keys of an object, and what to do."""

_OTHER_LISTS: dict[str, tuple[set[str], str]] = {
    "CreateML": ({"image", "annotations"}, "convert it to COCO"),
    "Label Studio's JSON-MIN": ({"annotation_id", "annotator"}, "export JSON"),
    "Labelbox": ({"data_row", "projects"}, "convert it to COCO"),
    "Supervisely": ({"objects", "size"}, "export COCO"),
}
"""The same for lists: the keys of an entry."""


def why_unknown(content: Json) -> str:
    """Why the content of a JSON file is no known format."""
    if isinstance(content, list):
        first = content[0] if content else None
        if isinstance(first, dict):
            return _other_tool(first, _OTHER_LISTS) or (
                f"it holds a list of {counted(len(content), 'entry')}, not Label Studio tasks; "
                f"the first has the keys {shown_keys(first)}"
            )
        return (
            f"it holds a list of {counted(len(content), 'entry')}, the first is {shown(first, 40)}"
        )

    if not isinstance(content, dict):
        return f"expected an object, got {shown(content, 40)}"

    return (
        _other_tool(content, _OTHER_TOOLS)
        or _incomplete(content)
        or _misspelled(content)
        or f"its keys are {shown_keys(content)}, which no known format has; "
        "export COCO from the tool that wrote it"
    )


def _other_tool(content: JsonObject, tools: dict[str, tuple[set[str], str]]) -> str:
    """That an object is of a tool whose format is not read; "" if it is of none."""
    for name, (keys, way_out) in tools.items():
        if keys <= content.keys():
            return f"it looks like {name}, which is not read; {way_out}"
    return ""


def _incomplete(content: JsonObject) -> str:
    """What an object lacks of the format whose keys it has; "" if it has those of none."""
    for name, expected in _ROOTS.items():
        if not content.keys() & expected.keys():
            continue

        for key, kind in expected.items():
            if key not in content:
                return (
                    f'it looks like {name}, but has no "{key}"; its keys are {shown_keys(content)}'
                )
            if not isinstance(content[key], kind):
                wanted = _NAMES[kind]
                return (
                    f'it looks like {name}, but expected "{key}" as {wanted}, '
                    f"got {shown(content[key], 40)}"
                )
    return ""


def _misspelled(content: JsonObject) -> str:
    """Which key is nearly one of a known format; "" if none is."""
    formats = {key: name for name, expected in _ROOTS.items() for key in expected}
    for given in _first_keys(content):
        if near := get_close_matches(given.casefold(), formats, 1, 0.75):
            return (
                f'it looks like {formats[near[0]]}, but has "{given}" instead of "{near[0]}"; '
                f"its keys are {shown_keys(content)}"
            )
    return ""


def _first_keys(content: JsonObject) -> Iterable[str]:
    """Some keys, as text of bounded length."""
    return [str(key)[:40] for key in list(content)[:50]]
