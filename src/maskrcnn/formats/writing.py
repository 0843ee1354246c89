"""What writers build on: the parts of an annotation, the output folder, and what gets lost.

In:  COCO annotations.
Out: `polygons`, `rle_of`, `box_of`, `keypoints_of`, ...: one part of an annotation each.
     `ConversionTarget` writes files and copies or links images.
     `Unrepresentable` counts what the format cannot represent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.coco_types import RLE, CocoAnnotation, CocoCategory, CocoContent, CocoImage
from ..annotations.contours import Polygon, fill, join, signed_area, simplify, trace, union
from ..runtime.atomic_files import writing
from ..runtime.progress import track
from .reading import Annotated, BoxXYXY, relative

ImageFiles = Literal["copy", "link", "reference"]
_SHOWN = 3  # locations that are listed for each kind of loss


@dataclass
class Unrepresentable:
    """What the target format could not represent, counted.

    False if nothing was lost; `str` lists each kind with its count and the first locations.
    """

    locations: dict[str, list[str]] = field(default_factory=dict)
    """Kind of loss -> where it occurred."""

    def add(self, kind: str, where: str) -> None:
        """Adds one loss, and where it occurred."""
        self.locations.setdefault(kind, []).append(where)

    def add_category(self, kind: str, name: str) -> None:
        """Adds one loss of a category, which several splits may have."""
        if name not in self.locations.get(kind, ()):
            self.add(kind, name)

    def __bool__(self) -> bool:
        return bool(self.locations)

    def __str__(self) -> str:
        lines = []
        for kind, locations in self.locations.items():
            more = ", ..." if len(locations) > _SHOWN else ""
            lines.append(f"{kind} ({len(locations)}): {', '.join(locations[:_SHOWN])}{more}")
        return "\n".join(lines)


@dataclass
class ConversionTarget:
    """Where a writer's files go.

    Everything is written into `folder`, which is renamed to `home` once it is complete.
    """

    format: str
    annotated: Annotated
    folder: Path
    home: Path
    """Paths inside of written files are relative to this folder."""
    file: Path
    """The file to write, for formats that write one file per split."""
    split: str = ""
    image_files: ImageFiles = "reference"
    tolerance: float = 0.0
    """By how many pixels traced polygons may be simplified; 0 = exact."""
    progress: bool = False

    def each(self) -> Iterator[tuple[CocoImage, list[CocoAnnotation]]]:
        """Each image with its annotations, with a progress bar."""
        return iter(
            track(
                by_image(self.annotated.content),
                f"writing {self.split or self.format}",
                total=len(self.annotated.content["images"]),
                show=None if self.progress else False,
            )
        )

    def write(self, path: Path, data: str | bytes) -> None:
        """Writes a new file.

        Raises:
            ValueError: the file exists, because two images map to it.
        """
        if path.exists():
            raise ValueError(
                f"two images map to one file, {path.relative_to(self.folder)}: "
                "rename them so that the names differ in more than the suffix"
            )
        self.rewrite(path, data)

    def rewrite(self, path: Path, data: str | bytes) -> None:
        """Writes a file, and replaces it if it exists."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    def source(self, image: CocoImage) -> Path:
        """The file of an image.

        Raises:
            ValueError: the image folder is unknown, or the file is missing.
        """
        if self.annotated.images is None:
            raise ValueError(
                f"{self.annotated.name}: {self.format} needs the images, which were not found; "
                f"pass their folder: {self.annotated.images_option}"
            )
        path = self.annotated.images / image["file_name"]
        if not path.is_file():
            raise ValueError(
                f"{path}: image not found; "
                f"check that {self.annotated.images_option} is the right folder"
            )
        return path

    def name(self, image: CocoImage) -> PurePath:
        """The image's path below the deepest folder that contains all images."""
        return PurePath(os.path.relpath(self._absolute(image), self._common))

    @cached_property
    def _common(self) -> str:
        images = self.annotated.content["images"]
        return os.path.commonpath([os.path.dirname(self._absolute(image)) for image in images])

    def _absolute(self, image: CocoImage) -> str:
        return os.path.abspath((self.annotated.images or Path()) / image["file_name"])

    def bring(self, image: CocoImage, folder: Path) -> Path:
        """Copies or links an image into a folder.

        Returns:
            Its new path.

        Raises:
            ValueError: the image is missing, cannot be linked, or shares its name with another.
        """
        source = self.source(image)
        path = folder / self.name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ValueError(
                f"{path.relative_to(self.folder)}: two images have this name; rename one"
            )

        if self.image_files != "link":
            with writing(path):
                shutil.copyfile(source, path)
            return path
        try:
            path.symlink_to(source.resolve())
        except OSError as error:
            raise ValueError(
                f"{source.name}: cannot be linked ({error}); "
                'copy the images: image_files="copy" (--image-files copy)'
            ) from None
        return path

    def refer(self, image: CocoImage, folder: Path) -> str:
        """The path by which a file in `folder` refers to an image.

        The image itself is copied or linked first if `image_files` says so.
        """
        if self.image_files != "reference":
            return relative(self.bring(image, self.folder / "images"), folder)
        if self.annotated.images is None:
            return image["file_name"]
        return relative(
            (self.annotated.images / image["file_name"]).resolve(),
            (self.home / folder.relative_to(self.folder)).resolve(),
        )


def by_image(content: CocoContent) -> Iterator[tuple[CocoImage, list[CocoAnnotation]]]:
    """Each image with its annotations."""
    annotations: dict[Any, list[CocoAnnotation]] = {image["id"]: [] for image in content["images"]}
    for raw in content["annotations"]:
        annotations[raw["image_id"]].append(raw)
    for image in content["images"]:
        yield image, annotations[image["id"]]


def categories_by_id(content: CocoContent) -> dict[int, CocoCategory]:
    """Category id -> category, sorted by id."""
    return {c["id"]: c for c in sorted(content["categories"], key=lambda c: c["id"])}


def size_of(image: CocoImage) -> tuple[int, int]:
    """(height, width)."""
    return image["height"], image["width"]


def label_of(raw: CocoAnnotation, image: CocoImage) -> str:
    """How a message names an annotation."""
    where = raw.get("where") or f"annotation {raw['id']}"
    return f"{where} ({image['file_name']})"


def ignored(raw: CocoAnnotation) -> bool:
    """Whether it is a crowd or a region to ignore."""
    return bool(raw.get("iscrowd") or raw.get("ignore"))


def rle_of(raw: CocoAnnotation, size: tuple[int, int]) -> RLE | None:
    """The mask as compressed RLE; None without a mask."""
    mask = raw.get("segmentation")
    if not mask:
        return None
    if isinstance(mask, Mapping):
        return union([{**mask, "size": list(size)}], size)
    return fill(_areal(mask), size)


def polygons(raw: CocoAnnotation, size: tuple[int, int], tolerance: float = 0.0) -> list[Polygon]:
    """Polygons whose union is the mask; an RLE is traced along the edges of its pixels.

    Args:
        raw: the annotation.
        size: (height, width) of the image.
        tolerance: by how many pixels traced polygons may be simplified; 0 = exact.

    Returns:
        The polygons; empty without a mask. Cuts of zero width join holes to the polygon around
        them.
    """
    mask = raw.get("segmentation")
    if not mask:
        return []
    if isinstance(mask, Mapping):
        return traced(cast("RLE", mask), tolerance)
    return _areal(mask)


def traced(rle: RLE, tolerance: float = 0.0) -> list[Polygon]:
    """The polygons of an RLE; an RLE with holes gives a single polygon."""
    crop, x0, y0 = coco_rle.decode_crop(rle)
    contours = [contour + np.array([x0, y0]) for contour in trace(crop)]
    has_holes = any(signed_area(contour) < 0 for contour in contours)
    if tolerance:
        contours = [simplify(contour, tolerance) for contour in contours]
    return [join(contours)] if has_holes else contours


def one_polygon(
    raw: CocoAnnotation, size: tuple[int, int], tolerance: float = 0.0
) -> Polygon | None:
    """The mask as one polygon, whose parts are joined by cuts; None without a mask."""
    parts = polygons(raw, size, tolerance)
    if len(parts) < 2:
        return parts[0] if parts else None
    joined = join(parts)
    if tolerance:
        return joined

    # Parts that overlap would cancel each other; then the union is traced instead.
    whole = fill(parts, size)
    return joined if fill([joined], size) == whole else join(traced(whole))


def inside(polygon: Polygon, size: tuple[int, int]) -> Polygon | None:
    """A polygon with the same pixels that stays inside of the image; None if no pixel is left."""
    clipped = np.clip(polygon, 0, (size[1], size[0]))
    if (clipped == polygon).all():
        return clipped
    mask = fill([polygon], size)
    if fill([clipped], size) == mask:
        return clipped

    # Clipping its end turned an edge that leaves the image, so the pixels are traced.
    contours = traced(mask)
    return join(contours) if contours else None


def _areal(mask: Sequence[Sequence[float]]) -> list[Polygon]:
    """The polygons that have at least three points."""
    parts = [np.array(part, dtype=float).reshape(-1, 2) for part in mask]
    return [part for part in parts if len(part) > 2]


def box_of(raw: CocoAnnotation) -> BoxXYXY | None:
    """The annotated box, xyxy; None without one."""
    if not raw.get("bbox"):
        return None
    x, y, width, height = raw["bbox"]
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def mask_box(raw: CocoAnnotation, size: tuple[int, int]) -> BoxXYXY | None:
    """The box around the mask, xyxy; None without a mask."""
    mask = raw.get("segmentation")
    if not mask:
        return None
    if isinstance(mask, Mapping):
        x0, y0, x1, y1 = coco_rle.bbox({**mask, "size": list(size)})
        return (float(x0), float(y0), float(x1), float(y1)) if x1 > x0 else None

    points = np.concatenate(_areal(mask) or [np.zeros((0, 2))])
    if not len(points):
        return None
    x0, y0 = points.min(axis=0).tolist()
    x1, y1 = points.max(axis=0).tolist()
    return x0, y0, x1, y1


def keypoints_of(
    raw: CocoAnnotation, category: CocoCategory
) -> list[tuple[str, float, float, int]]:
    """Name, x, y, visibility of the labeled keypoints."""
    names = category.get("keypoints") or ()
    values = raw.get("keypoints") or []
    rows = zip(names, values[0::3], values[1::3], values[2::3], strict=False)
    return [(name, x, y, int(v)) for name, x, y, v in rows if v > 0]


def around(keypoints: Sequence[tuple[str, float, float, int]]) -> BoxXYXY | None:
    """The box around keypoints, xyxy, their pixels included."""
    if not keypoints:
        return None
    x = [keypoint[1] for keypoint in keypoints]
    y = [keypoint[2] for keypoint in keypoints]
    return min(x), min(y), max(x) + 1, max(y) + 1


def own_box(raw: CocoAnnotation, size: tuple[int, int]) -> BoxXYXY | None:
    """The annotated box, unless it is the one around the mask to within half a pixel."""
    box = box_of(raw)
    if box is None:
        return None
    around_mask = mask_box(raw, size)
    if around_mask is None:
        return box
    difference = max(abs(a - b) for a, b in zip(box, around_mask, strict=True))
    return box if difference > 0.5 else None


def drawable(raw: CocoAnnotation, tolerance: float) -> list[Polygon]:
    """The polygons to write for a format that can store pixel masks as well.

    These are the annotated polygons, or simplified ones of an RLE without holes. An RLE that must
    stay exact, or has holes, gives none: the format's own mask shape holds it better.
    """
    mask = raw.get("segmentation")
    if not isinstance(mask, Mapping):
        return _areal(mask or [])
    if not tolerance or any(signed_area(c) <= 0 for c in trace(coco_rle.decode_crop(mask)[0])):
        return []
    return traced(cast("RLE", mask), tolerance)


def numbers(values: Any) -> list[Any]:
    """An array as nested lists, with each value as `number` returns it."""
    rounded = np.asarray(values, dtype=np.float64).round(6)
    whole = rounded.astype(np.int64)
    return whole.tolist() if (whole == rounded).all() else rounded.tolist()


def number(value: float) -> float | int:
    """A value as it is written to a file: an int if it is whole, else rounded to a millionth."""
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded
