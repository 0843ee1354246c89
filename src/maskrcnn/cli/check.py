"""`maskrcnn check`: what is wrong with annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def check(
    data: str,
    *,
    images: Path | None = None,
    val: str | None = None,
    val_images: Path | None = None,
    fix: Path | None = None,
    html: Path | None = None,
    decode: bool = True,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
) -> int:
    """List everything that is wrong with annotated images: file, annotation and cure.

    Reads every annotation and decodes every image to its end; what is found out about an unchanged file is remembered. The exit status is 0 if all
    is well or can be used as it is, 1 if there are problems.

    Args:
        data: Annotation file or folder of any known format; one split of several as data.yaml:val.
        images: Folder of the images; by default where the annotations have them.
        val: Annotations to validate on: checked as well, and searched for images of the training data. By default the split "val" that the data
            have themselves; none for none.
        val_images: Folder of the validation images; by default --images.
        fix: COCO file to write, with everything mended that has one right answer.
        html: Page to write, one file: counts, sizes, shapes, balance of the categories, problems, drawn samples.
        decode: Decode every image, or read headers only.
        everything: List every place, not only the first 20 of each kind.
    """
    from ..dataset_checks.check_dataset import check_dataset as run
    from ..formats.load_dataset import validation_split

    judged = None if val and val.lower() == "none" else val or validation_split(data, images)
    report = run(
        data,
        images,
        validation=judged,
        validation_images=val_images,
        decode_images=decode,
        fix=fix,
        html=html,
    )
    print(report.describe(None if everything else 20))
    folder = report.data.image_folder
    for path in (fix, html):
        if path is not None:
            elsewhere = (
                path == fix
                and folder is not None
                and not (path.parent.exists() and path.parent.samefile(folder))
            )
            print(f"written: {path}" + (f"; its images: --images {folder}" if elsewhere else ""))
    return 1 if report.is_error else 0
