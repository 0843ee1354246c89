"""`maskrcnn rank`: which images to annotate next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.counted import counted

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
    """List the images to annotate next, by the uncertainty of the model and by novelty.

    Images that cannot be read are skipped and listed; the exit status is then 1.

    Args:
        model: Name of published weights, run folder, or checkpoint.
        images: Folder of images.
        labeled: Annotations, in any known format, of images that are already annotated. These
            images are left out, and images that look like them rank low.
        labeled_images: Folder of these images; by default where the format says they are, else the
            folder of images.
        top: Number of images to list and to show on the HTML page.
        out: CSV file to write: all images, with the reasons for their rank.
        html: HTML page to write: the top images, with their uncertain objects drawn.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
    """
    from rich.console import Console

    from ..active_learning.rank import open_labeled
    from ..active_learning.rank import rank_images as run
    from ..active_learning.rank_page import write_rank_page
    from ..prediction.predictor import Predictor
    from ..runtime.keep_memory import keep_memory
    from .device import chosen
    from .predict import report_skipped

    if top < 1:
        raise ValueError(f"--top: expected at least 1, got {top}")
    if not images.is_dir():
        raise ValueError(f"{images}: folder not found; pass a folder of images")
    for name, path in (("--out", out), ("--html", html)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: folder {path.parent} not found; create it first")

    known = None if labeled is None else open_labeled(labeled, labeled_images, images)
    for line in known.remarks() if known is not None else ():
        print(line, file=sys.stderr)

    keep_memory()
    predictor = Predictor(model, device=chosen(device, model))
    ranking = run(predictor, images, labeled=known, progress=True)

    Console().print(table(ranking, top))
    if out is not None:
        ranking.write(out)
    if html is not None:
        write_rank_page(html, ranking[:top], predictor)
    report_skipped(ranking.failed)
    return 1 if ranking.failed else 0


def table(ranking: Ranking, top: int) -> Table:
    """The first images and the reasons for their rank, for a terminal."""
    from rich.table import Table

    shown = Table(
        title=f"What to annotate next, of {counted(len(ranking), 'image')}",
        caption="expected errors: objects that the model may get wrong",
    )
    for name in ("rank", "image", "expected errors", "novelty", "reason"):
        is_text = name in ("image", "reason")
        shown.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for image in ranking[:top]:
        shown.add_row(
            str(image.rank),
            image.file_name,
            f"{image.expected_errors:.1f}",
            f"{image.novelty:.2f}",
            image.reason,
        )
    return shown
