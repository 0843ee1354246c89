"""Runs: files, refusals, the best model, the time budget, and several processes that equal one."""

from __future__ import annotations

import collections
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_run
from fresh_process import FreshProcess
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import AugmentConfig
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import Run, train
from maskrcnn.training.learner import NonFiniteLossError
from maskrcnn.training.log import read_rows
from maskrcnn.training.time_budget import TimeBudget, next_review, with_least_left
from maskrcnn.training.validate import validate
from maskrcnn.weights.load import load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 8))


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("val"), 3, seed=1))


def run(
    data: CocoDataset,
    out: Path,
    validation: CocoDataset | None = None,
    model: Any = None,
    resume: bool = False,
    progress: bool = False,
    **changes: Any,
) -> Run:
    config = tiny_config(**({"steps": 4, "checkpoint_every": 60.0} | changes))
    return train(
        model or tiny_model(data),
        data,
        val=validation,
        config=config,
        out=out,
        resume=resume,
        progress=progress,
        device="cpu",
    )


def test_a_run_writes_its_model_its_metrics_and_its_chart(
    data: CocoDataset, validation: CocoDataset, tmp_path: Path
) -> None:
    result = run(
        data, tmp_path / "run", validation, batch_size=4, evaluate_every=1.0, tensorboard=True
    )
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "metrics.csv",
        "tensorboard",
        "curves.png",
        "examples.png",
        "best.safetensors",
        "last.safetensors",
        "checkpoint.safetensors",
    }
    rows = read_rows(tmp_path / "run/metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in result.history] == [2, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert result.best is not None
    assert result.best["val/AP"] == max(row["val/AP"] for row in result.history)
    parts = [result.history[0][f"val/{task}_AP"] for task in ("bbox", "segm", "keypoints")]
    assert result.history[0]["val/AP"] == pytest.approx(sum(parts) / 3, abs=1e-5)
    best = load(tmp_path / "run")
    assert all(
        torch.equal(a, b)
        for a, b in zip(best.state_dict().values(), result.model.state_dict().values(), strict=True)
    )


def test_the_averaged_weights_are_the_saved_ones(data: CocoDataset, tmp_path: Path) -> None:
    start = MaskRCNN.from_config(tiny_model(data))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    result = run(data, tmp_path / "run", model=start, steps=2)
    tensors, _ = read_checkpoint(tmp_path / "run/checkpoint.safetensors")
    saved = load(tmp_path / "run/last.safetensors").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in tensors["ema"].items())
    assert any(not torch.equal(saved[name], value) for name, value in tensors["model"].items())
    assert result.best is None
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in before.items()), (
        "the given model stays as it was"
    )


@pytest.fixture(scope="module")
def finished(data: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    return run(data, tmp_path_factory.mktemp("finished") / "run", steps=1).out


def test_a_folder_with_a_run_is_not_overwritten(data: CocoDataset, finished: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds a run .*resume=True"):
        run(data, finished, steps=1)


def test_resuming_with_other_settings_or_data_is_refused_by_name(
    data: CocoDataset, validation: CocoDataset, finished: Path
) -> None:
    run(data, finished, steps=1, resume=True, workers=2, checkpoint_every=1.0)
    with pytest.raises(
        ValueError, match=r"train\.batch_size: was 2, now 4; train\.seed: was 0, now 1"
    ):
        run(data, finished, steps=1, resume=True, batch_size=4, seed=1)
    with pytest.raises(
        ValueError, match=r"data\.annotations: was 16, now 6; data\.images: was 8, now 3"
    ):
        run(validation, finished, steps=1, resume=True)


def test_resuming_without_a_checkpoint_starts_anew_and_reports_it(
    data: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(steps=1)
    train(tiny_model(data), data, config=config, out=tmp_path / "run", resume=True, device="cpu")
    printed = capsys.readouterr().out
    assert "no checkpoint in" in printed
    for part in (
        "8 images, 2 categories (card, stick)",
        "1 step",
        "learning rate 0.000354 (0.0005 at 4 images)",
        "cpu",
        " thread",
        "float32",
    ):
        assert part in printed.splitlines()[0]


def test_warnings_of_a_file_that_is_split_are_shown_once(
    data: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(Path(str(data.annotations_path)).read_text())
    content["annotations"][1]["keypoints"][0] = 1  # a keypoint far outside its box
    noted = CocoDataset(content, Path(str(data.annotations_path)).parent)
    assert noted.warnings
    train(
        tiny_model(noted),
        noted.subset(range(6)),
        val=noted.subset([6, 7]),
        config=tiny_config(steps=1),
        out=tmp_path,
        device="cpu",
    )
    assert capsys.readouterr().out.count("maskrcnn check lists them") == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(
    data: CocoDataset, tmp_path: Path
) -> None:
    model = MaskRCNN.from_config(tiny_model(data))
    with torch.no_grad():
        for p in model.mask_head.parameters():
            p.fill_(math.nan)
    with pytest.raises(
        NonFiniteLossError,
        match=r"step 1: expected finite losses, got mask nan for the images \d, \d, \d, \d\.",
    ) as error:
        run(data, tmp_path / "run", model=model, accumulate=2)
    assert len(set(error.value.image_ids)) == 4


def test_other_categories_are_refused(data: CocoDataset, tmp_path: Path) -> None:
    model = tiny_model(data)
    other = replace(
        model, categories=(replace(model.categories[0], name="leaf"), model.categories[1])
    )
    with pytest.raises(ValueError, match="categories card, stick, the model leaf, stick"):
        run(data, tmp_path / "run", model=other)


def test_names_and_dicts_in_place_of_a_model_or_a_configuration_are_refused(
    data: CocoDataset, tmp_path: Path
) -> None:
    with pytest.raises(
        TypeError, match="model: expected a ModelConfig or a MaskRCNN, got 'nuclei'"
    ):
        train("nuclei", data, out=tmp_path)  # ty: ignore[invalid-argument-type]
    with pytest.raises(TypeError, match="config: expected a TrainConfig, got dict"):
        train(tiny_model(data), data, config={"epochs": 1}, out=tmp_path)  # ty: ignore[invalid-argument-type]


def test_impossible_settings_are_refused_all_at_once(data: CocoDataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"epochs: .*got -1\.0; batch_size: .*got 0; ema: .*got 1\.0"
    ):
        run(data, tmp_path / "run", batch_size=0, epochs=-1.0, ema=1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"optimizer": "sgd", "schedule": "step", "clip_norm": 0.0, "ema": 0.0},
    ],
)
def test_each_precision_and_optimizer_trains(
    data: CocoDataset, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(data, tmp_path / "run", steps=2, **changes)
    rows = read_rows(tmp_path / "run/metrics.csv")
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_training_stops_when_nothing_improves(
    data: CocoDataset, validation: CocoDataset, tmp_path: Path
) -> None:
    settings = {
        "steps": 50,
        "batch_size": 4,
        "learning_rate": 1e-12,
        "evaluate_every": 0.5,
        "patience": 2,
        "ema": 0.0,
    }
    result = run(data, tmp_path / "run", validation, **settings)
    assert [row["step"] for row in result.history] == [1, 2, 3]
    again = run(data, tmp_path / "run", validation, resume=True, **settings)
    assert again.best == result.best, "a stopped run stays stopped"


def test_a_run_with_a_time_budget_ends_in_time_and_at_the_recorded_step(
    data: CocoDataset,
    validation: CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = itertools.count(
        step=2
    )  # a clock on which a step takes about 8 ms, an evaluation 10 per image, and little else takes time

    def slow_validate(
        model: MaskRCNN, images: CocoDataset, *arguments: Any, **named: Any
    ) -> dict[str, float]:
        collections.deque(itertools.islice(now, 5 * len(images)), maxlen=0)
        return validate(model, images, *arguments, **named)

    clock = SimpleNamespace(monotonic=lambda: next(now) / 1000)
    monkeypatch.setattr("maskrcnn.training.fit.time", clock)
    monkeypatch.setattr("maskrcnn.training.trainer.time", clock)
    monkeypatch.setattr("maskrcnn.training.evaluations.validate", slow_validate)
    result = run(
        data,
        tmp_path / "run",
        validation,
        progress=True,
        steps=None,
        max_time=0.4,
        evaluate_every=5.0,
    )
    assert "validates on all 3 images: 0.0 s each time" in capsys.readouterr().out
    rows = read_rows(tmp_path / "run/metrics.csv")
    state = read_checkpoint(tmp_path / "run/checkpoint.safetensors")[1]["state"]
    assert state["total"] == state["step"] == rows[-1]["step"]
    assert 0.34 < rows[-1]["time"] < 0.42, "with the last evaluation, with each checkpoint"
    assert len(result.history) >= 2
    assert rows[-1]["learning_rate"] < 0.05 * max(row["learning_rate"] for row in rows), (
        "the schedule ends with the run"
    )
    resumed = run(
        data,
        tmp_path / "run",
        validation,
        steps=None,
        max_time=0.4,
        evaluate_every=5.0,
        resume=True,
    )
    assert resumed.history == result.history


def test_a_time_budget_can_be_cpu_time(data: CocoDataset, tmp_path: Path) -> None:
    """On a busy machine, wall time passes without work."""
    work = itertools.count(step=3.0)
    run_in_time = train(
        tiny_model(data),
        data,
        config=tiny_config(steps=None, max_time=300.0, checkpoint_every=60.0),
        out=tmp_path / "run",
        device="cpu",
        clock=lambda: next(work),
    )
    rows = read_rows(run_in_time.out / "metrics.csv")
    assert 200 < rows[-1]["time"] <= 310


def test_a_run_keeps_its_time_budget_when_the_machine_slows_down(
    data: CocoDataset, tmp_path: Path
) -> None:
    seconds = itertools.count(step=3)

    def clock() -> float:
        now = next(seconds)
        return float(now if now < 100 else 100 + 3 * (now - 100))

    config = tiny_config(steps=None, max_time=600.0, checkpoint_every=1e6)
    rows = read_rows(
        train(
            tiny_model(data), data, config=config, out=tmp_path / "run", device="cpu", clock=clock
        ).out
        / "metrics.csv"
    )
    assert 540 < rows[-1]["time"] <= 630
    assert rows[-1]["learning_rate"] < 0.02 * max(row["learning_rate"] for row in rows), (
        "the schedule ends with the run"
    )


def test_the_number_of_steps_is_corrected_at_fixed_shares_and_leaves_time_for_the_decay() -> None:
    assert [next_review(step, 100) for step in (10, 24, 25, 60, 89, 90, 100)] == [
        25,
        25,
        50,
        75,
        90,
        None,
        None,
    ]
    assert with_least_left(75, 100) == 100
    assert with_least_left(75, 75) == 79


def test_the_budget_ignores_stalls_and_pays_for_evaluations() -> None:
    budget = TimeBudget(max_time=100.0, steps=[5.0, 1.0, 1.0, *[0.1] * 40])
    assert not budget.ready(9.0)
    assert budget.ready(11.0)
    assert budget.total(43, 11.0, math.inf, 60.0) == pytest.approx(43 + 889, abs=2)
    budget.steps[-3] = 7.0
    assert budget.total(43, 11.0, math.inf, 60.0) == pytest.approx(43 + 889, abs=2)
    budget.evaluation = 10.0
    assert budget.total(43, 11.0, math.inf, 60.0) == pytest.approx(43 + 789, abs=2)
    assert budget.total(43, 11.0, steps_per_evaluation=100, checkpoint_every=60.0) == pytest.approx(
        457, abs=60
    )
    assert budget.images_to_validate(40, image_seconds=0.1, evaluations=1) == 40
    assert budget.images_to_validate(40, image_seconds=1.0, evaluations=1) == 15
    assert budget.images_to_validate(40, image_seconds=99.0, evaluations=1) == 4
    assert budget.total(43, 120.0, math.inf, 60.0) == 43
    slow = TimeBudget(max_time=100.0, steps=[20.0, 20.0])
    assert slow.ready(40.0)
    assert slow.total(2, 40.0, math.inf, 60.0) == 5


def test_two_processes_have_the_losses_of_one_with_twice_the_batch(
    data: CocoDataset, validation: CocoDataset, tmp_path: Path, fresh_process: FreshProcess
) -> None:
    norms = ("frozen", "group")
    augment = {"flip_horizontal": 0.5, "scale": [1.0, 1.0]}
    settings = {
        "steps": 2,
        "batch_size": 2,
        "accumulate": 2,
        "learning_rate": 0.002,
        "augment": augment,
        "evaluate_every": 100,
    }

    def run_of(norm: str, name: str, **changes: int) -> dict[str, Any]:
        paths = {
            "data": str(data.annotations_path),
            "validation": str(validation.annotations_path),
            "out": str(tmp_path / f"{norm}-{name}"),
        }
        return paths | {"norm": norm, "train": settings | changes}

    done = fresh_process.call("training_run:by_two_nodes", [run_of(n, "two") for n in norms])
    assert done.status == 0, done.err
    assert "Warning" not in done.err
    for norm in norms:
        training_run.main(run_of(norm, "one", batch_size=4))
        for one, two in zip(
            *(read_rows(tmp_path / f"{norm}-{name}" / "metrics.csv") for name in ("one", "two")),
            strict=True,
        ):
            for name in one:
                if name.startswith(("loss", "val", "gradient", "learning")):
                    assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (
                        norm,
                        one["step"],
                        name,
                    )


@pytest.mark.parametrize("name", ["flip_horizontal", "flip_vertical", "copy_paste"])
def test_a_probability_outside_0_to_1_is_refused_by_name(
    data: CocoDataset, tmp_path: Path, name: str
):
    with pytest.raises(ValueError, match=rf"augment\.{name}: expected 0 to 1, got 2"):
        run(data, tmp_path / "run", augment=AugmentConfig(**{name: 2}))
    assert not (tmp_path / "run").exists()
