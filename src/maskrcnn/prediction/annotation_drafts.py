"""Predictions as draft annotations, to be corrected in an annotation tool.

In:  the predictions for each image. Out: OUT/FORMAT, in any format of `maskrcnn.formats`, with
     scores where the format can hold them.

Polygons are simplified, so that they have few points to move. Keypoints with a low score are left
unlabeled for the annotator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..annotations import rle
from ..annotations.categories import category_to_coco
from ..annotations.coco_types import CocoResult
from ..draw.overlay import KEYPOINT_SCORE
from ..formats.convert import check_new, write_all
from ..formats.reading import Annotated
from ..instances import Instances


class AnnotationDrafts:
    """Collects predictions and writes them as annotations.

    Args:
        format: see `maskrcnn.convert_annotations`.
        out: the folder of the results; the annotations go to OUT/FORMAT.
        simplify: tolerance in pixels of simplified polygons.

    Raises:
        FileExistsError: OUT/FORMAT exists already.
        ValueError: an unknown format.
    """

    def __init__(self, format: str, out: Path, simplify: float) -> None:
        check_new(out / format, format)
        self.format = format
        self.path = out / format
        self.simplify = simplify
        self._content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}

    def add(self, path: Path, instances: Instances, results: Sequence[CocoResult]) -> None:
        """Adds the objects of one image.

        Args:
            path: the image file.
            instances: its predictions.
            results: the same as COCO results.
        """
        height, width = instances.size
        self._content["images"].append(
            {
                "id": instances.image_id,
                "file_name": str(path.absolute()),
                "height": height,
                "width": width,
            }
        )
        self._content["categories"] = [category_to_coco(c) for c in instances.categories]
        for result in results:
            number = len(self._content["annotations"]) + 1
            self._content["annotations"].append({"id": number, **_annotation(result)})

    def write(self, progress: bool = False) -> str:
        """Writes all annotations.

        Returns:
            What the format cannot represent, as text.
        """
        if not self._content["images"]:
            return ""
        annotated = Annotated(cast(Any, self._content), Path(Path.cwd().anchor), "predictions")
        losses = write_all(
            {"": annotated}, self.path, self.format, simplify=self.simplify, progress=progress
        )
        return str(losses)


def _annotation(result: CocoResult) -> dict[str, Any]:
    """A COCO result as a COCO annotation without an id."""
    raw: dict[str, Any] = {
        "image_id": result["image_id"],
        "category_id": result["category_id"],
        "score": result["score"],
    }
    mask = result.get("segmentation")
    if isinstance(mask, dict) and rle.area(mask):
        raw["segmentation"] = mask  # the box is then that of the mask
    else:
        raw["bbox"] = result["bbox"]

    values = result.get("keypoints", [])
    raw["keypoints"] = []
    for x, y, score in zip(values[0::3], values[1::3], values[2::3], strict=True):
        raw["keypoints"] += (x, y, 2) if score >= KEYPOINT_SCORE else (0, 0, 0)
    return {"iscrowd": 0, **raw}
