"""A run that is killed at any point and resumed ends with the weights of an uninterrupted run."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import training_run
from fresh_process import FreshProcess
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows
from maskrcnn.training.optim import rate_factor, scaled_rate
from maskrcnn.training.plan import plan_training

STEPS = 10
FILES = ("checkpoint.safetensors", "last.safetensors", "best.safetensors")


def train_and_kill(
    fresh_process: FreshProcess, settings: dict[str, Any], step: int, seconds: float
) -> int:
    """Kills a training so many seconds after metrics.csv has the row of a step; how it ended."""
    child = fresh_process.start("training_run:main", settings)
    rows = Path(settings["out"]) / "metrics.csv"
    while not rows.exists() or rows.read_bytes().count(b"\n") <= step:
        if fresh_process.has_ended(0.004):
            return fresh_process.wait().status
    if not fresh_process.has_ended(seconds):
        os.kill(child, signal.SIGKILL)
    return fresh_process.wait().status


@pytest.fixture(scope="module")
def whole(
    fresh_process: FreshProcess, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run: its settings and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {
        "data": str(training_run.draw(folder / "data", 7)),
        "validation": str(training_run.draw(folder / "val", 2, seed=1)),
        "train": {"steps": STEPS},
    }
    ended = fresh_process.call("training_run:main", settings | {"out": str(folder / "run")})
    assert ended.status == 0, ended.err
    return settings, folder / "run"


@pytest.mark.parametrize(("workers", "kills"), [(0, 5), (2, 3)])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    fresh_process: FreshProcess, whole: Any, tmp_path: Path, workers: int, kills: int
) -> None:
    settings, expected = whole
    settings = settings | {
        "out": str(tmp_path / "run"),
        "resume": True,
        "train": {"steps": STEPS, "workers": workers},
    }
    moments, resumed_at = random.Random(workers), []
    for step in (0, *sorted(moments.sample(range(2, STEPS - 2), kills - 1))):
        status = train_and_kill(fresh_process, settings, step, moments.uniform(0, 0.05))
        assert status == -signal.SIGKILL
        checkpoint = tmp_path / "run/checkpoint.safetensors"
        resumed_at.append(
            read_checkpoint(checkpoint)[1]["state"]["step"] if checkpoint.exists() else 0
        )
    ended = fresh_process.call("training_run:main", settings)
    assert ended.status == 0, ended.err
    assert len({step for step in resumed_at if 0 < step < STEPS}) >= 2, (
        f"the run was not resumed in the middle: {resumed_at}"
    )
    for name in FILES:
        assert training_run.weights_of(tmp_path / "run" / name) == training_run.weights_of(
            expected / name
        ), name
    killed, left_alone = (
        rows_of(folder / "metrics.csv") for folder in (tmp_path / "run", expected)
    )
    assert killed == left_alone
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], (
        "what was half written is cleared away"
    )


def rows_of(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv without times."""
    return [
        {k: v for k, v in row.items() if not k.endswith(("time", "wait", "seconds", "second"))}
        for row in read_rows(path)
    ]


# Resuming with another length


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


@pytest.fixture(scope="module")
def finished(data: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, which are two epochs."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train_on(data, out, steps=4)
    return out


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to resume."""
    return shutil.copytree(finished, tmp_path / "run")


def train_on(data: CocoDataset, out: Path, clock: Any = None, **settings: Any) -> None:
    config = tiny_config(**{"steps": None, **settings})
    train(tiny_model(data), data, config=config, out=out, resume=True, device="cpu", clock=clock)


@pytest.mark.parametrize(("length", "steps"), [({"steps": 8}, 8), ({"epochs": 3.5}, 7)])
def test_a_run_is_resumed_for_longer_with_its_schedule_planned_anew(
    data: CocoDataset,
    half: Path,
    capsys: pytest.CaptureFixture[str],
    length: dict[str, Any],
    steps: int,
) -> None:
    before = rows_of(half / "metrics.csv")
    train_on(data, half, **length)
    rows = rows_of(half / "metrics.csv")
    assert rows[:4] == before
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    config = tiny_config(**{"steps": None, **length})
    wanted = [scaled_rate(config, 1) * rate_factor(step, steps, config) for step in range(4, steps)]
    assert [row["learning_rate"] for row in rows[4:]] == pytest.approx(wanted, rel=1e-4)
    printed = capsys.readouterr().out
    assert "resumed after step 4, with another length:" in printed
    assert "before 4 steps. The schedule is planned anew from here" in printed
    state = read_checkpoint(half / "checkpoint.safetensors")[1]
    assert (state["state"]["step"], state["state"]["total"]) == (steps, steps)
    stored = json.loads((half / "config.json").read_text())["train"]
    assert stored == state["settings"]["train"]
    assert stored["steps"] == length.get("steps")


def test_a_run_is_resumed_with_a_longer_time_budget(data: CocoDataset, half: Path) -> None:
    ticks = itertools.count(step=5.0)  # each look at the clock takes 5 s
    clock = lambda: float(next(ticks))  # noqa: E731
    train_on(data, half, clock=clock, max_time=600.0, checkpoint_every=1e9)
    state = read_checkpoint(half / "checkpoint.safetensors")[1]["state"]
    assert state["step"] == state["total"] > 6
    assert 400 < state["seconds"] < 700


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"steps": 3}, r"for 3 steps: it has already trained 4 steps \(2 epochs"),
        ({"epochs": 1.0}, r"for 1 epoch: it has already trained 4 steps"),
        ({"max_time": 1e-6}, r"for 1e-06 s: it has already trained 4 steps .*Ask for more"),
    ],
)
def test_a_run_that_is_longer_already_says_so_and_stays_as_it_is(
    data: CocoDataset, half: Path, length: dict[str, Any], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=message):
        train_on(data, half, **length)
    assert {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()} == before


def test_other_settings_than_the_length_are_refused_by_name(data: CocoDataset, half: Path) -> None:
    config = tiny_config(steps=8, batch_size=4)
    with pytest.raises(ValueError, match=r"cannot resume .*train\.batch_size: was 2, now 4.* Only"):
        train(tiny_model(data), data, config=config, out=half, resume=True, device="cpu")
    model = tiny_model(data)
    model = replace(model, box=replace(model.box, samples=8))
    with pytest.raises(ValueError, match=r"model\.box\.samples: was 200, now 8"):
        train(model, data, config=tiny_config(steps=8), out=half, resume=True, device="cpu")
    assert json.loads((half / "config.json").read_text())["train"]["steps"] == 4


def test_a_run_that_stopped_early_goes_on_when_it_is_resumed_for_longer(
    data: CocoDataset, tmp_path: Path
) -> None:
    val = data.subset([0])

    def go(steps: int) -> dict[str, Any]:
        config = tiny_config(steps=steps, patience=1, evaluate_every=1.0)
        out = tmp_path / "run"
        train(tiny_model(data), data, val=val, config=config, out=out, resume=True, device="cpu")
        return read_checkpoint(out / "checkpoint.safetensors")[1]["state"]

    stopped = go(6)
    assert stopped["stopped"]
    assert stopped["step"] == 4
    assert go(6)["step"] == 4
    assert go(8)["step"] > 4


@pytest.mark.parametrize(
    ("recorded", "given", "wanted"),
    [
        ({"max_time": 50.0}, {"epochs": "48"}, (None, None, 48.0)),
        ({"max_time": 50.0}, {"steps": 9}, (None, 9, 30.0)),
        ({"steps": 4}, {"epochs": 48}, (None, None, 48.0)),
        ({"steps": 4}, {"max_time": 70}, (70.0, None, 30.0)),
        ({"steps": 4, "max_time": 50.0}, {"max_time": 70}, (70.0, 4, 30.0)),
        ({"max_time": 50.0}, {"batch_size": 2}, (50.0, None, 30.0)),
    ],
)
def test_a_new_length_replaces_the_recorded_one(
    data: CocoDataset,
    tmp_path: Path,
    recorded: dict[str, Any],
    given: dict[str, Any],
    wanted: tuple[Any, ...],
) -> None:
    from maskrcnn.settings import to_dict

    config = tiny_config(**{"steps": None, "epochs": 30.0, **recorded})
    settings = {"model": to_dict(tiny_model(data)), "train": to_dict(config)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    plan = plan_training(data, val=False, settings=given, out=tmp_path, resume=True, device="cpu")
    training = plan.recipe.training
    assert (training.max_time, training.steps, training.epochs) == wanted
