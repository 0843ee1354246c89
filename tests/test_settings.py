"""Configurations to plain data and back, and overrides by name."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from maskrcnn import config as config_module
from maskrcnn import presets, setting_ranges
from maskrcnn.config import Category, ModelConfig, TrainConfig
from maskrcnn.setting_ranges import all_out_of_range
from maskrcnn.settings import from_dict, load_toml, override_config, to_dict
from maskrcnn.training.plan import plan_training
from maskrcnn.training.plan_recipe import check_given_settings


@pytest.mark.parametrize(
    "preset",
    [
        "maskrcnn_r50_fpn",
        "maskrcnn_r50_c4",
        "keypointrcnn_r50_fpn",
        "maskrcnn_r50_fpn_v2_torchvision",
        "maskrcnn_r18_small",
    ],
)
def test_a_configuration_survives_plain_data(preset: str) -> None:
    config: ModelConfig = getattr(presets, preset)()
    assert from_dict(ModelConfig, to_dict(config)) == config


def test_words_of_a_command_line_become_values_of_the_right_type() -> None:
    changed = override_config(
        TrainConfig(),
        {
            "augment.crop": "256",
            "learning_rate": "1e-3",
            "augment.right_angles": "true",
            "max_time": "none",
        },
    )
    assert changed == replace(
        TrainConfig(),
        augment=replace(TrainConfig().augment, crop=256, right_angles=True),
        learning_rate=1e-3,
    )
    model = override_config(
        presets.maskrcnn_r18_small(),
        {"mask.norm": "none", "mask": "none"} | {"box.fcs": "[64, 64]", "input.min_size": "320"},
    )
    assert model.mask is None
    assert model.box.fcs == (64, 64)
    assert override_config(presets.maskrcnn_r18_small(), {"mask.norm": "none"}).mask.norm == "none"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("augment.crp", "256", "did you mean crop"),
        ("learning_rat", "1", "did you mean learning_rate"),
        ("batch_size", "two", "batch_size: expected int, got 'two'"),
        ("optimizer", "adam", "optimizer: expected one of 'adamw', 'sgd', got 'adam'"),
        ("augment.scale", "[1, 2, 3]", "expected 2 values, got 3"),
        ("seed.deeper", "1", "has no settings"),
        (
            "augment",
            "3",
            "augment: expected a group of settings, got 3; set them one by one, such as augment.",
        ),
    ],
)
def test_an_error_for_a_wrong_name_or_value_lists_what_is_valid(
    name: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("[", r"\[")):
        override_config(TrainConfig(), {name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", "0", "batch_size: expected at least 1, got 0"),
        ("epochs", -1, r"epochs: expected more than 0, got -1\.0"),
        ("ema", 1.0, r"ema: expected at least 0 and below 1, got 1\.0"),
        ("augment.scale", "[0, 1]", r"augment\.scale: expected more than 0, got \(0\.0, 1\.0\)"),
        ("augment.scale", "0.5,1", r"augment\.scale: expected a list, such as \[1, 2\]"),
        ("learning_rate", "NaN", "learning_rate: expected more than 0, got nan"),
        ("workers", -1, "workers: expected at least 0, got -1"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_anything_is_computed(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        override_config(TrainConfig(), {name: value})


@pytest.mark.parametrize("name", ["input.scale", "neck.channels", "box.max_detections"])
def test_a_network_without_size_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{name}: expected (more than|at least)"):
        override_config(presets.maskrcnn_r18_small(), {name: "0"}, "model.")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.trunk.frozen_stages", 9, r"model\.trunk\.frozen_stages: expected 0 to 5, got 9"),
        ("model.mask.convs", "[0]", r"model\.mask\.convs: expected at least 1, got \(0,\)"),
        ("model.mask.conv", 4, r'"model\.mask\.conv"; did you mean convs'),
        ("model.rpn.samples.most", 4, r"model\.rpn\.samples\.most: samples has no settings"),
        ("model.categories.0.name", "cat", r"categories\.0\.name: categories has no settings"),
        ("model.trunk.depth", 17, r"model\.trunk\.depth: expected one of 18, 34"),
        ("model.mask.roi.size", "wide", r"model\.mask\.roi\.size: expected int"),
        ("batch_size", 0, r"batch_size: expected at least 1, got 0"),
    ],
)
def test_every_setting_is_checked_before_the_data_are_opened(
    name: str, value: object, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        plan_training(tmp_path / "missing.json", settings={name: value}, out=tmp_path / "run")


@pytest.mark.parametrize("name", ["model.mask", "model.keypoint"])
def test_a_head_can_be_left_out(name: str) -> None:
    check_given_settings({name: "none", "model.trunk.norm_eps": 0, "model.keypoint.convs": [8]})


@pytest.mark.parametrize("make", get_args(presets.Preset))
def test_ready_made_configurations_are_within_all_ranges(make: str) -> None:
    assert all_out_of_range(getattr(presets, make)()) == []
    assert all_out_of_range(TrainConfig()) == []


def test_ranges_are_those_of_settings() -> None:
    for kind, ranges in setting_ranges._RANGES.items():
        assert set(ranges) <= {field.name for field in fields(kind)}  # ty: ignore[invalid-argument-type]


def test_a_toml_file_sets_the_fields_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("epochs = 3\n[augment]\nscale = [0.5, 2]\n")
    assert load_toml(tmp_path / "run.toml", TrainConfig) == override_config(
        TrainConfig(), {"epochs": 3, "augment.scale": (0.5, 2.0)}
    )


def test_an_error_names_the_file_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("epochs = \n")
    with pytest.raises(ValueError, match=r"run\.toml: not valid TOML: .*line 1"):
        load_toml(tmp_path / "run.toml", TrainConfig)


def test_names_in_errors_are_those_that_the_user_wrote() -> None:
    with pytest.raises(
        ValueError, match=r'unknown setting "model\.input\.scal"; did you mean scale'
    ):
        override_config(presets.maskrcnn_r18_small(), {"input.scal": 2}, "model.")


def test_a_model_without_categories_or_with_a_headless_skeleton_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one category"):
        presets.maskrcnn_r50_fpn([])
    with pytest.raises(ValueError, match="keypoints outside"):
        Category("a", 1, keypoints=("x",), skeleton=((0, 1),))
    with pytest.raises(ValueError, match=r"each keypoint \(0\.\.1\) once"):
        Category("a", 1, keypoints=("x", "y"), flip=(0, 0))
    with pytest.raises(ValueError, match="sigmas"):
        Category("a", 1, keypoints=("x", "y"), sigmas=(0.1,))


def test_every_field_of_every_configuration_has_a_docstring() -> None:
    tree = ast.parse(Path(config_module.__file__).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == 14
    undocumented = [
        f"{node.name}.{field.target.id}"
        for node in classes
        for field, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
            and after.value.value.strip().endswith(".")
        )
    ]
    assert undocumented == []
