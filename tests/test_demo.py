from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn import TrainConfig
from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.demo import run_demo
from maskrcnn.demo.line_charts import line_chart, smoothed
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.truth_instances import truth_instances


def short_demo(out: Path, scenes: int) -> None:
    """A demo with two training steps: too few to learn, but every part runs."""
    training = TrainConfig(steps=2, batch_size=2, evaluate_every=100, tensorboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskrcnn.demo.demonstration.demo_training", lambda *_: training)
        run_demo(out, scenes=(4, scenes))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
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
    (demo / "notes.txt").write_text("mine")
    (demo / "overlays" / "old.jpg").write_text("from before")
    short_demo(demo, scenes=2)
    assert (demo / "notes.txt").read_text() == "mine"
    assert len(list((demo / "overlays").iterdir())) == 2


def test_a_folder_with_other_files_is_left_unchanged(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        run_demo(tmp_path, minutes=0.02, scenes=(2, 1))
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"


def test_truth_is_drawn_with_the_annotated_masks_and_keypoints(tmp_path: Path):
    data = CocoDataset(write_scenes(tmp_path, 3, seed=2), tmp_path / "images")
    for i in range(3):
        record = data[i]
        annotations = record.annotations
        size = (record.height, record.width)
        truth = truth_instances(annotations, data.categories, size)
        for mask, a in zip(truth.masks().dense().numpy(), annotations, strict=True):
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
