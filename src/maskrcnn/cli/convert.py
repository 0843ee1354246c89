"""`maskrcnn convert`: annotations from one format to another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from ..formats.format_name import FormatName


def convert(
    source: str,
    out: Path,
    /,
    *,
    format: FormatName,
    images: Path | None = None,
    val: str | None = None,
    val_images: Path | None = None,
    attribute: str | None = None,
    image_files: Literal["copy", "link", "reference"] | None = None,
    simplify: float = 0.0,
    points: int = 0,
    on_error: Literal["raise", "drop"] = "raise",
) -> None:
    """Write annotations in another format, and report what it cannot represent.

    Reads COCO, YOLO (boxes, segmentation, pose), LabelMe, VIA 2, CVAT for images 1.1, Label Studio,
    QuPath GeoJSON, Pascal VOC and label maps (PNG, TIFF, .npy). Recognizes the format by its
    content.

    Args:
        source: Annotation file or folder. Converts all splits, or the one named after a colon, as
            in data.yaml:val.
        out: New folder; for coco, via and cvat also a file. Existing files are never overwritten.
        format: Format to write. png stores one file per image, png-each one file per object.
        images: Folder of the images; by default where the format says they are.
        val: Second source, written as the split "val".
        val_images: Folder of its images; by default --images.
        attribute: Attribute that holds the category, for VIA files whose regions have several.
        image_files: Copy or link the images into OUT, or reference them where they are. Default:
            copy for yolo, voc and png, reference for the others.
        simplify: Tolerance in pixels of polygons traced from masks. Larger values give fewer points
            to edit; 0 = exact.
        points: Replace each mask by this many labeled points, for coco; 0 = keep the masks.
        on_error: On unusable annotations, stop and list them, or drop them with a warning.
    """
    from ..formats.convert import convert_annotations
    from .fix_advice import with_fix_advice

    report = with_fix_advice(
        convert_annotations,
        source,
        out,
        format,
        images=images,
        val=val,
        val_images=val_images,
        attribute=attribute,
        image_files=image_files,
        simplify=simplify,
        points=points,
        on_error=on_error,
        progress=True,
    )
    for line in dict.fromkeys(report.remarks):
        print(line, file=sys.stderr)
    print(report)
