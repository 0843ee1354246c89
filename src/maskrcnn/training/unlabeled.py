"""Images without annotations as a data set: `open_unlabeled("photos/", data)`.

In: a folder or files. Out: a `CocoDataset` without annotations. Here that means unknown, not empty:
see teacher.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import CocoContent, CocoImage
from ..annotations.problems import DataError, DataWarning
from ..images.image_files import image_files
from ..images.read import ImageError, image_size
from ..runtime.counted import counted

_SHOWN = 20  # unreadable images listed in the warning


def open_unlabeled(
    source: str | Path | Iterable[str | Path] | CocoDataset,
    data: CocoDataset,
    val: CocoDataset | None = None,
) -> CocoDataset:
    """Opens images as a data set without annotations.

    Warns about images that cannot be read, and skips them.

    Args:
        source: a folder (all images under it, sorted), files, or the images of a data set, whose
            annotations are not used.
        data: the annotated images. The result has their categories and skips their files.
        val: images to validate on; their files are skipped too.

    Raises:
        DataError: no folder or file of that name, or no image remains.
    """
    if isinstance(source, CocoDataset):
        _warn_about_annotations(source)
        source = [source[i].path for i in range(len(source))]
    folder, files = unlabeled_files(source)

    annotated = {path for part in (data, val) if part is not None for path in _paths(part)}
    images: list[CocoImage] = []
    unreadable: list[str] = []
    for path in files:
        if path.resolve() in annotated:
            continue
        try:
            height, width = image_size(path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        name = path.relative_to(folder).as_posix()
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})

    if unreadable:
        warnings.warn(_warning(folder, unreadable), DataWarning, stacklevel=2)
    if not images:
        raise DataError(
            f"{folder}: all images ({len(files):,}) are unreadable or already annotated; "
            "unlabeled= (--unlabeled) needs at least one other image"
        )

    content: CocoContent = {
        "images": images,
        "annotations": [],
        "categories": data.subset([]).truth()["categories"],
    }
    dataset = CocoDataset(content, folder, categories=data.categories)
    dataset.name = f"{folder.name or folder}, unlabeled"
    return dataset


def _warn_about_annotations(source: CocoDataset) -> None:
    annotated = len(source.content()["annotations"])
    if annotated:
        warnings.warn(
            f"{source.name}: {counted(annotated, 'annotation')} not used, because the images are "
            "given as unlabeled; to learn from annotations, merge the data sets",
            DataWarning,
            stacklevel=3,
        )


def _paths(data: CocoDataset) -> Iterator[Path]:
    return (data[i].path.resolve() for i in range(len(data)))


def _warning(folder: Path, unreadable: list[str]) -> str:
    lines = [f"{folder}: skipped {counted(len(unreadable), 'unreadable image')}:"]
    lines += [f"  {line}" for line in unreadable[:_SHOWN]]
    if len(unreadable) > _SHOWN:
        lines.append(f"  ... and {len(unreadable) - _SHOWN} more")
    return "\n".join(lines)


def unlabeled_files(source: str | Path | Iterable[str | Path]) -> tuple[Path, list[Path]]:
    """Returns a folder, and the image files in it or under it.

    Raises:
        DataError: no folder or file of that name, or no image.
    """
    if isinstance(source, str | Path):
        folder = Path(source)
        if not folder.is_dir():
            problem = "expected a folder, got a file" if folder.exists() else "folder not found"
            raise DataError(
                f"{folder}: {problem}; unlabeled= (--unlabeled) expects a folder of images"
            )
        files = image_files(folder)
    else:
        files = sorted({Path(p).absolute() for p in source})
        if missing := [p for p in files if not p.is_file()]:
            raise DataError(f"{missing[0]}: file not found; unlabeled= expects image files")
        folder = Path(os.path.commonpath([p.parent for p in files])) if files else Path()

    if not files:
        raise DataError(
            f"{folder}: no images found; unlabeled= (--unlabeled) expects a folder or files"
        )
    return folder, files
