"""The report as one HTML file that needs nothing else: `write_page(report, path)`.

In: a `CheckReport`. Out: counts, every kind of problem with examples, notes, sizes and shapes of
images and objects, balance of the categories, drawn samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from ..annotations.annotation import BoxXYXY
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import Json
from ..annotations.problems import Problem
from ..runtime.atomic_files import replace_text
from ..runtime.counted import counted
from .check_charts import bars, heat_map, histogram, image_sizes
from .samples import close_up, drawn_image, raw_box
from .whole_dataset import LARGEST, SMALLEST, ObjectTable

if TYPE_CHECKING:
    from .check_report import CheckReport

_LISTED = 200  # problems of each kind
_CLOSE_UPS = 4  # of each kind
_SAMPLES = 12  # images


class _ChangesOnPage(TypedDict):
    """Changes of one kind."""

    kind: str
    what: str
    count: int


class _KindOnPage(TypedDict):
    """Problems of one kind."""

    kind: str
    suggestion: str
    is_error: bool
    count: int
    listed: list[tuple[str, str]]
    """Where, and what."""
    more: int
    """Number of problems that are not listed."""
    images: list[dict[str, str]]


class _PartOnPage(TypedDict):
    """One data set."""

    title: str
    charts: list[dict[str, str]]
    kinds: list[_KindOnPage]
    notes: list[str]
    samples: list[dict[str, str]]
    annotated: str


def write_page(report: CheckReport, path: Path) -> None:
    """Writes the page."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(
        files("maskrcnn.dataset_checks").joinpath("check_page.html").read_text()
    )
    if report.validation is None:
        parts = [_part(report, "")]
    else:
        parts = [_part(report, "Training"), _part(report.validation, "Validation")]
    html = template.render(
        name=report.data.name,
        headline=_headline(report),
        parts=parts,
        changes=None if report.fixed_file is None else _changes(report),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, html)


def _headline(report: CheckReport) -> list[dict[str, str]]:
    """The cards at the top: number, unit, explanation and color."""
    parts = [part for part in (report, report.validation) if part is not None]
    images = " + ".join(f"{len(part.data):,}" for part in parts)
    objects = " + ".join(f"{len(part.objects.labels):,}" for part in parts)
    num_categories = len(report.data.categories)
    errors = len(report.errors)
    warned = sum(not p.is_error for part in parts for p in part.problems)

    return [
        {"number": images, "unit": "images", "text": "usable", "color": ""},
        {
            "number": objects,
            "unit": "objects",
            "text": f"in {counted(num_categories, 'category')}",
            "color": "",
        },
        {
            "number": f"{errors:,}",
            "unit": f"error{'s' * (errors != 1)}",
            "text": "unusable, or degrades the result" if errors else "everything is usable",
            "color": "bad" if errors else "good",
        },
        {
            "number": f"{warned:,}",
            "unit": f"warning{'s' * (warned != 1)}",
            "text": "worked around, or worth a look",
            "color": "",
        },
    ]


def _changes(report: CheckReport) -> list[_ChangesOnPage]:
    """The changes in the fixed files of the data and of the validation data."""
    parts = [part.fixed for part in (report, report.validation) if part is not None]
    changes = [change for fixed in parts if fixed is not None for change in fixed.changes]
    return [
        {"kind": kind, "what": what, "count": len(group)}
        for (kind, what), group in _by_kind(changes).items()
    ]


def _part(report: CheckReport, title: str) -> _PartOnPage:
    """One data set on the page."""
    return {
        "title": title,
        "charts": _charts(report),
        "kinds": [_kind(report, group) for group in _by_kind(report.problems).values()],
        "notes": [str(note) for note in report.notes],
        "samples": _samples(report.data, report.objects),
        "annotated": _annotated(report),
    }


def _charts(report: CheckReport) -> list[dict[str, str]]:
    objects = report.objects
    model = report.model
    kept = ~objects.ignore
    images = objects.image_indices[kept]
    labels = np.bincount(objects.labels[kept], minlength=len(report.data.categories))
    per_image = np.bincount(images, minlength=len(report.data))

    width, height = objects.sides[kept].T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = height / width
    limits = objects.sizes[images][:, ::-1]
    centers = (objects.boxes[kept, :2] + objects.boxes[kept, 2:]) / 2 / limits
    centers = centers[np.isfinite(centers).all(axis=1)]

    anchors = [side for level in model.rpn.sizes for side in level]
    num_empty = int((per_image == 0).sum())
    charts = {
        "Object sizes": histogram(
            objects.input_sides(model)[kept],
            "√area, px in the model's input",
            band=(SMALLEST * min(anchors), LARGEST * max(anchors)),
            lines=anchors,
            note="lines: anchors of the small model; shaded: their reach",
        ),
        "Object shapes": histogram(
            ratios,
            "height / width",
            lines=model.rpn.ratios,
            note="lines: aspect ratios of the anchors",
        ),
        "Objects per image": histogram(
            per_image,
            "objects",
            lines=(model.box.max_detections,),
            note=f"{num_empty:,} without objects; line: maximum detections",
        ),
        "Image sizes": image_sizes(objects.sizes),
        "Objects per category": bars(
            [(c.name, int(n)) for c, n in zip(report.data.categories, labels, strict=True)]
        ),
        "Object positions in the image": heat_map(centers),
    }
    return [{"title": title, "svg": svg} for title, svg in charts.items()]


def _annotated(report: CheckReport) -> str:
    """How objects are annotated, in words."""
    objects = report.objects
    entries = report.data.raw["annotations"]

    counts = {
        "with polygons": objects.mask_types.count("polygons"),
        "with RLE": objects.mask_types.count("RLE"),
        "with labeled points": sum(
            bool(entries[index].get("point_labels")) for index in objects.annotation_indices
        ),
        "without a mask": objects.mask_types.count("none"),
        "with keypoints": sum(
            any(entries[index].get("keypoints") or ()) for index in objects.annotation_indices
        ),
        "to ignore": int(objects.ignore.sum()),
    }
    return ", ".join(f"{count:,} {text}" for text, count in counts.items() if count)


def _by_kind(problems: Sequence[Problem]) -> dict[tuple[str, str], list[Problem]]:
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for p in problems:
        kinds.setdefault((p.kind, p.suggestion), []).append(p)
    return kinds


def _kind(report: CheckReport, problems: list[Problem]) -> _KindOnPage:
    """One kind of problem: the list, and close-ups of a few that are spread over it."""
    chosen = _spread(len(problems), _CLOSE_UPS)
    close_ups = [_close_up(report, problems[n]) for n in chosen]
    return {
        "kind": problems[0].kind,
        "suggestion": problems[0].suggestion,
        "is_error": problems[0].is_error,
        "count": len(problems),
        "listed": [(p.where, p.detail) for p in problems[:_LISTED]],
        "more": max(0, len(problems) - _LISTED),
        "images": [image for image in close_ups if image is not None],
    }


def _close_up(report: CheckReport, problem: Problem) -> dict[str, str] | None:
    """The object or image of a problem, drawn; None if there is nothing to draw."""
    data = report.data
    if data.image_folder is None:
        return None

    raw = None
    if problem.annotation is not None:
        raw = data.raw["annotations"][problem.annotation]
        image_id = raw.get("image_id") if isinstance(raw, dict) else None
    elif problem.image is not None:
        image_id = data.raw["images"][problem.image].get("id")
    else:
        return None
    ids = [entry["id"] for entry in data.content()["images"]]
    if image_id not in ids:
        return None

    url = close_up(data, ids.index(image_id), _problem_box(report, problem, raw))
    return None if url is None else {"url": url, "text": f"{problem.where}: {problem.detail}"}


def _problem_box(report: CheckReport, problem: Problem, raw: Json) -> BoxXYXY | None:
    """The box of a problem's annotation: as annotated, or else around its mask."""
    box = raw_box(raw)
    if raw is None or box is not None:
        return box
    rows = np.flatnonzero(report.objects.annotation_indices == problem.annotation)
    if len(rows) == 0 or not np.isfinite(report.objects.boxes[rows[0]]).all():
        return None
    x0, y0, x1, y1 = report.objects.boxes[rows[0]].tolist()
    return x0, y0, x1, y1


def _samples(data: CocoDataset, objects: ObjectTable) -> list[dict[str, str]]:
    """Images spread over the data set; images with objects if there are any."""
    if data.image_folder is None or len(data) == 0:
        return []
    with_objects = np.unique(objects.image_indices)
    indices = with_objects if len(with_objects) else np.arange(len(data))
    indices = indices[_spread(len(indices), _SAMPLES)]

    names = [entry["file_name"] for entry in data.content()["images"]]
    counts = np.bincount(objects.image_indices, minlength=len(data)).tolist()
    samples = []
    for index in indices.tolist():
        url = drawn_image(data, index)
        if url is not None:
            text = f"{names[index]}, {counted(counts[index], 'object')}"
            samples.append({"url": url, "text": text})
    return samples


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` indices spread evenly over 0 ... count - 1."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
