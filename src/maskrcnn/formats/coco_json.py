"""COCO: one JSON file with images, annotations and categories, or a folder of such files.

A folder has one file per split: `annotations/train.json`, or `train/_annotations.coco.json` beside
the images, as Roboflow exports them. Everything that `CocoDataset` knows survives.

Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from ..annotations import rle as coco_rle
from ..annotations.coco_types import CocoAnnotation, CocoContent
from ..annotations.image_names import file_names, first_folder
from ..annotations.json_file import encoding_notes
from ..annotations.structure import check_structure, resembles_coco
from .annotation_source import AnnotationSource
from .format import Format
from .reading import Annotated
from .writing import ConversionTarget, Unrepresentable, mask_box, rle_of, size_of

_MOST_FILES = 20  # a folder with more JSON files has another format, one file per image


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or any file of the folder, is COCO's."""
    return resembles_coco(source.json) if source.path.is_file() else bool(_files(source))


def splits(source: AnnotationSource) -> list[str]:
    """Names of a folder's files."""
    return list(_files(source)) if source.path.is_dir() else []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one file.

    Without `images`, the images are searched for beside the file, and beside its folder.

    Raises:
        DataError: the file lacks one of COCO's lists.
    """
    path = _files(source)[split] if split else source.path
    content = source.file(path).json
    check_structure(content, path.name)
    notes = encoding_notes(path)
    if images is not None:
        return Annotated(cast("CocoContent", content), Path(images), path.name, notes=notes)

    candidates = [
        base / part
        for base in (path.parent, path.parent.parent)
        for part in (".", "images", path.stem, f"images/{path.stem}", path.stem.split("_")[-1])
    ]
    folder = first_folder(file_names(content["images"]), candidates)
    return Annotated(cast("CocoContent", content), folder, path.name, notes=notes)


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes one JSON file; nothing is lost."""
    content = cast("CocoContent", dict(annotated.content))
    content["images"] = [
        {**image, "file_name": target.refer(image, target.file.parent)}
        for image in content["images"]
    ]
    sizes = {image["id"]: size_of(image) for image in content["images"]}
    content["annotations"] = [
        _complete(raw, sizes[raw["image_id"]]) for raw in content["annotations"]
    ]
    target.write(target.file, json.dumps(content))


def _complete(raw: CocoAnnotation, size: tuple[int, int]) -> CocoAnnotation:
    """An annotation with the keys that other readers of COCO require.

    Adds bbox and area of the mask where the annotation does not have its own.
    """
    kept = {
        key: value
        for key, value in raw.items()
        if key != "where" and not (key == "keypoints" and not value)
    }
    entry = cast("CocoAnnotation", kept)
    if not entry.get("bbox") and (box := mask_box(raw, size)):
        entry["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    if "area" not in entry and (rle := rle_of(raw, size)):
        entry["area"] = coco_rle.area(rle)
    elif "area" not in entry and entry.get("bbox"):
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return entry


def _files(source: AnnotationSource) -> dict[str, Path]:
    """The COCO files of a folder by name; Roboflow's, which share one name, by folder."""
    candidates = sorted([*source.path.glob("*.json"), *source.path.glob("annotations/*.json")])
    if len(candidates) <= _MOST_FILES:
        files = {path.stem: path for path in candidates if _mentions_coco(path)}
        if files:
            return files
    roboflow = sorted(source.path.glob("*/_annotations.coco.json"))
    return {path.parent.name: path for path in roboflow if _mentions_coco(path)}


def _mentions_coco(path: Path) -> bool:
    """Whether COCO's keys occur in a file; does not parse it, because it can be large."""
    try:
        data = path.read_bytes()
    except OSError:  # such as a link that points nowhere
        return False
    return all(f'"{key}"'.encode() in data for key in ("images", "annotations", "categories"))


COCO = Format(
    name="coco",
    description=(
        "COCO: a JSON file with images, annotations and categories, "
        "or a folder of them (annotations/train.json)"
    ),
    written_as=("coco",),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    suffix=".json",
    holds_everything=True,
    lists_images=True,
)
