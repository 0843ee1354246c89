"""`maskrcnn check`: lists the problems of annotated images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from ..dataset_checks.check_report import CheckReport


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
    unchanged files are not decoded again. What `maskrcnn train` would refuse is an error. The exit
    status is 1 if there are errors, else 0.

    Args:
        data: Annotation file or folder of any known format. Select a split as data.yaml:val.
        images: Image folder; by default where the annotations say it is.
        val: Annotations to validate on. They are checked too, and compared with the training
            images. By default the data set's own split "val".
        no_val: Check only DATA, without its split "val".
        val_images: Folder of the validation images; by default --images.
        attribute: Attribute that holds the category, for VIA files whose regions have several.
        fix: Write a COCO file in which every problem with an unambiguous fix is fixed, and a second
            one for the validation images (fixed_val.json beside fixed.json).
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
        val=False if no_val else val,
        val_images=val_images,
        attribute=attribute,
        decode_images=decode,
        fix=fix,
        html=html,
    )
    print(report.describe(None if everything else 20))

    if report.fixed_file is not None:
        print(f"wrote {' and '.join(map(str, fixed_files(report)))}; {how_to_train(report)}")
    if html is not None:
        print(f"wrote {html}")
    return 1 if report.errors else 0


def fixed_files(report: CheckReport) -> list[Path]:
    """The fixed files of the data and of the validation data."""
    parts = (report, report.validation)
    return [part.fixed_file for part in parts if part is not None and part.fixed_file is not None]


def how_to_train(report: CheckReport) -> str:
    """The options with which the fixed files are opened."""
    words = []
    for prefix, part in (("", report), ("val-", report.validation)):
        if part is None or part.fixed_file is None:
            continue
        words += [f"--{prefix.strip('-') or 'data'}", str(part.fixed_file)]
        folder = part.data.image_folder
        # A COCO file's images are located automatically only in the file's own folder.
        if folder is not None and not part.fixed_file.parent.samefile(folder):
            words += [f"--{prefix}images", str(folder)]
    return f"open with {shlex.join(words)}"
