"""COCO: one JSON file with images, annotations and categories; or a folder of such files, one for each split (`annotations/train.json`, or
`train/_annotations.coco.json` beside the images, as Roboflow exports).

Everything that `CocoDataset` knows survives. Source: cocodataset.org, "data format".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..annotations import rle as coco_rle
from .reading import Annotated, folder_with
from .source import Source
from .writing import Losses, Target, mask_box, rle_of, size_of

NAME = "coco"
LOOKS_LIKE = "COCO: a JSON file with images, annotations and categories, or a folder of them (annotations/train.json)"
SUFFIX = ".json"
_MOST_FILES = 20  # in a folder of COCO files; more are another format's, a file for each image


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is COCO's."""
    return _is_coco(source.json) if source.path.is_file() else bool(_files(source))


def splits(source: Source) -> list[str]:
    """Names of the files."""
    return list(_files(source)) if source.path.is_dir() else []


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads a file; `images` by default the folder beside or above it in which the images are."""
    path = _files(source)[split] if split else source.path
    content = Source(path).json
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds a {type(content).__name__}, must be a COCO object with images, annotations and categories"
        )
    entries = content.get("images") if isinstance(content.get("images"), list) else []
    names = [
        e["file_name"]
        for e in entries
        if isinstance(e, dict) and isinstance(e.get("file_name"), str)
    ]
    folder, stem = path.parent, path.stem
    places = [
        base / part
        for base in (folder, folder.parent)
        for part in (".", "images", stem, f"images/{stem}", stem.split("_")[-1])
    ]
    return Annotated(
        content, Path(images) if images is not None else folder_with(names, places), path.name
    )


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes one JSON file; nothing is lost."""
    content = dict(annotated.content)
    content["images"] = [
        {**image, "file_name": target.refer(image, target.file.parent)}
        for image in content["images"]
    ]
    sizes = {image["id"]: size_of(image) for image in content["images"]}
    content["annotations"] = [
        _complete(raw, sizes[raw["image_id"]]) for raw in content["annotations"]
    ]
    target.write(target.file, json.dumps(content))


def _complete(raw: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """An annotation with what other readers of COCO ask for: bbox and area of the mask, where it does not have its own."""
    entry = {
        key: value
        for key, value in raw.items()
        if key != "where" and not (key == "keypoints" and not value)
    }
    if not entry.get("bbox") and (box := mask_box(raw, size)):
        entry["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    if "area" not in entry and (rle := rle_of(raw, size)):
        entry["area"] = coco_rle.area(rle)
    elif "area" not in entry and entry.get("bbox"):
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    return entry


def _is_coco(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and isinstance(content.get("annotations"), list)
    )


def _files(source: Source) -> dict[str, Path]:
    """The COCO files of a folder, by name; Roboflow's, which all have one, by folder."""
    candidates = sorted([*source.path.glob("*.json"), *source.path.glob("annotations/*.json")])
    found = (
        {p.stem: p for p in candidates if _mentions_coco(p)}
        if len(candidates) <= _MOST_FILES
        else {}
    )
    return found or {
        p.parent.name: p
        for p in sorted(source.path.glob("*/_annotations.coco.json"))
        if _mentions_coco(p)
    }


def _mentions_coco(path: Path) -> bool:
    """A look that parses nothing: such files can be large."""
    data = path.read_bytes()
    return all(f'"{key}"'.encode() in data for key in ("images", "annotations", "categories"))
