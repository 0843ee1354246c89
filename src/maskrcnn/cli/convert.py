"""`maskrcnn convert`: annotations from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

# as in formats.convert, which would import numpy
Format = Literal[
    "coco", "yolo-seg", "yolo-pose", "labelme", "via", "cvat", "voc", "png", "png-each"
]


def convert(
    source: str,
    out: Path,
    /,
    *,
    format: Format,
    images: Path | None = None,
    val: str | None = None,
    val_images: Path | None = None,
    image_files: Literal["copy", "link", "reference"] | None = None,
    simplify: float = 0.0,
    on_error: Literal["raise", "drop"] = "raise",
) -> None:
    """Write annotations in another format; say what that format cannot hold.

    Reads COCO, YOLO (boxes, segmentation, pose), LabelMe, VIA 2, CVAT for images 1.1, Pascal VOC and PNG masks, recognized by their content.

    Args:
        source: Annotation file or folder. All its splits are converted, or the one named behind a colon, as data.yaml:val.
        out: New folder; for coco, via and cvat also a file. Nothing that exists is overwritten.
        format: Format to write. png has one id an object in one file an image, png-each one file an object.
        images: Folder of the images; by default where the format has them.
        val: Second source, written as the split "val".
        val_images: Folder of its images; by default --images.
        image_files: Copy or link them into OUT, or reference them where they are; by default copied for yolo, voc and png, else referenced.
        simplify: Pixels by which polygons of masks may be off, to have few points to correct; 0 = exact.
        on_error: Unusable annotations: list them and stop, or drop them with a warning.
    """
    from ..formats.convert import convert_annotations as run

    losses = run(
        source,
        out,
        format,
        images=images,
        val=val,
        val_images=val_images,
        image_files=image_files,
        simplify=simplify,
        on_error=on_error,
        progress=True,
    )
    print(f"{out}: written as {format}, " + (f"without:\n{losses}" if losses else "nothing lost"))
