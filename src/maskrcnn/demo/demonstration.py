"""The demonstration from end to end: draw scenes, train on them, judge the model on unseen ones, show the shipped model, all on a page.

In: a folder and the minutes for training. Out, in that folder: scenes/{train,val} with COCO annotations, run/ (the training run), overlays/,
results.json, metrics.json, micrograph.jpg and index.html.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from ..annotations.coco_dataset import CocoDataset
from ..config import AugmentConfig, ModelConfig, TrainConfig
from ..evaluation.evaluate import Evaluation, evaluate
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..model.optimize import computes_bfloat16
from ..prediction.predictor import predict
from ..presets import maskrcnn_r18_small
from ..synthetic.scenes import write_scenes
from ..synthetic.shapes import CATEGORIES
from ..training.fit import train
from .demo_page import write_page
from .shipped_model import show_nuclei

NUM_TRAIN, NUM_VAL = 1500, 100
WATCHED = 40  # validation scenes that are evaluated now and then in the course of training; all of them are at the end
OWN = (
    "scenes",
    "run",
    "overlays",
    "index.html",
    "results.json",
    "metrics.json",
    "micrograph.png",
    "micrograph.jpg",
)  # what a demo writes, and may replace
MARK = ".maskrcnn-demo"


@dataclass(frozen=True)
class DemoResult:
    """What a demo gave."""

    model: MaskRCNN
    evaluation: Evaluation
    page: Path
    seconds: float
    """From the first scene to the finished page."""


def run_demo(
    out: str | Path = "demo",
    minutes: float = 3.3,
    seed: int = 0,
    scenes: tuple[int, int] = (NUM_TRAIN, NUM_VAL),
) -> DemoResult:
    """Trains the joint box + mask + keypoint model on drawn scenes and writes a page about it.

    Args:
        out: folder for the results; what an earlier demo wrote there is replaced.
        minutes: time for training.
        seed: other seeds draw other scenes and start from other weights.
        scenes: how many scenes to draw for training and for validation.

    Raises:
        ValueError: `out` holds other files than a demo's, or `minutes` is not above 0.
    """
    if minutes <= 0:
        raise ValueError(f"minutes: got {minutes}, must be above 0")
    start, out, console = time.monotonic(), Path(out), Console(highlight=False)
    _clear(out)
    console.print(f"1/5  Drawing {scenes[0]} scenes to train on and {scenes[1]} to judge by")
    data = _draw(out / "scenes" / "train", scenes[0], 2 * seed)
    validation = _draw(out / "scenes" / "val", scenes[1], 2 * seed + 1)
    console.print(
        f"2/5  Training boxes, masks and keypoints together, from scratch, for {minutes:g} minutes"
    )
    watched = validation.subset(range(min(WATCHED, len(validation))))
    run = train(demo_model(), data, val=watched, config=demo_training(minutes, seed), out=out / "run")
    console.print(f"3/5  Judging the model on {len(validation)} scenes that it has not seen")
    found = _found(run.model, validation)
    results = [entry for instances in found for entry in instances.to_coco()]
    evaluation = evaluate(results, validation, out=out)
    console.print(
        "4/5  Finding cell nuclei in a drawn micrograph with the model that comes with the package"
    )
    nuclei = show_nuclei(out, seed)
    console.print(
        f"     found {nuclei.found} of {nuclei.drawn} nuclei, mean IoU of their masks {nuclei.mask_iou:.2f}, in {nuclei.seconds:.1f} s"
    )
    console.print("5/5  Drawing the page")
    seconds = time.monotonic() - start
    page = write_page(
        out, validation, found, evaluation, nuclei, seconds=seconds, num_train=len(data)
    )
    console.print(f"\n{evaluation}\n\nDone in {seconds / 60:.1f} minutes. Open {page}")
    return DemoResult(run.model, evaluation, page, seconds)


def demo_model() -> ModelConfig:
    """The small preset, lighter still: at equal minutes more steps are worth more than channels and than ten RoIs on every object."""
    config = maskrcnn_r18_small(CATEGORIES)
    assert config.mask is not None
    assert config.keypoint is not None
    return replace(
        config,
        input=replace(config.input, scale=1.5),  # finer features for polygons of a pixel
        trunk=replace(config.trunk, stem_channels=32, res2_channels=32),
        rpn=replace(
            config.rpn, pre_nms_train=200, post_nms_train=200, pre_nms_test=200, post_nms_test=100
        ),
        box=replace(
            config.box, samples=64, positive_fraction=0.3, max_detections=50
        ),  # a scene has at most five objects
        mask=replace(config.mask, max_positives=12, loss_weight=2.0),
        keypoint=replace(config.keypoint, max_positives=6),
    )


def demo_training(minutes: float, seed: int = 0) -> TrainConfig:
    """Settings for a few minutes on two CPU cores."""
    return TrainConfig(
        max_time=minutes * 60,
        batch_size=6,
        reference_batch=6,
        learning_rate=1.5e-3,
        warmup=50,
        ema=0.99,
        augment=AugmentConfig(
            scale=(1.0, 1.0)
        ),  # fresh scenes vary enough; a mirror image is one more
        dtype="bfloat16"
        if computes_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        else "float32",  # nearly twice the steps
        evaluate_every=1.5,
        tensorboard=False,
        seed=seed,
    )


def _clear(out: Path) -> None:
    """Makes the folder, or removes what an earlier demo wrote there; never anything else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ValueError(
            f"{out} exists and was not written by a demo; choose another folder: --out {out}-2"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in OWN:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (out / MARK).write_text(
        "This folder was written by maskrcnn demo, which may replace what it wrote here.\n"
    )


def _draw(folder: Path, count: int, seed: int) -> CocoDataset:
    def bar(numbers: Iterable[int]) -> Iterable[int]:
        return track(numbers, description=f"     {folder.name}", total=count)

    return CocoDataset(write_scenes(folder, count, seed, progress=bar), folder / "images")


def _found(model: MaskRCNN, data: CocoDataset) -> list[Instances]:
    """What the model finds in each image of the data."""
    records = [data[i] for i in range(len(data))]
    found = predict(
        model, [record.path for record in records], min_score=model.config.box.score_threshold
    )
    found = track(found, description="     predicting", total=len(records))
    return [
        replace(instances, image_id=record.image_id)
        for instances, record in zip(found, records, strict=True)
    ]
