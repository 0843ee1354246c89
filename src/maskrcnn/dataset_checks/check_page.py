"""The report as one HTML file that needs nothing else: `write_page(report, path)`.

In: a `Report`. Out: counts, sizes and shapes of images and objects, balance of the categories, every kind of problem with its places, samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import Problem
from .check_charts import bars, heat_map, histogram, sizes
from .samples import close_up, drawn_image, raw_box
from .whole_dataset import LARGEST, SMALLEST, Objects

if TYPE_CHECKING:
    from .check_dataset import Report

_PLACES = 200  # of each kind that are listed
_CLOSE_UPS = 4  # of each kind
_SAMPLES = 12  # images


def write_page(report: Report, path: Path) -> None:
    """Writes the page."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(
        files("maskrcnn.dataset_checks").joinpath("check_page.html").read_text()
    )
    parts = [report, *([report.validation] if report.validation else [])]
    html = template.render(
        name=report.data.name,
        parts=[
            _part(part, ("training", "validation")[n] if len(parts) > 1 else "")
            for n, part in enumerate(parts)
        ],
        headline=_headline(report),
        fixed=report.fixed
        and [
            {"kind": k, "cure": c, "count": len(found)}
            for (k, c), found in _kinds(report.fixed.done).items()
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html)


def _headline(report: Report) -> list[tuple[str, str, str]]:
    """(number, what, explained) of the cards at the top."""
    problems = len(report.is_error)
    notes = sum(
        not p.is_error for part in (report, report.validation) if part for p in part.problems
    )
    images = [len(part.data) for part in (report, report.validation) if part]
    objects = [len(part.objects.places) for part in (report, report.validation) if part]
    both = " + ".join
    return [
        (both(f"{n:,}" for n in images), "images", "that can be used"),
        (
            both(f"{n:,}" for n in objects),
            "objects",
            f"of {len(report.data.categories)} categor{'y' if len(report.data.categories) == 1 else 'ies'}",
        ),
        (
            f"{problems:,}",
            f"problem{'s' * (problems != 1)}",
            "unusable, or spoiling the result" if problems else "all can be used",
        ),
        (f"{notes:,}", f"note{'s' * (notes != 1)}", "mended while reading, or worth a look"),
    ]


def _part(report: Report, title: str) -> dict[str, Any]:
    """One data set on the page."""
    return {
        "title": title,
        "name": report.data.name,
        "charts": _charts(report),
        "kinds": [_kind(report, *entry) for entry in _kinds(report.problems).items()],
        "samples": _samples(report.data, report.objects),
        "forms": _forms(report),
    }


def _charts(report: Report) -> list[dict[str, str]]:
    objects, model = report.objects, report.model
    anchors = [side for level in model.rpn.sizes for side in level]
    real = ~objects.ignore
    counts = np.bincount(objects.images[real], minlength=len(report.data))
    labels = np.bincount(objects.labels[real], minlength=len(report.data.categories))
    width, height = objects.sides[real].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = height / width
    limits = objects.sizes[objects.images[real]][:, ::-1]
    centers = (objects.boxes[real, :2] + objects.boxes[real, 2:]) / 2 / limits
    centers = centers[np.isfinite(centers).all(axis=1)]
    seen = "anchors of the small model, and twice as far as they reach"
    band = (SMALLEST * min(anchors), LARGEST * max(anchors))
    empty = int((counts == 0).sum())
    without = f"{empty:,} image{'s' * (empty != 1)} without any; line: most detections"
    shown = [
        (
            "Sizes of objects",
            histogram(
                objects.seen_as(model)[real],
                "√area, px of the model's input",
                band=band,
                lines=anchors,
                note=seen,
            ),
        ),
        (
            "Shapes of objects",
            histogram(
                shape, "height / width", lines=model.rpn.ratios, note="ratios of the anchors"
            ),
        ),
        (
            "Objects in an image",
            histogram(counts, "objects", lines=(model.box.max_detections,), note=without),
        ),
        ("Sizes of images", sizes(objects.sizes)),
        (
            "Objects of each category",
            bars([(c.name, int(n)) for c, n in zip(report.data.categories, labels, strict=True)]),
        ),
        ("Where objects are", heat_map(centers)),
    ]
    return [{"title": title, "svg": svg} for title, svg in shown]


def _forms(report: Report) -> str:
    """How objects are annotated, in a sentence."""
    forms = {name: report.objects.forms.count(name) for name in ("polygons", "RLE", "none")}
    names = {"polygons": "with polygons", "RLE": "with RLE", "none": "without a mask"}
    parts = [f"{count:,} {names[form]}" for form, count in forms.items() if count]
    keypoints = sum(
        any(report.data.raw["annotations"][p].get("keypoints") or ()) for p in report.objects.places
    )
    ignored = int(report.objects.ignore.sum())
    parts += [f"{keypoints:,} with keypoints"] if keypoints else []
    parts += [f"{ignored:,} to ignore"] if ignored else []
    return ", ".join(parts)


def _kinds(problems: Sequence[Problem]) -> dict[tuple[str, str], list[Problem]]:
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for p in problems:
        kinds.setdefault((p.kind, p.suggestion), []).append(p)
    return kinds


def _kind(report: Report, names: tuple[str, str], found: list[Problem]) -> dict[str, Any]:
    """One kind of problem: its places, and close-ups of the first."""
    spread = np.unique(np.linspace(0, len(found) - 1, min(_CLOSE_UPS, len(found))).astype(int))
    return {
        "kind": names[0],
        "cure": names[1],
        "harmful": found[0].is_error,
        "count": len(found),
        "places": [(p.where, p.detail) for p in found[:_PLACES]],
        "more": max(0, len(found) - _PLACES),
        "images": [shown for n in spread if (shown := _image_of(report, found[n])) is not None],
    }


def _image_of(report: Report, problem: Problem) -> dict[str, str] | None:
    """The object or image of a problem, drawn; None where there is nothing to see."""
    data = report.data
    raw = data.raw["annotations"][problem.annotation] if problem.annotation is not None else None
    if data.image_folder is None or (raw is None and problem.image is None):
        return None
    image = raw.get("image_id") if isinstance(raw, dict) else None
    if raw is None and problem.image is not None:
        image = data.raw["images"][problem.image].get("id")
    index = next(
        (n for n, entry in enumerate(data.content()["images"]) if entry["id"] == image), None
    )
    if index is None:
        return None
    box = raw_box(raw)
    if (
        raw is not None
        and box is None
        and (rows := np.flatnonzero(report.objects.places == problem.annotation)).size
    ):
        found = report.objects.boxes[rows[0]]
        box = tuple(found.tolist()) if np.isfinite(found).all() else None
    url = close_up(data, index, box)
    return None if url is None else {"url": url, "text": f"{problem.where}: {problem.detail}"}


def _samples(data: CocoDataset, objects: Objects) -> list[dict[str, str]]:
    """Images spread over the data set, those with objects first."""
    if data.image_folder is None or len(data) == 0:
        return []
    filled = np.unique(objects.images)
    chosen = filled if len(filled) else np.arange(len(data))
    chosen = chosen[
        np.unique(np.linspace(0, len(chosen) - 1, min(_SAMPLES, len(chosen))).astype(int))
    ]
    names = [entry["file_name"] for entry in data.content()["images"]]
    counts = np.bincount(objects.images, minlength=len(data)).tolist()
    drawn = [(n, drawn_image(data, int(n))) for n in chosen]
    return [
        {"url": url, "text": f"{names[n]}, {counts[n]} object{'s' * (counts[n] != 1)}"}
        for n, url in drawn
        if url is not None
    ]
