"""The demo from end to end: draw scenes, train, evaluate, run the shipped model, write a page.

In: a folder and the minutes to train.
Out, in that folder: scenes/{train,val} with COCO annotations, run/ (the training run), overlays/,
results.json, metrics.json, micrograph.png, micrograph.jpg and index.html.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from ..annotations.coco_dataset import CocoDataset
from ..config import AugmentConfig, ModelConfig, TrainConfig
from ..evaluation.evaluate import Evaluation, evaluate
from ..instances import Instances
from ..kernels.precision import computes_bfloat16
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import predict
from ..presets import maskrcnn_r18_small
from ..runtime.progress import track
from ..synthetic.scenes import write_scenes
from ..synthetic.shapes import CATEGORIES
from ..training.fit import train
from .demo_page import write_page
from .shipped_model import predict_nuclei

NUM_TRAIN = 1500
NUM_VAL = 100
NUM_VAL_IN_TRAINING = 40
"""Validation scenes that are evaluated during training; the final evaluation uses all."""
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
    minutes: float = 3.3,
    seed: int = 0,
    scenes: tuple[int, int] = (NUM_TRAIN, NUM_VAL),
) -> DemoResult:
    """Trains the joint box, mask and keypoint model on drawn scenes and writes a page about it.

    Args:
        out: folder for the results; replaces what an earlier demo wrote there.
        minutes: time budget for training.
        seed: other seeds draw other scenes and start from other weights.
        scenes: how many scenes to draw for training and for validation.

    Raises:
        ValueError: `out` contains files that no demo wrote, or `minutes` is not above 0.
    """
    if minutes <= 0:
        raise ValueError(f"minutes: expected a number above 0, got {minutes}")
    out = Path(out)
    start = time.monotonic()
    console = Console(highlight=False)
    _clear(out)

    num_train, num_val = scenes
    console.print(f"1/5  Drawing {num_train} scenes to train on and {num_val} to validate on")
    data = _draw(out / "scenes" / "train", num_train, 2 * seed)
    validation = _draw(out / "scenes" / "val", num_val, 2 * seed + 1)

    console.print(f"2/5  Training boxes, masks and keypoints from scratch for {minutes:g} minutes")
    val = validation.subset(range(min(NUM_VAL_IN_TRAINING, len(validation))))
    run = train(demo_model(), data, val=val, config=demo_training(minutes, seed), out=out / "run")

    console.print(f"3/5  Evaluating the model on {len(validation)} scenes held out from training")
    predictions = _predict(run.model, validation)
    results = [entry for instances in predictions for entry in instances.to_coco()]
    evaluation = evaluate(results, validation, out=out)

    console.print("4/5  Detecting cell nuclei in a drawn micrograph with the shipped model")
    nuclei = predict_nuclei(out, seed)
    console.print(
        f"     detected {nuclei.num_detected} of {nuclei.num_drawn} nuclei, "
        f"mean mask IoU {nuclei.mask_iou:.2f}, in {nuclei.seconds:.1f} s"
    )

    console.print("5/5  Writing the page")
    seconds = time.monotonic() - start
    page = write_page(
        out, validation, predictions, evaluation, nuclei, seconds=seconds, num_train=len(data)
    )
    console.print(f"\n{evaluation}\n\nFinished in {seconds / 60:.1f} minutes. Open {page}")
    return DemoResult(run.model, evaluation, page, seconds)


def demo_model() -> ModelConfig:
    """The small preset, made lighter.

    In a fixed number of minutes, more steps help more than more channels, or than ten RoIs per
    object.
    """
    config = maskrcnn_r18_small(CATEGORIES)
    assert config.mask is not None
    assert config.keypoint is not None

    return replace(
        config,
        input=replace(config.input, scale=1.5),  # finer features for parts of one pixel's width
        trunk=replace(config.trunk, stem_channels=32, res2_channels=32),
        rpn=replace(
            config.rpn, pre_nms_train=200, post_nms_train=200, pre_nms_test=200, post_nms_test=100
        ),
        # A scene has at most five objects.
        box=replace(config.box, samples=64, positive_fraction=0.3, max_detections=50),
        mask=replace(config.mask, max_positives=12, loss_weight=2.0),
        keypoint=replace(config.keypoint, max_positives=6),
    )


def demo_training(minutes: float, seed: int = 0) -> TrainConfig:
    """Training settings for a few minutes on two CPU cores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainConfig(
        max_time=minutes * 60,
        batch_size=6,
        reference_batch=6,
        learning_rate=1.5e-3,
        warmup=50,
        ema=0.99,
        # Each scene is new, so flips are enough variation.
        augment=AugmentConfig(scale=(1.0, 1.0)),
        # bfloat16 gives nearly twice the steps where the hardware has it.
        dtype="bfloat16" if computes_bfloat16(device) else "float32",
        evaluate_every=1.5,
        tensorboard=False,
        seed=seed,
    )


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
