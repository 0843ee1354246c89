"""The job behind `maskrcnn predict`: many files in, one results file and an overlay for each image out.

In:  a model, files and folders.
Out: OUT/results.json, COCO results with `image_id` (the sorted file's number, from 1) and `file_name`; OUT/<file name>, the overlays, in the
     folders' own structure; OUT/FORMAT, annotations to correct, where they are asked for. A file that cannot be read is named in the summary and
     left out; the rest is done.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..annotations.coco_types import CocoResult
from ..images.files import image_files
from ..images.read import ImageError
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from .annotation_drafts import Drafts
from .predictor import Form, Source, answering, stream

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

RESULTS = "results.json"


@dataclass
class Summary:
    """What a job did."""

    out: Path
    images: int = 0
    """Images that were answered."""
    objects: Counter[str] = field(default_factory=Counter)
    """How many of each category."""
    images_with: Counter[str] = field(default_factory=Counter)
    """In how many images each category is."""
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """File and reason."""
    lost: str = ""
    """What the annotation format could not hold."""

    def table(self) -> Table:
        """Objects of each category, for a terminal."""
        from rich.table import Table

        pace = f", {self.seconds / self.images:.2f} s each" if self.images else ""
        table = Table(
            title=f"{self.images} image{'s' * (self.images != 1)} in {self.seconds:.1f} s{pace}"
        )
        for name in ("category", "objects", "in images"):
            table.add_column(name, justify="left" if name == "category" else "right")
        for name, count in self.objects.most_common():
            table.add_row(name, str(count), str(self.images_with[name]))
        if len(self.objects) != 1:
            table.add_row("all", str(self.objects.total()), str(self.images), style="bold")
        return table


def predict_files(
    model: MaskRCNN | str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    min_score: float = 0.5,
    batch_size: int = 1,
    form: Form = "fast",
    device: torch.device | str | None = None,
    tta: str | None = None,
    overlays: bool = True,
    annotations: str | None = None,
    simplify: float = 0.5,
    progress: bool = True,
    console: Console | None = None,
) -> Summary:
    """Finds the objects in all files and writes results and overlays; tells what was done and what could not be read.

    Args:
        model: a model, or what `load` reads.
        inputs: files and folders; of a folder all images under it.
        out: the folder to write to; made if absent. Images under it are not read.
        min_score: objects scored lower are left out.
        batch_size: images of equal padded shape that go through the model together.
        form: see `predict`.
        device: where to run; by default where the model is.
        tta: see `predict`.
        overlays: draw one for each image.
        annotations: also write annotations of this format (see `convert`) to OUT/FORMAT, to be corrected by hand.
        simplify: pixels by which their polygons may be off, to have few points; 0 = exact.
        progress: show a progress bar.
        console: where the bar is shown.

    Raises:
        FileNotFoundError: an input that does not exist.
        FileExistsError: OUT/FORMAT exists.
        ValueError: a folder without images, an `out` that is a file, or an overlay that would replace an input.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the results need a folder of their own")
    files = _named(inputs, out)
    targets = _overlay_paths(files, out) if overlays else {}
    answer = answering(model, form=form, device=device, min_score=min_score, tta=tta)
    drafts, paths = (
        Drafts(annotations, out, simplify) if annotations else None,
        {name: path for path, name in files},
    )
    out.mkdir(parents=True, exist_ok=True)
    summary, start = Summary(out), time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, disable=not progress) as bar,
        _json_list(out / RESULTS) as write,
    ):
        task = bar.add_task("Predicting", total=len(files))

        def failed(source: Source, error: ImageError) -> None:
            summary.failed.append((str(source.image), str(error)))
            if progress:
                bar.console.print(f"skipped: {error}", style="red", markup=False, highlight=False)
            bar.advance(task)

        sources = (Source(path, n, name) for n, (path, name) in enumerate(files, start=1))
        for instances in stream(
            answer, sources, batch_size=batch_size, keep_images=overlays, on_error=failed
        ):
            write(entries := instances.to_coco())
            if drafts:
                drafts.add(paths[instances.file_name or ""], instances, entries)
            if overlays:
                _save_overlay(instances, targets[instances.file_name or ""])
            summary.images += 1
            summary.objects.update(instances.names)
            summary.images_with.update(set(instances.names))
            bar.advance(task)
        summary.lost = drafts.write(progress=False) if drafts else ""
    summary.seconds = time.perf_counter() - start
    return summary


def _named(inputs: Sequence[str | Path], out: Path) -> list[tuple[Path, str]]:
    """All files, sorted, each with a name of its own: relative to the folder it was found in, or to what all have in common."""
    found: dict[Path, str] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            own = _inside(out, given)
            found |= {
                p: p.relative_to(given).as_posix()
                for p in image_files(given)
                if not (own and _inside(p, out))
            }
        elif given.exists():
            found[given] = given.name
        else:
            raise FileNotFoundError(f"{given}: there is no such file or folder")
    unique = {path.resolve(): (path, name) for path, name in found.items()}
    files = sorted(unique.values())
    if not files:
        raise ValueError(
            f"no images to predict: {', '.join(map(str, inputs)) or 'no inputs given'}"
        )
    if len({name for _, name in files}) < len(files):
        root = Path(os.path.commonpath([path.absolute().parent for path, _ in files]))
        files = [(path, path.absolute().relative_to(root).as_posix()) for path, _ in files]
    return files


def _inside(path: Path, folder: Path) -> bool:
    """Strictly below a folder."""
    return folder.resolve() in path.resolve().parents


def _overlay_paths(files: Sequence[tuple[Path, str]], out: Path) -> dict[str, Path]:
    """Where each overlay goes: JPEG stays JPEG, all else becomes PNG; a.tif and a.png give a.tif.png and a.png.png."""
    plain = {
        name: Path(name).with_suffix(
            ".jpg" if Path(name).suffix.lower() in (".jpg", ".jpeg") else ".png"
        )
        for _, name in files
    }
    times = Counter(plain.values())
    paths = {
        name: out / (path if times[path] == 1 else Path(name + path.suffix))
        for name, path in plain.items()
    }
    originals = {path.resolve() for path, _ in files}
    if clash := [path for path in paths.values() if path.resolve() in originals]:
        raise ValueError(
            f"the overlay would replace the image {clash[0]}; choose another folder for the results"
        )
    return paths


def _save_overlay(instances: Instances, path: Path) -> None:
    from ..draw import draw_instances

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_instances(instances).save(
        path, quality=90, compress_level=3
    )  # of JPEG; of PNG, a third of the default's time


@contextmanager
def _json_list(path: Path) -> Generator[Callable[[Sequence[CocoResult]], None]]:
    """Gives a function that adds entries to a JSON list in a file; the file appears when all is written, and not at all after an error."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield _Appender(file)
            file.write("\n]\n" if file.tell() > 1 else "[]\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _Appender:
    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.count = 0

    def __call__(self, entries: Sequence[CocoResult]) -> None:
        for entry in entries:
            self.file.write(",\n" if self.count else "[\n")
            json.dump(entry, self.file)
            self.count += 1
