"""YOLO (Ultralytics): data.yaml, a folder of images per split, and a text file of labels per image.

Each line of a text file is an object, in fractions of the image's width and height:

    segmentation    class x y x y ...
    detection       class cx cy w h
    pose            class cx cy w h x y [v] ...

A line of eight numbers is a polygon of four points, which is also what an oriented box is. A folder
with images/ and labels/ takes its names from its own data.yaml, or from one above it.

A line holds one polygon: several parts, and holes, are joined by cuts of zero width, which change
no pixel. Numbers have ten digits, so coordinates survive a round trip to within a millionth of a
pixel.

Source: docs.ultralytics.com, "Instance segmentation datasets" and "Pose estimation datasets".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.categories import mirrored_keypoints, parse_categories
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoImage
from ..annotations.problems import DataError
from ..images.image_files import images_in
from .annotation_source import AnnotationSource, with_slashes
from .bounded_files import read_text, read_yaml
from .format import Format
from .reading import (
    COCO_PERSON,
    Annotated,
    AnnotatedObject,
    BoxXYXY,
    DatasetBuilder,
    MissingSplit,
    report_left_out,
    tracked,
)
from .writing import (
    ConversionTarget,
    Unrepresentable,
    around,
    box_of,
    categories_by_id,
    ignored,
    inside,
    keypoints_of,
    label_of,
    mask_box,
    one_polygon,
    size_of,
)

SPLITS = ("train", "val", "test")
_MOST_CLASSES = 100_000
_MOST_KEYPOINTS = 10_000
_BEYOND = 0.01  # fraction of a side that labels may exceed the image by, as Ultralytics allows


class YoloSettings(TypedDict, total=False):
    """What is read from data.yaml; nothing of it is checked yet."""

    path: Any
    train: Any
    val: Any
    test: Any
    nc: Any
    names: Any
    kpt_shape: Any
    flip_idx: Any
    kpt_names: Any


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether there is a data.yaml, or labels beside images."""
    if _yaml(source) is not None:
        return True
    return source.first("labels/**/*.txt") is not None and (source.path / "images").is_dir()


def splits(source: AnnotationSource) -> list[str]:
    """The splits that data.yaml lists."""
    yaml = _yaml(source)
    return [] if yaml is None else [split for split in SPLITS if _load(yaml).get(split)]


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one split; without a data.yaml, all images."""
    yaml = _yaml(source)
    settings = _load(yaml) if yaml is not None else _settings_above(source)
    root = source.path if yaml is None else yaml.parent / str(settings.get("path") or "")
    root = root.resolve() if root.is_dir() else (yaml or source.path).parent.resolve()
    if yaml is None:
        image_paths = images_in(root / "images")
    else:
        image_paths = _images(settings.get(split), root, yaml, images)

    builder = DatasetBuilder(f"{source.name}:{split}" if split else source.name, root)
    names = _names(settings, source)
    for index, name in enumerate(names):
        keypoints, flip = _keypoints(settings, index, yaml or source.path)
        builder.category(name, keypoints, flip=flip)
    _report_names(settings, names, builder)
    _report_unlabeled(image_paths, builder)
    report_left_out(builder, image_paths or [root / "images" / "any"])

    dimensions = int(settings["kpt_shape"][1]) if settings.get("kpt_shape") else 0
    lines = _Lines(builder, names, dimensions)
    for image_path in tracked(image_paths, "reading labels"):
        labels = _labels(image_path)
        image_id = builder.image(Path(os.path.relpath(image_path, root)).as_posix())
        if image_id is None or not labels.is_file():
            continue
        try:
            text = read_text(labels)
        except DataError as error:
            builder.problem("broken file", labels.name, str(error), "restore the file")
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                lines.add(image_id, line.split(), f"{labels.name}, line {number}")
    return builder.build()


def _report_names(settings: YoloSettings, names: Sequence[str], builder: DatasetBuilder) -> None:
    """Reports names that several classes share, and another number of classes."""
    for name, count in Counter(names).items():
        if count > 1:
            numbers = ", ".join(str(k) for k, other in enumerate(names) if other == name)
            builder.problem(
                "name used twice",
                builder.name,
                f'classes {numbers} are all named "{name}"',
                "they are one category; if they differ, correct names in data.yaml",
                False,
            )
    if "nc" in settings and "names" in settings and settings["nc"] != len(names):
        builder.problem(
            "number of classes differs",
            builder.name,
            f"nc is {settings['nc']!r:.20}, names has {len(names)} entries",
            "names is used; correct nc or names in data.yaml",
            False,
        )


def _report_unlabeled(images: Sequence[Path], builder: DatasetBuilder) -> None:
    """Reports images without a text file, which are examples without objects.

    If no image has one, the labels are somewhere else, and that is an error.
    """
    missing = [labels for image in images if not (labels := _labels(image)).is_file()]
    if not missing:
        return
    if len(missing) == len(images):
        builder.problem(
            "no labels",
            builder.name,
            f"none of the {len(images)} images has a text file; the first would be {missing[0]}",
            "name the label folder like the image folder, with labels/ instead of images/",
        )
        return
    builder.problem(
        "images without a text file",
        builder.name,
        f"{len(missing)} of {len(images)}; the first would be {missing[0]}",
        "they are used as examples without objects",
        False,
    )


@dataclass
class _Lines:
    """Turns lines of label files into objects."""

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
                f"class {label}, but names in data.yaml has {len(self.names)} entries",
                "add its name, or correct the line",
            )
            return

        if not self.dimensions and _may_be_tracked_box(values):
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
                f"{len(values)} numbers after the class",
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


def _may_be_tracked_box(values: np.ndarray) -> bool:
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


def _yaml(source: AnnotationSource) -> Path | None:
    """The data.yaml that the path is, or that its folder contains."""
    if source.path.is_file():
        return source.path if source.path.suffix.lower() in (".yaml", ".yml") else None
    for pattern in ("*.yaml", "*.yml"):
        for path in sorted(source.path.glob(pattern)):
            keys = _load(path).keys()
            if {"names", "nc"} & keys and set(SPLITS) & keys:
                return path
    return None


def _settings_above(source: AnnotationSource) -> YoloSettings:
    """The settings of one split: those of a data.yaml one or two folders up; else empty."""
    path = source.path.resolve()
    for folder in (path.parent, path.parent.parent):
        yaml = _yaml(AnnotationSource(folder))
        if yaml is not None:
            return _load(yaml)
    return {}


def _load(path: Path) -> YoloSettings:
    """The settings of a YAML file; empty if it holds anything but a mapping."""
    content = read_yaml(path)
    return cast("YoloSettings", content) if isinstance(content, dict) else {}


def _names(settings: YoloSettings, source: AnnotationSource) -> list[str]:
    """Names of the classes: from data.yaml, else from classes.txt, else their numbers.

    Raises:
        DataError: there are none, or they are neither a list nor numbered.
    """
    given = settings.get("names")
    if isinstance(given, dict) and all(str(key).isdecimal() for key in given):
        by_number = {int(key): name for key, name in given.items()}  # keys may be quoted
        _check_count(max(by_number, default=-1) + 1, source)
        given = [by_number.get(i, i) for i in range(max(by_number, default=-1) + 1)]
    elif given is not None and not isinstance(given, list):
        raise DataError(
            f"{source.name}: expected names as a list, as [cat, dog], "
            f"or by number, as {{0: cat, 1: dog}}; got {given!r:.80}"
        )

    if given is None:
        candidates = (source.folder / "classes.txt", source.folder / "labels" / "classes.txt")
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            given = range(_check_count(settings.get("nc", 0), source))
        else:
            given = read_text(file).split("\n")
        given = [name for name in given if name != ""]
    if not given:
        raise DataError(
            f"{source.name}: no class names; "
            "write them as names: in data.yaml, or one per line in classes.txt"
        )
    return [str(name).strip() for name in given]


def _check_count(count: Any, source: AnnotationSource) -> int:
    """The number of classes, if it is one."""
    if not isinstance(count, int) or not 0 <= count <= _MOST_CLASSES:
        raise DataError(
            f"{source.name}: expected 1 to {_MOST_CLASSES:,} classes, got {count!r:.30}; "
            "correct nc or names"
        )
    return count


def _keypoints(settings: YoloSettings, index: int, path: Path) -> tuple[list[str], list[int]]:
    """Names of a class's keypoints, and the one that each becomes in a mirror image.

    Names are kpt_names; else COCO's, if number and flip_idx are COCO's; else numbered.

    Raises:
        DataError: kpt_shape, flip_idx and kpt_names contradict each other.
    """
    shape = settings.get("kpt_shape")
    if not shape:
        return [], []
    is_shape = isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int)
    if not is_shape or shape[1] not in (2, 3) or not 0 < shape[0] <= _MOST_KEYPOINTS:
        raise DataError(
            f"{path.name}: expected kpt_shape as [keypoints, 2] (x, y) "
            f"or [keypoints, 3] (x, y, visibility), got {shape}"
        )
    count = shape[0]
    given_flip = settings.get("flip_idx") or []
    flip: list[int] = given_flip if isinstance(given_flip, list) else [given_flip]
    if flip and sorted(map(str, flip)) != sorted(map(str, range(count))):
        raise DataError(
            f"{path.name}: flip_idx must name each of the {count} keypoints of kpt_shape once, "
            f"counted from 0; got {flip}"
        )

    given = settings.get("kpt_names") or {}
    names = given.get(index) if isinstance(given, dict) else given
    if names and not isinstance(names, list):
        raise DataError(f"{path.name}: expected kpt_names as {{0: [nose, ...]}}, got {names!r:.40}")
    if not names:
        is_person = count == len(COCO_PERSON) and flip == list(mirrored_keypoints(COCO_PERSON))
        names = COCO_PERSON if is_person else [f"keypoint {j}" for j in range(count)]
    if len(names) != count:
        raise DataError(
            f"{path.name}: expected {count} names in kpt_names (kpt_shape), got {len(names)}"
        )
    return [str(name) for name in names], flip


def _images(entry: Any, root: Path, yaml: Path, images: str | Path | None) -> list[Path]:
    """The images of a split: folders, text files of paths, or lists of either.

    Raises:
        MissingSplit: a folder or file does not exist.
    """
    bases = [*([Path(images)] if images is not None else []), root, yaml.parent.resolve()]
    paths: list[Path] = []
    for given in map(str, entry if isinstance(entry, list) else [entry]):
        location = _location(given, bases, yaml)
        if location.is_dir():
            paths += images_in(location)
            continue
        folders = (location.parent, root)
        for line in read_text(location).splitlines():
            if name := line.strip():
                name = with_slashes(name, folders)
                existing = (f / name for f in folders if (f / name).is_file())
                paths.append(next(existing, root / name))
    return [Path(os.path.normpath(path)) for path in paths]


def _location(given: str, bases: Sequence[Path], yaml: Path) -> Path:
    """The folder or file that a split's entry means."""
    if not any((base / given).exists() for base in bases):
        given = given.replace("\\", "/")
    # Roboflow writes ../train/images for train/images.
    candidates = [base / part for base in bases for part in (given, given.removeprefix("../"))]
    location = next((path for path in candidates if path.exists()), None)
    if location is None:
        searched = ", ".join(map(str, dict.fromkeys(candidates)))
        raise MissingSplit(
            f"{yaml.name}: no folder or file {given}; searched {searched}; "
            f"correct path: or {given!r}"
        )
    return location


def _labels(image: Path) -> Path:
    """The labels of an image: in labels/ for the last images/ of its path, else beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes data.yaml, images/SPLIT and labels/SPLIT.

    Raises:
        ValueError: a second split has the same key, or poses differ in their number of keypoints.
    """
    categories = categories_by_id(annotated.content)
    index = {category_id: k for k, category_id in enumerate(categories)}
    is_pose = target.format == "yolo-pose"
    keypoints = _common_keypoints(categories) if is_pose else 0
    boxes_only = not any(raw.get("segmentation") for raw in annotated.content["annotations"])
    split = _split_name(target)

    for image, raws in target.each():
        lines: list[str] = []
        for raw in raws:
            where = label_of(raw, image)
            if ignored(raw):
                lost.add("crowds and regions to ignore, left out", where)
                continue
            if is_pose:
                category = categories[raw["category_id"]]
                values = _pose(raw, image, category, keypoints, lost)
            else:
                values = _segment(raw, image, boxes_only, target.tolerance, lost)
            if values is not None:
                words = [str(index[raw["category_id"]]), *(f"{v:.10g}" for v in values)]
                lines.append(" ".join(words))

        folder = target.folder / "images" / split
        name = target.bring(image, folder).relative_to(folder).with_suffix(".txt")
        labels = target.folder / "labels" / split / name
        target.write(labels, "".join(line + "\n" for line in lines))
    _write_yaml(target, split, categories, keypoints, lost)


def _segment(
    raw: CocoAnnotation,
    image: CocoImage,
    boxes_only: bool,
    tolerance: float,
    lost: Unrepresentable,
) -> list[float] | None:
    """The values of a line for segmentation; None, with a loss added, if there are none.

    An object without a mask is a box if all objects are (`boxes_only`), else a rectangle.
    """
    height, width = size_of(image)
    where = label_of(raw, image)
    if any(v > 0 for v in (raw.get("keypoints") or [])[2::3]):
        lost.add("keypoints", where)
    polygon = one_polygon(raw, (height, width), tolerance)
    if polygon is not None and (polygon := inside(polygon, (height, width))) is not None:
        values = (polygon / (width, height)).ravel()
        if _may_be_tracked_box(values):
            values = np.concatenate([values, values[-2:]])  # the reader asks for this
        return values.tolist()

    box = box_of(raw)
    if box is None:
        lost.add("objects with neither mask nor box, left out", where)
        return None
    if boxes_only:
        return _box_values(box, (height, width))
    lost.add("boxes without a mask, written as rectangles", where)
    x0, y0, x1, y1 = _box_inside(box, (height, width))
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return (corners / (width, height)).ravel().tolist()


def _pose(
    raw: CocoAnnotation,
    image: CocoImage,
    category: CocoCategory,
    count: int,
    lost: Unrepresentable,
) -> list[float] | None:
    """The values of a line for poses with `count` keypoints; None if there is no box."""
    height, width = size_of(image)
    where = label_of(raw, image)
    if raw.get("segmentation"):
        lost.add("masks", where)
    box = box_of(raw) or mask_box(raw, (height, width))
    if box is None:
        lost.add("objects without a box, written with the box around their keypoints", where)
        box = around(keypoints_of(raw, category))
    if box is None:
        return None

    # Keypoints outside of the image are unlabeled, as they are when COCO is read.
    values = list(raw.get("keypoints") or ()) or [0] * 3 * count
    points = np.array(values, dtype=float).reshape(-1, 3)
    xy = points[:, :2]
    in_image = (xy >= -KEYPOINT_OFFSET) & (xy <= (width, height))
    labeled = in_image.all(axis=1, keepdims=True) & (points[:, 2:] > 0)
    keypoints = points * labeled / (width, height, 1)
    return [*_box_values(box, (height, width)), *keypoints.ravel().tolist()]


def _box_values(box: BoxXYXY, size: tuple[int, int]) -> list[float]:
    """Center and size of a box, as fractions of the image."""
    height, width = size
    x0, y0, x1, y1 = _box_inside(box, size)
    return [
        (x0 + x1) / 2 / width,
        (y0 + y1) / 2 / height,
        (x1 - x0) / width,
        (y1 - y0) / height,
    ]


def _box_inside(box: BoxXYXY, size: tuple[int, int]) -> BoxXYXY:
    """A box clipped to the image."""
    x0, y0, x1, y1 = np.clip(box, 0, (size[1], size[0]) * 2).tolist()
    return x0, y0, x1, y1


def _split_name(target: ConversionTarget) -> str:
    """The key of data.yaml for a split.

    That is val for "valid" or "instances_val2017", and train for a name that contains no key.
    """
    name = next((split for split in SPLITS if split in target.split.lower()), "train")
    if (target.folder / "images" / name).exists():
        raise ValueError(
            f'{target.format}: "{target.split}" is a second split for the key "{name}" '
            "of data.yaml; convert the splits separately"
        )
    return name


def _common_keypoints(categories: Mapping[int, CocoCategory]) -> int:
    """The number of keypoints that all categories with keypoints have."""
    counts = {c["name"]: len(c.get("keypoints") or ()) for c in categories.values()}
    distinct = set(counts.values()) - {0}
    if len(distinct) != 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            "yolo-pose needs the same number of keypoints for all categories, "
            f"got {listed}; choose coco, cvat or labelme"
        )
    return distinct.pop()


def _write_yaml(
    target: ConversionTarget,
    split: str,
    categories: Mapping[int, CocoCategory],
    keypoints: int,
    lost: Unrepresentable,
) -> None:
    """Writes data.yaml, or adds a split to it."""
    import yaml

    path = target.folder / "data.yaml"
    settings: dict[str, object] = dict(_load(path)) if path.exists() else {"path": "."}
    settings[split] = f"images/{split}"
    settings["names"] = {n: c["name"] for n, c in enumerate(categories.values())}

    if keypoints:
        parsed = parse_categories(list(categories.values()))
        first = next(c for c in parsed if c.keypoints)
        settings["kpt_shape"] = [keypoints, 3]
        settings["flip_idx"] = list(first.mirrored)
        names = [list(c.keypoints or first.keypoints) for c in parsed]
        settings["kpt_names"] = dict(enumerate(names))
        for category in parsed:
            if category.keypoints and category.mirrored != first.mirrored:
                kind = f'left and right of keypoints (flip) other than those of "{first.name}"'
                lost.add(kind, category.name)
    for category in categories.values():
        if category.get("skeleton"):
            lost.add("limbs of skeletons", category["name"])
    target.rewrite(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


YOLO = Format(
    name="yolo",
    description=(
        "YOLO: a data.yaml with names and train/val, or its folder, "
        "or a folder with images/ and labels/*.txt"
    ),
    written_as=("yolo-seg", "yolo-pose"),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    needs_images_beside=True,
    one_folder_for_all_splits=True,
    holds_scores=False,
)
