"""Images without annotations as a data set: `open_unlabeled("photos/", like=data)`.

In: a folder or files. Out: a `CocoDataset` whose images have no annotations, which means unknown here, not empty: see teacher.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError, DataWarning
from ..images.files import image_files
from ..images.read import ImageError, image_size

_SHOWN = 20


def open_unlabeled(
    source: str | Path | Iterable[str | Path] | CocoDataset,
    data: CocoDataset,
    validation: CocoDataset | None = None,
) -> CocoDataset:
    """Images as a data set without annotations.

    Args:
        source: a folder (all images under it, sorted), or files; a data set stays as it is.
        data: the annotated images, whose categories it gets. Those that lie in the folder as well are left out, for more is known of them.
        validation: images to judge by, likewise left out.

    Raises:
        DataError: no folder or file of that name, or no image is left. An image that cannot be read is left out with a warning.
    """
    if isinstance(source, CocoDataset):
        return source
    folder, files = _files(source)
    known = {
        part[i].path.resolve()
        for part in (data, validation)
        if part is not None
        for i in range(len(part))
    }
    images, unreadable = [], []
    for path in files:
        if path.resolve() in known:
            continue
        try:
            height, width = image_size(path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        images.append(
            {
                "id": len(images) + 1,
                "file_name": path.relative_to(folder).as_posix(),
                "height": height,
                "width": width,
            }
        )
    if unreadable:
        more = [f"  .. and {len(unreadable) - _SHOWN} more"] if len(unreadable) > _SHOWN else []
        lines = [
            f"{folder}: {len(unreadable)} unlabeled images are left out:",
            *(f"  {line}" for line in unreadable[:_SHOWN]),
            *more,
        ]
        warnings.warn("\n".join(lines), DataWarning, stacklevel=2)
    if not images:
        raise DataError(
            f"{folder}: none of its {len(files)} images can be learnt from without annotations: all are annotated already, or unreadable"
        )
    content = {
        "images": images,
        "annotations": [],
        "categories": data.subset([]).truth()["categories"],
    }
    opened = CocoDataset(content, folder, categories=data.categories)
    opened.name = f"{folder.name or folder}, unlabeled"
    return opened


def _files(source: str | Path | Iterable[str | Path]) -> tuple[Path, list[Path]]:
    """A folder, and the files in or under it that are meant."""
    if isinstance(source, str | Path):
        folder = Path(source)
        if not folder.is_dir():
            raise DataError(
                f"{folder}: there is no such folder; unlabeled= (--unlabeled) must name a folder of images"
            )
        files = image_files(folder)
    else:
        files = sorted({Path(p).absolute() for p in source})
        if missing := [p for p in files if not p.is_file()]:
            raise DataError(f"{missing[0]}: there is no such file; unlabeled= must list images")
        folder = Path(os.path.commonpath([p.parent for p in files])) if files else Path()
    if not files:
        raise DataError("unlabeled=: the list holds no images; give files, or a folder")
    return folder, files
