"""The initial weights of a training are reported and recorded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_run
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import Category, ModelConfig, NeckConfig, RPNConfig, TrainConfig
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.presets import maskrcnn_r18_small, maskrcnn_r50_fpn
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows
from maskrcnn.training.plan import plan_training
from maskrcnn.training.setup import make_network, warn_about_heads
from maskrcnn.weights.heads import head_problems, parts_of, with_needed_heads
from maskrcnn.weights.load import load, save
from maskrcnn.weights.pretrained import config_for, kind_of, start
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
    config = config_for(detector, data)[0]
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
    config, settings = config_for(detector, data)[0], tiny_config(steps=2)
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


# Heads for everything that is annotated


def drawn(data: CocoDataset, *, masks: bool = True, keypoints: bool = True) -> CocoDataset:
    """The data with or without masks and keypoints."""
    content = json.loads(json.dumps(data.content()))
    for annotation in content["annotations"]:
        if not masks:
            annotation.pop("segmentation", None)
        if not keypoints:
            annotation.pop("keypoints", None)
            annotation.pop("num_keypoints", None)
    if not keypoints:
        for category in content["categories"]:
            category.pop("keypoints", None)
            category.pop("skeleton", None)
    return CocoDataset(content, data.image_folder)


def saved(data: CocoDataset, path: Path, **changes: None) -> Path:
    """A small detector of the data's categories without some heads."""
    torch.manual_seed(3)
    return save(MaskRCNN.from_config(replace(tiny_model(data), **changes)), path)


def first_losses(run: Path) -> dict[str, float]:
    return read_rows(run / "metrics.csv")[0]


@pytest.mark.parametrize("recipe", [True, False])
def test_a_pretrained_model_gets_the_heads_that_the_data_need(
    data: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: bool
) -> None:
    boxes_only = saved(data, tmp_path / "boxes.safetensors", mask=None, keypoint=None)
    plan = plan_training(
        data,
        val=False,
        pretrained=boxes_only,
        recipe=recipe,
        settings={"steps": 1, "batch_size": 2, "tensorboard": False},
        out=tmp_path / "run",
        device="cpu",
    )
    assert plan.recipe.model.mask is not None
    assert plan.recipe.model.keypoint is not None
    rows = {reason.setting: reason for reason in plan.recipe.reasons}
    for head in ("mask", "keypoint"):
        assert rows[f"model.{head}"].value == "new head"
    plan.run()
    losses = first_losses(tmp_path / "run")
    cells = 4 * plan.recipe.model.keypoint.roi.size
    assert losses["loss/keypoint"] == pytest.approx(math.log(cells**2), abs=0.5)  # 8.05
    # half of the objects have masks (log 2), half boxes: projection, outside and fill
    assert losses["loss/mask"] == pytest.approx((math.log(2) + 1.4) / 2, abs=0.4)
    printed = capsys.readouterr().out
    assert "The mask head is new" in printed
    assert "The keypoint head is new" in printed
    assert recorded(tmp_path / "run")["anew"][0] == "keypoint_head"


def test_a_mask_model_gets_a_keypoint_head_like_its_own(data: CocoDataset, tmp_path: Path) -> None:
    path = saved(data, tmp_path / "masks.safetensors", keypoint=None)
    config, added = config_for(path, data)
    assert added == ("keypoint",)
    assert config.keypoint is not None
    assert config.keypoint.convs == (8,) * 4  # as wide as the model
    assert config.keypoint.norm == "batch"
    assert config.mask == load(path).config.mask
    made = start(config, path)
    assert "The keypoint head is new: it starts from random weights" in str(made)
    assert made.transfer is not None
    assert made.transfer.new_heads == ("keypoint",)


def test_the_paper_s_model_gets_the_paper_s_heads(data: CocoDataset) -> None:
    config = replace(maskrcnn_r50_fpn(data.categories), mask=None, keypoint=None)
    config, added = with_needed_heads(config, parts_of(data))
    assert added == ("mask", "keypoint")
    assert config == maskrcnn_r50_fpn(data.categories)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("keypoints", [True, False])
def test_no_head_is_added_without_annotations(
    data: CocoDataset, tmp_path: Path, masks: bool, keypoints: bool
) -> None:
    boxes_only = saved(data, tmp_path / "boxes.safetensors", mask=None, keypoint=None)
    config, _ = config_for(boxes_only, drawn(data, masks=masks, keypoints=keypoints))
    assert (config.mask is not None) == masks
    assert (config.keypoint is not None) == keypoints


def test_a_keypoint_that_is_never_labeled_needs_no_head(data: CocoDataset) -> None:
    content = json.loads(json.dumps(data.content()))
    for annotation in content["annotations"]:
        if "keypoints" in annotation:
            annotation["keypoints"] = [0] * 6
            annotation["num_keypoints"] = 0
    assert parts_of(CocoDataset(content, data.image_folder)).keypoint == 0


def test_a_model_without_a_head_for_the_data_is_reported(data: CocoDataset, tmp_path: Path) -> None:
    model = MaskRCNN.from_config(replace(tiny_model(data), keypoint=None))
    with pytest.warns(
        UserWarning, match=r"the keypoints of 4 of 8 objects are not used: .* no keypoint head"
    ):
        train_once(model, data, tmp_path / "model")
    with pytest.warns(
        UserWarning, match=r"the masks of 4 of 8 objects are not used: .* no mask head"
    ):
        warn_about_heads(replace(tiny_model(data), mask=None), data, TrainConfig())


def test_a_head_without_annotations_is_reported(data: CocoDataset) -> None:
    """Boxes would train masks, unless the model's context says otherwise."""
    boxes = drawn(data, masks=False, keypoints=True)
    with pytest.warns(
        UserWarning,
        match=r"the mask head is not trained: none of the objects of annotations \(8\) has masks",
    ):
        warn_about_heads(tiny_model(data), boxes, TrainConfig())


def test_a_recipe_leaves_out_the_heads_that_the_data_do_not_need(
    data: CocoDataset, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_training(
        drawn(data, masks=False, keypoints=False),
        val=False,
        pretrained=detector,
        settings={"steps": 1, "batch_size": 2, "tensorboard": False},
        out=tmp_path / "run",
        device="cpu",
    )
    assert plan.recipe.model.keypoint is None
    assert plan.recipe.model.mask is not None
    assert plan.recipe.model.mask.context == 1.3  # boxes train it
    plan.run()
    assert "Not used: keypoint_head" in capsys.readouterr().out


def test_a_c4_model_cannot_have_keypoints_and_says_so(data: CocoDataset) -> None:
    config = replace(
        tiny_model(data),
        neck=NeckConfig(kind="c4"),
        rpn=RPNConfig(sizes=((16,),)),
        mask=None,
        keypoint=None,
    )
    config, added = with_needed_heads(config, parts_of(data))
    assert added == ("mask",)
    assert config.mask is not None
    assert config.mask.convs == ()
    (problem,) = head_problems(config, parts_of(data), "data")
    assert "the keypoints of 4 of 8 objects are not used" in problem
    assert "C4" in problem


def test_shared_heat_maps_are_split_for_several_skeletons() -> None:
    shared = small(PERSON)
    assert shared.keypoint is not None
    shared = replace(shared, keypoint=replace(shared.keypoint, shared=True))
    fish = Category("fish", 3, keypoints=("head", "tail"))
    config = for_categories(shared, (PERSON, fish))
    assert config.keypoint is not None
    assert not config.keypoint.shared
    assert config.num_keypoint_channels == 5
    old = MaskRCNN.from_config(shared)
    new, _ = transferred(old, config)
    name = "keypoint_head.heatmaps.weight"
    assert torch.equal(new.state_dict()[name][:, :3], old.state_dict()[name])
    same = for_categories(shared, (PERSON, replace(PERSON, name="child", id=9)))
    assert same.keypoint == shared.keypoint


@pytest.mark.parametrize("agnostic", [True, False])
def test_other_categories_and_kinds_of_masks_are_named(agnostic: bool) -> None:
    old = MaskRCNN.from_config(small(CAT, PERSON))
    config = for_categories(old.config, (CAT, DOG, Category("bird", 9)))
    assert config.mask is not None
    config = replace(config, mask=replace(config.mask, class_agnostic=agnostic))
    _, report = transferred(old, config)
    assert "box_head.class_logits of dog, bird" in report.reinitialized
    masks = ("mask_head.logits",) if agnostic else ("mask_head.logits of dog, bird",)
    assert set(masks) <= set(report.reinitialized)


def test_keypoints_in_another_order_are_refused(data: CocoDataset, tmp_path: Path) -> None:
    card, stick = data.categories
    turned = replace(stick, keypoints=stick.keypoints[::-1])
    model = MaskRCNN.from_config(replace(tiny_model(data), categories=(card, turned)))
    with pytest.raises(ValueError, match=r'"stick": the training data has the keypoints top, end'):
        train_once(model, data, tmp_path / "run")
    reopened = CocoDataset(data.content(), data.image_folder, categories=model.config.categories)
    make_network(model, reopened, None, TrainConfig(), None)
    numbered = replace(stick, keypoints=("keypoint 0", "keypoint 1"))
    config = replace(tiny_model(data), categories=(card, numbered))
    make_network(config, data, None, TrainConfig(), None)


def train_once(model: MaskRCNN | ModelConfig, data: CocoDataset, out: Path) -> None:
    config = tiny_config(steps=1)
    train(model, data, config=config, out=out, progress=False, device="cpu")
