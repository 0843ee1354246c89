from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config

from maskrcnn import ModelConfig, TrainConfig
from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.demo import run_demo
from maskrcnn.demo.demo_plan import DemoPlan, plan_demo
from maskrcnn.demo.demonstration import MARK, OWN_FILES
from maskrcnn.demo.line_charts import line_chart, smoothed
from maskrcnn.recipe.recipe import Candidate, Recipe
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.synthetic.shapes import CATEGORIES
from maskrcnn.truth_instances import truth_instances


def short_demo(out: Path, scenes: int) -> None:
    """A demo with a tiny network and about five training steps: too few to learn, but every part runs."""
    training = TrainConfig(batch_size=2, tensorboard=False)
    model = tiny_config(CATEGORIES)
    model = replace(model, box=replace(model.box, max_detections=10))
    candidate = Candidate("a small network", Recipe(model, training, ()), enough=5, work=1.0)
    # As soon as a tenth of the time is over, the training learns that it has to end.
    plan = DemoPlan(
        candidate,
        step_seconds=1.0,
        steps=5,
        training_seconds=0.5,
        total_seconds=120.0,
        num_train=4,
        suffices=True,
    )
    run_demo(out, scenes=(4, scenes), plan=plan)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo, in which an earlier demo had left files, and its user one."""
    out = tmp_path_factory.mktemp("demo")
    (out / MARK).touch()
    (out / "notes.txt").write_text("mine")
    for folder in ("overlays", "run", "scenes/val"):
        (out / folder).mkdir(parents=True)
        (out / folder / "old.jpg").write_text("from before")
    short_demo(out, scenes=3)
    return out


def test_the_demo_writes_every_file_its_page_links(demo: Path):
    page = (demo / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert linked
    assert all((demo / link).is_file() for link in linked)
    assert "{{" not in page
    assert "nan" not in page
    assert {"Box AP", "Mask AP", "Keypoint AP"} <= set(
        re.findall(r"(?:Box|Mask|Keypoint) AP", page)
    )
    for name in ("ball", "star", "ring", "figure"):
        assert f"<td>{name}</td>" in page
    assert page.count("<svg") == 3
    assert json.loads((demo / "metrics.json").read_text())["num_images"] == 3
    assert isinstance(json.loads((demo / "results.json").read_text()), list)
    assert (demo / "run" / "last.safetensors").is_file()
    assert len(list((demo / "overlays").iterdir())) == 3


def test_a_second_run_replaces_only_the_demos_own_files(demo: Path):
    assert (demo / "notes.txt").read_text() == "mine"
    assert not list(demo.rglob("old.jpg"))
    assert {path.name for path in demo.iterdir()} == {*OWN_FILES, MARK, "notes.txt"}


def test_a_folder_with_other_files_is_left_unchanged(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        run_demo(tmp_path, minutes=0.02, scenes=(2, 1))
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("step", "minutes", "total", "pixels", "suffices"),
    [
        (0.05, None, 4.0, 240, True),
        (0.2, None, 4.0, 240, True),
        (0.379, None, 4.5, 240, True),  # only whole steps count: 599 of 600 were planned
        (0.393, None, 4.7, 240, True),
        (0.8, None, 7.4, 160, True),
        (4.0, None, 35.0, 160, True),
        (0.7, 3.0, 3.0, 160, False),
        (0.05, 2.0, 2.0, 240, True),
    ],
)
def test_the_demo_plans_as_long_as_this_machine_needs_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: float,
    minutes: float | None,
    total: float,
    pixels: int,
    suffices: bool,
) -> None:
    """`step` is the time of a step with the larger network; the smaller takes 0.38 of it."""

    def time_of(model: ModelConfig, *_: object, **__: object) -> float:
        return step * (1.0 if model.input.scale == 1.5 else 0.38)

    monkeypatch.setattr("maskrcnn.demo.demo_plan.step_seconds", time_of)
    monkeypatch.setattr("maskrcnn.demo.demo_plan.image_seconds", lambda *_, **__: 0.1)
    plan = plan_demo(tmp_path, minutes, clock=itertools.repeat(0.0).__next__)
    assert plan.total_seconds / 60 == pytest.approx(total, rel=0.35 if total > 8 else 0.15)
    assert plan.suffices == suffices
    assert f"at {pixels} px" in str(plan)
    assert f"about {plan.total_seconds / 60:.1f} min" in str(plan)
    assert ("slow machine" in str(plan)) == (total > 8)
    assert ("fewer than" in str(plan)) == (not suffices)
    assert plan.training_seconds < plan.total_seconds


def test_truth_is_drawn_with_the_annotated_masks_and_keypoints(tmp_path: Path):
    data = CocoDataset(write_scenes(tmp_path, 3, seed=2), tmp_path / "images")
    for i in range(3):
        record = data[i]
        annotations = record.annotations
        size = (record.height, record.width)
        truth = truth_instances(annotations, data.categories, size)
        for mask, a in zip(truth.masks.dense().numpy(), annotations, strict=True):
            wanted = rle.decode(a.rle or {})
            assert (mask & wanted).sum() / (mask | wanted).sum() > 0.97
        keypoints = [a.keypoints[:, :2] for a in annotations if a.keypoints is not None]
        drawn = (
            truth.keypoints[torch.tensor([a.keypoints is not None for a in annotations])]
            if truth.keypoints is not None
            else []
        )
        for wanted, points in zip(keypoints, drawn, strict=True):
            np.testing.assert_allclose(points[:, :2], wanted, atol=1e-4)


def test_a_chart_places_points_on_its_axes():
    svg = line_chart({"a": ([0, 10], [0, 1])}, "steps", top=1.0, dots=True)
    xs, ys = zip(
        *(map(float, point) for point in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)),
        strict=True,
    )
    assert xs[0] == 48
    assert ys == (226.0, 12.0)


def test_smoothing_keeps_the_mean():
    xs, ys = smoothed((range(1000), [i % 2 for i in range(1000)]), points=100)
    assert len(xs) == 100
    assert set(ys) == {0.5}
