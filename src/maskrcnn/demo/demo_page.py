"""The demo's page: truth beside predictions, metrics, training curves, and next steps.

In: the validation scenes, their predictions, the evaluation, and the run's log.
Out: `overlays/*.jpg` and `index.html`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image

from ..annotations.coco_dataset import CocoDataset
from ..draw.overlay import draw_instances
from ..evaluation.evaluate import Evaluation
from ..instances import Instances
from ..training.log import read_rows
from ..truth_instances import truth_instances
from .demo_plan import DemoPlan
from .line_charts import Curve, line_chart, smoothed
from .shipped_model import NucleiResult

SHOWN = 24  # scenes on the page
MIN_SCORE = 0.5
METRICS = ("AP", "AP50")
TASKS = {"bbox": "Box", "segm": "Mask", "keypoints": "Keypoint"}
EXPLAINED = {
    "bbox": "where each object is",
    "segm": "which pixels belong to the object",
    "keypoints": "where each keypoint is",
}
LOSSES = {
    "rpn_objectness": "proposals: objectness",
    "rpn_box": "proposals: box",
    "classification": "category",
    "box": "box",
    "mask": "mask",
    "keypoint": "keypoints",
}


class Scene(TypedDict):
    """A validation scene on the page."""

    id: int | str
    path: str
    num_true: int
    num_predicted: int


class Row(TypedDict):
    """The metrics of a category, as text."""

    name: str
    objects: int
    metrics: list[str]


class Chart(TypedDict):
    """A chart with its title and the names of its curves."""

    title: str
    names: list[str]
    svg: str


def write_page(
    out: Path,
    validation: CocoDataset,
    predictions: Sequence[Instances],
    evaluation: Evaluation,
    nuclei: NucleiResult,
    plan: DemoPlan,
    seconds: float,
    num_train: int,
) -> Path:
    """Writes the overlays and the page.

    Args:
        out: the demo's folder, with run/metrics.csv.
        validation: the scenes held out from training.
        predictions: for each of these scenes.
        evaluation: of `predictions`.
        nuclei: what the shipped model predicted in a drawn micrograph.
        plan: what was trained, and why.
        seconds: duration of the demo so far.
        num_train: number of scenes to train on.

    Returns:
        The page, `out`/index.html.
    """
    from jinja2 import Environment

    (out / "overlays").mkdir(exist_ok=True)
    num_shown = min(SHOWN, len(validation))
    scenes = [_scene(out, index, validation, predictions[index]) for index in range(num_shown)]
    headline = [
        {"task": TASKS[task], "explained": EXPLAINED[task], "value": f"{metrics['AP']:.2f}"}
        for task, metrics in evaluation.tasks.items()
    ]
    rows = read_rows(out / "run" / "metrics.csv")
    images_trained = round(rows[-1]["epoch"] * num_train)
    machine = f"on a CPU, threads: {torch.get_num_threads()}"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()

    template = Environment(autoescape=True).from_string(
        files("maskrcnn.demo").joinpath("demo_page.html").read_text()
    )
    html = template.render(
        headline=headline,
        scenes=scenes,
        nuclei=nuclei,
        columns=[f"{TASKS[task]} {name}" for task in evaluation.tasks for name in METRICS],
        rows=_table(evaluation, validation),
        charts=_charts(rows),
        num_train=f"{num_train:,}",
        num_val=len(validation),
        images_trained=f"{images_trained:,}",
        num_keypoints=max(len(c.keypoints) for c in validation.categories),
        sigma=max((s for c in validation.categories for s in c.oks_sigmas), default=0),
        training_minutes=f"{rows[-1]['time'] / 60:.1f}",
        total_minutes=f"{seconds / 60:.1f}",
        machine=machine,
        plan=str(plan),
        folder=out.name,
        run=f"{out.name}/run",
    )
    page = out / "index.html"
    page.write_text(html)
    return page


def _scene(out: Path, index: int, data: CocoDataset, prediction: Instances) -> Scene:
    """Writes truth and prediction side by side; returns what the page says about the scene."""
    record = data[index]
    pixels = data.image(index)
    truth = truth_instances(record.annotations, data.categories, (record.height, record.width))
    confident = prediction[prediction.scores >= MIN_SCORE]
    left, right = (
        draw_instances(instances, pixels, enlarge=True) for instances in (truth, confident)
    )

    gap = 8
    pair = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + gap, 0))
    path = out / "overlays" / f"{Path(record.file_name).stem}.jpg"
    pair.save(path, quality=90)
    return {
        "id": record.image_id,
        "path": path.relative_to(out).as_posix(),
        "num_true": len(truth),
        "num_predicted": len(confident),
    }


def _table(evaluation: Evaluation, data: CocoDataset) -> list[Row]:
    """Metrics per category, and of all together."""
    counts = Counter(a.label for i in range(len(data)) for a in data[i].annotations)

    def cells(tasks: Mapping[str, Mapping[str, float]]) -> list[str]:
        values = [
            tasks.get(task, {}).get(name, -1.0) for task in evaluation.tasks for name in METRICS
        ]
        return [f"{value:.3f}" if value >= 0 else "–" for value in values]  # -1: no such objects

    rows: list[Row] = [
        {"name": name, "objects": counts[label], "metrics": cells(tasks)}
        for label, (name, tasks) in enumerate(evaluation.per_category.items())
    ]
    total: Row = {
        "name": "all",
        "objects": sum(counts.values()),
        "metrics": cells(evaluation.tasks),
    }
    return [*rows, total]


def _charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """The APs and the loss terms over the minutes of the run."""

    def curve(name: str) -> Curve:
        points = [(row["time"] / 60, row[name]) for row in rows if name in row]
        return [x for x, _ in points], [y for _, y in points]

    precisions = {f"{text} AP": curve(f"val/{task}_AP") for task, text in TASKS.items()}
    losses = {text: smoothed(curve(f"loss/{term}")) for term, text in LOSSES.items()}
    # The keypoint loss is far larger than the others and gets its own axes.
    keypoints = {LOSSES["keypoint"]: losses.pop(LOSSES["keypoint"])}
    return [
        {
            "title": "Average precision on validation scenes",
            "names": list(precisions),
            "svg": line_chart(precisions, "minutes", top=1.0, dots=True),
        },
        {
            "title": "Training loss without the keypoint term",
            "names": list(losses),
            "svg": line_chart(losses, "minutes"),
        },
        {
            "title": "Training loss, keypoint term (chance level: 8)",
            "names": list(keypoints),
            "svg": line_chart(keypoints, "minutes", top=8.0),
        },
    ]
