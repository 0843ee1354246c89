"""What the demo trains on this machine, and how long it takes: chosen from a few measured steps.

In: the minutes, if the user gives them. Out: a `DemoPlan`, and one line that describes it.

The steps that a candidate needs were found by experiments with drawn scenes (docs/results.md). Four
minutes suffice on a fast machine; a slower one gets up to eight, then a smaller candidate, and only
if that is still too slow, more time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..annotations.coco_dataset import CocoDataset
from ..config import AugmentConfig, ModelConfig, TrainConfig
from ..kernels.precision import computes_bfloat16
from ..presets import maskrcnn_r18_small
from ..recipe.recipe import Candidate, Recipe
from ..runtime.counted import counted
from ..synthetic.scenes import write_scenes
from ..synthetic.shapes import CATEGORIES
from ..training.trial import choose_candidate, image_seconds, step_seconds

USUAL_TIME = 4 * 60.0  # seconds of the whole demo on a fast machine
LONGEST_TIME = 8 * 60.0  # on a slower machine, as long as a candidate suffices within it
SIDE = 160  # px, of a scene
MOST_SCENES = 1500  # to train on; a short run gets no more than it uses
FEWEST_SCENES = 200
NUM_VAL = 100
NUM_VAL_IN_TRAINING = 40
"""Validation scenes that are evaluated during training; the final evaluation uses all."""
EVALUATIONS = 3  # during training, with the last step's: the points of the page's curves
MEASURED_SCENES = 12
SLACK = 0.95  # of the remaining time is used for training: other work on the machine comes and goes
PAGE_SECONDS = 5.0  # writing overlays, curves and the page


@dataclass(frozen=True)
class DemoPlan:
    """What is trained, and the time that it takes on this machine."""

    candidate: Candidate
    step_seconds: float
    steps: int
    """Expected number of steps; the time decides."""
    training_seconds: float
    """Time budget of the training, with its evaluations."""
    total_seconds: float
    """Expected time of the whole demo."""
    num_train: int
    suffices: bool
    """Whether the steps are as many as the candidate needs."""

    @property
    def config(self) -> TrainConfig:
        """Settings of the training."""
        training = self.candidate.recipe.training
        epochs = self.steps * training.batch_size / self.num_train
        # A little less than a third, so that the third evaluation is that of the last step.
        every = max(epochs / (EVALUATIONS + 0.2), 1e-3)
        return replace(training, max_time=self.training_seconds, evaluate_every=every)

    def __str__(self) -> str:
        rate = 1 / self.step_seconds
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{self.step_seconds:.1f} s per step"
        line = (
            f"This machine: {speed} with {self.candidate.name}; "
            f"training {counted(self.steps, 'step')}, "
            f"about {self.total_seconds / 60:.1f} min in all"
        )
        if not self.suffices:
            enough = self.candidate.enough
            line += (
                f". That is fewer than the {enough} steps that give good results; "
                "expect rough masks and keypoints, or give more --minutes"
            )
        elif self.total_seconds > LONGEST_TIME + 1:
            line += ". A slow machine; --minutes limits the time"

        return line


def plan_demo(
    folder: Path,
    minutes: float | None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    started: float | None = None,
) -> DemoPlan:
    """Draws a few scenes, times steps on them, and chooses what to train.

    Args:
        folder: for the few scenes.
        minutes: of the whole demo. None = four, or as many as a good result takes.
        seed: of scenes and weights.
        clock: returns the time in seconds.
        started: when the demo began, by `clock`; None = now.
    """
    begin = clock()
    started = begin if started is None else started
    annotations = write_scenes(folder, MEASURED_SCENES, seed, SIDE)
    scene_seconds = (clock() - begin) / MEASURED_SCENES
    data = CocoDataset(annotations, folder / "images")

    candidates = demo_candidates(seed)
    smallest = candidates[-1]
    validation_seconds = image_seconds(
        smallest.recipe.model, data, smallest.recipe.training, clock=clock
    )
    evaluated = NUM_VAL_IN_TRAINING * EVALUATIONS

    def other_seconds(scenes: int) -> float:
        """Seconds of the demo besides training steps."""
        drawing = (scenes + NUM_VAL) * scene_seconds
        return drawing + (evaluated + NUM_VAL) * validation_seconds + PAGE_SECONDS

    whole = LONGEST_TIME if minutes is None else minutes * 60
    spent = clock() - started
    choice = choose_candidate(
        candidates,
        SLACK * (whole - spent - other_seconds(MOST_SCENES)),
        lambda c: step_seconds(c.recipe.model, data, c.recipe.training, clock=clock),
    )
    candidate = choice.candidate

    # As long as the steps take that are enough, within the usual and the longest time.
    spent = clock() - started
    if minutes is None:
        # One more, because only whole steps count.
        enough_seconds = (candidate.enough + 1) * choice.step_seconds
        needed = spent + other_seconds(MOST_SCENES) + enough_seconds / SLACK
        whole = max(USUAL_TIME, needed)
    left = max(1.0, whole - spent - other_seconds(MOST_SCENES))
    steps = max(1, choice.steps_in(SLACK * left))
    images = steps * candidate.recipe.training.batch_size
    return DemoPlan(
        candidate=candidate,
        step_seconds=choice.step_seconds,
        steps=steps,
        training_seconds=left + evaluated * validation_seconds,
        total_seconds=max(whole, spent + other_seconds(FEWEST_SCENES)),
        num_train=min(MOST_SCENES, max(FEWEST_SCENES, math.ceil(images / 100) * 100)),
        suffices=steps >= candidate.enough,
    )


def demo_candidates(seed: int = 0) -> tuple[Candidate, ...]:
    """What can be trained, the best first; `enough` steps give mask AP 0.5 and keypoint AP 0.4."""
    full = demo_model()
    small = replace(full, input=replace(full.input, scale=1.0))

    training = demo_training(seed)
    of_small = replace(training, batch_size=3, reference_batch=3, ema=0.995)
    return (
        Candidate(
            "a ResNet-18 of 32 channels at 240 px",
            Recipe(full, training, ()),
            enough=600,
            work=1.0,
        ),
        Candidate(
            "a ResNet-18 of 32 channels at 160 px, 3 scenes per step",
            Recipe(small, of_small, ()),
            enough=1200,
            work=0.25,
        ),
    )


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


def demo_training(seed: int = 0) -> TrainConfig:
    """Training settings for a few minutes on a CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    return TrainConfig(
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
