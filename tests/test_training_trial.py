"""The choice of what to train by the measured time of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import training_run
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import Category, ModelConfig, TrainConfig
from maskrcnn.recipe.recipe import Candidate, Recipe
from maskrcnn.training.forecast import forecast
from maskrcnn.training.learner import Learner
from maskrcnn.training.plan import plan_training
from maskrcnn.training.processes import Processes
from maskrcnn.training.trial import choose_candidate, image_seconds, step_seconds


def candidates() -> list[Candidate]:
    recipe = Recipe(ModelConfig((Category("a", 1),)), TrainConfig(), ())
    works = {"large": 16.0, "middle": 4.0, "small": 1.0}
    return [Candidate(name, recipe, 100, work) for name, work in works.items()]


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


def test_without_time_for_any_the_one_nearest_to_enough_steps_is_chosen() -> None:
    large, _, small = candidates()
    detector = replace(large, name="detector", enough=5)
    choice = choose_candidate([detector, small], 60, lambda candidate: candidate.work)
    assert (choice.candidate.name, choice.suffices) == ("detector", False)
    assert [candidate.name for candidate, _ in choice.rejected] == ["small"]


@pytest.mark.parametrize(
    ("seconds_of_a_step", "steps", "text"),
    [
        (0.1, 470, "expect a rough one"),
        (0.04, 1175, "about 1,175 steps of 0.04 s in 1.0 min"),
        (1.0, 47, "hopeless"),
    ],
)
def test_a_forecast_says_what_a_budget_reaches(
    monkeypatch: pytest.MonkeyPatch, seconds_of_a_step: float, steps: int, text: str
) -> None:
    monkeypatch.setattr(
        "maskrcnn.training.forecast.step_seconds", lambda *_, **__: seconds_of_a_step
    )
    recipe = candidates()[0].recipe
    made = forecast(
        [Candidate("random weights, full detail", recipe, enough=1000, work=1.0)],
        None,  # ty: ignore[invalid-argument-type]
        60.0,
        validates=False,
        started=0.0,
        clock=lambda: 10.0,
        processes=Processes.alone("cpu"),
    )
    assert made.steps == pytest.approx(steps, abs=1)
    assert made.recipe.reasons[0].setting == "steps in max_time"
    assert "measured" in made.recipe.reasons[0].why
    assert made.is_hopeless == (text == "hopeless")
    if made.is_hopeless:
        assert "at least 200 steps, got time for about 47" in made.refusal
        assert "A step takes 1 s, and 10.0 s are spent." in made.refusal
        assert "--max-time 30m" in made.refusal
        assert "--anyway" in made.refusal
    else:
        assert text in str(made)


def test_a_plan_announces_the_memory_that_trial_steps_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = [2**29]

    def step_seconds(*_: Any, **__: Any) -> float:
        resident[0] += 2**30  # far more than the estimate
        return 0.01

    def return_unused_memory() -> None:
        resident[0] = 2**29

    data = CocoDataset(training_run.draw(tmp_path, 2))
    monkeypatch.setattr("maskrcnn.training.forecast.step_seconds", step_seconds)
    monkeypatch.setattr("maskrcnn.training.forecast.return_unused_memory", return_unused_memory)
    monkeypatch.setattr("maskrcnn.recipe.memory_estimate.program_bytes", lambda: resident[0])
    plan = plan_training(
        data,
        val=False,
        device="cpu",
        settings={"max_time": 60.0},
        out=tmp_path / "run",
    )
    assert plan.forecast is not None
    assert plan.memory is not None
    assert plan.forecast.step_bytes == 2**30
    assert plan.memory > 2**29 + 1.5 * 2**30
    assert "there are" not in str(plan)
    assert "more than the 1.0 GiB that there are" in str(replace(plan, memory_limit=2**30))


def test_a_hopeless_budget_is_refused_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CocoDataset(training_run.draw(tmp_path, 2))
    monkeypatch.setattr("maskrcnn.training.forecast.step_seconds", lambda *_, **__: 1.0)
    given: dict[str, Any] = {"val": False, "device": "cpu", "settings": {"max_time": 60.0}}
    with pytest.raises(ValueError, match=r"too few from random weights.*--anyway"):
        plan_training(data, out=tmp_path / "run", **given)
    plan = plan_training(
        data, out=tmp_path / "run", anyway=True, started=0.0, clock=lambda: 5.0, **given
    )
    assert plan.forecast is not None
    assert plan.forecast.prepared == 5.0
    assert plan.started == 0.0, "the budget began before the data were opened"
    assert "GiB at the peak" in str(plan)


def test_steps_and_validations_are_timed_by_the_given_clock(tmp_path: Path) -> None:
    data = CocoDataset(training_run.draw(tmp_path, 2))
    ticks = iter(range(1000))
    settings = {"device": "cpu", "clock": lambda: float(next(ticks))}
    assert step_seconds(tiny_model(data), data, tiny_config(), **settings) >= 1
    assert 0 < image_seconds(tiny_model(data), data, tiny_config(), **settings) <= 1


def test_a_cold_first_step_is_not_a_typical_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short budget still measures warm steps, of which a slow one does not count; where all steps
    are slow, the second one counts."""
    data = CocoDataset(training_run.draw(tmp_path, 2))
    for seconds, expected, done in (
        ([4, 2, 0.1, 0.9, 0.1], 0.1, 5),
        ([4, 2, 0.9, 0.1, 0.2], 0.2, 5),
        ([4, 2, 1.5, 1], 1.5, 3),
        ([60, 20, 20], 20, 2),
    ):
        now = [0.0]
        left = iter(seconds)

        def step(_: Learner, number: int, total: int | None) -> None:
            now[0] += next(left)  # noqa: B023 (called within the loop)

        monkeypatch.setattr(Learner, "step", step)
        settings = {"device": "cpu", "clock": lambda: now[0], "longest": 0.15}  # noqa: B023
        measured = step_seconds(tiny_model(data), data, tiny_config(), **settings)
        assert measured == pytest.approx(expected)
        assert len(list(left)) == len(seconds) - done
