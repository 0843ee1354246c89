"""The annotation formats, in the order in which they are tried. A new format is one line here."""

from __future__ import annotations

from difflib import get_close_matches

from .coco_json import COCO
from .cvat import CVAT
from .format import Format
from .label_studio import LABEL_STUDIO
from .labelme import LABELME
from .png_masks import PNG_MASKS
from .qupath import QUPATH
from .via import VIA
from .voc import VOC
from .yolo import YOLO

FORMATS: tuple[Format, ...] = (
    *(COCO, YOLO, LABELME, LABEL_STUDIO, VIA, CVAT, VOC, QUPATH),
    PNG_MASKS,
)
FORMAT_BY_NAME: dict[str, Format] = {name: known for known in FORMATS for name in known.written_as}


def format_named(name: str) -> Format:
    """The format that is written under a name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in FORMAT_BY_NAME:
        near = get_close_matches(name, FORMAT_BY_NAME, 1)
        suggestion = f', did you mean "{near[0]}"?' if near else "."
        raise ValueError(
            f'unknown format "{name}"{suggestion} Known formats: {", ".join(FORMAT_BY_NAME)}'
        )
    return FORMAT_BY_NAME[name]
