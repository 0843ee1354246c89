"""From any annotation format to any other: `convert("annotations/", "labels", "yolo-seg")`.

In:  whatever `open_data` reads, all of its splits.
Out: a new file or folder, and `Losses`: what the other format cannot hold.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.categories import mirrored_joints, parse_categories
from ..data.check import DataWarning
from ..data.partial import labelled_ids
from . import coco, cvat, labelme, png, via, voc, yolo
from .content import Annotated, MissingSplit
from .open import located, read, recognised
from .parts import Losses, Pictures, Target, by_picture, label_of

WRITERS: dict[str, Any] = {
    "coco": coco,
    "yolo-seg": yolo,
    "yolo-pose": yolo,
    "labelme": labelme,
    "via": via,
    "cvat": cvat,
    "voc": voc,
    "png": png,
    "png-each": png,
}
_WITH_SPLITS = (yolo, voc)  # in one folder
_WITH_PICTURES = (yolo, voc, png)  # that have to be in the folder
_WITHOUT_SCORE = (yolo, voc, png)
_SIDES_BY_NAME = (labelme, via, cvat)  # left and right of joints are what their names say


def convert(
    source: str | Path,
    out: str | Path,
    format: str,
    *,
    images: str | Path | None = None,
    val: str | Path | None = None,
    val_images: str | Path | None = None,
    pictures: Pictures | None = None,
    simplify: float = 0.0,
    on_error: Literal["raise", "drop"] = "raise",
    progress: bool = False,
) -> Losses:
    """Writes annotations in another format; what it cannot hold is counted in the answer, and never left out silently.

    Args:
        source: what `open_data` reads. All splits are written unless one is named ("data.yaml:val").
        out: the new folder; for coco, via and cvat also a file (.json, .xml). It must not exist yet.
        format: coco, yolo-seg, yolo-pose, labelme, via, cvat, voc, png (one id an object), png-each (one file an object).
        images: folder of the pictures, where the format does not say.
        val: a second source, written as the split "val".
        val_images: its pictures; by default `images`.
        pictures: copy or link them into `out`, or reference them where they are. By default they are referenced; for yolo, voc and png copied,
            because there they must lie beside the annotations.
        simplify: pixels by which masks may be changed to give polygons with few points, easy to correct by hand; 0 changes nothing.
        on_error: unusable annotations: raise an error that lists them, or leave them out with a warning.
        progress: show progress bars.

    Raises:
        FileExistsError: `out` is there already.
        ValueError: unusable annotations (DataError), an unknown format, or pictures that cannot be referenced.
    """
    check_new(Path(out), format)
    parts = _all(source, images, on_error)
    if val is not None:
        second = _all(val, val_images or images, on_error)
        for given, found in ((source, parts), (val, second)):
            if len(found) > 1:
                raise ValueError(f"{given}: has the splits {', '.join(found)}; beside a second source name one, as {given}:{next(iter(found))}")
        parts = {"train": parts.popitem()[1], "val": second.popitem()[1]}
    return write_all(parts, out, format, pictures=pictures, simplify=simplify, progress=progress)


def _all(path: str | Path, images: str | Path | None, on_error: Literal["raise", "drop"]) -> dict[str, Annotated]:
    """Every split of a source, checked, by name."""
    source, split = located(path)
    reader = recognised(source, images)
    names = [split] if split else reader.splits(source)
    names = [n for n in names if n != "trainval" or split or not {"train", "val"} <= set(names)]  # VOC's union of the two
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
    parts: dict[str, Annotated], out: str | Path, format: str, *, pictures: Pictures | None = None, simplify: float = 0.0, progress: bool = False
) -> Losses:
    """Writes one or more splits, by name, into a new file or folder, which appears when it is complete.

    Raises:
        FileExistsError: `out` is there already.
        ValueError: an unknown format, or one that needs the pictures beside it.
    """
    out = Path(out)
    writer = writer_of(format)
    pictures = pictures or ("copy" if writer in _WITH_PICTURES else "reference")
    if pictures not in get_args(Pictures):
        raise ValueError(f"pictures is {pictures!r}, must be {', '.join(get_args(Pictures))}")
    if writer in _WITH_PICTURES and pictures == "reference":
        raise ValueError(f"{format}: the pictures have to lie beside the annotations; choose copy or link for them")
    if simplify < 0:
        raise ValueError(f"simplify is {simplify}, must be 0 or more pixels")
    check_new(out, format)
    suffix = getattr(writer, "SUFFIX", None)
    single = bool(suffix) and out.suffix.lower() == suffix
    if single and (len(parts) > 1 or pictures != "reference"):
        raise ValueError(f"{out}: is one file; give a folder for {'several splits' if len(parts) > 1 else 'the pictures'}")
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
            writer.write(annotated, Target(format, annotated, folder, home, file, split, pictures, simplify, progress), losses)
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
    if writer is coco:
        return
    content = annotated.content
    known = [c["id"] for c in content["categories"]]
    for image, raws in by_picture(content):
        if labelled_ids(image, {raw["category_id"] for raw in raws}, known) is not None:
            losses.add("that only some categories were looked for (labelled_categories)", image["file_name"])
        for raw in raws if writer in _WITHOUT_SCORE else ():
            if "score" in raw:
                losses.add("scores", label_of(raw, image))
    for category in parse_categories(content["categories"]):
        if writer in _SIDES_BY_NAME and category.mirrored != mirrored_joints(category.keypoints):
            losses.add("left and right of joints (flip), which their names do not say", category.name)
        if category.oks_sigmas != replace(category, sigmas=()).oks_sigmas:
            losses.add("sigmas of joints", category.name)


def _united(parts: dict[str, Annotated]) -> dict[str, Annotated]:
    """The same splits with the categories of all, by name, and ids counted from 1, for formats that list them once.

    Raises:
        ValueError: one name with different joints.
    """
    united: dict[str, dict[str, Any]] = {}
    for split, annotated in parts.items():
        for entry in sorted(annotated.content["categories"], key=lambda c: c["id"]):
            found = united.setdefault(entry["name"], entry | {"id": len(united) + 1})
            before, joints = (", ".join(map(str, c.get("keypoints") or ())) or "none" for c in (found, entry))
            if joints != before:
                raise ValueError(f'category "{entry["name"]}": its joints in {split} are {joints}, before {before}; convert the splits one by one')
    renumbered = {}
    for split, annotated in parts.items():
        ids = {c["id"]: united[c["name"]]["id"] for c in annotated.content["categories"]}
        annotations = [raw | {"category_id": ids[raw["category_id"]]} for raw in annotated.content["annotations"]]
        renumbered[split] = replace(annotated, content=annotated.content | {"annotations": annotations, "categories": list(united.values())})
    return renumbered


def check_new(out: Path, format: str) -> None:
    """Whether annotations can be written there.

    Raises:
        FileExistsError: `out` is there already, and not an empty folder.
        ValueError: an unknown format.
    """
    writer_of(format)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already; nothing was written. Choose another name, or remove it")


def writer_of(format: str) -> Any:
    """The module that writes a format.

    Raises:
        ValueError: an unknown one.
    """
    if format not in WRITERS:
        near = get_close_matches(format, WRITERS, 1)
        raise ValueError(f'unknown format "{format}"' + (f', did you mean "{near[0]}"?' if near else "") + f" There are {', '.join(WRITERS)}")
    return WRITERS[format]
