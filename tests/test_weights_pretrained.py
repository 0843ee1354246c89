"""The initial weights of a training are reported and recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_run
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import Category, ModelConfig
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.training.fit import train
from maskrcnn.weights.load import load, save
from maskrcnn.weights.pretrained import config_of, kind_of, start
from maskrcnn.weights.transfer import for_categories, transferred


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


@pytest.fixture(scope="module")
def detector(data: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of cards and of sticks with other keypoints."""
    categories = (
        replace(data.categories[0], id=7),
        replace(data.categories[1], keypoints=("end", "middle"), skeleton=()),
    )
    torch.manual_seed(1)
    return save(
        MaskRCNN.from_config(replace(tiny_model(data), categories=categories)),
        tmp_path_factory.mktemp("model") / "detector.safetensors",
    )


@pytest.fixture(scope="module")
def trunk(data: CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision stores an ImageNet network."""
    torch.manual_seed(2)
    state = {
        name.removeprefix("trunk."): v
        for name, v in MaskRCNN.from_config(tiny_model(data)).state_dict().items()
        if name.startswith("trunk.")
    }
    path = tmp_path_factory.mktemp("trunk") / "resnet.pth"
    torch.save({**state, "fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}, path)
    return path


def recorded(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())["pretrained"]


def test_each_kind_of_source_is_recognized(detector: Path, trunk: Path) -> None:
    sources = (
        None,
        "none",
        "None",
        "resnet50_imagenet",
        "ResNet50-ImageNet",
        "maskrcnn_r50_fpn_coco",
        detector,
        detector.parent,
        trunk,
    )
    assert [kind_of(source) for source in sources] == ["none"] * 3 + ["trunk"] * 2 + [
        "detector"
    ] * 3 + ["trunk"]
    with pytest.raises(ValueError, match="resnet50_imagenet"):
        kind_of("resnet50_imagnet")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        kind_of("absent.pth")


def test_trunk_weights_are_loaded_into_the_trunk_only(data: CocoDataset, trunk: Path) -> None:
    config = tiny_model(data)
    torch.manual_seed(0)
    random = MaskRCNN.from_config(config).state_dict()
    torch.manual_seed(0)
    made = start(config, trunk)
    weights = torch.load(trunk, weights_only=True)
    for name, value in made.network.state_dict().items():
        assert torch.equal(
            value,
            weights[name.removeprefix("trunk.")] if name.startswith("trunk.") else random[name],
        ), name
    assert made.record["kind"] == "trunk"
    assert "resnet.pth" in str(made)


def test_the_record_names_the_source_and_what_did_not_fit(
    data: CocoDataset, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(detector, data.categories)
    assert [c.name for c in config.categories] == ["card", "stick"]
    train(
        config,
        data,
        config=tiny_config(steps=1),
        out=tmp_path / "run",
        device="cpu",
        pretrained=detector,
    )
    record = recorded(tmp_path / "run")
    assert (record["kind"], record["source"], len(record["sha256"])) == (
        "detector",
        str(detector),
        16,
    )
    assert record["anew"] == ["keypoint_head.heatmaps of stick: top"], (
        "the keypoint called end was known"
    )
    assert record["unused"] == []
    assert "stick: top" in capsys.readouterr().out


def test_random_and_given_weights_are_recorded_too(data: CocoDataset, tmp_path: Path) -> None:
    config = tiny_model(data)
    train(
        config,
        data,
        config=tiny_config(steps=1),
        out=tmp_path / "random",
        progress=False,
        device="cpu",
    )
    assert recorded(tmp_path / "random")["kind"] == "none"
    network = MaskRCNN.from_config(config)
    train(
        network,
        data,
        config=tiny_config(steps=1),
        out=tmp_path / "given",
        progress=False,
        device="cpu",
    )
    assert recorded(tmp_path / "given")["kind"] == "given"
    with pytest.raises(ValueError, match="got both a model with its own weights and pretrained"):
        train(
            network,
            data,
            config=tiny_config(steps=1),
            out=tmp_path / "both",
            device="cpu",
            pretrained="resnet18_imagenet",
        )


def test_resuming_from_another_start_is_refused_and_from_a_moved_file_is_not(
    data: CocoDataset, detector: Path, tmp_path: Path
) -> None:
    config, settings = config_of(detector, data.categories), tiny_config(steps=2)
    train(
        config,
        data,
        config=settings,
        out=tmp_path / "run",
        progress=False,
        device="cpu",
        pretrained=detector,
    )
    with pytest.raises(ValueError, match=r"pretrained\.kind: was 'detector', now 'none'"):
        train(
            config,
            data,
            config=settings,
            out=tmp_path / "run",
            resume=True,
            progress=False,
            device="cpu",
        )
    other = save(MaskRCNN.from_config(load(detector).config), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"pretrained\.sha256: was"):
        train(
            config,
            data,
            config=settings,
            out=tmp_path / "run",
            resume=True,
            progress=False,
            device="cpu",
            pretrained=other,
        )
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(detector.read_bytes())
    train(
        config,
        data,
        config=settings,
        out=tmp_path / "run",
        resume=True,
        progress=False,
        device="cpu",
        pretrained=moved,
    )


def test_a_run_from_before_the_record_can_be_resumed(data: CocoDataset, tmp_path: Path) -> None:
    from maskrcnn.training.checkpoint import read_checkpoint, write_checkpoint

    path, config = tmp_path / "run/checkpoint.safetensors", tiny_model(data)
    train(
        config,
        data,
        config=tiny_config(steps=2),
        out=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    tensors, state = read_checkpoint(path)
    del state["settings"]["pretrained"], state["settings"]["train"]["activation_checkpointing"]
    write_checkpoint(path, tensors, state)
    train(
        config,
        data,
        config=tiny_config(steps=2),
        out=tmp_path / "run",
        resume=True,
        progress=False,
        device="cpu",
    )


# Parts of a detector that fit

PERSON = Category("person", 1, keypoints=("head", "left_hand", "right_hand"))
CAT, DOG = Category("cat", 2), Category("dog", 7)


def small(*categories: Category) -> ModelConfig:
    config = maskrcnn_r18_small(categories)
    assert config.mask is not None
    return replace(
        config,
        trunk=replace(config.trunk, stem_channels=8, res2_channels=8),
        neck=replace(config.neck, channels=8),
        box=replace(config.box, fcs=(8,)),
        mask=replace(config.mask, convs=(8,), upsample=(8,)),
        keypoint=config.keypoint and replace(config.keypoint, convs=(8,)),
    )


def test_keypoints_of_equal_name_are_transferred_to_another_skeleton() -> None:
    old = MaskRCNN.from_config(small(CAT, PERSON))
    other = replace(PERSON, keypoints=("tail", "right_hand", "head"))
    new, report = transferred(old, for_categories(old.config, (other, DOG)))
    a, b = (model.state_dict()["keypoint_head.heatmaps.weight"] for model in (old, new))
    assert torch.equal(b[:, 1], a[:, 2])
    assert torch.equal(b[:, 2], a[:, 0])
    assert not torch.equal(b[:, 0], a[:, 1])
    assert report.reinitialized == (
        "box_head.class_logits of dog",
        "box_head.box_deltas of dog",
        "mask_head.logits of dog",
        "keypoint_head.heatmaps of person: tail",
    )


def test_a_renamed_category_with_the_same_skeleton_keeps_its_keypoints() -> None:
    old = MaskRCNN.from_config(small(PERSON))
    new, report = transferred(
        old, for_categories(old.config, (replace(PERSON, name="pedestrian"),))
    )
    name = "keypoint_head.heatmaps.weight"
    assert torch.equal(old.state_dict()[name], new.state_dict()[name])
    assert not any("heatmaps" in part for part in report.reinitialized)


def test_parts_that_do_not_fit_are_named_as_a_whole() -> None:
    old = MaskRCNN.from_config(small(CAT, PERSON))
    config = for_categories(old.config, (CAT,))
    config = replace(config, rpn=replace(config.rpn, ratios=(0.5, 1.0)))
    new, report = transferred(old, config)
    assert report.reinitialized == ("rpn.deltas", "rpn.objectness")
    assert report.unused == ("keypoint_head", "rpn.deltas", "rpn.objectness")
    assert report.total == len(new.state_dict())
    assert report.kept == report.total - 4
    assert "Not used: keypoint_head" in str(report)


def test_the_same_model_keeps_everything() -> None:
    old = MaskRCNN.from_config(small(CAT, PERSON))
    _, report = transferred(old, old.config)
    assert (report.kept, report.reinitialized, report.unused) == (report.total, (), ())
