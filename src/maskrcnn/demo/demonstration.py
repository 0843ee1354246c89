"""The demo: run the shipped model, measure the machine, draw scenes, train, evaluate, write a page.

In: a folder and the minutes that it may take.
Out, in that folder: scenes/{train,val} with COCO annotations, run/ (the training run), overlays/,
results.json, metrics.json, micrograph.png, micrograph.jpg and index.html.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ..annotations.coco_dataset import CocoDataset
from ..evaluation.evaluate import Evaluation, evaluate
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import predict
from ..runtime.counted import counted
from ..runtime.progress import track
from ..synthetic.scenes import write_scenes
from ..training.fit import train
from .demo_page import write_page
from .demo_plan import NUM_VAL, NUM_VAL_IN_TRAINING, DemoPlan, plan_demo
from .shipped_model import predict_nuclei

OWN_FILES = (
    "scenes",
    "run",
    "overlays",
    "index.html",
    "results.json",
    "metrics.json",
    "micrograph.png",
    "micrograph.jpg",
)
"""What a demo writes and may replace."""
MARK = ".maskrcnn-demo"
"""A file that marks the folder of a demo."""


@dataclass(frozen=True)
class DemoResult:
    """The result of a demo."""

    model: MaskRCNN
    evaluation: Evaluation
    page: Path
    seconds: float
    """From the start until all results are there; writing the page is not counted."""


def run_demo(
    out: str | Path = "demo",
    minutes: float | None = None,
    seed: int = 0,
    scenes: tuple[int, int] | None = None,
    plan: DemoPlan | None = None,
) -> DemoResult:
    """Trains the joint box, mask and keypoint model on drawn scenes and writes a page about it.

    Args:
        out: folder for the results; replaces what an earlier demo wrote there.
        minutes: time of the whole demo. None = four minutes, or as many as this machine needs for a
            good result.
        seed: other seeds draw other scenes and start from other weights.
        scenes: how many scenes to draw for training and for validation; None = as planned.
        plan: what to train; None = chosen after measuring this machine.

    Raises:
        ValueError: `out` contains files that no demo wrote, or `minutes` is not above 0.
    """
    if minutes is not None and minutes <= 0:
        raise ValueError(f"minutes: expected a number above 0, got {minutes}")
    out = Path(out)
    start = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    _clear(out)

    console.print("1/5  Detecting cell nuclei in a drawn micrograph with the shipped model")
    nuclei = predict_nuclei(out, seed)
    console.print(
        f"     detected {nuclei.num_detected} of {nuclei.num_drawn} nuclei, "
        f"mean mask IoU {nuclei.mask_iou:.2f}, in {nuclei.seconds:.1f} s"
    )

    console.print("2/5  Measuring this machine, up to a minute, to choose what to train")
    if plan is None:
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_demo(Path(folder), minutes, seed, started=start)
    console.print(f"     {plan}")

    num_train, num_val = scenes or (plan.num_train, NUM_VAL)
    console.print(f"3/5  Drawing {num_train} scenes to train on and {num_val} to validate on")
    data = _draw(out / "scenes" / "train", num_train, 2 * seed)
    validation = _draw(out / "scenes" / "val", num_val, 2 * seed + 1)

    console.print("4/5  Training boxes, masks and keypoints from scratch")
    val = validation.subset(range(min(NUM_VAL_IN_TRAINING, len(validation))))
    run = train(plan.candidate.recipe.model, data, val=val, config=plan.config, out=out / "run")

    console.print(
        f"5/5  Evaluating the model on {counted(len(validation), 'scene')} held out from training"
    )
    predictions = _predict(run.model, validation)
    results = [entry for instances in predictions for entry in instances.to_coco()]
    evaluation = evaluate(results, validation, out=out)

    seconds = time.monotonic() - start
    page = write_page(out, validation, predictions, evaluation, nuclei, plan, seconds, len(data))
    console.print(f"\n{evaluation}\n\nFinished in {seconds / 60:.1f} minutes. Open {page}")
    return DemoResult(run.model, evaluation, page, seconds)


def _clear(out: Path) -> None:
    """Creates the folder, or removes what an earlier demo wrote there and nothing else."""
    if out.exists():
        is_empty = out.is_dir() and not any(out.iterdir())
        if not is_empty and not (out / MARK).is_file():
            raise ValueError(
                f"{out} exists and was not written by a demo; "
                f"choose another folder, for example --out {out}-2"
            )
    out.mkdir(parents=True, exist_ok=True)

    for name in OWN_FILES:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (out / MARK).write_text(
        "maskrcnn demo wrote this folder and may replace the files that it wrote.\n"
    )


def _draw(folder: Path, count: int, seed: int) -> CocoDataset:
    def bar(numbers: Iterable[int]) -> Iterable[int]:
        return track(numbers, f"     drawing {folder.name}", total=count)

    return CocoDataset(write_scenes(folder, count, seed, progress=bar), folder / "images")


def _predict(model: MaskRCNN, data: CocoDataset) -> list[Instances]:
    """The predictions for each image of a data set, with its image ids."""
    records = [data[i] for i in range(len(data))]
    paths = [record.path for record in records]
    predictions = predict(model, paths, min_score=model.config.box.score_threshold)
    predictions = track(predictions, "     predicting", total=len(records))
    return [
        replace(instances, image_id=record.image_id)
        for instances, record in zip(predictions, records, strict=True)
    ]
