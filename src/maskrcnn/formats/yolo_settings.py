"""YOLO's data.yaml: where it is, and the classes and keypoints that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ..annotations.categories import mirrored_keypoints
from ..annotations.problems import DataError
from ..runtime.counted import counted
from .annotation_source import AnnotationSource
from .bounded_files import read_text, read_yaml
from .reading import COCO_PERSON, DatasetBuilder

SPLITS = ("train", "val", "test")
_MOST_CLASSES = 100_000
_MOST_KEYPOINTS = 10_000


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


def find_yaml(source: AnnotationSource) -> Path | None:
    """The data.yaml that the path is, or that its folder contains."""
    if source.path.is_file():
        return source.path if source.path.suffix.lower() in (".yaml", ".yml") else None
    for pattern in ("*.yaml", "*.yml"):
        for path in sorted(source.path.glob(pattern)):
            keys = load_settings(path).keys()
            if {"names", "nc"} & keys and set(SPLITS) & keys:
                return path
    return None


def settings_above(source: AnnotationSource) -> YoloSettings:
    """The settings of one split: those of a data.yaml one or two folders up; else empty."""
    path = source.path.resolve()
    for folder in (path.parent, path.parent.parent):
        yaml = find_yaml(AnnotationSource(folder))
        if yaml is not None:
            return load_settings(yaml)
    return {}


def load_settings(path: Path) -> YoloSettings:
    """The settings of a YAML file; empty if it holds anything but a mapping."""
    content = read_yaml(path)
    return cast("YoloSettings", content) if isinstance(content, dict) else {}


def class_names(settings: YoloSettings, source: AnnotationSource) -> list[str]:
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


def class_keypoints(settings: YoloSettings, index: int, path: Path) -> tuple[list[str], list[int]]:
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
            f"{path.name}: flip_idx must name each keypoint of kpt_shape ({count}) once, "
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
            f"{path.name}: expected {counted(count, 'name')} in kpt_names (kpt_shape), "
            f"got {len(names)}"
        )
    return [str(name) for name in names], flip


def report_names(settings: YoloSettings, names: Sequence[str], builder: DatasetBuilder) -> None:
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

    if names == [str(number) for number in range(len(names))] and not settings.get("names"):
        builder.notes.add(
            "classes without names", "their numbers are their names", count=len(names)
        )

    if "nc" in settings and "names" in settings and settings["nc"] != len(names):
        builder.problem(
            "number of classes differs",
            builder.name,
            f"nc is {settings['nc']!r:.20}, names has {counted(len(names), 'entry')}",
            "names is used; correct nc or names in data.yaml",
            False,
        )
