"""Our own files, run folders, and the errors of `load` for files that it cannot use."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_config
from safetensors.torch import save_file

import maskrcnn as mr
from maskrcnn.model.shapes_only import shapes_only, without_values
from maskrcnn.weights import load as loading
from maskrcnn.weights.catalog import weights
from maskrcnn.weights.load import read_info
from maskrcnn.weights.pickles import WeightsError
from maskrcnn.weights.trunk_weights import load_trunk


@pytest.fixture
def model() -> mr.MaskRCNN:
    torch.manual_seed(0)
    return mr.MaskRCNN.from_config(tiny_config(["cat", "dog"], keypoints=3))


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other metadata."""
    header = loading._header(path)
    state = {"w": torch.zeros(1)}
    save_file(state, path, {loading.KEY: json.dumps({**header, **changes})})
    return path


def test_saved_model_comes_back_equal(model, tmp_path):
    path = mr.save(model, tmp_path / "model.safetensors", info={"epoch": 3, "mask_ap": 0.41})
    again = mr.load(path)
    assert again.config == model.config
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert read_info(path) == {"epoch": 3, "mask_ap": 0.41}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_is_read_as_float32(model, tmp_path, dtype):
    whole = mr.save(model, tmp_path / "whole.safetensors")
    half = mr.save(model, tmp_path / "half.safetensors", dtype=dtype)
    assert half.stat().st_size < 0.65 * whole.stat().st_size
    again = mr.load(half)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-2, atol=1e-6)
    assert next(model.parameters()).dtype == torch.float32


def test_weight_too_large_for_half_precision_is_named(model, tmp_path):
    model.box_head.fcs[0].weight.data[0, 0] = 1e6
    with pytest.raises(
        ValueError,
        match=r"box_head\.fcs\.0\.weight cannot be stored as torch.float16; use torch.bfloat16",
    ):
        mr.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = mr.save(model, tmp_path / "model.safetensors", info={"epoch": 1})

    def broken(state, file, metadata):
        Path(file).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        mr.save(model, path, info={"epoch": 2})
    assert read_info(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_other_suffix_is_refused_on_saving(model, tmp_path):
    with pytest.raises(ValueError, match=r"expected the suffix \.safetensors"):
        mr.save(model, tmp_path / "model.pth")


def test_run_folder_gives_its_best_model_else_its_last(model, tmp_path):
    mr.save(model, tmp_path / "last.safetensors", info={"which": "last"})
    assert loading._locate(tmp_path).name == "last.safetensors"
    mr.save(model, tmp_path / "best.safetensors", info={"which": "best"})
    assert loading._locate(tmp_path).name == "best.safetensors"
    mr.load(tmp_path)


def test_error_for_a_folder_without_a_model_lists_its_content(tmp_path):
    (tmp_path / "log.csv").touch()
    with pytest.raises(
        WeightsError, match=r"with best\.safetensors or last\.safetensors, got one with log\.csv"
    ):
        mr.load(tmp_path)


def test_a_folder_of_images_in_place_of_a_model_is_answered_with_the_order(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(WeightsError, match="got one with 1 image; the model comes before images"):
        mr.load(tmp_path)
    (tmp_path / "config.json").touch()  # of a run that was killed early
    with pytest.raises(WeightsError, match=r"got one with a\.png, config\.json"):
        mr.load(tmp_path)


def test_newer_schema_is_refused_and_the_error_suggests_an_upgrade(model, tmp_path):
    path = rewritten(mr.save(model, tmp_path / "m.safetensors"), schema=2)
    with pytest.raises(
        WeightsError, match=r"newer maskrcnn \(schema 2, this version reads 1\)\. Upgrade"
    ):
        mr.load(path)


def test_unknown_setting_is_reported_as_a_newer_version(model, tmp_path):
    path = mr.save(model, tmp_path / "m.safetensors")
    config = loading._header(path)["config"]
    with pytest.raises(WeightsError, match=r"unknown setting \"box.warp\".*Upgrade"):
        mr.load(rewritten(path, config={**config, "box": {**config["box"], "warp": 9}}))


def test_weights_that_do_not_fit_are_named(model, tmp_path):
    path = mr.save(model, tmp_path / "m.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"m\.safetensors: the weights do not fit.*missing keys: trunk\.conv1\.weight.* more; unexpected keys: w\.",
    ):
        mr.load(rewritten(path))
    config = mr.save(replace_config(model), path)
    with pytest.raises(WeightsError, match=r"other shapes: .* is \(.*\), expected \("):
        mr.load(config)


def replace_config(model: mr.MaskRCNN) -> mr.MaskRCNN:
    model.config = replace(model.config, neck=replace(model.config.neck, channels=24))
    return model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"w": torch.zeros(1)},
            "an unknown kind of model, with weights named w",
        ),
        (
            {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)},
            "ImageNet classification trunk.*--pretrained",
        ),
        ({"conv1_w": torch.zeros(1), "res2_0_branch1_w": torch.zeros(1)}, "Caffe2 or Detectron1"),
        (
            {"trunk.conv1.weight": torch.zeros(1)},
            r"without their configuration\. Save models with maskrcnn\.save",
        ),
        (
            {"epoch": 3, "args": argparse.Namespace(lr=1)},
            "expected a dict of weights, got a dict of epoch, args",
        ),
        (torch.zeros(3), "expected a dict of weights, got a Tensor"),
        (
            {"backbone.body.0.0.weight": torch.zeros(1), "roi_heads.x": torch.zeros(1)},
            "not a ResNet",
        ),
        (
            {
                "backbone.body.layer1.0.conv1.weight": torch.zeros(1),
                "head.classification_head.x": torch.zeros(1),
            },
            "one-stage detector.*RetinaNet",
        ),
        (
            {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)},
            r"needs its configuration beside it as .*config\.yaml.*OUTPUT_DIR",
        ),
    ],
)
def test_errors_name_foreign_files_that_are_not_a_known_detector(tmp_path, content, message):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message) as error:
        mr.load(path)
    assert str(path) in str(error.value)


def test_safetensors_of_others_and_torn_ones_are_named(model, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="without a maskrcnn configuration"):
        mr.load(path)
    mr.save(model, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        WeightsError, match=r"other\.safetensors: not a safetensors file, or damaged"
    ):
        mr.load(path)


def test_neither_file_nor_name_is_an_error_that_lists_near_names(tmp_path):
    with pytest.raises(ValueError, match="did you mean maskrcnn_r50_fpn_coco"):
        mr.load("maskrcnn_r50_fpn")
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: file or folder not found"):
        mr.load(tmp_path / "gone.pth")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        WeightsError, match=r"notes\.txt: expected a \.safetensors, \.pth or \.pkl file, got \.txt"
    ):
        mr.load(tmp_path / "notes.txt")


def test_categories_are_replaced_and_the_skeleton_stays(model, tmp_path):
    path = mr.save(model, tmp_path / "m.safetensors")
    named = mr.load(path, categories=["lion", mr.Category("wolf", 9)]).config.categories
    assert [(c.name, c.id, len(c.keypoints)) for c in named] == [("lion", 1, 3), ("wolf", 9, 3)]
    with pytest.raises(
        WeightsError, match=r"categories: expected 2, one per label of the model, got 3"
    ):
        mr.load(path, categories=["a", "b", "c"])
    with pytest.raises(
        WeightsError, match=r'"x": expected 3 keypoints, as the model predicts, got 1'
    ):
        mr.load(path, categories=[mr.Category("x", 1, ("nose",)), "b"])


def test_bn_eps_applies_to_batch_norm_only(model, tmp_path):
    path = mr.save(model, tmp_path / "m.safetensors")
    with pytest.raises(
        WeightsError,
        match="bn_eps applies to ResNets with BatchNorm, but the trunk of this model is group",
    ):
        mr.load(path, bn_eps=0.0)
    batch = mr.MaskRCNN.from_config(
        replace(model.config, trunk=replace(model.config.trunk, norm="batch"))
    )
    assert mr.load(mr.save(batch, path), bn_eps=0.0).trunk.bn1.eps == 0.0


def test_weights_of_a_data_parallel_wrapper_are_read():
    state = loading._state_dict(
        {"state_dict": {"module.a": torch.zeros(1), "module.b": torch.zeros(1)}}, Path("x.pth")
    )
    assert set(state) == {"a", "b"}


def test_networks_of_shapes_or_without_values_draw_none_and_have_those_shapes() -> None:
    config = tiny_config(["cat", "dog"], keypoints=3)
    state = torch.get_rng_state()
    shapes = shapes_only(config).state_dict()
    without = without_values(config).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.is_meta for value in shapes.values())
    assert {name: value.shape for name, value in without.items()} == {
        name: value.shape for name, value in shapes.items()
    }
    values = mr.MaskRCNN.from_config(config).state_dict()
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in values.items()
    }


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_imagenet_trunk_of_torchvision_fits_ours(tmp_path, kind):
    import torchvision

    torch.manual_seed(0)
    resnet = torchvision.models.resnet50(weights=None, num_classes=10)
    torch.save(resnet.state_dict(), tmp_path / "resnet50.pth")
    config = mr.maskrcnn_r50_c4(2) if kind == "c4" else mr.maskrcnn_r50_fpn(2)
    config = replace(config, trunk=replace(config.trunk, stride_in_1x1=False))
    model = mr.MaskRCNN.from_config(config)
    before = model.rpn.objectness.weight.clone()
    assert load_trunk(model, tmp_path / "resnet50.pth") is model
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = resnet.eval().layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image)))))
        expected = resnet.layer4(resnet.layer3(resnet.layer2(x)))
        features = model.eval().trunk(image)[-1]
        torch.testing.assert_close(
            model.res5(features) if kind == "c4" else features, expected, rtol=1e-4, atol=1e-4
        )
    assert torch.equal(model.rpn.objectness.weight, before)


def test_imagenet_trunk_for_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    model = mr.MaskRCNN.from_config(mr.maskrcnn_r18_small(1))
    with pytest.raises(WeightsError, match=r"do not fit the model: missing keys: trunk\.bn1"):
        load_trunk(model, tmp_path / "resnet.pth")
    model.config = replace(model.config, trunk=replace(model.config.trunk, stride_in_1x1=True))
    with pytest.raises(WeightsError, match=r"this model has trunk\.stride_in_1x1=True"):
        load_trunk(model, tmp_path / "resnet.pth")


def test_names_of_the_catalog_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path))
    monkeypatch.setattr(loading.download, "fetch", lambda record: tmp_path / record.file)
    for record in weights():
        assert loading._locate(record.name) == (record.shipped or tmp_path / record.file)
