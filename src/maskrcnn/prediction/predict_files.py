"""The work of `maskrcnn predict`: many files in, one results file and an overlay per image out.

In:  a model; files, folders, wildcard patterns, http(s) URLs, and "-" for standard input.
Out: OUT/results.json, COCO results with `image_id` (the number of the sorted file, from 1) and
     `file_name`; OUT/<file name>, the overlays, in the structure of the input folders;
     OUT/FORMAT, draft annotations, if requested.

Files that cannot be read are skipped and listed in the summary. Without any image that can be read,
nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..annotations.coco_types import CocoResult
from ..images.read import ImageError
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..runtime.atomic_files import replacing, stating_what_is_safe
from ..runtime.counted import counted
from .annotation_drafts import AnnotationDrafts
from .predict_inputs import NamedImage, find_inputs
from .predictor import ImageSource, Predictor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RESULTS = "results.json"
INCOMPLETE = "results.incomplete.json"
_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
_LONGEST_NAME = 255  # bytes, of one part of a path
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
    left_out: list[Path] = field(default_factory=list)
    """Files in the given folders that are not images by their ending."""
    several_frames: list[str] = field(default_factory=list)
    """Images with several frames, of which the first was used."""

    def add(self, instances: Instances) -> None:
        """Counts the objects of an image."""
        names = instances.names.tolist()
        self.images += 1
        self.objects.update(names)
        self.images_with.update(set(names))

    def table(self) -> Table:
        """Objects per category, for a terminal."""
        from rich.table import Table

        each = f", {self.seconds / self.images:.2f} s each" if self.images else ""
        table = Table(title=f"{counted(self.images, 'image')} in {self.seconds:.1f} s{each}")
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
    enlarge: bool = False,
    annotations: str | None = None,
    simplify: float = 0.5,
    progress: bool = True,
    console: Console | None = None,
) -> Summary:
    """Detects the objects in files and folders, and writes results and overlays.

    Args:
        model: a model, or what `load` reads, for detections scored 0.5 or higher; or a
            `Predictor`, which has its own settings.
        inputs: files, folders, patterns such as "photos/**/*.jpg", http(s) URLs as text, and "-"
            for one image on standard input. For a folder, all images under it. A URL and standard
            input are read up to 256 MB, a URL up to 60 seconds.
        out: the folder to write to; created if it does not exist. Images under it are not read.
        batch_size: up to this many images of equal padded shape share one forward pass.
        overlays: draw the objects of each image on a copy of it.
        enlarge: enlarge overlays of images below 640 px (see `draw_instances`).
        annotations: also write annotations of this format to OUT/FORMAT, to be corrected in an
            annotation tool. See `convert_annotations` for the formats.
        simplify: tolerance in pixels of their polygons. Larger values give fewer points; 0 = exact.
        progress: show a progress bar.
        console: where to show the bar.

    Returns:
        What was detected, and which files were skipped.

    Raises:
        FileNotFoundError: an input does not exist, or nothing matches a pattern.
        FileExistsError: OUT/FORMAT exists already.
        ValueError: an input folder has no images, `out` is a file, an overlay would replace an
            input, or annotations are requested for URLs or standard input.
        WriteError: the disk is full or fails. After this and any other interruption, the results
            so far are in OUT/results.incomplete.json, beside their overlays.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> from PIL import Image
        >>> Image.fromarray(draw_micrograph(0, (96, 128))[0]).save("micrograph.png")
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
    found = find_inputs(inputs, out)
    targets = _overlay_paths(found.images, out) if overlays else {}
    if annotations and (no_file := [image.name for image in found.images if not image.path]):
        raise ValueError(
            f"{no_file[0]}: annotations need image files, which URLs and standard input are not; "
            "save the image first"
        )
    paths = {image.name: image.path for image in found.images}
    predictor = model if isinstance(model, Predictor) else Predictor(model, min_score=MIN_SCORE)
    drafts = AnnotationDrafts(annotations, out, simplify) if annotations else None

    out.mkdir(parents=True, exist_ok=True)
    summary = Summary(out, left_out=found.left_out)
    start = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        stating_what_is_safe(lambda: _what_is_safe(summary)),
        suppress(_NothingRead),
        Progress(*columns, console=console, disable=not progress) as bar,
        _json_list(out / RESULTS) as append,
    ):
        for instances in _predicted(predictor, found.images, batch_size, overlays, summary, bar):
            name = instances.file_name or ""
            results = instances.to_coco()
            if overlays:
                _save_overlay(instances, targets[name], enlarge)
            append(results)
            if drafts and (path := paths[name]):
                drafts.add(path, instances, results)
            summary.add(instances)

        if not summary.images:
            raise _NothingRead
        summary.lost = drafts.write(progress=False) if drafts else ""
    summary.seconds = time.perf_counter() - start
    return summary


def _predicted(
    predictor: Predictor,
    images: Sequence[NamedImage],
    batch_size: int,
    keep_images: bool,
    summary: Summary,
    bar: Progress,
) -> Iterator[Instances]:
    """Predicts images with a progress bar, and notes in the summary which ones were skipped."""
    sources = [ImageSource(i.image, n, i.name) for n, i in enumerate(images, start=1)]
    task = bar.add_task("Predicting", total=len(sources))

    def skip(source: ImageSource, error: ImageError) -> None:
        is_file = isinstance(source.image, Path)
        summary.failed.append((str(source.image if is_file else source.file_name), str(error)))
        bar.update(task, advance=1, description=f"Predicting ({len(summary.failed):,} skipped)")

    def note_frames(source: ImageSource) -> None:
        summary.several_frames.append(source.file_name or "")

    stream = predictor.stream(
        sources, batch_size, keep_images=keep_images, on_error=skip, on_frames=note_frames
    )
    for instances in stream:
        yield instances
        bar.advance(task)


def _what_is_safe(summary: Summary) -> str:
    """What a prediction that ends by a fault has saved, as a sentence."""
    file = summary.out / INCOMPLETE
    if not summary.images or not file.exists():
        return "Nothing was saved"
    return f"The results so far are safe in {file}: {counted(summary.images, 'image')}"


class _NothingRead(Exception):
    """No image could be read: the results of an earlier run stay as they are."""


def _overlay_paths(images: Sequence[NamedImage], out: Path) -> dict[str, Path]:
    """The path of each overlay, by the image's name.

    JPEG stays JPEG, all else becomes PNG. Where two paths collide, the suffix is added to the whole
    name: a.tif and a.png become a.tif.png and a.png.png.
    """
    plain: dict[str, Path] = {}
    for image in images:
        is_jpeg = Path(image.name).suffix.lower() in _JPEG
        plain[image.name] = Path(image.name).with_suffix(".jpg" if is_jpeg else ".png")

    counts = Counter(plain.values())
    paths = {
        name: out / _shortened(path if counts[path] == 1 else Path(name + path.suffix))
        for name, path in plain.items()
    }

    inputs = {image.path.resolve() for image in images if image.path}
    if clash := [path for path in paths.values() if path.resolve() in inputs]:
        raise ValueError(
            f"the overlay would replace the image {clash[0]}; choose another folder for the results"
        )
    return paths


def _shortened(path: Path) -> Path:
    """The path, with a name that file systems accept: its end becomes a hash if it is too long."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST_NAME:
        return path
    digest = hashlib.blake2b(name, digest_size=8).hexdigest()
    kept = name[: _LONGEST_NAME - len(digest) - len(path.suffix) - 1].decode(errors="ignore")
    return path.with_name(f"{kept}-{digest}{path.suffix}")


def _save_overlay(instances: Instances, path: Path, enlarge: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_format = "JPEG" if path.suffix == ".jpg" else "PNG"
    # quality is for JPEG; the compression level for PNG takes a third of the default's time
    with replacing(path) as partial:
        drawn = instances.plot(enlarge=enlarge)
        drawn.save(partial, image_format, quality=90, compress_level=3)


@contextmanager
def _json_list(path: Path) -> Generator[Callable[[Sequence[CocoResult]], None]]:
    """Yields a function that appends entries to a JSON list in a file.

    The file appears when the block succeeds. An exception leaves the old file, and the entries so
    far in a file beside it, `INCOMPLETE`.
    """
    incomplete = path.with_name(INCOMPLETE)
    with replacing(path) as partial:
        results = _ResultsFile(partial)
        try:
            yield results.append
            results.end()
        except _NothingRead:
            raise
        except BaseException:
            results.keep(incomplete)
            raise
        finally:
            results.file.close()
    incomplete.unlink(missing_ok=True)


class _ResultsFile:
    """A JSON list that can be ended at any time, also on a full disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Unbuffered: what a full disk has refused must not be written again on closing.
        self.file = path.open("wb", buffering=0)
        self.num_images = 0
        self.complete = 0  # bytes, which end with a whole entry

    def append(self, entries: Sequence[CocoResult]) -> None:
        """Adds the entries of an image."""
        lines = [json.dumps(entry) for entry in entries]
        if lines:
            self._write((",\n" if self.complete else "[\n") + ",\n".join(lines))
        self.complete = self.file.tell()
        self.num_images += 1

    def end(self) -> None:
        """Ends the list."""
        self._write("\n]\n" if self.complete else "[]\n")

    def keep(self, target: Path) -> None:
        """Ends the list after its last whole entry, and moves it to a file of its own."""
        if self.num_images:
            with suppress(OSError):
                self.file.truncate(self.complete)
                self.file.seek(self.complete)
                self.end()
                self.file.close()
                os.replace(self.path, target)

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[self.file.write(data) :]
