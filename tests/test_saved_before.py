"""Files saved before names changed: models predict as before, and their settings are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import maskrcnn as mr
from maskrcnn.cli.train import parse_settings
from maskrcnn.config import ModelConfig, TrainConfig
from maskrcnn.settings import from_dict, with_current_names
from maskrcnn.training.plan_recipe import check_given_settings

SAVED = Path(__file__).parent / "fixtures" / "saved_before_renaming"
SOURCES = {"model": "model.safetensors", "run": "run", "last": "run/last.safetensors"}


def written_in(path: Path) -> dict[str, Any]:
    """The metadata of a model file."""
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["maskrcnn"])


def configurations(run: Path) -> tuple[ModelConfig, TrainConfig]:
    """The settings of a run."""
    settings = json.loads((run / "config.json").read_text())
    model = from_dict(ModelConfig, with_current_names(settings["model"]))
    return model, from_dict(TrainConfig, with_current_names(settings["train"]))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", SOURCES)
def test_models_predict_as_before(name: str, exact: bool) -> None:
    expected = np.load(SAVED / "expected.npz")
    detections = mr.predict(mr.load(SAVED / SOURCES[name]), expected["image"], exact=exact)
    assert len(detections) == 8
    assert detections.labels.tolist() == expected[f"{name}/labels"].tolist()
    parts = {
        "boxes": detections.boxes,
        "scores": detections.scores,
        "mask_grids": detections.mask_grids,
        "keypoints": detections.keypoints,
        "keypoint_logits": detections.keypoint_logits,
    }
    for part, values in parts.items():
        values_before = expected[f"{name}/{part}"]
        np.testing.assert_allclose(values, values_before, rtol=1e-4, atol=1e-4, err_msg=part)


@pytest.mark.parametrize("name", SOURCES)
def test_models_have_their_categories_and_settings(name: str) -> None:
    config = mr.load(SAVED / SOURCES[name]).config
    card, stick = config.categories
    assert (card.name, card.id, card.keypoints) == ("card", 1, ())
    assert (stick.name, stick.id, stick.keypoints) == ("stick", 2, ("top", "end"))
    assert stick.skeleton == ((0, 1),)
    trunk = config.trunk
    assert (trunk.depth, trunk.stem_channels, trunk.res2_channels) == (18, 4, 2)
    assert config.rpn.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert config.mask is not None
    assert config.keypoint is not None
    assert (config.box.max_detections, config.mask.truth_size) == (8, 28)
    assert config == configurations(SAVED / "run")[0]


def test_info_saved_with_a_model_is_kept() -> None:
    model = written_in(SAVED / "model.safetensors")["info"]
    last = written_in(SAVED / "run" / "last.safetensors")["info"]
    best = written_in(SAVED / "run" / "best.safetensors")["info"]
    assert model == {"made": "before the renaming", "step": 0}
    assert (last["step"], best["step"]) == (3, 2)
    assert best["best"]["step"] == 2


@pytest.mark.parametrize("run", ["run", "stopped"])
def test_the_settings_of_a_run_are_read(run: str) -> None:
    config = configurations(SAVED / run)[1]
    assert (config.steps, config.batch_size, config.ema, config.learning_rate) == (3, 2, 0.5, 0.002)
    assert config.augment.scale == (0.9, 1.1)
    assert (config.augment.copy_paste, config.augment.copy_paste_choices) == (0.5, 2)
    more = config.unlabeled
    assert (more.ratio, more.burn_in, more.ramp, more.weight) == (1.0, 0.25, 0.25, 0.5)
    assert (more.threshold, more.ignore_threshold) == (0.5, 0.2)
    assert (more.mask_threshold, more.keypoint_threshold) == (0.6, 0.05)


def test_a_settings_file_with_an_old_name_is_refused_with_the_new_one() -> None:
    with pytest.raises(ValueError, match="did you mean unlabeled"):
        check_given_settings(parse_settings(SAVED / "training.toml", [], None))
