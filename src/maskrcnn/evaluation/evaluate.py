"""The accuracy of a model: COCO's average precision for boxes, masks and keypoints.

In:  a model, or results of one, and annotated images.
Out: `Evaluation`: the standard numbers of each task, over all categories and for each of them;
     `print` shows them as a table.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..annotations.coco_types import CocoContent, CocoResult
from ..annotations.json_file import read_json
from ..annotations.structure import resembles_coco
from ..config import Category
from ..images.read import ImageError
from ..runtime.atomic_files import replace_text
from ..runtime.counted import counted
from ..runtime.plain_data import PlainData, PlainDict
from .given_results import match_results, plain_id, read_results
from .metric import FIELD, Task, tables
from .partial_annotation import ignore_unannotated

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN
    from ..prediction.predictor import Predictor

Results = Sequence[PlainData]
"""Results as given, not checked yet."""
Numbers = dict[str, float]
_SHOWN = 3  # images in the remark on those that cannot be read


@dataclass(frozen=True)
class Evaluation:
    """Average precision (AP) and average recall (AR), 0 to 1, of each task.

    A task is None if the data has no truth for it or the model no head. A number is -1 if there is
    no annotated object to detect. AP is the mean over IoU thresholds (OKS for keypoints) 0.50, 0.55
    ... 0.95; AP50 and AP75 are at one threshold. s, m and l are objects below 32^2, below 96^2, and
    larger. AR1 and AR10 allow one and ten detections per image and category, all others
    `max_detections`. The order of the numbers is COCO's.
    """

    bbox: Numbers | None
    segm: Numbers | None
    keypoints: Numbers | None
    per_category: dict[str, dict[str, Numbers]] = field(repr=False)
    """Category name -> task -> numbers."""
    num_images: int
    num_objects: int
    max_detections: int
    remarks: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What is in the data and was read differently than written, or does not count, one a line."""

    @property
    def tasks(self) -> dict[str, Numbers]:
        """The evaluated tasks with their numbers."""
        return {task: numbers for task in FIELD if (numbers := getattr(self, task)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain dicts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{counted(self.num_images, 'image')}, {counted(self.num_objects, 'object')}, "
            f"at most {counted(self.max_detections, 'detection')} per image and category"
        ]

        # one table for the tasks that have the same columns
        for columns in {tuple(numbers): None for numbers in self.tasks.values()}:
            rows = {
                task: [numbers[c] for c in columns]
                for task, numbers in self.tasks.items()
                if tuple(numbers) == columns
            }
            lines += ["", *_table(rows, columns)]

        if len(self.per_category) > 1:
            cells = [(task, name) for task in self.tasks for name in ("AP", "AP50")]
            rows = {
                name: [tasks.get(task, {}).get(key, -1.0) for task, key in cells]
                for name, tasks in self.per_category.items()
            }
            rows = {name: values for name, values in rows.items() if max(values, default=-1) >= 0}
            lines += ["", *_table(rows, [f"{task} {key}" for task, key in cells])]
        if self.remarks:
            lines += ["", *self.remarks]
        return "\n".join(lines)


def evaluate(
    model: MaskRCNN | str | Path | Predictor | Results,
    data: CocoDataset | str | Path | PlainData,
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    on_error: Literal["raise", "drop"] = "raise",
    progress: bool = False,
) -> Evaluation:
    """The average precision of a model, or of results, on annotated images.

    Args:
        model: a model, or what `load` reads; a `Predictor`, for non-default settings (device,
            precision, test-time augmentation); a COCO results.json; or its entries. Entries with a
            `file_name`, as `maskrcnn predict` writes them, belong to the annotated image of that
            name.
        data: annotated images, what `load_dataset` reads, or a COCO dict; for results a COCO file
            or dict.
        images: the folder of the images if `data` is a file; not needed for results.
        out: folder for metrics.json (the numbers) and results.json (the detections); created if it
            does not exist. By default nothing is written.
        max_detections: detections per image and category at which AP is computed, if above COCO's
            100 (keypoints 20); by default the model's own limit, or 100.
        batch_size: up to this many images of equal padded shape share one forward pass.
        on_error: how to handle unusable annotations of a file, and images that cannot be read.
            "raise" raises an error; "drop" leaves them out, also of AP, and names them.
        progress: show a progress bar.

    Raises:
        ImageError: an image cannot be read; with "drop", none can.
        ValueError: results for images or categories that the annotations do not have, or results
            that lack a field; categories that differ only in case or spaces; `max_detections` is
            below 1.

    Source: the COCO detection and keypoint evaluation, cocodataset.org; the numbers equal those of
    pycocotools.

    Example:
        >>> import maskrcnn as mr
        >>> truth = {
        ...     "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        ...     "categories": [{"id": 1, "name": "nucleus"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10]}],
        ... }
        >>> results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 20, 9]}]
        >>> evaluation = mr.evaluate(results, truth)
        >>> round(evaluation.bbox["AP"], 3), round(evaluation.bbox["AP50"], 3)
        (0.9, 1.0)
    """
    from ..prediction.predictor import Predictor

    if max_detections is not None and max_detections < 1:
        raise ValueError(
            f"max_detections (--max-detections): expected at least 1, got {max_detections}"
        )
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out}: expected a folder for metrics.json and results.json, got a file")
    given_results = None if isinstance(model, Predictor) else _results(model)
    if given_results is not None:
        return _evaluate_given(model, given_results, data, max_detections, on_error, out)
    from .coco_results import coco_results

    predictor = model
    if not isinstance(predictor, Predictor):
        predictor = Predictor(predictor)  # ty: ignore[invalid-argument-type]
    dataset = _dataset(data, images, on_error)
    truth, categories, remarks = _truth(dataset)
    _warn_about_unevaluated(predictor, truth, categories)
    unreadable: dict[int, str] = {}
    try:
        results = coco_results(
            predictor,
            dataset,
            truth,
            categories,
            batch_size=batch_size,
            progress=progress,
            note_unreadable=unreadable.__setitem__ if on_error == "drop" else None,
        )
    except ImageError as error:
        suggestion = 'or leave such images out: on_error="drop" (--on-error drop)'
        raise type(error)(f"{error}; {suggestion}") from None
    if unreadable:
        truth, categories, remarks = _truth(without_images(dataset, unreadable))
        remarks = (*remarks, _left_out(unreadable, len(dataset)))

    config = predictor.config
    tasks: list[Task] = ["bbox"]
    if config.mask:
        tasks.append("segm")
    if config.keypoint:
        tasks.append("keypoints")
    limit = max_detections or max(100, config.box.max_detections)
    evaluation = evaluate_results(results, truth, categories, tasks, limit)
    return _written(replace(evaluation, remarks=remarks), results, out)


def evaluate_results(
    results: Sequence[CocoResult],
    truth: CocoContent,
    categories: Sequence[Category],
    tasks: Sequence[Task],
    max_detections: int = 100,
) -> Evaluation:
    """The numbers of COCO results, for those tasks for which the truth has objects.

    Without any results they are 0. On images annotated in part, see `partial_annotation`.

    Args:
        results: COCO results.
        truth: COCO annotations.
        categories: those of `truth`, in the order of their ids.
        tasks: what to evaluate.
        max_detections: detections per image and category.
    """
    names = [c.name for c in categories]
    overall: dict[str, Numbers] = {}
    per_category: dict[str, dict[str, Numbers]] = {name: {} for name in names}
    results, compared = ignore_unannotated(results, truth, categories)

    for task in tasks:
        if not _has_truth(task, truth, categories):
            continue
        table = tables(task, compared, results, categories, max_detections)
        overall[task] = table.numbers()
        evaluated = [
            name
            for name, c in zip(names, categories, strict=True)
            if task != "keypoints" or c.keypoints
        ]
        for k, name in enumerate(evaluated):
            per_category[name][task] = table.numbers(k)

    return Evaluation(
        **{task: overall.get(task) for task in FIELD},
        per_category=per_category,
        num_images=len(truth["images"]),
        num_objects=len(truth["annotations"]),
        max_detections=max_detections,
    )


def without_images(data: CocoDataset, unreadable: Mapping[int, str]) -> CocoDataset:
    """The images that could be read.

    Args:
        data: all images.
        unreadable: the reason for each of the others, by id.

    Raises:
        ImageError: none could be read.
    """
    entries = data.content()["images"]
    readable = [i for i, entry in enumerate(entries) if entry["id"] not in unreadable]
    if not readable and unreadable:
        reason = next(iter(unreadable.values()))
        raise ImageError(
            f"{data.name}: none of {counted(len(data), 'image')} can be read: {reason}"
        )
    return data.subset(readable)


def _left_out(unreadable: Mapping[int, str], count: int) -> str:
    """Which images AP leaves out, as a remark."""
    shown = "; ".join([*unreadable.values()][:_SHOWN])
    more = f"; and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
    numbers = f"{len(unreadable):,} of {counted(count, 'image')}"
    return f"left out of AP, because they cannot be read: {numbers}: {shown}{more}"


def _evaluate_given(
    model: object,
    given: Results,
    data: Any,
    max_detections: int | None,
    on_error: Literal["raise", "drop"],
    out: str | Path | None,
) -> Evaluation:
    """Checks and evaluates results; their fields decide which tasks."""
    truth, categories, remarks = _truth(_annotations(data, on_error))
    where = str(model) if isinstance(model, str | Path) else "results"
    results = match_results(given, truth, categories, where)
    tasks: list[Task] = [
        task
        for task, name in FIELD.items()
        if not results or any(r.get(name) is not None for r in results)
    ]
    evaluation = evaluate_results(results, truth, categories, tasks, max_detections or 100)
    return _written(replace(evaluation, remarks=remarks), results, out)


def _warn_about_unevaluated(
    predictor: Predictor, truth: CocoContent, categories: Sequence[Category]
) -> None:
    """Warns about what is annotated and the model cannot predict, and the other way round."""
    from ..weights.heads import annotated_parts
    from .coco_results import match_categories

    config = predictor.config
    parts = annotated_parts(truth["annotations"], categories)
    for head, count in (("mask", parts.mask), ("keypoint", parts.keypoint)):
        if count and getattr(config, head) is None:
            warnings.warn(
                f"the {head}s of {count:,} of {counted(parts.objects, 'object')} are not "
                f"evaluated: the model has no {head} head",
                stacklevel=3,
            )

    matches = match_categories(config.categories, categories)
    matched = {match[0] for match in matches if match is not None}
    counts = Counter(a["category_id"] for a in truth["annotations"])
    unknown = [
        f"{c.name} ({counted(counts[c.id], 'object')})"
        for c in categories
        if c.id not in matched and counts[c.id]
    ]
    if unknown:
        warnings.warn(
            f"the model does not detect {', '.join(unknown[:5])}, and gets an AP of 0 for that",
            stacklevel=3,
        )
    extra = [c.name for c, m in zip(config.categories, matches, strict=True) if m is None]
    if extra:
        warnings.warn(
            f"detections of {', '.join(extra[:5])} are not evaluated: "
            f"not in the data, categories of the model: {len(extra)}",
            stacklevel=3,
        )


def _written(
    evaluation: Evaluation, results: Sequence[CocoResult], out: str | Path | None
) -> Evaluation:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        replace_text(Path(out) / "metrics.json", json.dumps(evaluation.to_dict(), indent=1))
        replace_text(Path(out) / "results.json", json.dumps(list(results)))
    return evaluation


def _results(model: object) -> Sequence[PlainData] | None:
    """The result entries if results were given, None for a model."""
    if isinstance(model, str | Path) and Path(model).suffix.lower() == ".json":
        return read_results(model)
    return list(model) if isinstance(model, list | tuple) else None


def _dataset(
    data: Any, images: str | Path | None, on_error: Literal["raise", "drop"]
) -> CocoDataset:
    if not isinstance(data, str | Path | Mapping):
        return data
    if isinstance(data, Mapping):
        from ..annotations.coco_dataset import CocoDataset

        return CocoDataset(data, images, on_error=on_error)
    from ..formats.load_dataset import load_dataset

    return load_dataset(data, images, on_error=on_error)


def _annotations(data: Any, on_error: Literal["raise", "drop"]) -> CocoDataset:
    """The annotations to compare results with; their images are not needed."""
    from ..annotations.coco_dataset import CocoDataset

    name = "annotations"
    if isinstance(data, str | Path) and Path(data).suffix.lower() == ".json":
        content = read_json(Path(data))
        if resembles_coco(content):
            name = Path(data).name
            data = content
    if not isinstance(data, Mapping):
        return _dataset(data, None, on_error)
    content = _with_keypoint_names({"annotations": [], **data})
    if isinstance(content.get("images"), list):
        nameless = {"file_name": ""}  # results are matched by id then
        content["images"] = [
            {**nameless, **image} if isinstance(image, Mapping) else image
            for image in content["images"]
        ]
    return CocoDataset(content, name=name, on_error=on_error)


def _with_keypoint_names(content: PlainData) -> PlainDict:
    """COCO content whose categories have keypoints where their annotations do.

    Files for the metric alone may not name them; the longest annotation says how many there are.
    """
    counts: Counter[Any] = Counter()
    entries = content["annotations"]
    for entry in entries if isinstance(entries, list) else ():
        keypoints = entry.get("keypoints") if isinstance(entry, Mapping) else None
        category = entry.get("category_id") if isinstance(entry, Mapping) else None
        if isinstance(keypoints, list) and isinstance(category, int | float | str):
            counts[plain_id(category)] = max(counts[plain_id(category)], len(keypoints) // 3)

    def named(category: Any) -> Any:
        is_entry = isinstance(category, Mapping) and isinstance(category.get("id"), int | str)
        if not is_entry or category.get("keypoints") or not counts[plain_id(category["id"])]:
            return category
        count = counts[plain_id(category["id"])]
        return {**category, "keypoints": [f"keypoint {n + 1}" for n in range(count)]}

    categories = content.get("categories")
    if not counts or not isinstance(categories, list):
        return dict(content)
    return {**content, "categories": [named(category) for category in categories]}


def _truth(data: CocoDataset) -> tuple[CocoContent, tuple[Category, ...], tuple[str, ...]]:
    """The annotations as a COCO dict, its categories in the order of their ids, and remarks."""
    categories = tuple(sorted(data.categories, key=lambda category: category.id))
    return data.truth(), categories, tuple(data.remarks())


def _has_truth(task: Task, truth: CocoContent, categories: Sequence[Category]) -> bool:
    if task == "keypoints":
        return any(c.keypoints for c in categories) and any(
            any(v > 0 for v in (a.get("keypoints") or ())[2::3]) for a in truth["annotations"]
        )
    return any(
        a.get("segmentation") or (task == "bbox" and a.get("bbox")) for a in truth["annotations"]
    )


def _table(rows: Mapping[str, Sequence[float]], columns: Sequence[str]) -> list[str]:
    """Right-aligned lines under a header; undefined numbers are a dash."""
    first = max((len(name) for name in rows), default=0)
    widths = [max(len(c), 5) for c in columns]
    lines = [" ".join([" " * first, *(c.rjust(w) for c, w in zip(columns, widths, strict=True))])]
    for name, values in rows.items():
        cells = ("-" if v < 0 else f"{v:.3f}" for v in values)
        lines.append(
            " ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        )
    return lines
