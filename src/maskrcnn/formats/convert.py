"""From any annotation format to any other: `convert("annotations/", "labels", "yolo-seg")`.

In:  whatever `load_dataset` reads, all of its splits.
Out: a new file or folder, and `Losses`: what the other format cannot hold.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from ..annotations.categories import mirrored_keypoints, parse_categories
from ..annotations.labeled_categories import labeled_ids
from ..annotations.problems import DataWarning
from . import coco_json, cvat, labelme, png_masks, via, voc, yolo
from .load_dataset import located, read, recognized
from .reading import Annotated, MissingSplit
from .writing import ImageFiles, Losses, Target, by_image, label_of

WRITERS: dict[str, Any] = {
    "coco": coco_json,
    "yolo-seg": yolo,
    "yolo-pose": yolo,
    "labelme": labelme,
    "via": via,
    "cvat": cvat,
    "voc": voc,
    "png": png_masks,
    "png-each": png_masks,
}
_WITH_SPLITS = (yolo, voc)  # in one folder
_WITH_IMAGES = (yolo, voc, png_masks)  # that have to be in the folder
_WITHOUT_SCORE = (yolo, voc, png_masks)
_SIDES_BY_NAME = (labelme, via, cvat)  # left and right of keypoints are what their names say


def convert_annotations(
    source: str | Path,
    out: str | Path,
    format: str,
    *,
    images: str | Path | None = None,
    val: str | Path | None = None,
    val_images: str | Path | None = None,
    image_files: ImageFiles | None = None,
    simplify: float = 0.0,
    on_error: Literal["raise", "drop"] = "raise",
    progress: bool = False,
) -> Losses:
    """Writes annotations in another format; what it cannot hold is counted in the answer, and never left out silently.

    Args:
        source: what `load_dataset` reads. All splits are written unless one is named ("data.yaml:val").
        out: the new folder; for coco, via and cvat also a file (.json, .xml). It must not exist yet.
        format: coco, yolo-seg, yolo-pose, labelme, via, cvat, voc, png (one id an object), png-each (one file an object).
        images: folder of the images, where the format does not say.
        val: a second source, written as the split "val".
        val_images: its images; by default `images`.
        image_files: copy or link them into `out`, or reference them where they are. By default they are referenced; for yolo, voc and png copied,
            because there they must lie beside the annotations.
        simplify: pixels by which masks may be changed to give polygons with few points, easy to correct by hand; 0 changes nothing.
        on_error: unusable annotations: raise an error that lists them, or leave them out with a warning.
        progress: show progress bars.

    Raises:
        FileExistsError: `out` is there already.
        ValueError: unusable annotations (DataError), an unknown format, or images that cannot be referenced.
    """
    check_new(Path(out), format)
    parts = _all(source, images, on_error)
    if val is not None:
        second = _all(val, val_images or images, on_error)
        for given, found in ((source, parts), (val, second)):
            if len(found) > 1:
                raise ValueError(
                    f"{given}: has the splits {', '.join(found)}; beside a second source name one, as {given}:{next(iter(found))}"
                )
        parts = {"train": parts.popitem()[1], "val": second.popitem()[1]}
    return write_all(
        parts, out, format, image_files=image_files, simplify=simplify, progress=progress
    )


def _all(
    path: str | Path, images: str | Path | None, on_error: Literal["raise", "drop"]
) -> dict[str, Annotated]:
    """Every split of a source, checked, by name."""
    source, split = located(path)
    reader = recognized(source, images)
    names = [split] if split else reader.splits(source)
    names = [
        n for n in names if n != "trainval" or split or not {"train", "val"} <= set(names)
    ]  # VOC's union of the two
    parts: dict[str, Annotated] = {}
    for name in names or [""]:
        try:
            annotated = read(reader, source, images, name)
        except MissingSplit as error:
            if not parts and name == names[-1]:
                raise
            warnings.warn(f'{error}\nThe split "{name}" was left out.', DataWarning, stacklevel=3)
            continue
        dataset = annotated.dataset(on_error=on_error)
        parts[name] = Annotated(dataset.content(), dataset.image_folder, annotated.name)
    return parts


def write_all(
    parts: dict[str, Annotated],
    out: str | Path,
    format: str,
    *,
    image_files: ImageFiles | None = None,
    simplify: float = 0.0,
    progress: bool = False,
) -> Losses:
    """Writes one or more splits, by name, into a new file or folder, which appears when it is complete.

    Raises:
        FileExistsError: `out` is there already.
        ValueError: an unknown format, or one that needs the images beside it.
    """
    out = Path(out)
    writer = writer_of(format)
    image_files = image_files or ("copy" if writer in _WITH_IMAGES else "reference")
    if image_files not in get_args(ImageFiles):
        raise ValueError(
            f"image_files is {image_files!r}, must be {', '.join(get_args(ImageFiles))}"
        )
    if writer in _WITH_IMAGES and image_files == "reference":
        raise ValueError(
            f"{format}: the images have to lie beside the annotations; choose copy or link for them"
        )
    if simplify < 0:
        raise ValueError(f"simplify is {simplify}, must be 0 or more pixels")
    check_new(out, format)
    suffix = getattr(writer, "SUFFIX", None)
    single = bool(suffix) and out.suffix.lower() == suffix
    if single and (len(parts) > 1 or image_files != "reference"):
        raise ValueError(
            f"{out}: is one file; give a folder for {'several splits' if len(parts) > 1 else 'the images'}"
        )
    losses = Losses()
    parts = {split: _named(annotated) for split, annotated in parts.items()}
    for annotated in parts.values():
        _tell_losses(annotated, writer, losses)
    if writer in _WITH_SPLITS:
        parts = _united(parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.part"
    staging.mkdir()
    try:
        for split, annotated in parts.items():
            folder, home = staging, out.parent if single else out
            if len(parts) > 1 and not suffix and writer not in _WITH_SPLITS:
                folder, home = folder / split, home / split
            file = folder / (out.name if single else f"{split or 'annotations'}{suffix or ''}")
            writer.write(
                annotated,
                Target(
                    format, annotated, folder, home, file, split, image_files, simplify, progress
                ),
                losses,
            )
        if out.is_dir():
            out.rmdir()
        (staging / out.name if single else staging).rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return losses


def _named(annotated: Annotated) -> Annotated:
    """The same with a name, as text, for every category."""
    names = {c.id: c.name for c in parse_categories(annotated.content["categories"])}
    entries = [entry | {"name": names[entry["id"]]} for entry in annotated.content["categories"]]
    return replace(annotated, content=annotated.content | {"categories": entries})


def _tell_losses(annotated: Annotated, writer: Any, losses: Losses) -> None:
    """What COCO's format alone holds, and the writers of the others do not look at."""
    if writer is coco_json:
        return
    content = annotated.content
    known = [c["id"] for c in content["categories"]]
    for image, raws in by_image(content):
        if labeled_ids(image, {raw["category_id"] for raw in raws}, known) is not None:
            losses.add(
                "that only some categories were looked for (labeled_categories)", image["file_name"]
            )
        for raw in raws if writer in _WITHOUT_SCORE else ():
            if "score" in raw:
                losses.add("scores", label_of(raw, image))
    for category in parse_categories(content["categories"]):
        if writer in _SIDES_BY_NAME and category.mirrored != mirrored_keypoints(category.keypoints):
            losses.add(
                "left and right of keypoints (flip), which their names do not say", category.name
            )
        if category.oks_sigmas != replace(category, sigmas=()).oks_sigmas:
            losses.add("sigmas of keypoints", category.name)


def _united(parts: dict[str, Annotated]) -> dict[str, Annotated]:
    """The same splits with the categories of all, by name, and ids counted from 1, for formats that list them once.

    Raises:
        ValueError: one name with different keypoints.
    """
    united: dict[str, dict[str, Any]] = {}
    for split, annotated in parts.items():
        for entry in sorted(annotated.content["categories"], key=lambda c: c["id"]):
            found = united.setdefault(entry["name"], entry | {"id": len(united) + 1})
            before, keypoints = (
                ", ".join(map(str, c.get("keypoints") or ())) or "none" for c in (found, entry)
            )
            if keypoints != before:
                raise ValueError(
                    f'category "{entry["name"]}": its keypoints in {split} are {keypoints}, before {before}; convert the splits one by one'
                )
    renumbered = {}
    for split, annotated in parts.items():
        ids = {c["id"]: united[c["name"]]["id"] for c in annotated.content["categories"]}
        annotations = [
            raw | {"category_id": ids[raw["category_id"]]}
            for raw in annotated.content["annotations"]
        ]
        renumbered[split] = replace(
            annotated,
            content=annotated.content
            | {"annotations": annotations, "categories": list(united.values())},
        )
    return renumbered


def check_new(out: Path, format: str) -> None:
    """Whether annotations can be written there.

    Raises:
        FileExistsError: `out` is there already, and not an empty folder.
        ValueError: an unknown format.
    """
    writer_of(format)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"{out}: is there already; nothing was written. Choose another name, or remove it"
        )


def writer_of(format: str) -> Any:
    """The module that writes a format.

    Raises:
        ValueError: an unknown one.
    """
    if format not in WRITERS:
        near = get_close_matches(format, WRITERS, 1)
        raise ValueError(
            f'unknown format "{format}"'
            + (f', did you mean "{near[0]}"?' if near else "")
            + f" There are {', '.join(WRITERS)}"
        )
    return WRITERS[format]
