"""Which images to annotate next: `rank_images(model, "photos/")`, the most informative first.

In:  a model and many images; some may be annotated already.
Out: a `RankedImage` for each image, with the reasons for its rank.

Images are chosen one after the other. The next is the one with the largest

    (expected errors + 0.1) x novelty

Expected errors are objects that the model may get wrong (uncertainty.py). Novelty, 0 to 1, is how
much an image differs from all that are chosen or annotated: 0 for a near-duplicate of one
(images/similarity.py), else d / (d + 0.1 m). d is the distance to the nearest of them in the
model's own features, and m the median distance between two images.

So the second of two similar images ranks low whatever it shows, and copies rank last. An image
without detections is ranked by its novelty alone. Only numbers are kept of each image: 100,000
images take some 300 MB.

Source: Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set
Approach" (greedy k-center on features).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, overload

import numpy as np
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..annotations.coco_dataset import CocoDataset
from ..annotations.images_option import OF_LOADED, images_given_by
from ..annotations.problems import DataError
from ..formats.load_dataset import load_dataset
from ..images.image_files import image_files
from ..images.read import ImageError
from ..images.similarity import DISTANCE
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import ImageSource, Predictor
from ..runtime.atomic_files import replacing
from .uncertainty import measure_uncertainty

if TYPE_CHECKING:
    from rich.console import Console

BASE = 0.1  # expected errors added to every image: the model may miss all of its objects
CHOSEN_ONE_BY_ONE = 2000  # later images, which nobody annotates next, are sorted by their novelty
NEAR = 0.1  # in median distances: an image this far from its nearest has half the novelty
_LAST = 1e-9  # weight of the expected errors in the order of copies, which are last
_ANNOTATIONS = (".json", ".xml", ".yaml", ".yml", ".csv")
_LABELED_IMAGES = f"--labeled-images ({OF_LOADED})"
_PAIRED = 500  # images whose distances are measured for the median


@dataclass(frozen=True)
class RankedImage:
    """An image's rank, and the reasons for it."""

    file: Path
    file_name: str
    """Relative to the given folder."""
    rank: int
    """From 1: the image to annotate first."""
    expected_errors: float
    """Objects that the model may get wrong: `uncertainty` + `disagreement` + `contour`."""
    uncertainty: float
    """Expected wrong decisions about which objects exist."""
    disagreement: float
    """Objects detected in either the image or its mirror image, not in both."""
    contour: float
    """Area expected to be on the wrong side of contours, in objects."""
    novelty: float
    """0 (a copy of an image that is ranked before it, or annotated) to 1."""
    objects: int
    """Detections with a score of at least 0.5."""
    uncertain: int
    """Objects of both views with expected errors of at least 0.25."""
    nearest: str
    """The most similar image among those ranked before or annotated; empty for the first."""

    @property
    def reason(self) -> str:
        """The reasons in words."""
        parts = {
            "objects that may not exist": self.uncertainty,
            "detected in one view only": self.disagreement,
            "uncertain contours": self.contour,
        }
        if self.uncertain:
            most = max(parts, key=lambda name: parts[name])
            reason = f"{self.uncertain} uncertain, mostly {most}"
        elif self.objects:
            reason = "little uncertainty"
        else:
            reason = "no detections"

        if self.nearest and self.novelty == 0:
            reason += f"; nearly the same as {self.nearest}"
        return reason


@dataclass(frozen=True)
class Ranking(Sequence[RankedImage]):
    """Images in the order in which to annotate them."""

    images: tuple[RankedImage, ...]
    failed: tuple[tuple[str, str], ...] = ()
    """Files that cannot be read, each with the reason."""

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> RankedImage: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[RankedImage, ...]: ...

    def __getitem__(self, index: int | slice) -> RankedImage | tuple[RankedImage, ...]:
        return self.images[index]

    def write(self, path: str | Path) -> None:
        """Writes a CSV file with one line per image, in order."""
        names = (
            "rank",
            "file_name",
            "expected_errors",
            "uncertainty",
            "disagreement",
            "contour",
            "novelty",
            "objects",
            "uncertain",
            "nearest",
            "reason",
        )

        with (
            replacing(Path(path)) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(names)
            for image in self.images:
                values = (getattr(image, name) for name in names)
                rows.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])


def rank_images(
    model: MaskRCNN | str | Path | Predictor,
    images: CocoDataset | str | Path | Iterable[str | Path],
    *,
    labeled: CocoDataset | str | Path | Iterable[str | Path] | None = None,
    progress: bool = False,
    console: Console | None = None,
) -> Ranking:
    """The images in the order in which annotating them should help the model most.

    Args:
        model: a model, or what `load` reads; or a `Predictor`, for non-default settings (device,
            precision).
        images: a folder (all images under it), files, a data set, or its annotation file.
        labeled: images that are already annotated, in the same forms. They are not
            ranked, and images that look like them rank low.
        progress: show a progress bar.
        console: where to show the bar.

    Returns:
        All images, with those that cannot be read in `failed`.

    Raises:
        ValueError: there are no images, none can be read, or all are annotated already.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> from PIL import Image
        >>> for seed in (0, 1):
        ...     Image.fromarray(draw_micrograph(seed, (96, 128))[0]).save(f"{seed}.png")
        >>> ranking = mr.rank_images(mr.load("nuclei"), ["0.png", "1.png"])
        >>> [image.rank for image in ranking]
        [1, 2]
        >>> ranking.write("next.csv")
    """
    if isinstance(labeled, str | Path) and Path(labeled).suffix.lower() in _ANNOTATIONS:
        labeled = open_labeled(labeled, None, images if _is_folder(images) else None)
    known = {} if labeled is None else {path.resolve(): s for path, s in _sources(labeled)}
    sources = [source for path, source in _sources(images) if path.resolve() not in known]
    if not sources:
        raise ValueError(f"{images}: all images are already annotated; add images that are not")

    predictor = model if isinstance(model, Predictor) else Predictor(model)
    failed: list[tuple[str, str]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not progress) as bar:
        measured = _measured(predictor, bar.track(sources, description="Predicting"), failed)
        compared: list[_Measured] = []
        if known:
            track = bar.track([*known.values()], description="Comparing")
            compared = _measured(predictor, track, failed)

    if not measured:
        raise ValueError(f"no image can be read; the first: {failed[0][1]}")
    return Ranking(tuple(_ranked(measured, compared)), tuple(failed))


def open_labeled(
    annotations: str | Path, images: str | Path | None, pool: str | Path | None
) -> CocoDataset:
    """Opens the annotations of images that are already annotated; unusable entries are dropped.

    Args:
        annotations: the file or folder.
        images: the folder of their images; None = where the format says they are.
        pool: the folder of the images to rank, where the images are if the format does not say.

    Raises:
        DataError: the annotations cannot be read, or none of their images is found.
    """
    with images_given_by(_LABELED_IMAGES):
        known = load_dataset(annotations, images, on_error="drop")
        if known.image_folder is None and pool is not None:  # a COCO file apart from its images
            known = load_dataset(annotations, pool, on_error="drop")
    if known.image_folder is None or (known.dropped and not len(known)):
        raise DataError(
            f"{known.name}: none of its images is found, so none can be left out; "
            f"pass their folder as {_LABELED_IMAGES}"
        )
    return known


def _is_folder(images: object) -> TypeGuard[str | Path]:
    return isinstance(images, str | Path) and Path(images).is_dir()


@dataclass(frozen=True)
class _Measured:
    """What is kept of each image: numbers, not its objects."""

    source: ImageSource
    features: Float[np.ndarray, "C"]
    hash: Float[np.ndarray, "D"]
    uncertainty: float
    disagreement: float
    contour: float
    objects: int
    uncertain: int


def _measured(
    predictor: Predictor, sources: Iterable[ImageSource], failed: list[tuple[str, str]]
) -> list[_Measured]:
    kept: list[_Measured] = []
    for source in sources:
        try:
            result = measure_uncertainty(predictor, source)
        except ImageError as error:
            failed.append((str(source.image), str(error)))
            continue

        kept.append(
            _Measured(
                source=source,
                features=result.features,
                hash=result.hash,
                uncertainty=result.uncertainty,
                disagreement=result.disagreement,
                contour=result.contour,
                objects=result.objects,
                uncertain=len(result.uncertain),
            )
        )
    return kept


def _ranked(measured: Sequence[_Measured], known: Sequence[_Measured]) -> Iterator[RankedImage]:
    every = (*measured, *known)
    names = [image.source.file_name or "" for image in every]
    errors = np.array([sum((m.uncertainty, m.disagreement, m.contour)) for m in measured])
    features = np.stack([image.features for image in every])
    hashes = np.stack([image.hash for image in every])

    chosen = order(errors, features, hashes)
    for rank, (index, novelty, nearest) in enumerate(chosen, start=1):
        image = measured[index]
        yield RankedImage(
            file=Path(str(image.source.image)),
            file_name=names[index],
            rank=rank,
            expected_errors=float(errors[index]),
            uncertainty=image.uncertainty,
            disagreement=image.disagreement,
            contour=image.contour,
            novelty=novelty,
            objects=image.objects,
            uncertain=image.uncertain,
            nearest=names[nearest] if nearest >= 0 else "",
        )


def order(
    errors: Float[np.ndarray, "N"],
    features: Float[np.ndarray, "M C"],
    hashes: Float[np.ndarray, "M D"],
) -> list[tuple[int, float, int]]:
    """The order in which to choose N images.

    Args:
        errors: expected errors in each.
        features: of these N, then of the images that are annotated already.
        hashes: of the same images; near-duplicates have similar ones.

    Returns:
        For each choice its index, its novelty, and the index of the nearest of those chosen before
        or annotated, -1 for none.
    """
    count = len(errors)
    points = _scaled(features)
    distance = np.full(count, np.inf)
    nearest = np.full(count, -1)
    left = np.ones(count, bool)

    def compare(index: int) -> None:
        apart = np.linalg.norm(points[:count] - points[index], axis=1)
        apart[hashes[:count] @ hashes[index] >= 1 - DISTANCE] = 0.0
        closer = apart < distance
        distance[closer] = apart[closer]
        nearest[closer] = index

    def novelty() -> Float[np.ndarray, "N"]:
        total = np.where(np.isinf(distance), 1.0, distance + NEAR + 1e-12)
        return np.where(np.isinf(distance), 1.0, distance / total)

    for index in range(count, len(features)):
        compare(index)

    chosen: list[tuple[int, float, int]] = []
    for _ in range(min(count, CHOSEN_ONE_BY_ONE)):
        new = novelty()
        best = int(np.where(left, (errors + BASE) * new + _LAST * errors, -1.0).argmax())
        chosen.append((best, float(new[best]), int(nearest[best])))
        left[best] = False
        compare(best)

    new = novelty()
    rest = np.flatnonzero(left)
    rest = rest[np.argsort(-((errors + BASE) * new)[rest], kind="stable")]
    return chosen + [(int(i), float(new[i]), int(nearest[i])) for i in rest]


def _scaled(features: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
    """Features with equal weight of all channels, and a median distance of 1 between images."""
    centered = features.astype(np.float64) - features.mean(axis=0)
    spread = centered.std(axis=0)
    varies = spread > 1e-6 * (np.abs(features).max() + 1e-12)
    scaled = np.divide(centered, spread, out=np.zeros_like(centered), where=varies)

    some = scaled[np.linspace(0, len(scaled) - 1, min(len(scaled), _PAIRED)).astype(int)]
    squares = (some**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    pairs = distances[np.triu_indices(len(some), 1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    return (scaled / (median or 1.0)).astype(np.float32)


def _sources(
    images: CocoDataset | str | Path | Iterable[str | Path],
) -> list[tuple[Path, ImageSource]]:
    """Image files, each with its source."""
    if isinstance(images, str | Path) and Path(images).suffix.lower() in _ANNOTATIONS:
        with images_given_by(OF_LOADED):
            images = load_dataset(images)
    if isinstance(images, CocoDataset):
        images.require_images()
        records = (images[i] for i in range(len(images)))
        files = [(record.path, record.file_name) for record in records]
    elif isinstance(images, str | Path) and Path(images).is_dir():
        files = [(path, path.relative_to(images).as_posix()) for path in image_files(images)]
    else:
        given = [images] if isinstance(images, str | Path) else images
        files = [(Path(path), str(path)) for path in given]

    if not files:
        raise ValueError("no images given; pass a folder or a list of files")
    return [(path, ImageSource(path, n, name)) for n, (path, name) in enumerate(files, start=1)]
