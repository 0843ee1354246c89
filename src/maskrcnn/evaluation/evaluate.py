"""How good a model's answers are: COCO's average precision for boxes, masks and keypoints.

In:  a model (or results that it gave) and annotated images.
Out: `Evaluation`: the standard numbers of each task, over all categories and of each one; `print` shows them as a table.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Category
from .exhaustive_only import to_judge
from .metric import FIELD, Task, tables

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN

Results = Sequence[Mapping[str, Any]]
Numbers = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Average precision (AP) and recall (AR), 0..1; -1 where there is nothing to find. None for a task without truth or without a head.

    AP is the mean over IoU (for keypoints OKS) 0.50, 0.55 .. 0.95, AP50 and AP75 are at one threshold, s m l are objects below 32^2, below 96^2
    and above. AR1 and AR10 allow one and ten detections an image and category, all others `max_detections`. The order is COCO's.
    """

    bbox: Numbers | None
    segm: Numbers | None
    keypoints: Numbers | None
    per_category: dict[str, dict[str, Numbers]] = field(repr=False)
    """Category name -> task -> numbers."""
    num_images: int
    num_objects: int
    max_detections: int

    @property
    def tasks(self) -> dict[str, Numbers]:
        """The tasks that were evaluated, with their numbers."""
        return {task: numbers for task in FIELD if (numbers := getattr(self, task)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.num_images} images, {self.num_objects} objects, at most {self.max_detections} detections of a category in an image"
        ]
        for columns in {tuple(numbers): None for numbers in self.tasks.values()}:
            rows = {
                task: numbers for task, numbers in self.tasks.items() if tuple(numbers) == columns
            }
            lines += [
                "",
                *_table(
                    {task: [numbers[c] for c in columns] for task, numbers in rows.items()}, columns
                ),
            ]
        if len(self.per_category) > 1:
            columns = [(task, name) for task in self.tasks for name in ("AP", "AP50")]
            rows = {
                name: [tasks.get(task, {}).get(key, -1.0) for task, key in columns]
                for name, tasks in self.per_category.items()
            }
            rows = {name: values for name, values in rows.items() if max(values, default=-1) >= 0}
            lines += ["", *_table(rows, [f"{task} {key}" for task, key in columns])]
        return "\n".join(lines)


def evaluate(
    model: MaskRCNN | str | Path | Results,
    data: CocoDataset | str | Path | Mapping[str, Any],
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    device: str | None = None,
    tta: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """The average precision of a model, or of results, on annotated images.

    Args:
        model: a model, whatever `load` reads, a COCO results.json, or its entries; those with a `file_name`, as `maskrcnn predict` writes them,
            belong to the annotated image of that name.
        data: annotated images, what `load_dataset` reads, or COCO's dict; for results COCO's file or dict.
        images: the folder of the images where `data` is a file; not needed for results.
        out: folder for metrics.json (the numbers) and results.json (what was found); made if absent. Nothing is written without it.
        max_detections: detections per image and category at which AP is taken, where above COCO's 100 (keypoints 20); by default what the model
            may give, or 100.
        batch_size: images that go through the model together.
        device: where the model runs; by default where it is.
        tta: test-time augmentation, see `predict`.
        progress: show a progress bar.

    Raises:
        ValueError: results of images or categories that the annotations do not have, or that lack a field.

    Source: the COCO detection and keypoint evaluation, cocodataset.org; the numbers equal pycocotools'.
    """
    found = _results(model)
    if found is not None:
        if tta is not None:
            raise ValueError(f'tta is "{tta}", but these are results, not a model; leave it out')
        truth, categories = _truth(data)
        where = str(model) if isinstance(model, str | Path) else "results"
        found = _by_name(found, truth, where)
        _check_results(found, truth, categories, where)
        tasks: list[Task] = [
            task
            for task, name in FIELD.items()
            if not found or any(r.get(name) is not None for r in found)
        ]
        return _written(
            evaluate_results(found, truth, categories, tasks, max_detections or 100), found, out
        )
    from .predictions import results_on

    network, dataset = _model(model), _dataset(data, images)
    truth, categories = _truth(dataset)
    found = results_on(
        network,
        dataset,
        truth,
        categories,
        batch_size=batch_size,
        device=device,
        tta=tta,
        progress=progress,
    )
    heads: dict[Task, Any] = {
        "bbox": True,
        "segm": network.config.mask,
        "keypoints": network.config.keypoint,
    }
    cap = max_detections or max(100, network.config.box.max_detections)
    return _written(
        evaluate_results(
            found, truth, categories, [task for task, head in heads.items() if head], cap
        ),
        found,
        out,
    )


def evaluate_results(
    results: Results,
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    tasks: Sequence[Task],
    max_detections: int = 100,
) -> Evaluation:
    """The numbers of those `tasks` for which `truth` has objects; without any results they are 0. See partial.py on images annotated in part."""
    names = _distinct_names(categories)
    overall: dict[str, Numbers] = {}
    per_category: dict[str, dict[str, Numbers]] = {name: {} for name in names}
    results, seen = to_judge(results, truth, categories)
    for task in tasks:
        if not _has_truth(task, truth, categories):
            continue
        table = tables(task, seen, results, categories, max_detections)
        overall[task] = table.numbers()
        judged = [
            name
            for name, c in zip(names, categories, strict=True)
            if task != "keypoints" or c.keypoints
        ]
        for k, name in enumerate(judged):
            per_category[name][task] = table.numbers(k)
    return Evaluation(
        **{task: overall.get(task) for task in FIELD},
        per_category=per_category,
        num_images=len(truth["images"]),
        num_objects=len(truth["annotations"]),
        max_detections=max_detections,
    )


def _written(evaluation: Evaluation, found: Results, out: str | Path | None) -> Evaluation:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "metrics.json").write_text(json.dumps(evaluation.to_dict(), indent=1))
        (Path(out) / "results.json").write_text(json.dumps(list(found)))
    return evaluation


def _results(model: Any) -> list[Mapping[str, Any]] | None:
    """The result entries, where results and not a model were given."""
    if isinstance(model, str | Path) and Path(model).suffix.lower() == ".json":
        entries = json.loads(Path(model).read_text())
        if not isinstance(entries, list):
            raise ValueError(
                f"{model}: a COCO results file is a list of detections, this is a {type(entries).__name__}"
            )
        return entries
    return list(model) if isinstance(model, list | tuple) else None


def _model(model: Any) -> MaskRCNN:
    if not isinstance(model, str | Path):
        return model
    from ..weights.load import load

    return load(model)


def _dataset(data: Any, images: str | Path | None) -> CocoDataset:
    if not isinstance(data, str | Path | Mapping):
        return data
    if isinstance(data, Mapping):
        from ..annotations.coco_dataset import CocoDataset

        return CocoDataset(data, images)
    from ..formats.load_dataset import load_dataset

    return load_dataset(data, images)


def _truth(data: Any) -> tuple[Mapping[str, Any], tuple[Category, ...]]:
    """The annotations as a COCO dict, and its categories in the order of their ids."""
    if isinstance(data, str | Path):
        data = json.loads(Path(data).read_text())
    truth = data if isinstance(data, Mapping) else data.truth()
    truth = {"annotations": [], **truth}
    if not {"images", "categories"} <= set(truth):
        raise ValueError(
            f'the annotations need "images" and "categories", got {", ".join(map(str, truth))}'
        )
    keypoints: dict[Any, int] = {}
    for annotation in truth["annotations"]:
        count = len(annotation.get("keypoints") or ()) // 3
        if keypoints.setdefault(annotation["category_id"], count) < count:
            keypoints[annotation["category_id"]] = count
    given = {} if isinstance(data, Mapping) else {c.id: c for c in data.categories}
    entries = sorted(truth["categories"], key=lambda c: c["id"])
    return truth, tuple(
        given.get(c["id"]) or _category(c, keypoints.get(c["id"], 0)) for c in entries
    )


def _category(entry: Mapping[str, Any], keypoints: int) -> Category:
    names = tuple(entry.get("keypoints") or (f"keypoint {j}" for j in range(keypoints)))
    return Category(
        entry["name"], entry["id"], keypoints=names, sigmas=tuple(entry.get("sigmas") or ())
    )


def _has_truth(task: Task, truth: Mapping[str, Any], categories: Sequence[Category]) -> bool:
    if task == "keypoints":
        return any(c.keypoints for c in categories) and any(
            any(v > 0 for v in (a.get("keypoints") or ())[2::3]) for a in truth["annotations"]
        )
    return any(
        a.get("segmentation") or (task == "bbox" and a.get("bbox")) for a in truth["annotations"]
    )


def _by_name(results: Results, truth: Mapping[str, Any], where: str) -> Results:
    """The results with the ids of the annotation file. Those of `maskrcnn predict` count its files from 1, and would be taken for other images.

    An entry belongs to the image of its name, else to the one whose name ends with it or with which it ends (folders before it are missing on one
    side), else to the one of the same file in another folder.

    Raises:
        ValueError: none or several are such.
    """
    names = {i["id"]: _slashed(i["file_name"]) for i in truth["images"] if i.get("file_name")}
    ids: dict[str, list[Any]] = {}
    for id_, name in names.items():
        ids.setdefault(_last(name), []).append(id_)
    matched = []
    for n, entry in enumerate(results):
        if not isinstance(entry, Mapping) or not isinstance(
            entry.get("image_id"), int | str | None
        ):
            raise ValueError(
                f"{where}, entry {n}: {entry!r:.60} is no result; each is an object with image_id, category_id and score"
            )
        name, own = _slashed(entry.get("file_name") or ""), names.get(entry.get("image_id"), "")
        if name and names and own != name:
            alike = ids.get(_last(name), [])
            within = [
                i
                for i in alike
                if f"/{names[i]}".endswith(f"/{name}") or f"/{name}".endswith(f"/{names[i]}")
            ]
            if len(fitting := [i for i in alike if names[i] == name] or within or alike) != 1:
                problem = f'"{name}" is the name of {len(fitting) or "none"} of the {len(truth["images"])} annotated images'
                raise ValueError(
                    f"{where}, entry {n}: {problem}; give the model instead of its results, or, where image_id is right, results without file_name"
                )
            entry = {**entry, "image_id": fitting[0]}
        matched.append(entry)
    return matched


def _slashed(name: Any) -> str:
    return str(name).replace("\\", "/")


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _check_results(
    results: Results, truth: Mapping[str, Any], categories: Sequence[Category], where: str
) -> None:
    images, keypoints = (
        {i["id"] for i in truth["images"]},
        {c.id: len(c.keypoints) for c in categories},
    )
    for n, entry in enumerate(results):
        problem = _entry_problem(entry, images, keypoints)
        if problem:
            raise ValueError(f"{where}, entry {n}: {problem}")
    found = Counter(entry["category_id"] for entry in results)
    unknown = sorted(set(found) - set(keypoints))
    if unknown and len(unknown) == len(found):
        raise ValueError(
            f"{where}: none of its category ids {unknown[:10]} is annotated; the annotations have {sorted(keypoints)[:10]}"
        )
    if unknown:
        count = sum(found[c] for c in unknown)
        warnings.warn(
            f"{where}: {count} detections of the categories {unknown[:10]}, which are not annotated, are not judged",
            stacklevel=3,
        )


def _entry_problem(entry: Mapping[str, Any], images: set[Any], keypoints: Mapping[Any, int]) -> str:
    if missing := [key for key in ("image_id", "category_id", "score") if key not in entry]:
        return f"{', '.join(missing)} missing; each needs image_id, category_id, score and a bbox, segmentation or keypoints"
    if entry["image_id"] not in images:
        return f"image_id {entry['image_id']} is not among the {len(images)} annotated images; use the ids of the annotation file"
    category, count = entry["category_id"], len(entry.get("keypoints") or ())
    if count and category in keypoints and count != 3 * keypoints[category]:
        return f"{count} keypoint numbers, but category {category} has {keypoints[category]} keypoints with x, y and score each"
    return ""


def _distinct_names(categories: Sequence[Category]) -> list[str]:
    times = Counter(c.name for c in categories)
    return [c.name if times[c.name] == 1 else f"{c.name} (id {c.id})" for c in categories]


def _table(rows: Mapping[str, Sequence[float]], columns: Sequence[str]) -> list[str]:
    """Right-aligned lines under a head; what is not defined is a dash."""
    first = max((len(name) for name in rows), default=0)
    widths = [max(len(c), 5) for c in columns]
    lines = [" ".join([" " * first, *(c.rjust(w) for c, w in zip(columns, widths, strict=True))])]
    for name, values in rows.items():
        cells = ("-" if v < 0 else f"{v:.3f}" for v in values)
        lines.append(
            " ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        )
    return lines
