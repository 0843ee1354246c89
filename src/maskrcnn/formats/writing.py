"""What writers stand on: the parts of an annotation, where files go, and what a format could not hold.

In:  COCO annotations as plain dicts.
Out: `polygons`, `rle_of`, `box_of`, `joints_of` ..: one part each. `Target`: writes files and brings images. `Losses`: what was lost, as text.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.contours import Polygon, fill, join, simplify, trace, union
from .reading import Annotated, Box, relative

ImageFiles = Literal["copy", "link", "reference"]


class Losses:
    """What a format could not hold, counted; `str` tells it, empty if nothing was lost."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        """One more thing lost, and where."""
        self.found.setdefault(what, []).append(where)

    def __bool__(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        return "\n".join(
            f"{what} ({len(places)}): {', '.join(places[:3])}{', ..' * (len(places) > 3)}"
            for what, places in self.found.items()
        )


@dataclass
class Target:
    """Where a writer's files go.

    All is written into `folder`, which takes the place of `home` when it is complete.
    """

    format: str
    annotated: Annotated
    folder: Path
    home: Path
    """Paths that are written into files start from here."""
    file: Path
    """Of formats that are one file."""
    split: str = ""
    image_files: ImageFiles = "reference"
    tolerance: float = 0.0
    """Pixels by which traced polygons may be simplified; 0 = exact."""
    progress: bool = False

    def each(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each image with its annotations."""
        from rich.progress import track

        count = len(self.annotated.content["images"])
        return iter(
            track(
                by_image(self.annotated.content),
                f"writing {self.split or self.format}",
                total=count,
                disable=not self.progress,
            )
        )

    def write(self, path: Path, data: str | bytes) -> None:
        """Writes a new file.

        Raises:
            ValueError: two images lead to one file.
        """
        if path.exists():
            raise ValueError(
                f"two images give one file, {path.relative_to(self.folder)}: give them names that differ in more than the ending"
            )
        self.rewrite(path, data)

    def rewrite(self, path: Path, data: str | bytes) -> None:
        """Writes a file, new or not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def source(self, image: Mapping[str, Any]) -> Path:
        """The image's file.

        Raises:
            ValueError: nobody knows the folder of the images, or the file is not there.
        """
        if self.annotated.images is None:
            raise ValueError(
                f"{self.annotated.name}: no images found for {self.format}; give their folder: images= (--images)"
            )
        path = self.annotated.images / image["file_name"]
        if not path.is_file():
            raise ValueError(
                f"{path}: there is no such image; is images= (--images) the right folder?"
            )
        return path

    def name(self, image: Mapping[str, Any]) -> PurePath:
        """The image's path below the folder that all have in common."""
        return PurePath(os.path.relpath(self._absolute(image), self._common))

    @cached_property
    def _common(self) -> str:
        return os.path.commonpath(
            [os.path.dirname(self._absolute(image)) for image in self.annotated.content["images"]]
        )

    def _absolute(self, image: Mapping[str, Any]) -> str:
        return os.path.abspath((self.annotated.images or Path()) / image["file_name"])

    def place(self, image: Mapping[str, Any], folder: Path) -> Path:
        """Copies or links an image into a folder; gives its new path."""
        source, path = self.source(image), folder / self.name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ValueError(f"{path.relative_to(self.folder)}: two images have this name")
        if self.image_files == "link":
            try:
                path.symlink_to(source.resolve())
            except OSError as error:
                raise ValueError(
                    f'{source.name}: cannot be linked ({error}); copy the images: image_files="copy" (--image-files copy)'
                ) from None
        else:
            shutil.copyfile(source, path)
        return path

    def refer(self, image: Mapping[str, Any], folder: Path) -> str:
        """How a file in `folder` names an image: where it is, or where it was copied or linked to."""
        if self.image_files != "reference":
            return relative(self.place(image, self.folder / "images"), folder)
        if self.annotated.images is None:
            return image["file_name"]
        return relative(
            (self.annotated.images / image["file_name"]).resolve(),
            (self.home / folder.relative_to(self.folder)).resolve(),
        )


def by_image(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each image with its annotations."""
    found: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for raw in content["annotations"]:
        found[raw["image_id"]].append(raw)
    for image in content["images"]:
        yield image, found[image["id"]]


def names_of(content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Category id -> entry, sorted by id."""
    return {c["id"]: c for c in sorted(content["categories"], key=lambda c: c["id"])}


def size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width)."""
    return image["height"], image["width"]


def label_of(raw: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """How a message names an annotation."""
    return f"{raw.get('where') or 'annotation {}'.format(raw['id'])} ({image['file_name']})"


def ignored(raw: Mapping[str, Any]) -> bool:
    """A crowd or a region to ignore."""
    return bool(raw.get("iscrowd") or raw.get("ignore"))


def rle_of(raw: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """The mask as compressed RLE; None without one."""
    mask = raw.get("segmentation")
    if not mask:
        return None
    return (
        union([{**mask, "size": list(size)}], size)
        if isinstance(mask, Mapping)
        else fill(_areal(mask), size)
    )


def polygons(
    raw: Mapping[str, Any], size: tuple[int, int], tolerance: float = 0.0
) -> list[Polygon]:
    """Polygons whose union is the mask: as they are, or traced along the pixels' edges; holes are joined to the polygon by cuts.

    `tolerance` > 0 simplifies what is traced, in pixels.
    """
    mask = raw.get("segmentation")
    if not mask:
        return []
    return traced(mask, tolerance) if isinstance(mask, Mapping) else _areal(mask)


def traced(rle: Mapping[str, Any], tolerance: float = 0.0) -> list[Polygon]:
    """The polygons of an RLE; one with holes becomes one polygon."""
    crop, x0, y0 = coco_rle.decode_crop(rle)
    rings = [ring + np.array([x0, y0]) for ring in trace(crop)]
    holes = any(_area(ring) < 0 for ring in rings)
    if tolerance:
        rings = [simplify(ring, tolerance) for ring in rings]
    return [join(rings)] if holes else rings


def one_polygon(
    raw: Mapping[str, Any], size: tuple[int, int], tolerance: float = 0.0
) -> Polygon | None:
    """The mask as one polygon, its parts joined by cuts; None without a mask."""
    parts = polygons(raw, size, tolerance)
    if len(parts) < 2:
        return parts[0] if parts else None
    joined = join(parts)
    # parts that overlap would cancel each other
    return (
        joined
        if tolerance or fill([joined], size) == (whole := fill(parts, size))
        else join(traced(whole))
    )


def inside(polygon: Polygon, size: tuple[int, int]) -> Polygon | None:
    """A polygon without what lies beyond the image, with the same pixels; None if no pixel is left."""
    moved = np.clip(polygon, 0, (size[1], size[0]))
    if (moved == polygon).all() or fill([moved], size) == (mask := fill([polygon], size)):
        return moved
    rings = traced(mask)  # an edge that leaves the image turned, as its end was moved to the border
    return join(rings) if rings else None


def _areal(mask: Sequence[Sequence[float]]) -> list[Polygon]:
    """Polygons that are more than a line."""
    return [p for part in mask if len(p := np.array(part, dtype=float).reshape(-1, 2)) > 2]


def _area(ring: np.ndarray) -> float:
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum())


def box_of(raw: Mapping[str, Any]) -> Box | None:
    """The annotated box, xyxy; None without one."""
    if not raw.get("bbox"):
        return None
    x, y, width, height = raw["bbox"]
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def mask_box(raw: Mapping[str, Any], size: tuple[int, int]) -> Box | None:
    """The box around the mask, xyxy; None without one."""
    mask = raw.get("segmentation")
    if not mask:
        return None
    if isinstance(mask, Mapping):
        x0, y0, x1, y1 = coco_rle.bbox({**mask, "size": list(size)})
        return (float(x0), float(y0), float(x1), float(y1)) if x1 > x0 else None
    points = np.concatenate(_areal(mask) or [np.zeros((0, 2))])
    return (
        tuple(np.concatenate([points.min(axis=0), points.max(axis=0)]).tolist())
        if len(points)
        else None
    )


def keypoints_of(
    raw: Mapping[str, Any], category: Mapping[str, Any]
) -> list[tuple[str, float, float, int]]:
    """Name, x, y, visibility of the labeled keypoints."""
    values = raw.get("keypoints") or []
    rows = zip(
        category.get("keypoints") or (), values[0::3], values[1::3], values[2::3], strict=False
    )
    return [(name, x, y, int(v)) for name, x, y, v in rows if v > 0]


def around(keypoints: Sequence[tuple[str, float, float, int]]) -> Box | None:
    """The box around keypoints, xyxy, their pixels included."""
    if not keypoints:
        return None
    x, y = [j[1] for j in keypoints], [j[2] for j in keypoints]
    return min(x), min(y), max(x) + 1, max(y) + 1


def own_box(raw: Mapping[str, Any], size: tuple[int, int]) -> Box | None:
    """The annotated box where it is not simply that around the mask, within half a pixel."""
    box, found = box_of(raw), mask_box(raw, size)
    return (
        box
        if box and (found is None or max(abs(a - b) for a, b in zip(box, found, strict=True)) > 0.5)
        else None
    )


def drawable(raw: Mapping[str, Any], tolerance: float) -> list[Polygon]:
    """Polygons for a format that has masks of pixels besides: the annotated ones, and simplified polygons of an RLE without holes; else none."""
    mask = raw.get("segmentation")
    if not isinstance(mask, Mapping):
        return _areal(mask or [])
    return (
        traced(mask, tolerance)
        if tolerance and all(_area(ring) > 0 for ring in trace(coco_rle.decode_crop(mask)[0]))
        else []
    )


def numbers(values: Any) -> list[Any]:
    """An array as lists of what `number` gives."""
    rounded = np.asarray(values, dtype=np.float64).round(6)
    whole = rounded.astype(np.int64)
    return whole.tolist() if (whole == rounded).all() else rounded.tolist()


def number(value: float) -> float | int:
    """As a file shows it: whole where it is, else to a millionth."""
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded
