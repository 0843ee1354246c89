"""The names of the formats that annotations can be written in; imports little, for the commands.

A test compares this list with `all_formats.FORMATS`.
"""

from __future__ import annotations

from typing import Literal

FormatName = Literal[
    "coco", "yolo-seg", "yolo-pose", "labelme", "via", "cvat", "voc", "png", "png-each"
]


def yolo_format(name: FormatName | Literal["yolo"], has_keypoints: bool) -> FormatName:
    """The format that a name stands for: "yolo" is yolo-pose for data with keypoints."""
    if name != "yolo":
        return name
    return "yolo-pose" if has_keypoints else "yolo-seg"
