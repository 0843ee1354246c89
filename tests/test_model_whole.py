"""The whole network: shapes, empty detections, partial truth, gradients of every head, presets, other trunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from models import make_batch, make_truth, tiny_config
from torch import nn

from maskrcnn import presets
from maskrcnn.config import Category, ModelConfig, NeckConfig, RPNConfig
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.prediction.optimize import optimize_for_inference, reference
from maskrcnn.preprocess import input_size
from maskrcnn.structures import Batch, Detections, Truth

FIGURES = (
    Category("hand", 1, keypoints=("thumb", "wrist")),
    Category("stone", 2),
    Category("figure", 3, keypoints=("head", "hip", "foot")),
)


def lively(config: ModelConfig, seed: int = 0) -> MaskRCNN:
    """A random network with spread-out scores, so that it detects objects."""
    torch.manual_seed(seed)
    model = MaskRCNN.from_config(config)
    with torch.no_grad():
        for part in (
            model.rpn.objectness,
            model.box_head.class_logits,
            model.rpn.deltas,
            model.box_head.box_deltas,
        ):
            part.weight.normal_(std=0.1)
    return model


def test_one_pass_gives_boxes_masks_and_the_keypoints_of_the_own_category() -> None:
    model = lively(tiny_config(FIGURES)).eval()
    with torch.no_grad():
        detections = model(make_batch())
    assert detections.valid.any()
    assert detections.masks is not None
    assert detections.keypoints is not None
    assert detections.masks.shape == (2, 50, 28, 28)
    assert detections.keypoints.shape == (2, 50, 3, 3)
    assert ((detections.scores > 0) == detections.valid).all()
    assert (detections.scores[:, :-1] >= detections.scores[:, 1:]).all()
    labels = set(detections.labels[detections.valid].tolist())
    assert labels == {0, 1, 2}
    points = detections.keypoints[detections.valid]
    for label, keypoints in ((0, 2), (1, 0), (2, 3)):
        own = points[detections.labels[detections.valid] == label]
        assert (own[:, :keypoints, 2] > 0).all()
        assert (own[:, keypoints:] == 0).all()
    inside = detections.boxes[0][detections.valid[0]]
    assert (inside >= 0).all()
    assert (inside[:, 2] <= 128).all()
    assert (inside[:, 3] <= 96).all()


def test_forward_predicts_and_losses_train_in_either_mode() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    truth = make_truth(config, batch)
    model.train()
    assert isinstance(model(batch), Detections)
    in_training = model.losses(batch, truth)
    model.eval()
    assert isinstance(model(batch), Detections)
    for name, value in model.losses(
        batch, truth
    ).items():  # GroupNorm: the mode changes nothing at all
        torch.testing.assert_close(value, in_training[name])


def test_every_parameter_of_every_head_has_a_gradient() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    losses = model.losses(batch, make_truth(config, batch))
    assert list(losses) == [
        "rpn_objectness",
        "rpn_box",
        "classification",
        "box",
        "mask",
        "keypoint",
    ]
    assert all(value.item() > 0 for value in losses.values())
    total(losses).backward()
    missing = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert missing == []


def test_in_bfloat16_every_parameter_has_about_the_same_gradient() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    gradients = []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = model.losses(batch, make_truth(config, batch))
        (losses["rpn_objectness"] + losses["rpn_box"]).backward()
        gradients.append(
            {
                name: p.grad.clone()
                for name, p in model.named_parameters()
                if name.startswith(("rpn", "neck")) and p.grad is not None
            }
        )
    whole, half = gradients
    assert whole.keys() == half.keys()
    assert {name.split(".")[0] for name in whole} == {"rpn", "neck"}
    for name, gradient in whole.items():
        assert torch.cosine_similarity(gradient.flatten(), half[name].flatten(), dim=0) > 0.9, name


def test_the_bfloat16_model_has_losses_too() -> None:
    config = tiny_config(FIGURES)
    batch = make_batch()
    truth = make_truth(config, batch)
    model = lively(config).eval()
    with torch.no_grad():
        whole, half = (
            model.losses(batch, truth),
            optimize_for_inference(model, "bfloat16").losses(batch, truth),
        )
    for name in ("rpn_objectness", "rpn_box"):
        torch.testing.assert_close(half[name], whole[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("part", ["mask", "keypoint", "box"])
def test_the_gradient_of_each_head_equals_finite_differences(part: str) -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config).double(), make_batch()
    batch = replace(batch, images=batch.images.double())
    truth = make_truth(config, batch)
    weight = {
        "mask": model.mask_head.logits,
        "keypoint": model.keypoint_head.heatmaps,
        "box": model.box_head.box_deltas,
    }[part].weight
    loss = model.losses(batch, truth)[part]
    (gradient,) = torch.autograd.grad(loss, weight)
    index = int(gradient.abs().argmax())
    change = 1e-2
    with torch.no_grad():
        sides = []
        for step in (change, -change):
            weight.flatten()[index] += step
            sides.append(model.losses(batch, truth)[part])
            weight.flatten()[index] -= step
    numeric = (sides[0] - sides[1]) / (2 * change)
    assert (
        abs(numeric.item() / gradient.reshape(-1)[index].item() - 1) < 0.02
    )  # the heads compute in single precision


def test_images_without_objects_train_as_background_and_touch_every_parameter() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    keypoints = config.num_keypoint_channels
    assert config.mask
    for truth in (
        Truth.empty(2, 0, config.mask.truth_size, keypoints),
        Truth.empty(2, 3, config.mask.truth_size, keypoints),
    ):
        losses = model.losses(batch, truth)
        assert losses["classification"] > 0
        assert losses["rpn_objectness"] > 0
        assert [losses[name].item() for name in ("rpn_box", "box", "mask", "keypoint")] == [
            0,
            0,
            0,
            0,
        ]
        model.zero_grad()
        total(losses).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_image_without_confident_boxes_gives_no_detections() -> None:
    config = tiny_config(FIGURES)
    model = lively(replace(config, box=replace(config.box, score_threshold=1.0))).eval()
    detections = model(make_batch())
    assert not detections.valid.any()
    assert detections.masks is not None
    assert detections.masks.shape == (2, 50, 28, 28)
    assert detections.masks.abs().sum() == 0


def test_padding_rows_of_truth_do_not_change_losses() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    truth = make_truth(config, batch)
    padded = Truth.collate(
        [truth, Truth.empty(0, 9, config.mask.truth_size, config.num_keypoint_channels)]
    )
    padded.boxes[:, 4:] = 7.0  # garbage in invalid rows
    one, other = model.losses(batch, truth), model.losses(batch, padded)
    # The true boxes are candidates among the RoIs, so padding shifts which random RoIs are drawn, but not the RPN's anchors.
    for name in ("rpn_objectness", "rpn_box"):
        torch.testing.assert_close(one[name], other[name])
    assert all(v.isfinite() for v in other.values())


def test_missing_annotations_are_excluded_from_the_losses() -> None:
    config = tiny_config(FIGURES)
    model, batch = lively(config), make_batch()
    truth = make_truth(config, batch)
    full = model.losses(batch, truth)

    truth.has_mask[...] = False
    without_masks = model.losses(batch, truth)
    assert without_masks["mask"] == 0
    truth.has_keypoints[...] = False
    assert model.losses(batch, truth)["keypoint"] == 0
    for name in ("classification", "box", "rpn_box", "rpn_objectness"):
        torch.testing.assert_close(without_masks[name], full[name])

    truth = make_truth(config, batch)
    truth.has_box[...] = (
        False  # keypoints alone: no box to regress, nothing for the RPN to detect, but still a class and keypoints
    )
    partial = model.losses(batch, truth)
    assert partial["rpn_box"] == 0
    assert partial["box"] == 0
    assert partial["keypoint"] > 0
    assert partial["classification"] > 0


def test_a_missing_mask_does_not_change_the_loss_of_other_objects() -> None:
    config = tiny_config(1)
    model, batch = lively(config), make_batch(((96, 128),))
    truth = make_truth(config, batch, objects=2)
    truth.boxes[0, 1] = torch.tensor([90.0, 60.0, 120.0, 90.0])
    truth.has_mask[0, 1] = False
    before = model.losses(batch, truth)["mask"]
    truth.masks[0, 1] = 255 - truth.masks[0, 1]
    assert model.losses(batch, truth)["mask"] == before


def test_a_crowd_is_not_background() -> None:
    config = tiny_config(1)
    model, batch = lively(config), make_batch(((128, 128),))
    truth = Truth.empty(1, 1, 56)
    truth.boxes[0, 0] = torch.tensor([-500.0, -500.0, 900.0, 900.0])
    truth.valid[...] = truth.ignore[...] = truth.has_box[...] = True
    losses = model.losses(
        batch, truth
    )  # the crowd covers every anchor and every proposal: nothing at all to learn
    assert {name: value.item() for name, value in losses.items()} == dict.fromkeys(losses, 0.0)


def test_predictions_are_the_same_alone_and_in_a_batch_of_the_same_shape() -> None:
    model = lively(tiny_config(FIGURES)).eval()
    together = make_batch(((96, 128), (90, 120)))
    alone = Batch.collate([together.images[1, :, :90, :120]], seeds=[1])
    with torch.no_grad():
        both, single = model(together), model(alone)
    assert torch.equal(both.valid[1], single.valid[0])
    torch.testing.assert_close(both.boxes[1], single.boxes[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(both.masks[1], single.masks[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(both.keypoints[1], single.keypoints[0], atol=1e-2, rtol=0)


def test_two_threads_predict_like_one(request: pytest.FixtureRequest) -> None:
    """The other tests use one thread."""
    model = lively(tiny_config(FIGURES)).eval()
    fast = optimize_for_inference(model)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        with torch.inference_mode():
            results.append([m(make_batch()) for m in (model, fast)])
    for one, two in zip(*results, strict=True):
        assert one.valid.any()
        for name, value in vars(one).items():
            torch.testing.assert_close(getattr(two, name), value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_the_optimized_and_the_reference_model_predict_as_the_model_does(norm: str) -> None:
    config = tiny_config(FIGURES)
    config = replace(
        config, trunk=replace(config.trunk, norm=norm), neck=replace(config.neck, norm=norm)
    )
    model = lively(config)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = make_batch()
    with torch.no_grad():
        plain, folded, exact = (
            m(batch) for m in (model.eval(), optimize_for_inference(model), reference(model))
        )
    for other in (folded, exact):
        assert torch.equal(plain.valid, other.valid)
        assert plain.num_valid == other.num_valid
        for f in fields(plain):
            one, two = getattr(plain, f.name), getattr(other, f.name)
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(one.float(), two.float(), atol=2e-3, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_bfloat16_model_does_not_round_proposals() -> None:
    model, batch = lively(tiny_config(2)), make_batch()
    half = optimize_for_inference(model, "bfloat16")
    with torch.no_grad():
        levels = half.pyramid(batch).levels
        outputs = [torch.cat([*values], dim=1) for values in half.rpn(levels)]
    assert {level.dtype for level in levels} == {torch.bfloat16}
    for values in outputs:
        assert (values != values.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("make", [optimize_for_inference, reference])
def test_changing_a_version_of_a_model_does_not_change_the_model(
    make: Callable[[MaskRCNN], MaskRCNN],
) -> None:
    config = tiny_config(2)
    model = lively(replace(config, trunk=replace(config.trunk, norm="batch")))
    hooks = [len(part._forward_hooks) for part in model.modules()]
    other = make(model)
    for part in other.modules():
        part.register_forward_hook(lambda *_: None)
    other.trunk.layer1 = nn.Identity()
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    assert model.training
    assert not isinstance(model.trunk.layer1, nn.Identity)
    if make is optimize_for_inference:
        before = [value.clone() for value in other.state_dict().values()]
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                value.add_(1)
        assert all(
            torch.equal(a, b) for a, b in zip(before, other.state_dict().values(), strict=True)
        )


def test_uint8_images_give_the_same_predictions_as_float_images() -> None:
    model = MaskRCNN.from_config(tiny_config()).eval()
    images = [
        torch.randint(256, (3, 64, 96), dtype=torch.uint8),
        torch.randint(256, (3, 80, 64), dtype=torch.uint8),
    ]
    batch = Batch.collate(images, seeds=[0, 1])
    assert batch.images.dtype == torch.uint8
    numbers = Batch.collate([images[0], images[1].float()], seeds=[0, 1])
    assert numbers.images.dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(model(batch).scores, model(numbers).scores)


@pytest.mark.parametrize("kind", ["c4", "dc5"])
def test_single_level_networks_predict_and_train(kind: str) -> None:
    config = tiny_config(2)
    config = replace(
        config,
        neck=NeckConfig(kind=kind),
        rpn=RPNConfig(sizes=((16.0, 32.0, 64.0),), convs=(16,), samples=64),
        box=replace(config.box, fcs=() if kind == "c4" else (32,)),
        mask=replace(config.mask, convs=()),
    )
    model, batch = lively(config), make_batch()
    side = 14 if kind == "c4" else 28
    detections = model.eval()(batch)
    assert detections.masks.shape[-1] == side
    assert detections.valid.any()
    total(model.losses(batch, make_truth(config, batch))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("upsample", "side"), [((16,), 28), ((16, 8), 56), ((16, 8, 8), 112)])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_masks_of_28_56_and_112_pixels(
    upsample: tuple[int, ...], side: int, class_agnostic: bool
) -> None:
    config = tiny_config(2)
    config = replace(
        config, mask=replace(config.mask, upsample=upsample, class_agnostic=class_agnostic)
    )
    model, batch = lively(config), make_batch()
    assert model.eval()(batch).masks.shape[-2:] == (side, side)
    assert model.losses(batch, make_truth(config, batch))["mask"] > 0


@pytest.mark.parametrize("nms", ["class", "all", "soft"])
def test_nms_per_class_over_classes_and_soft(nms: str) -> None:
    config = tiny_config(3)
    detections = lively(replace(config, box=replace(config.box, nms=nms, max_detections=40)))(
        make_batch()
    )
    assert detections.valid.sum() > 10


def narrow(config: ModelConfig) -> ModelConfig:
    """The same layers with few channels and RoIs."""
    rpn = replace(config.rpn, convs=(16,) * len(config.rpn.convs))
    box = replace(config.box, convs=(16,) * len(config.box.convs), fcs=(16,) * len(config.box.fcs))
    changes: dict[str, Any] = {
        "trunk": replace(config.trunk, stem_channels=8, res2_channels=16, width_per_group=4),
        "rpn": replace(rpn, post_nms_train=50, post_nms_test=50),
        "box": replace(box, samples=32, max_detections=20),
    }
    if config.neck:
        changes["neck"] = replace(config.neck, channels=16)
    if mask := config.mask:
        convs = (16,) * len(mask.convs)
        changes["mask"] = replace(mask, convs=convs, upsample=(16,) * len(mask.upsample))
    if keypoint := config.keypoint:
        changes["keypoint"] = replace(keypoint, convs=(16,) * len(keypoint.convs))
    return replace(config, **changes)


@pytest.mark.parametrize(
    "preset",
    [
        "maskrcnn_r50_fpn",
        "maskrcnn_r101_fpn",
        "maskrcnn_r50_c4",
        "keypointrcnn_r50_fpn",
        "joint_r50_fpn",
        "maskrcnn_r50_fpn_torchvision",
        "maskrcnn_r50_fpn_v2_torchvision",
    ],
)
def test_presets_build_predict_and_compute_losses(preset: str) -> None:
    config: ModelConfig = getattr(presets, preset)()
    batch = make_batch(((64, 64),))
    model = MaskRCNN.from_config(narrow(config))
    with torch.no_grad():
        assert model.eval()(batch).boxes.shape[-1] == 4
        losses = model.losses(batch, make_truth(config, batch, objects=2))
    assert all(value.isfinite() for value in losses.values())


def test_a_timm_trunk_with_frozen_or_own_batch_norm_makes_the_same_pyramid() -> None:
    config = tiny_config(2)
    for norm in ("batch", "frozen"):
        model = MaskRCNN.from_config(
            replace(config, trunk=replace(config.trunk, timm="mobilenetv3_small_050", norm=norm))
        )
        assert [
            level.shape[-1] for level in model.eval().pyramid(make_batch(((128, 128),))).levels
        ] == [32, 16, 8, 4, 2]
    with pytest.raises(ValueError, match="mobilenetv3_small_050"):
        MaskRCNN.from_config(
            replace(config, trunk=replace(config.trunk, timm="mobilenetv3_smal_050"))
        )
    with pytest.raises(ValueError, match="strides"):
        MaskRCNN.from_config(
            replace(config, trunk=replace(config.trunk, timm="vit_tiny_patch16_224"))
        )


def test_frozen_stages_keep_weights_and_statistics() -> None:
    config = tiny_config(1)
    model = MaskRCNN.from_config(
        replace(config, trunk=replace(config.trunk, norm="batch", frozen_stages=2))
    ).train()
    batch = make_batch()
    before = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    total(model.losses(batch, make_truth(config, batch))).backward()
    assert model.trunk.conv1.weight.grad is None
    assert model.trunk.layer1[0].conv1.weight.grad is None
    assert model.trunk.layer2[0].conv1.weight.grad is not None
    after = model.trunk.state_dict()
    assert all(
        torch.equal(after[k], v) for k, v in before.items() if k.startswith(("bn1", "layer1"))
    )
    assert not torch.equal(after["layer2.0.bn1.running_mean"], before["layer2.0.bn1.running_mean"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((100, 1000), (133, 1333)),
        ((800, 800), (800, 800)),
    ],
)
def test_the_resize_rule_is_detectron2s(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert input_size(*size, presets.maskrcnn_r50_fpn().input) == expected


def test_the_resize_rule_without_a_side_keeps_the_scale() -> None:
    config = presets.maskrcnn_r18_small().input
    assert input_size(300, 500, config) == (300, 500)
    assert input_size(300, 500, replace(config, scale=2.0)) == (600, 1000)
    assert input_size(3000, 1500, config) == (1024, 512)


def test_a_few_steps_on_one_image_lower_the_losses() -> None:
    config = tiny_config(FIGURES)
    torch.manual_seed(0)
    model, batch = MaskRCNN.from_config(config).train(), make_batch(((96, 96),))
    truth = make_truth(config, batch)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    for _ in range(20):
        losses = model.losses(batch, truth)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    first, last = (
        {k: sum(h[k] for h in part) for k in part[0]} for part in (history[:5], history[-5:])
    )
    grew = {k: (first[k], last[k]) for k in first if last[k] > 0.9 * first[k]}
    assert set(grew) <= {
        "box"
    }  # that one grows first: a better RPN makes more proposals positive, each with a box to learn
