"""The choice of what to train by the measured time of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_run
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import Category, ModelConfig, TrainConfig
from maskrcnn.training.trial import Candidate, choose_candidate, image_seconds, step_seconds


def candidates() -> list[Candidate]:
    model = ModelConfig((Category("a", 1),))
    works = {"large": 16.0, "middle": 4.0, "small": 1.0}
    return [Candidate(name, model, TrainConfig(), 100, work) for name, work in works.items()]


@pytest.mark.parametrize(
    ("seconds", "chosen", "suffices", "timed"),
    [
        (2000, "large", True, ["small", "large"]),
        (500, "middle", True, ["small", "middle"]),
        (110, "small", True, ["small"]),
        (50, "small", False, ["small"]),
    ],
)
def test_the_best_candidate_that_fits_is_chosen_and_hopeless_ones_are_not_timed(
    seconds: float, chosen: str, suffices: bool, timed: list[str]
) -> None:
    order: list[str] = []

    def cost(candidate: Candidate) -> float:
        order.append(candidate.name)
        return candidate.work

    choice = choose_candidate(candidates(), seconds, cost)
    assert (choice.candidate.name, choice.suffices) == (chosen, suffices)
    assert order == timed
    assert choice.steps_in(seconds) == int(seconds / choice.step_seconds)


def test_steps_and_validations_are_timed_by_the_given_clock(tmp_path: Path) -> None:
    data = CocoDataset(training_run.draw(tmp_path, 2))
    ticks = iter(range(1000))
    settings = {"device": "cpu", "clock": lambda: float(next(ticks))}
    assert step_seconds(tiny_model(data), data, tiny_config(), **settings) >= 1
    assert 0 < image_seconds(tiny_model(data), data, tiny_config(), **settings) <= 1
