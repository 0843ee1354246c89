"""Opening annotations of any format: `load_dataset("annotations/")`.

In:  a file or a folder, whose format is recognized by its content, and perhaps the folder of the images.
Out: a `CocoDataset`, checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError
from ..config import Category
from . import coco_json, cvat, labelme, png_masks, via, voc, yolo
from .reading import Annotated
from .source import Source

FORMATS = (coco_json, yolo, labelme, via, cvat, voc, png_masks)


def load_dataset(
    path: str | Path,
    images: str | Path | None = None,
    *,
    categories: Sequence[Category] | None = None,
    on_error: Literal["raise", "drop"] = "raise",
) -> CocoDataset:
    """Annotated images of any known format, checked.

    The format is recognized by the content: COCO, YOLO (detection, segmentation, pose), LabelMe, VIA, CVAT, Pascal VOC, folders of PNG masks.

    Args:
        path: the annotation file, or the folder of the data set. Where it has several splits, one is named behind a colon, "data.yaml:val"; without
            one it is "train", or the only one.
        images: folder of the images; by default where the format has them.
        categories: the categories wanted and their order, for example `model.config.categories`; they are found by name. None = all.
        on_error: what to do about unusable annotations and images: raise an error that lists them all, or drop them with a warning that does.

    Raises:
        DataError: no known format, no such split, or unusable annotations: all problems at once, with file, place and cure.
    """
    source, split = located(path)
    reader = recognized(source, images)
    return read(reader, source, images, split).dataset(categories, on_error)


def validation_split(path: str | Path, images: str | Path | None = None) -> str | None:
    """The split that a data set itself has to judge by ("data.yaml:val"), beside the one that `load_dataset(path, images)` reads; None = it has none.

    Of several it is the one that is called like the other, val for train.

    Raises:
        DataError: no such file, or no known format.
    """
    source, split = located(path)
    known = recognized(source, images).splits(source)
    read = split or _train_split(known)
    others = [name for name in known if "val" in name.lower() and "train" not in name.lower()]
    twin = read.replace("train", "val")
    found = twin if twin in others else others[0] if len(others) == 1 else None
    return f"{source.path}:{found}" if found and read and "val" not in read.lower() else None


def located(path: str | Path) -> tuple[Source, str]:
    """The file or folder, and the split named behind a colon, or "".

    Raises:
        DataError: there is no such file.
    """
    if Path(path).exists():
        return Source(path), ""
    before, _, split = str(path).rpartition(":")
    if before and Path(before).exists():
        return Source(before), split
    raise DataError(f"{path}: there is no such file or folder")


def recognized(source: Source, images: str | Path | None = None) -> Any:
    """The module of this package that reads it.

    Raises:
        DataError: none does.
    """
    broken: list[str] = []
    for reader in FORMATS:
        try:
            if reader.recognize(source, images):
                return reader
        except DataError as error:  # a file that this reader cannot parse is not one of its own
            broken.append(str(error))
    if broken and source.path.is_file():
        raise DataError(broken[0])
    looked = "\n".join(f"  {reader.LOOKS_LIKE}" for reader in FORMATS)
    what = "folder" if source.path.is_dir() else "file"
    suggestion = (
        "; unpack it first" if source.path.suffix.lower() in (".zip", ".tar", ".gz") else ""
    )
    unread = "".join(f"\nNot readable: {error}" for error in broken)
    raise DataError(
        f"{source.path}: the {what} holds no annotations of a known format{suggestion}. Looked for:\n{looked}{unread}"
    )


def read(reader: Any, source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads one split; "" = the train split, or the only one.

    Raises:
        DataError: no such split.
    """
    known = reader.splits(source)
    if split and split not in known:
        near = get_close_matches(split, known, 1)
        listed = f"it has {', '.join(known)}" if known else "it has no splits"
        raise DataError(
            f'{source.name}: no split "{split}"; {listed}'
            + (f'. Did you mean "{near[0]}"?' if near else "")
        )
    if not split and len(known) > 1:
        split = _train_split(known)
        if not split:
            raise DataError(
                f'{source.name}: has the splits {", ".join(known)}; name one, as "{source.path}:{known[0]}"'
            )
    return reader.read(source, images, split or (known[0] if known else ""))


def _train_split(known: Sequence[str]) -> str:
    """The split that is read where none is named and there are several, or ""."""
    return next((name for name in sorted(known) if "train" in name.lower()), "")
