"""Predictions as annotations, to be corrected by hand in an annotation tool instead of drawn anew.

In:  the answer for each image. Out: OUT/FORMAT, in any format of `maskrcnn.formats`, with scores where it can hold them.

An object's polygon is simplified, so that it has few points to move. Keypoints that the model is unsure of are left to the annotator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..annotations import rle
from ..draw import KEYPOINT_SCORE
from ..formats.convert import check_new, write_all
from ..formats.reading import Annotated
from ..instances import Instances


class Drafts:
    """Collects predictions and writes them as annotations.

    Args:
        format: see `maskrcnn.formats.convert.convert`.
        out: the folder of the results; the annotations go to OUT/FORMAT.
        simplify: pixels by which polygons may be off.

    Raises:
        FileExistsError: OUT/FORMAT is there already.
        ValueError: an unknown format.
    """

    def __init__(self, format: str, out: Path, simplify: float) -> None:
        check_new(out / format, format)
        self.format, self.path, self.simplify = format, out / format, simplify
        self._content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}

    def add(self, path: Path, instances: Instances, entries: Sequence[Any]) -> None:
        """Adds the objects of one image: its file, the answer, and that as COCO results."""
        size = {"height": instances.size[0], "width": instances.size[1]}
        self._content["images"].append(
            {"id": instances.image_id, "file_name": str(path.absolute()), **size}
        )
        self._content["categories"] = [
            {
                "id": c.id,
                "name": c.name,
                "keypoints": list(c.keypoints),
                "skeleton": [[a + 1, b + 1] for a, b in c.skeleton],
                "flip": list(c.flip),
            }
            for c in instances.categories
        ]
        for entry in entries:
            raw = {key: entry[key] for key in ("image_id", "category_id", "score")}
            if "segmentation" in entry and rle.area(entry["segmentation"]):
                raw["segmentation"] = entry["segmentation"]  # and the box is that of the mask
            else:
                raw["bbox"] = entry["bbox"]
            values = entry.get("keypoints", [])
            sure = (
                (x, y, 2) if score >= KEYPOINT_SCORE else (0, 0, 0)
                for x, y, score in zip(values[0::3], values[1::3], values[2::3], strict=True)
            )
            raw["keypoints"] = [v for keypoint in sure for v in keypoint]
            self._content["annotations"].append(
                {"id": len(self._content["annotations"]) + 1, "iscrowd": 0, **raw}
            )

    def write(self, progress: bool = False) -> str:
        """Writes all; what the format could not hold, as text."""
        if not self._content["images"]:
            return ""
        annotated = Annotated(cast(Any, self._content), Path(Path.cwd().anchor), "predictions")
        return str(
            write_all(
                {"": annotated}, self.path, self.format, simplify=self.simplify, progress=progress
            )
        )
