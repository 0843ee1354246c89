"""One line of a YOLO label file as an object; what a line can mean is in yolo.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.counted import counted
from .reading import AnnotatedObject, DatasetBuilder

_BEYOND = 0.01  # fraction of a side that labels may exceed the image by, as Ultralytics allows


@dataclass
class YoloLines:
    """Turns the lines of label files into objects."""

    builder: DatasetBuilder
    names: Sequence[str]
    """Names of the classes."""
    dimensions: int
    """Values per keypoint: 2 (x, y) or 3 (x, y, visibility); 0 = the data have no keypoints."""

    def add(self, image_id: int, words: list[str], where: str) -> None:
        """Adds the object of one line, or a problem."""
        try:
            number = float(words[0])
            values = np.array(words[1:], dtype=np.float64)
        except ValueError:
            number = 0.5
            values = np.zeros(0)
        if not number.is_integer():
            self.builder.problem(
                "broken line",
                where,
                f"{' '.join(words):.60}",
                "write numbers: class x y x y ..., or class cx cy w h; the class is a whole number",
            )
            return
        label = int(number)
        if not 0 <= label < len(self.names):
            self.builder.problem(
                "unknown class",
                where,
                f"class {label}, but names in data.yaml has {counted(len(self.names), 'entry')}",
                "add its name, or correct the line",
            )
            return

        if not self.dimensions and may_be_tracked_box(values):
            self.builder.problem(
                "box or triangle",
                where,
                f"{' '.join(words):.60}",
                "for a box with confidence and track id remove the last two numbers; "
                "for a triangle repeat its last point",
            )
            return
        is_polygon = not self.dimensions and len(values) >= 6 and len(values) % 2 == 0
        if not self._check_values(values, label, is_polygon, where):
            return
        height, width = self.builder.size(image_id)
        instance = AnnotatedObject(self.names[label], where)
        if is_polygon:
            instance.polygons.append((values.reshape(-1, 2) * (width, height)).round(6))
        else:
            cx, cy, w, h = (values[:4] * (width, height, width, height)).tolist()
            corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
            x0, y0, x1, y1 = np.round(corners, 6).tolist()
            instance.boxes.append((x0, y0, x1, y1))
            self._add_keypoints(instance, self._points(values), width, height)
        self.builder.add(image_id, instance)

    def _check_values(self, values: np.ndarray, label: int, is_polygon: bool, where: str) -> bool:
        """Whether number and range of a line's values are right; adds a problem if not."""
        count = len(self.builder.keypoints(self.names[label]))
        if not is_polygon and len(values) not in (4, 4 + count * self.dimensions):
            expected = "4 (a box) or 6, 8, ... (a polygon)"
            if self.dimensions:
                expected = f"4 + {count} x {self.dimensions} (kpt_shape)"
            self.builder.problem(
                "wrong number of values",
                where,
                f"{counted(len(values), 'number')} after the class",
                f"write {expected}",
            )
            return False

        positions = values
        if not is_polygon and self.dimensions:
            positions = np.concatenate([values[:4], self._points(values)[:, :2].ravel()])
        in_range = positions.min() >= -_BEYOND and positions.max() <= 1 + _BEYOND
        if not (np.isfinite(values).all() and in_range):
            self.builder.problem(
                "not in fractions of the image",
                where,
                f"expected values in 0..1, got {positions.min():g} to {positions.max():g}",
                "divide x by the image's width and y by its height",
            )
            return False
        return True

    def _points(self, values: np.ndarray) -> np.ndarray:
        """[keypoints, dimensions], which follow the box."""
        return values[4:].reshape(-1, self.dimensions) if self.dimensions else np.zeros((0, 2))

    def _add_keypoints(
        self, instance: AnnotatedObject, points: np.ndarray, width: int, height: int
    ) -> None:
        keypoints = self.builder.keypoints(instance.category)
        instance.keypoints = {
            name: _keypoint(point, width, height)
            for name, point in zip(keypoints, points, strict=False)
        }
        unusual = [v for v in points[:, 2:].ravel().tolist() if v not in (0, 1, 2)]
        if unusual:
            self.builder.problem(
                "visibility is not 0, 1 or 2",
                instance.where,
                f"{unusual[0]:g}",
                "it is read as a confidence: 0.5 and more is 2 (visible), less is 0 (unlabeled)",
                False,
            )


def may_be_tracked_box(values: np.ndarray) -> bool:
    """Whether six numbers are cx cy w h, a confidence and a track id as well as three points.

    The track id is a whole number above 0; a triangle may end at the lower border of the image.
    """
    if len(values) != 6 or not (values[5] >= 1 and values[5].is_integer()):
        return False
    cx, cy, w, h, confidence = values[:5]
    margin = min(cx - w / 2, cy - h / 2, 1 - cx - w / 2, 1 - cy - h / 2)
    return bool(margin >= -_BEYOND and min(w, h) > 0 and 0 <= confidence <= 1)


def _keypoint(point: np.ndarray, width: int, height: int) -> tuple[float, float, int]:
    """x, y, visibility; a point without visibility is unlabeled if it is (0, 0).

    Predictions have a confidence in place of the visibility; 0.5 and more is visible.
    """
    x, y = (point[:2] * (width, height)).round(6).tolist()
    given = float(point[2]) if len(point) > 2 else 2.0 * (x != 0 or y != 0)
    visibility = int(given) if given in (0, 1, 2) else 2 * int(given >= 0.5)
    return (x, y, visibility) if visibility else (0.0, 0.0, 0)
