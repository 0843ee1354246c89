"""`maskrcnn rank`: which images to annotate next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..active_learning.rank import Ranking


def rank(
    model: str,
    images: Path,
    /,
    *,
    labeled: str | None = None,
    labeled_images: Path | None = None,
    top: int = 20,
    out: Path | None = None,
    html: Path | None = None,
    device: str | None = None,
) -> int:
    """Say which images to annotate next: those that the model uncertainties most and that are unlike each other.

    An image that cannot be read is named and left out; the exit status is then 1.

    Args:
        model: Name of published weights, run folder, or checkpoint.
        images: Folder of images.
        labeled: Annotations, in any known format, of images that are annotated already: they are left out, and what looks like them comes late.
        labeled_images: Folder of these images; by default where the format has them, else the folder of images.
        top: Images to list and to show on the sheet.
        out: CSV file for all images, with the reasons.
        html: HTML file for a sheet of the first images, their uncertain objects outlined.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
    """
    from rich.console import Console

    from ..active_learning.rank import rank_images as run
    from ..active_learning.rank_page import write_sheet
    from ..formats.load_dataset import load_dataset
    from ..runtime.keep_memory import keep_memory
    from ..weights.load import load
    from .device import chosen

    if top < 1:
        raise ValueError(f"--top: got {top}, must be 1 or more")
    if not images.is_dir():
        raise ValueError(f"{images}: there is no such folder; give a folder of images")
    for name, path in (("--out", out), ("--html", html)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: there is no folder {path.parent} to write {path.name} to")
    known = load_dataset(labeled, labeled_images, on_error="drop") if labeled else None
    if known is not None and known.image_folder is None:  # a COCO file apart from its images
        known = load_dataset(str(labeled), images, on_error="drop")
    keep_memory()
    network, place = load(model), chosen(device)
    ranking = run(network, images, labeled=known, device=place, progress=True)
    Console().print(table(ranking, top))
    if out is not None:
        ranking.write(out)
    if html is not None:
        write_sheet(html, ranking[:top], network, device=place)
    for file, reason in ranking.failed:
        print(f"Not done: {reason if file in reason else f'{file}: {reason}'}", file=sys.stderr)
    return 1 if ranking.failed else 0


def table(ranking: Ranking, top: int) -> Table:
    """The first images and why, for a terminal."""
    from rich.table import Table

    shown = Table(
        title=f"What to annotate next, of {len(ranking)} images",
        caption="in question: objects that the model may have wrong",
    )
    for name in ("place", "image", "in question", "novelty", "why"):
        shown.add_column(
            name, justify="left" if name in ("image", "why") else "right", overflow="fold"
        )
    for one in ranking[:top]:
        shown.add_row(
            str(one.place), one.file_name, f"{one.question:.1f}", f"{one.novelty:.2f}", one.reason
        )
    return shown
