"""`maskrcnn check`: lists the problems of annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def check(
    data: str,
    *,
    images: Path | None = None,
    val: str | None = None,
    no_val: Annotated[bool, Parameter(negative=())] = False,
    val_images: Path | None = None,
    attribute: str | None = None,
    fix: Path | None = None,
    html: Path | None = None,
    decode: bool = True,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
) -> int:
    """Check annotated images and list every problem, with file, annotation and suggestion.

    Reads every annotation and decodes every image. The results of decoding are cached, so that
    unchanged files are not decoded again. The exit status is 1 if there are errors, else 0.

    Args:
        data: Annotation file or folder of any known format. Select a split as data.yaml:val.
        images: Image folder; by default where the annotations say it is.
        val: Annotations to validate on. They are checked too, and compared with the training
            images. By default the data set's own split "val".
        no_val: Check only DATA, without its split "val".
        val_images: Folder of the validation images; by default --images.
        attribute: Attribute that holds the category, for VIA files whose regions have several.
        fix: Write a COCO file in which every problem with an unambiguous fix is fixed.
        html: Write an HTML page with counts, sizes, problems and drawn samples.
        decode: Decode every image; otherwise read headers only.
        everything: List all problems, not only the first 20 of each kind.
    """
    from ..dataset_checks.check_dataset import check_dataset
    from ..formats.load_dataset import validation_split

    if val is not None and no_val:
        raise ValueError("--val and --no-val cannot be combined; omit one of them")
    if val is None and not no_val:
        val = validation_split(data, images)
    report = check_dataset(
        data,
        images,
        val=val,
        val_images=val_images,
        attribute=attribute,
        decode_images=decode,
        fix=fix,
        html=html,
    )
    print(report.describe(None if everything else 20))

    if fix is not None:
        # A COCO file's images are located automatically only in the file's own folder.
        folder = report.data.image_folder
        beside = fix.parent.exists() and folder is not None and fix.parent.samefile(folder)
        where = "" if folder is None or beside else f"; open it with --images {folder}"
        print(f"wrote {fix}{where}")
    if html is not None:
        print(f"wrote {html}")
    return 1 if report.errors else 0
