"""Which images to annotate next: `rank(model, "photos/")`, the most instructive first.

In:  a model and many images, of which perhaps some are annotated already.
Out: a `Ranked` for each image, with the reasons for its place.

Images are chosen one after the other. The next is the one with the largest

    (objects in question + 0.1) x novelty

Objects in question are what the model uncertainties (uncertainties.py). Novelty, 0 to 1, says how unlike an image is to all that are chosen or annotated already:
0 for a near-duplicate of one (images/similarity.py), else d / (d + 0.1 m), where d is the distance to the nearest in the model's own features and m the
median distance of two images. So of two alike the second comes late, whatever it shows, copies come last, and an image in which the model finds
nothing is ranked by its novelty alone. Nothing else of an image is kept: 100,000 take some 300 MB.

Source: Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (greedy k-center on features).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..annotations.coco_dataset import CocoDataset
from ..images.files import image_files
from ..images.read import ImageError
from ..images.similarity import DISTANCE
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import Answering, Form, Source, answering
from .uncertainty import look

if TYPE_CHECKING:
    import torch
    from rich.console import Console

BASE = 0.1  # objects in question in any image: the model may see nothing of what it shows
CHOSEN_ONE_BY_ONE = 2000  # images; those after them, which nobody annotates next, are sorted by the novelty that they then have
NEAR = 0.1  # of the median distance: so far from its nearest an image has half the novelty
_LAST = 1e-9  # by which copies, which are last, are sorted by what is in question
_PAIRED = 500  # images whose distances are measured for the median


@dataclass(frozen=True)
class Ranked:
    """An image's place, and why."""

    file: Path
    file_name: str
    """Below the folder that was given."""
    place: int
    """From 1: the image to annotate first."""
    question: float
    """Objects in question: `uncertainty` + `disagreement` + `contour`."""
    uncertainty: float
    """Expected wrong decisions about which objects exist."""
    disagreement: float
    """Objects that the model finds in the image or in its mirror image, not in both."""
    contour: float
    """Objects' areas that are expected to be on the wrong side of a polygon."""
    novelty: float
    """0 (a copy of one ranked before, or annotated already) to 1."""
    objects: int
    """Found with at least even odds."""
    uncertain: int
    """Of both views, those in question by a quarter or more."""
    nearest: str
    """What was ranked before or annotated already and looks most alike; empty for the first."""

    @property
    def reason(self) -> str:
        """In words."""
        parts = {
            "objects that may not exist": self.uncertainty,
            "seen in one view only": self.disagreement,
            "uncertain contours": self.contour,
        }
        most = max(parts, key=lambda name: parts[name])
        alike = f"; nearly the same as {self.nearest}" if self.nearest and self.novelty == 0 else ""
        return (
            f"{self.uncertain} uncertain, mostly {most}"
            if self.uncertain
            else "little in uncertainty"
            if self.objects
            else "nothing found"
        ) + alike


@dataclass(frozen=True)
class Ranking(Sequence[Ranked]):
    """Images in the order in which to annotate them."""

    images: tuple[Ranked, ...]
    failed: tuple[tuple[str, str], ...] = ()
    """Files that cannot be read, and why."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]

    def write(self, path: str | Path) -> None:
        """A CSV file: one line an image, in order."""
        names = (
            "place",
            "file_name",
            "question",
            "uncertainty",
            "disagreement",
            "contour",
            "novelty",
            "objects",
            "uncertain",
            "nearest",
            "reason",
        )
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(names)
            for one in self.images:
                values = (getattr(one, name) for name in names)
                rows.writerow(
                    [f"{value:.4g}" if isinstance(value, float) else value for value in values]
                )


def rank_images(
    model: MaskRCNN | str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    labeled: CocoDataset | str | Path | Iterable[str | Path] | None = None,
    form: Form = "fast",
    device: torch.device | str | None = None,
    progress: bool = False,
    console: Console | None = None,
) -> Ranking:
    """The images in the order in which annotating them should help the model most.

    Args:
        model: a model, or what `load` reads.
        images: a folder (all images under it), or files.
        labeled: images that are annotated already (a data set, a folder, files): they are left out, and what looks like them comes late.
        form: see `predict`.
        device: where to run; by default where the model is.
        progress: show a progress bar.
        console: where the bar is shown.

    Returns:
        All images, and in `failed` those that cannot be read.

    Raises:
        ValueError: no images, or all are annotated already.
    """
    known = (
        {} if labeled is None else {path.resolve(): source for path, source in _sources(labeled)}
    )
    sources = [source for path, source in _sources(images) if path.resolve() not in known]
    if not sources:
        raise ValueError(f"{images}: all images are annotated already; there is none left to rank")
    answer, failed = answering(model, form=form, device=device), []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not progress) as bar:
        looks = _looks(answer, bar.track(sources, description="Looking"), failed)
        seen = (
            _looks(answer, bar.track([*known.values()], description="Comparing"), failed)
            if known
            else []
        )
    if not looks:
        raise ValueError(f"no image can be read; the first: {failed[0][1]}")
    return Ranking(tuple(_ranked(looks, seen)), tuple(failed))


_Seen = tuple[Source, np.ndarray, np.ndarray, tuple[float, float, float, int, int]]


def _looks(
    answer: Answering, sources: Iterable[Source], failed: list[tuple[str, str]]
) -> list[_Seen]:
    """What is kept of a look at each image: features, hash and numbers, not its objects."""
    kept: list[_Seen] = []
    for source in sources:
        try:
            seen = look(answer, source)
        except ImageError as error:
            failed.append((str(source.image), str(error)))
            continue
        kept.append(
            (
                source,
                seen.features,
                seen.hash,
                (
                    seen.uncertainty,
                    seen.disagreement,
                    seen.contour,
                    seen.objects,
                    len(seen.uncertain),
                ),
            )
        )
    return kept


def _ranked(looks: Sequence[_Seen], known: Sequence[_Seen]) -> Iterable[Ranked]:
    seen = (*looks, *known)
    names = [one[0].file_name or "" for one in seen]
    questions = np.array([sum(one[3][:3]) for one in looks])
    chosen = order(
        questions, np.stack([one[1] for one in seen]), np.stack([one[2] for one in seen])
    )
    for place, (index, novelty, nearest) in enumerate(chosen, start=1):
        source, _, _, (uncertainty, disagreement, contour, objects, uncertain) = looks[index]
        yield Ranked(
            file=Path(str(source.image)),
            file_name=names[index],
            place=place,
            question=float(questions[index]),
            uncertainty=uncertainty,
            disagreement=disagreement,
            contour=contour,
            novelty=novelty,
            objects=objects,
            uncertain=uncertain,
            nearest=names[nearest] if nearest >= 0 else "",
        )


def order(
    questions: Float[np.ndarray, "N"],
    features: Float[np.ndarray, "M C"],
    hashes: Float[np.ndarray, "M D"],
) -> list[tuple[int, float, int]]:
    """The order in which to choose N images.

    Args:
        questions: objects in question in each.
        features: of these N, then of images that are annotated already.
        hashes: of the same, by which near-duplicates are known.

    Returns:
        For each choice its index, its novelty, and the index of the nearest of those chosen before or annotated, -1 for none.
    """
    count, places = len(questions), _places(features)
    distance, nearest, left = np.full(count, np.inf), np.full(count, -1), np.ones(count, bool)

    def compare(index: int) -> None:
        apart = np.linalg.norm(places[:count] - places[index], axis=1)
        apart[hashes[:count] @ hashes[index] >= 1 - DISTANCE] = 0.0
        closer = apart < distance
        distance[closer], nearest[closer] = apart[closer], index

    def novelty() -> Float[np.ndarray, "N"]:
        return np.where(
            np.isinf(distance),
            1.0,
            distance / np.where(np.isinf(distance), 1.0, distance + NEAR + 1e-12),
        )

    for index in range(count, len(features)):
        compare(index)
    chosen: list[tuple[int, float, int]] = []
    for _ in range(min(count, CHOSEN_ONE_BY_ONE)):
        new = novelty()
        best = int(np.where(left, (questions + BASE) * new + _LAST * questions, -1.0).argmax())
        chosen.append((best, float(new[best]), int(nearest[best])))
        left[best] = False
        compare(best)
    new, rest = novelty(), np.flatnonzero(left)
    rest = rest[np.argsort(-((questions + BASE) * new)[rest], kind="stable")]
    return chosen + [(int(i), float(new[i]), int(nearest[i])) for i in rest]


def _places(features: Float[np.ndarray, "M C"]) -> Float[np.ndarray, "M C"]:
    """Features in which every channel has the same weight and two images have a median distance of 1."""
    centered = features.astype(np.float64) - features.mean(axis=0)
    spread = centered.std(axis=0)
    scaled = np.divide(
        centered,
        spread,
        out=np.zeros_like(centered),
        where=spread > 1e-6 * (np.abs(features).max() + 1e-12),
    )
    some = scaled[np.linspace(0, len(scaled) - 1, min(len(scaled), _PAIRED)).astype(int)]
    pairs = np.sqrt(
        np.maximum((some**2).sum(1)[:, None] + (some**2).sum(1) - 2 * some @ some.T, 0)
    )[np.triu_indices(len(some), 1)]
    middle = float(np.median(pairs)) if len(pairs) else 0.0
    return (scaled / (middle or 1.0)).astype(np.float32)


def _sources(images: CocoDataset | str | Path | Iterable[str | Path]) -> list[tuple[Path, Source]]:
    """Files and what they are called."""
    if isinstance(images, CocoDataset):
        found = [
            (record.path, record.file_name) for record in (images[i] for i in range(len(images)))
        ]
    elif isinstance(images, str | Path) and Path(images).is_dir():
        found = [(path, path.relative_to(images).as_posix()) for path in image_files(images)]
    else:
        found = [
            (Path(path), str(path))
            for path in ([images] if isinstance(images, str | Path) else images)
        ]
    if not found:
        raise ValueError("no images are given; give a folder, or a list of files")
    return [(path, Source(path, n, name)) for n, (path, name) in enumerate(found, start=1)]
