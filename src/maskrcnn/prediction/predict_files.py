"""The work of `maskrcnn predict`: many files in, one results file and an overlay per image out.

In:  a model, files and folders.
Out: OUT/results.json, COCO results with `image_id` (the number of the sorted file, from 1) and
     `file_name`; OUT/<file name>, the overlays, in the structure of the input folders;
     OUT/FORMAT, draft annotations, if requested.

Files that cannot be read are skipped and listed in the summary.
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
from ..images.image_files import image_files
from ..images.read import ImageError
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..runtime.atomic_files import replacing
from .annotation_drafts import AnnotationDrafts
from .predictor import ImageSource, Predictor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RESULTS = "results.json"
MIN_SCORE = 0.5
"""Detections with a lower score are left out, unless a Predictor sets another limit."""


@dataclass
class Summary:
    """What `predict_files` did."""

    out: Path
    images: int = 0
    """How many images were predicted."""
    objects: Counter[str] = field(default_factory=Counter)
    """How many objects of each category were detected."""
    images_with: Counter[str] = field(default_factory=Counter)
    """In how many images each category was detected."""
    seconds: float = 0.0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Skipped files, each with the reason."""
    lost: str = ""
    """What the annotation format cannot represent."""

    def table(self) -> Table:
        """Objects per category, for a terminal."""
        from rich.table import Table

        each = f", {self.seconds / self.images:.2f} s each" if self.images else ""
        plural = "s" if self.images != 1 else ""
        table = Table(title=f"{self.images} image{plural} in {self.seconds:.1f} s{each}")
        for name in ("category", "objects", "in images"):
            table.add_column(name, justify="left" if name == "category" else "right")

        for name, count in self.objects.most_common():
            table.add_row(name, str(count), str(self.images_with[name]))
        if len(self.objects) != 1:
            table.add_row("all", str(self.objects.total()), str(self.images), style="bold")
        return table


def predict_files(
    model: MaskRCNN | str | Path | Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    batch_size: int = 1,
    overlays: bool = True,
    annotations: str | None = None,
    simplify: float = 0.5,
    progress: bool = True,
    console: Console | None = None,
) -> Summary:
    """Detects the objects in files and folders, and writes results and overlays.

    Args:
        model: a model, or what `load` reads, for detections scored 0.5 or higher; or a
            `Predictor`, which has its own settings.
        inputs: files and folders; for a folder, all images under it.
        out: the folder to write to; created if it does not exist. Images under it are not read.
        batch_size: up to this many images of equal padded shape share one forward pass.
        overlays: draw the objects of each image on a copy of it.
        annotations: also write annotations of this format to OUT/FORMAT, to be corrected in an
            annotation tool. See `convert_annotations` for the formats.
        simplify: tolerance in pixels of their polygons. Larger values give fewer points; 0 = exact.
        progress: show a progress bar.
        console: where to show the bar.

    Returns:
        What was detected, and which files were skipped.

    Raises:
        FileNotFoundError: an input does not exist.
        FileExistsError: OUT/FORMAT exists already.
        ValueError: an input folder has no images, `out` is a file, or an overlay would replace an
            input.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> from PIL import Image
        >>> Image.fromarray(draw_micrograph(seed=0)[0]).save("micrograph.png")
        >>> predictor = mr.Predictor(mr.load("nuclei"), min_score=0.7)
        >>> summary = mr.predict_files(predictor, ["micrograph.png"], "out", progress=False)
        >>> summary.images, list(summary.objects)
        (1, ['nucleus'])
        >>> sorted(path.name for path in summary.out.iterdir())
        ['micrograph.png', 'results.json']
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the results, got a file")
    files = _named_files(inputs, out)
    targets = _overlay_paths(files, out) if overlays else {}
    predictor = model if isinstance(model, Predictor) else Predictor(model, min_score=MIN_SCORE)
    drafts = AnnotationDrafts(annotations, out, simplify) if annotations else None

    out.mkdir(parents=True, exist_ok=True)
    paths = {name: path for path, name in files}
    sources = [ImageSource(path, n, name) for n, (path, name) in enumerate(files, start=1)]
    summary = Summary(out)
    start = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, disable=not progress) as bar,
        _json_list(out / RESULTS) as append,
    ):
        task = bar.add_task("Predicting", total=len(files))

        def skip(source: ImageSource, error: ImageError) -> None:
            summary.failed.append((str(source.image), str(error)))
            if progress:
                bar.console.print(f"skipped: {error}", style="red", markup=False, highlight=False)
            bar.advance(task)

        for instances in predictor.stream(sources, batch_size, keep_images=overlays, on_error=skip):
            name = instances.file_name or ""
            results = instances.to_coco()
            append(results)
            if drafts:
                drafts.add(paths[name], instances, results)
            if overlays:
                _save_overlay(instances, targets[name])

            summary.images += 1
            summary.objects.update(instances.names)
            summary.images_with.update(set(instances.names))
            bar.advance(task)

        summary.lost = drafts.write(progress=False) if drafts else ""
    summary.seconds = time.perf_counter() - start
    return summary


def _named_files(inputs: Sequence[str | Path], out: Path) -> list[tuple[Path, str]]:
    """All files, sorted, each with a unique name.

    The name is relative to the input folder of the file, or, where such names collide, to the
    folder that all files have in common.
    """
    names: dict[Path, str] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            skip_results = _inside(out, given)
            for path in image_files(given):
                if not (skip_results and _inside(path, out)):
                    names[path] = path.relative_to(given).as_posix()
        elif given.exists():
            names[given] = given.name
        else:
            raise FileNotFoundError(f"{given}: file or folder not found")

    unique = {path.resolve(): (path, name) for path, name in names.items()}
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
    """Whether a path is strictly below a folder."""
    return folder.resolve() in path.resolve().parents


def _overlay_paths(files: Sequence[tuple[Path, str]], out: Path) -> dict[str, Path]:
    """The path of each overlay, by the image's name.

    JPEG stays JPEG, all else becomes PNG. Where two paths collide, the suffix is added to the whole
    name: a.tif and a.png become a.tif.png and a.png.png.
    """
    plain: dict[str, Path] = {}
    for _, name in files:
        is_jpeg = Path(name).suffix.lower() in (".jpg", ".jpeg")
        plain[name] = Path(name).with_suffix(".jpg" if is_jpeg else ".png")

    counts = Counter(plain.values())
    paths = {
        name: out / (path if counts[path] == 1 else Path(name + path.suffix))
        for name, path in plain.items()
    }

    inputs = {path.resolve() for path, _ in files}
    if clash := [path for path in paths.values() if path.resolve() in inputs]:
        raise ValueError(
            f"the overlay would replace the image {clash[0]}; choose another folder for the results"
        )
    return paths


def _save_overlay(instances: Instances, path: Path) -> None:
    from ..draw import draw_instances

    path.parent.mkdir(parents=True, exist_ok=True)
    # quality is for JPEG; the compression level for PNG takes a third of the default's time
    draw_instances(instances).save(path, quality=90, compress_level=3)


@contextmanager
def _json_list(path: Path) -> Generator[Callable[[Sequence[CocoResult]], None]]:
    """Yields a function that appends entries to a JSON list in a file.

    The file appears when the block succeeds; an exception leaves the old file.
    """
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        append = _Appender(file)
        yield append
        file.write("\n]\n" if append.count else "[]\n")


class _Appender:
    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.count = 0

    def __call__(self, entries: Sequence[CocoResult]) -> None:
        for entry in entries:
            self.file.write(",\n" if self.count else "[\n")
            json.dump(entry, self.file)
            self.count += 1
