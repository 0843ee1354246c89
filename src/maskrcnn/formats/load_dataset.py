"""Opens annotations of any format: `load_dataset("annotations/")`.

In:  a file or a folder, whose format is recognized by its content, and the image folder if needed.
Out: a `CocoDataset`, checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tarfile import is_tarfile
from typing import Literal
from zipfile import is_zipfile

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import JsonObject
from ..annotations.image_names import file_names
from ..annotations.images_option import images_option
from ..annotations.locate_images import check_image_folder
from ..annotations.problems import DataError
from ..annotations.unlisted_images import unlisted_images
from ..config import Category
from ..images.image_files import image_suffixes, images_in
from ..runtime.counted import counted
from .all_formats import FORMATS
from .annotation_source import AnnotationSource
from .format import Format
from .reading import Annotated
from .unknown_json import why_unknown

_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def load_dataset(
    path: str | Path,
    images: str | Path | None = None,
    *,
    categories: Sequence[Category] | None = None,
    attribute: str | None = None,
    on_error: Literal["raise", "drop"] = "raise",
) -> CocoDataset:
    """Returns annotated images of any known format, checked.

    The format is recognized by its content: COCO, YOLO (detection, segmentation, pose), LabelMe,
    VIA, CVAT, Label Studio, Pascal VOC, QuPath GeoJSON, label maps (PNG, TIFF, .npy).

    Args:
        path: the annotation file, or the folder of the dataset. One of several splits is named
            after a colon, as in "data.yaml:val"; otherwise "train", or the only split, is read.
        images: folder of the images; by default where the format says they are.
        categories: the categories to use and their order, for example `model.config.categories`.
            They are matched by name. None = all.
        attribute: the attribute that holds the category, in VIA files whose regions have several.
            None = the one named category, class, label, name, ..., or the only one.
        on_error: how to handle unusable annotations and images. "raise" raises one error that
            lists them all; "drop" leaves them out, with one warning that lists them.

    Raises:
        DataError: the format or the split is unknown, or annotations are unusable. The message
            lists every problem with file, location and suggestion.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> file = write_scenes("scenes", count=2)
        >>> data = mr.load_dataset(file)
        >>> len(data)
        2
        >>> data.image(0).shape
        (160, 160, 3)
        >>> [c.name for c in data.categories]
        ['ball', 'star', 'ring', 'figure']
        >>> reversed_order = data.categories[::-1]
        >>> [c.name for c in mr.load_dataset(file, categories=reversed_order).categories]
        ['figure', 'ring', 'star', 'ball']
    """
    source, split = locate(path, attribute)
    known = recognized_format(source, images)
    return read_split(known, source, images, split).dataset(categories, on_error)


def as_dataset(
    data: str | Path | JsonObject | CocoDataset,
    images: str | Path | None = None,
    *,
    categories: Sequence[Category] | None = None,
    on_error: Literal["raise", "drop"] = "raise",
) -> CocoDataset:
    """Returns annotated images, however they are given.

    Args:
        data: a data set, which is returned as it is apart from the order of its categories; what
            `load_dataset` reads; or COCO content as a dict.
        images: folder of the images, unless `data` is a data set.
        categories: the categories and their order, matched by name. A data set with other names
            keeps its own.
        on_error: as for `load_dataset`.

    Raises:
        DataError: the data cannot be read.
        TypeError: `data` is something else.
    """
    if isinstance(data, CocoDataset):
        names = [c.name for c in categories or data.categories]
        own = [c.name for c in data.categories]
        same = names != own and sorted(names) == sorted(own)
        return data.with_categories(categories) if categories and same else data
    if isinstance(data, Mapping):
        return CocoDataset(data, images, categories=categories, on_error=on_error)
    if isinstance(data, str | Path):
        return load_dataset(data, images, categories=categories, on_error=on_error)
    raise TypeError(
        "expected annotated images as a file, a folder, a COCO dict or a CocoDataset, "
        f"got {type(data).__name__}; open them with load_dataset"
    )


def validation_split(path: str | Path, images: str | Path | None = None) -> str | None:
    """The split that a dataset provides for validation, as a path: "data.yaml:val".

    Of several, it is the one named like the split that `load_dataset(path, images)` reads, with
    val instead of train.

    Returns:
        The path; None if the dataset has no such split, or `path` is itself one for validation.

    Raises:
        DataError: the file is missing, or its format is unknown.
    """
    source, split = locate(path)
    splits = recognized_format(source, images).splits(source)
    train = split or _train_split(splits)
    if not train or "val" in train.lower():
        return None

    others = [s for s in splits if "val" in s.lower() and "train" not in s.lower()]
    counterpart = train.replace("train", "val")
    if counterpart not in others:
        if len(others) != 1:
            return None
        counterpart = others[0]
    return f"{source.path}:{counterpart}" if counterpart else None


def locate(path: str | Path, attribute: str | None = None) -> tuple[AnnotationSource, str]:
    """The file or folder, and the split named after a colon, or "".

    Args:
        path: the file or folder, and the split.
        attribute: the attribute that the user says is the category.

    Raises:
        DataError: the file or folder does not exist.
    """
    if Path(path).exists():
        return AnnotationSource(path, attribute or ""), ""
    before, _, split = str(path).rpartition(":")
    if before and Path(before).exists():
        return AnnotationSource(before, attribute or ""), split
    raise DataError(f"{path}: file or folder not found; check the path")


def recognized_format(source: AnnotationSource, images: str | Path | None = None) -> Format:
    """The format of a source.

    Raises:
        DataError: no format recognizes it, or `images` is no folder. The message says what a JSON
            file looks like, and lists the known formats for anything else.
    """
    check_image_folder(images)
    unreadable: list[str] = []
    for known in FORMATS:
        try:
            if known.recognize(source, images):
                return known
        except DataError as error:  # a file that cannot be parsed does not have this format
            unreadable.append(str(error))
    if unreadable and source.path.is_file():
        raise DataError(unreadable[0])

    if source.path.is_file() and source.path.suffix.lower() == ".json":
        raise DataError(f"{source.path}: no known format: {why_unknown(source.json)}")
    kind = "folder" if source.path.is_dir() else "file"
    suggestion = _unpack_first(source.path) or _first_file(source) or _images_alone(source.path)
    lines = [
        f"{source.path}: the {kind} holds no annotations of a known format{suggestion}. "
        "Known formats:",
        *(f"  {known.description}" for known in FORMATS),
        *(f"Not readable: {error}" for error in unreadable),
    ]
    raise DataError("\n".join(lines))


def _unpack_first(path: Path) -> str:
    """A suggestion where a path is an archive, or a folder with nothing but archives and images."""
    archives = sorted(path.iterdir()) if path.is_dir() else [path]
    packed = [p.name for p in archives if p.suffix.lower() in _PACKED and p.is_file()]
    if not packed and path.is_file() and (is_zipfile(path) or is_tarfile(path)):
        packed = [path.name]
    return f"; {packed[0]} is an archive; unpack it first" if packed else ""


def _images_alone(path: Path) -> str:
    """A suggestion where a path is an image, or a folder with images."""
    if path.is_dir() and (images := images_in(path)):
        return (
            f"; it holds {counted(len(images), 'image')}: pass the annotations of these images, "
            f"and their folder as {images_option()}"
        )
    is_image = path.is_file() and path.suffix.lower() in image_suffixes()
    return "; it is an image: pass the file of its annotations" if is_image else ""


def _first_file(source: AnnotationSource) -> str:
    """What the first JSON file of a folder looks like."""
    path = source.first("*.json") or source.first("annotations/*.json")
    if path is None:
        return ""
    try:
        return f"; {path.name}: {why_unknown(AnnotationSource(path).json)}"
    except DataError:
        return ""  # listed as not readable


def read_split(
    known: Format, source: AnnotationSource, images: str | Path | None, split: str
) -> Annotated:
    """Reads one split of a source whose format is known.

    Args:
        known: the format.
        source: the file or folder.
        images: folder of the images; None = where the format says they are.
        split: its name; "" = the train split, or the only one.

    Raises:
        DataError: the split does not exist, or none is named and none is for training; or the
            user chose an attribute, and the format has none.
    """
    if source.attribute and not known.has_attributes:
        raise DataError(
            f'{source.name}: attribute="{source.attribute}" chooses among the attributes of VIA '
            f"regions; this is {known.name}, which has none; remove it (--attribute)"
        )
    splits = known.splits(source)
    if split and split not in splits:
        near = get_close_matches(split, splits, 1)
        available = f"it has {', '.join(splits)}" if splits else "it has no splits"
        suggestion = f'. Did you mean "{near[0]}"?' if near else ""
        raise DataError(f'{source.name}: no split "{split}"; {available}{suggestion}')

    if not split and len(splits) > 1:
        split = _train_split(splits)
        if not split:
            raise DataError(
                f"{source.name}: has the splits {', '.join(splits)}; "
                f'name one, as in "{source.path}:{splits[0]}"'
            )
    if not split and splits:
        split = splits[0]
    annotated = known.read(source, images, split)
    if not known.lists_images or annotated.images is None:
        return annotated
    names = file_names(annotated.content["images"])
    unlisted = unlisted_images(names, annotated.images, source.path)
    return replace(annotated, notes=(*annotated.notes, *unlisted))


def _train_split(splits: Sequence[str]) -> str:
    """The split that is read where none of several is named, or ""."""
    return next((name for name in sorted(splits) if "train" in name.lower()), "")
