"""YOLO (Ultralytics): data.yaml, a folder of images for each split, and a text file of labels for each image, a line an object.

Segmentation: class x y x y ..    Detection: class cx cy w h    Pose: class cx cy w h x y [v] ..    all as parts of the image's width and height.
A line holds one polygon: several parts, and holes, are joined to one polygon by cuts without width, which changes no pixel.
Numbers have ten digits, so that a coordinate comes back exact to a millionth of a pixel.

Source: docs.ultralytics.com, "instance segmentation datasets" and "pose estimation datasets".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.categories import mirrored_keypoints, parse_categories
from ..annotations.problems import DataError
from ..images.files import images_in
from .reading import COCO_PERSON, Annotated, Box, Builder, Drawn, MissingSplit, tracked
from .source import Source, with_slashes
from .writing import (
    Losses,
    Target,
    around,
    box_of,
    ignored,
    inside,
    keypoints_of,
    label_of,
    mask_box,
    names_of,
    one_polygon,
    size_of,
)

NAMES = ("yolo-seg", "yolo-pose")
LOOKS_LIKE = "a data.yaml with names and train/val (YOLO), or its folder, or a folder with images/ and labels/*.txt"
SPLITS = ("train", "val", "test")
_BEYOND = 0.01  # parts of the side that labels may reach beyond the image, as Ultralytics allows


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is YOLO's."""
    yaml = _yaml(source)
    return yaml is not None or (
        source.first("labels/**/*.txt") is not None and (source.path / "images").is_dir()
    )


def splits(source: Source) -> list[str]:
    """Those that data.yaml lists."""
    yaml = _yaml(source)
    return [] if yaml is None else [s for s in SPLITS if _load(yaml).get(s)]


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads a split; where there is no data.yaml, all images."""
    yaml = _yaml(source)
    settings = {} if yaml is None else _load(yaml)
    root = (yaml.parent / str(settings.get("path") or "")) if yaml else source.path
    root = root.resolve() if root.is_dir() else (yaml or source.path).parent.resolve()
    image_paths = (
        images_in(root / "images") if yaml is None else _images(settings[split], root, yaml, images)
    )
    builder = Builder(f"{source.name}:{split}" if split else source.name, root)
    names = _names(settings, source)
    for index, name in enumerate(names):
        builder.category(name, **_skeleton(settings, index, yaml or source.path))
    dims = int(settings["kpt_shape"][1]) if settings.get("kpt_shape") else 0
    _note_unlabeled(image_paths, builder)
    for image_path in tracked(image_paths, "reading labels"):
        labels = _labels(image_path)
        image = builder.image(Path(os.path.relpath(image_path, root)).as_posix())
        if image is not None and labels.is_file():
            for number, line in enumerate(
                labels.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1
            ):
                if line.strip():
                    _line(
                        builder, image, line.split(), f"{labels.name}, line {number}", names, dims
                    )
    return builder.done()


def _note_unlabeled(images: Sequence[Path], builder: Builder) -> None:
    """Notes images without a file of labels, which are examples without objects; that all are is no data set."""
    missing = [labels for image in images if not (labels := _labels(image)).is_file()]
    if missing and len(missing) == len(images):
        suggestion = "call the folder of the labels as that of the images, with labels/ for images/"
        builder.problem(
            "no labels",
            builder.name,
            f"none of the {len(images)} images has a text file; the first would be {missing[0]}",
            suggestion,
        )
    elif missing:
        detail = f"{len(missing)} of {len(images)}; the first would be {missing[0]}"
        builder.problem(
            "images without a text file",
            builder.name,
            detail,
            "they are taken as examples without objects",
            False,
        )


def _line(
    builder: Builder, image: int, words: list[str], where: str, names: Sequence[str], dims: int
) -> None:
    try:
        label, values = int(float(words[0])), np.array(words[1:], dtype=np.float64)
    except ValueError:
        builder.problem(
            "broken line",
            where,
            f"{' '.join(words):.60}",
            "write numbers: class x y x y .., or class cx cy w h",
        )
        return
    if not 0 <= label < len(names):
        builder.problem(
            "unknown class",
            where,
            f"class {label}, names in data.yaml has {len(names)}",
            "add its name, or mend the line",
        )
        return
    keypoints = builder.keypoints(names[label])
    polygon = not dims and len(values) >= 6 and len(values) % 2 == 0
    if not polygon and len(values) not in (4, 4 + len(keypoints) * dims):
        wanted = (
            f"4 + {len(keypoints)} x {dims} (kpt_shape)"
            if dims
            else "4 (a box) or 6, 8, .. (a polygon)"
        )
        builder.problem(
            "line of another length",
            where,
            f"{len(values)} numbers behind the class",
            f"write {wanted}",
        )
        return
    points = values[4:].reshape(-1, dims) if dims else np.zeros((0, 2))
    placed = values if polygon or not dims else np.concatenate([values[:4], points[:, :2].ravel()])
    if not np.isfinite(values).all() or placed.min() < -_BEYOND or placed.max() > 1 + _BEYOND:
        suggestion = "divide x by the image's width and y by its height"
        builder.problem(
            "not in parts of the image",
            where,
            f"values from {placed.min():g} to {placed.max():g}, must be 0..1",
            suggestion,
        )
        return
    drawn = Drawn(names[label], where)
    height, width = builder.size(image)
    if polygon:
        drawn.polygons.append((values.reshape(-1, 2) * (width, height)).round(6))
    else:
        cx, cy, w, h = (values[:4] * (width, height, width, height)).tolist()
        x0, y0, x1, y1 = np.round([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 6).tolist()
        drawn.boxes.append((x0, y0, x1, y1))
        drawn.keypoints = {
            name: _keypoint(p, width, height) for name, p in zip(keypoints, points, strict=False)
        }
        if unusual := [v for v in points[:, 2:].ravel().tolist() if v not in (0, 1, 2)]:
            suggestion = "0.5 and more is taken as 2, visible, less as 0, unlabeled"
            builder.problem(
                "visibility is not 0, 1 or 2", where, f"{unusual[0]:g}", suggestion, False
            )
    builder.add(image, drawn)


def _keypoint(point: np.ndarray, width: int, height: int) -> tuple[float, float, int]:
    """x, y, visibility; without a visibility, (0, 0) is an unlabeled keypoint."""
    x, y = (point[:2] * (width, height)).round(6).tolist()
    given = float(point[2]) if len(point) > 2 else 2.0 * (x != 0 or y != 0)
    visibility = (
        int(given) if given in (0, 1, 2) else 2 * int(given >= 0.5)
    )  # predictions have a confidence in its place
    return (x, y, visibility) if visibility else (0.0, 0.0, 0)


def _yaml(source: Source) -> Path | None:
    """The data.yaml that a path is, or that its folder has."""
    if source.path.is_file():
        return source.path if source.path.suffix.lower() in (".yaml", ".yml") else None
    found = [p for pattern in ("*.yaml", "*.yml") for p in sorted(source.path.glob(pattern))]
    return next(
        (p for p in found if {"names", "nc"} & _load(p).keys() and set(SPLITS) & _load(p).keys()),
        None,
    )


def _load(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: is not YAML: {error}") from None
    return content if isinstance(content, dict) else {}


def _names(settings: Mapping[str, Any], source: Source) -> list[str]:
    given = settings.get("names")
    if given is not None and not (
        isinstance(given, list)
        or (isinstance(given, dict) and all(str(key).isdecimal() for key in given))
    ):
        raise DataError(
            f"{source.name}: names is {given!r:.80}, must be a list, as [cat, dog], or names by number, as {{0: cat, 1: dog}}"
        )
    if isinstance(given, dict):
        by_number = {int(key): name for key, name in given.items()}  # keys may be quoted
        given = [by_number.get(i, i) for i in range(max(by_number, default=-1) + 1)]
    if given is None:
        files = [
            f
            for f in (source.folder / "classes.txt", source.folder / "labels" / "classes.txt")
            if f.is_file()
        ]
        given = (
            files[0].read_text(encoding="utf-8-sig").split("\n")
            if files
            else range(int(settings.get("nc", 0)))
        )
        given = [name for name in given if name != ""]
    if not given:
        raise DataError(
            f"{source.name}: no class names; write them as names: in data.yaml, or a line each in classes.txt"
        )
    return [str(name).strip() for name in given]


def _skeleton(settings: Mapping[str, Any], index: int, path: Path) -> dict[str, Any]:
    """Keypoints of a class: kpt_names, else COCO's where count and flip_idx are COCO's, else numbers."""
    shape, flip = settings.get("kpt_shape"), list(settings.get("flip_idx") or ())
    if not shape:
        return {}
    if not isinstance(shape, list) or len(shape) != 2 or shape[1] not in (2, 3):
        raise DataError(
            f"{path.name}: kpt_shape is {shape}, must be [keypoints, 2] (x, y) or [keypoints, 3] (x, y, visibility)"
        )
    if flip and sorted(flip) != list(range(shape[0])):
        raise DataError(
            f"{path.name}: flip_idx must name each of the {shape[0]} keypoints of kpt_shape once, counted from 0; got {flip}"
        )
    given = settings.get("kpt_names") or {}
    names = given.get(index) if isinstance(given, dict) else given
    if not names:
        is_person = shape[0] == len(COCO_PERSON) and flip == list(mirrored_keypoints(COCO_PERSON))
        names = COCO_PERSON if is_person else [f"keypoint {j}" for j in range(shape[0])]
    if len(names) != shape[0]:
        raise DataError(
            f"{path.name}: kpt_names has {len(names)} names, kpt_shape says {shape[0]} keypoints"
        )
    return {"keypoints": [str(n) for n in names], "flip": flip}


def _images(entry: Any, root: Path, yaml: Path, images: str | Path | None) -> list[Path]:
    """The images of a split: folders, text files of paths, or lists of either."""
    found: list[Path] = []
    for given in entry if isinstance(entry, list) else [entry]:
        given = str(given)
        bases = [*([Path(images)] if images is not None else []), root, yaml.parent.resolve()]
        if not any((base / given).exists() for base in bases):
            given = given.replace("\\", "/")
        # Roboflow writes ../train/images for train/images
        places = [base / part for base in bases for part in (given, given.removeprefix("../"))]
        place = next((p for p in places if p.exists()), None)
        if place is None:
            raise MissingSplit(
                f"{yaml.name}: no folder or file {given}; looked at {', '.join(map(str, dict.fromkeys(places)))}; mend path: or {given!r}"
            )
        if place.is_dir():
            found += images_in(place)
        else:
            lines = [
                line.strip()
                for line in place.read_text(encoding="utf-8-sig").splitlines()
                if line.strip()
            ]
            homes = (place.parent, root)
            for line in (with_slashes(line, homes) for line in lines):
                found.append(next((b / line for b in homes if (b / line).is_file()), root / line))
    return [Path(os.path.normpath(p)) for p in found]


def _labels(image: Path) -> Path:
    """Where the labels of an image are: in labels/ for the last images/ of its path, else beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes data.yaml, images/SPLIT and labels/SPLIT."""
    categories = names_of(annotated.content)
    index = {number: place for place, number in enumerate(categories)}
    pose = target.format == "yolo-pose"
    keypoints = _common_keypoints(categories) if pose else 0
    boxes_only = not any(raw.get("segmentation") for raw in annotated.content["annotations"])
    split = _split_name(target)
    for image, raws in target.each():
        lines = []
        for raw in raws:
            category, where = categories[raw["category_id"]], label_of(raw, image)
            if ignored(raw):
                losses.add("crowds and regions to ignore, left out", where)
                continue
            numbers = (
                _pose(raw, image, category, keypoints, losses, where)
                if pose
                else _segment(raw, image, boxes_only, target, losses, where)
            )
            if numbers is not None:
                lines.append(
                    " ".join([str(index[raw["category_id"]]), *(f"{v:.10g}" for v in numbers)])
                )
        image_path = target.place(image, target.folder / "images" / split)
        labels = (
            target.folder
            / "labels"
            / split
            / image_path.relative_to(target.folder / "images" / split).with_suffix(".txt")
        )
        target.write(labels, "".join(line + "\n" for line in lines))
    _write_yaml(target, split, categories, keypoints, losses)


def _segment(
    raw: dict, image: dict, boxes_only: bool, target: Target, losses: Losses, where: str
) -> list[float] | None:
    height, width = size_of(image)
    if any(v > 0 for v in (raw.get("keypoints") or ())[2::3]):
        losses.add("keypoints", where)
    polygon, box = one_polygon(raw, (height, width), target.tolerance), box_of(raw)
    if polygon is not None and (polygon := inside(polygon, (height, width))) is not None:
        return (polygon / (width, height)).ravel().tolist()
    if box is None:
        losses.add("objects with neither mask nor box, left out", where)
        return None
    x0, y0, x1, y1 = _box_inside(box, (height, width))
    if boxes_only:
        return [
            (x0 + x1) / 2 / width,
            (y0 + y1) / 2 / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        ]
    losses.add("boxes without a mask, written as rectangles", where)
    return (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) / (width, height)).ravel().tolist()


def _pose(
    raw: dict, image: dict, category: dict, count: int, losses: Losses, where: str
) -> list[float] | None:
    height, width = size_of(image)
    if raw.get("segmentation"):
        losses.add("masks", where)
    box = box_of(raw) or mask_box(raw, (height, width))
    if box is None:
        losses.add("objects without a box get the one around their keypoints", where)
        box = around(keypoints_of(raw, category))
    if box is None:
        return None
    x0, y0, x1, y1 = _box_inside(box, (height, width))
    values = list(raw.get("keypoints") or ()) or [0] * 3 * count
    points = np.array(values, dtype=float).reshape(-1, 3)
    # beyond the image they are unlabeled, as they are read from COCO
    there = ((points[:, :2] >= -KEYPOINT_OFFSET) & (points[:, :2] <= (width, height))).all(
        axis=1, keepdims=True
    )
    keypoints = points * (there & (points[:, 2:] > 0)) / (width, height, 1)
    return [
        (x0 + x1) / 2 / width,
        (y0 + y1) / 2 / height,
        (x1 - x0) / width,
        (y1 - y0) / height,
        *keypoints.ravel().tolist(),
    ]


def _box_inside(box: Box, size: tuple[int, int]) -> Box:
    """A box without what lies beyond the image."""
    x0, y0, x1, y1 = np.clip(box, 0, (size[1], size[0]) * 2).tolist()
    return x0, y0, x1, y1


def _split_name(target: Target) -> str:
    """The key of data.yaml for a split: val for "valid" or "instances_val2017", train for one that says nothing."""
    name = next((s for s in SPLITS if s in target.split.lower()), "train")
    if (target.folder / "images" / name).exists():
        raise ValueError(
            f'{target.format}: "{target.split}" is a second split that would be "{name}" in data.yaml; convert them one by one'
        )
    return name


def _common_keypoints(categories: Mapping[int, Mapping[str, Any]]) -> int:
    counts = {len(c.get("keypoints") or ()) for c in categories.values()} - {0}
    if len(counts) != 1:
        found = ", ".join(
            f"{c['name']}: {len(c.get('keypoints') or ())}" for c in categories.values()
        )
        raise ValueError(
            f"yolo-pose has one number of keypoints for all categories; here are {found}. Choose coco, cvat or labelme"
        )
    return counts.pop()


def _write_yaml(
    target: Target,
    split: str,
    categories: Mapping[int, Mapping[str, Any]],
    keypoints: int,
    losses: Losses,
) -> None:
    import yaml

    path = target.folder / "data.yaml"
    settings: dict[str, Any] = dict(_load(path)) if path.exists() else {"path": "."}
    settings[split] = f"images/{split}"
    settings["names"] = {n: c["name"] for n, c in enumerate(categories.values())}
    if keypoints:
        parsed = parse_categories(list(categories.values()))
        first = next(c for c in parsed if c.keypoints)
        settings |= {"kpt_shape": [keypoints, 3], "flip_idx": list(first.mirrored)}
        settings["kpt_names"] = {
            n: list(c.keypoints or first.keypoints) for n, c in enumerate(parsed)
        }
        for category in (c for c in parsed if c.keypoints and c.mirrored != first.mirrored):
            losses.add(
                f'left and right of keypoints (flip) other than those of "{first.name}"',
                category.name,
            )
    for category in categories.values():
        if category.get("skeleton"):
            losses.add("limbs of skeletons", category["name"])
    target.rewrite(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
