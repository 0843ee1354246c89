"""The names of the formats that annotations can be written in; imports nothing, for the commands.

A test compares this list with `all_formats.FORMATS`.
"""

from __future__ import annotations

from typing import Literal

FormatName = Literal[
    "coco", "yolo-seg", "yolo-pose", "labelme", "via", "cvat", "voc", "png", "png-each"
]
