"""The demo's page: images of truth beside prediction, numbers, curves, and how to go on.

In: the validation scenes, what the model found in them, the evaluation, and the run's log. Out: `overlays/*.jpg` and `index.html`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..annotations import rle
from ..annotations.coco_dataset import CocoDataset
from ..draw import draw_instances
from ..evaluation.evaluate import Evaluation
from ..instances import Instances
from ..training.log import read_rows
from .line_charts import Curve, line_chart, smoothed
from .shipped_model import Shown

SHOWN = 24  # scenes on the page
MIN_SCORE = 0.5
TRUTH_GRID = 112  # cells a side of a truth mask's grid: more than the pixels of any object
TASKS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
EXPLAINED = {
    "bbox": "where each object is",
    "segm": "which pixels are the object",
    "keypoints": "where each keypoint is",
}
TERMS = {
    "rpn_objectness": "proposals: object or not",
    "rpn_box": "proposals: place",
    "classification": "category",
    "box": "box",
    "mask": "mask",
    "keypoint": "keypoints",
}


def write_page(
    out: Path,
    validation: CocoDataset,
    found: Sequence[Instances],
    evaluation: Evaluation,
    nuclei: Shown,
    seconds: float,
    num_train: int,
) -> Path:
    """Writes the overlays and the page.

    Args:
        out: the demo's folder, with run/metrics.csv.
        validation: the unseen scenes.
        found: what the model found in each of them.
        evaluation: of `found`.
        nuclei: what the shipped model found in a drawn micrograph.
        seconds: the demo's time so far.
        num_train: how many scenes it learnt from.

    Returns:
        The page, `out`/index.html.
    """
    from jinja2 import Environment

    (out / "overlays").mkdir(exist_ok=True)
    scenes = [_overlay(out, i, validation, found[i]) for i in range(min(SHOWN, len(validation)))]
    rows = read_rows(out / "run" / "metrics.csv")
    seen = round(rows[-1]["epoch"] * num_train)
    template = Environment(autoescape=True).from_string(
        files("maskrcnn.demo").joinpath("demo_page.html").read_text()
    )
    html = template.render(
        headline=[
            (TASKS[task], EXPLAINED[task], f"{numbers['AP']:.2f}")
            for task, numbers in evaluation.tasks.items()
        ],
        scenes=scenes,
        nuclei=nuclei,
        columns=[f"{TASKS[task]} {name}" for task in evaluation.tasks for name in ("AP", "AP50")],
        rows=_table(evaluation, validation),
        charts=_charts(rows),
        num_val=len(validation),
        images_seen=f"{seen:,}",
        num_keypoints=max(len(c.keypoints) for c in validation.categories),
        sigma=max((s for c in validation.categories for s in c.oks_sigmas), default=0),
        training_minutes=f"{rows[-1]['time'] / 60:.1f}",
        total_minutes=f"{seconds / 60:.1f}",
        machine=torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"on a CPU, threads: {torch.get_num_threads()}",
        folder=out.name,
        run=f"{out.name}/run",
        num_train=f"{num_train:,}",
    )
    page = out / "index.html"
    page.write_text(html)
    return page


def truth_instances(data: CocoDataset, index: int) -> Instances:
    """The annotated objects of an image in the form of an answer with certainty 1, so that they are drawn alike."""
    record = data[index]
    objects = [a for a in record.annotations if a.box is not None]
    num_keypoints = max(len(c.keypoints) for c in data.categories)
    keypoints = np.zeros((len(objects), num_keypoints, 3), np.float32)
    grids = np.zeros((len(objects), TRUTH_GRID, TRUTH_GRID), np.float32)
    for i, a in enumerate(objects):
        if a.keypoints is not None:
            keypoints[i, : len(a.keypoints)] = a.keypoints * (
                1,
                1,
                0.5,
            )  # hidden keypoints are drawn like uncertain ones
        x0, y0, x1, y1 = (int(v) for v in a.box or ())
        mask = Image.fromarray(rle.decode(a.rle or {})[y0:y1, x0:x1].astype(np.uint8) * 255)
        grids[i] = (
            np.asarray(mask.resize((TRUTH_GRID, TRUTH_GRID), Image.Resampling.NEAREST), np.float32)
            / 255
        )
    return Instances(
        size=(record.height, record.width),
        boxes=torch.tensor([a.box for a in objects], dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(objects)),
        labels=torch.tensor([a.label for a in objects], dtype=torch.int64),
        categories=data.categories,
        mask_grids=torch.from_numpy(grids),
        keypoints=torch.from_numpy(keypoints) if num_keypoints else None,
        source=data.image(index),
    )


def _overlay(out: Path, index: int, data: CocoDataset, found: Instances) -> dict[str, Any]:
    """Writes truth and prediction side by side; the page's facts about it."""
    truth = truth_instances(data, index)
    found = replace(found[found.scores >= MIN_SCORE], source=truth.source)
    pair = [draw_instances(instances) for instances in (truth, found)]
    gap = 8
    both = Image.new("RGB", (sum(p.width for p in pair) + gap, pair[0].height), "white")
    both.paste(pair[0], (0, 0))
    both.paste(pair[1], (pair[0].width + gap, 0))
    path = out / "overlays" / f"{Path(data[index].file_name).stem}.jpg"
    both.save(path, quality=90)
    return {
        "id": data[index].image_id,
        "path": path.relative_to(out).as_posix(),
        "truth": len(truth),
        "found": len(found),
    }


def _table(evaluation: Evaluation, data: CocoDataset) -> list[dict[str, Any]]:
    counts = Counter(a.label for i in range(len(data)) for a in data[i].annotations)

    def cells(tasks: Mapping[str, Mapping[str, float]]) -> list[str]:
        values = [
            tasks.get(task, {}).get(name, -1.0)
            for task in evaluation.tasks
            for name in ("AP", "AP50")
        ]
        return [f"{v:.3f}" if v >= 0 else "–" for v in values]

    rows = [
        {"name": name, "objects": counts[label], "numbers": cells(tasks)}
        for label, (name, tasks) in enumerate(evaluation.per_category.items())
    ]
    return [
        *rows,
        {"name": "all", "objects": sum(counts.values()), "numbers": cells(evaluation.tasks)},
    ]


def _charts(rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """The APs and the loss terms over the minutes of the run."""

    def curve(name: str) -> Curve:
        points = [(row["time"] / 60, row[name]) for row in rows if name in row]
        return [x for x, _ in points], [y for _, y in points]

    losses = {text: smoothed(curve(f"loss/{term}")) for term, text in TERMS.items()}
    keypoints = {text: losses.pop(text) for text in [TERMS["keypoint"]]}
    precisions = {f"{text} AP": curve(f"val/{task}_AP") for task, text in TASKS.items()}
    return [
        {
            "title": "Average precision on unseen scenes",
            "names": list(precisions),
            "svg": line_chart(precisions, "minutes", top=1.0, dots=True),
        },
        {
            "title": "Training loss, all but the keypoints' term",
            "names": list(losses),
            "svg": line_chart(losses, "minutes"),
        },
        {
            "title": "Training loss of the keypoints (chance is 8)",
            "names": list(keypoints),
            "svg": line_chart(keypoints, "minutes", top=8.0),
        },
    ]
