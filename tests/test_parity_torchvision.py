"""Ours equals torchvision's: the same weights, read from its file, give the same predictions and the same losses.

The oracle is torchvision's own model with a quarter of its channels and random weights, calibrated in one pass: each layer's weights are scaled so
that activations, scores and offsets spread as in a trained model, and BatchNorm's statistics are near the data's but random.
tests/test_weights_torchvision.py reads the names and shapes of the models as they are published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from keypoint_parity import assert_keypoints_close, recorded_heatmaps
from PIL import Image
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import roi_heads as tv_roi_heads
from torchvision.ops import FrozenBatchNorm2d

import maskrcnn as mr
import maskrcnn.model.box_head as our_box_head
import maskrcnn.model.maskrcnn as our_model
import maskrcnn.model.rpn as our_rpn
from maskrcnn.preprocess import prepare_as_torchvision
from maskrcnn.settings import override_config

SHORT, LONG = 128, 208
# Less work for both than by default, so that the tests take seconds: (theirs, ours).
LESS = {
    "min_size": ("input.min_size", SHORT),
    "max_size": ("input.max_size", LONG),
    "rpn_post_nms_top_n_train": ("rpn.post_nms_train", 100),
    "rpn_post_nms_top_n_test": ("rpn.post_nms_test", 60),
    "box_batch_size_per_image": ("box.samples", 24),
    "box_detections_per_img": ("box.max_detections", 12),
}
# Standard deviation of a layer's outputs, by the end of the layer's name.
SPREAD = {
    "fpn.layer_blocks": 1.0,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "box_head": 1.0,
    "box_predictor.bbox_pred": 1.0,
    "mask_head": 1.0,
    "mask_fcn_logits": 3.0,
    "keypoint_head": 1.0,
    "kps_score_lowres": 3.0,
}


class Pair(NamedTuple):
    theirs: nn.Module
    ours: mr.MaskRCNN


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """An image of smooth blobs of several sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(
                (width, height), 3
            ),
            float,
        )
        for n in (4, 9, 30)
    ]
    return np.clip(sum(layers) / 3 * 1.6 - 80, 0, 255).astype(np.uint8)


def as_input(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def calibrate(model: nn.Module, image: np.ndarray, seed: int, spreads: Mapping[str, float]) -> None:
    """Scales weights and sets BatchNorm statistics during one forward pass, layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    handles = []

    def noise(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    def before_norm(module, args):
        (x,) = args
        module.running_mean.copy_(x.mean((0, 2, 3)) + x.std() * noise(module.bias, -0.2, 0.2))
        module.running_var.copy_(x.var((0, 2, 3)) * noise(module.bias, 0.5, 2))
        module.weight.data.copy_(noise(module.bias, 0.3, 1))
        module.bias.data.copy_(noise(module.bias, -0.2, 0.2))

    def after_layer(spread):
        def hook(module, args, output):
            if output.numel() < 100:
                return output
            factor = spread / (output.std() + 1e-9)
            module.weight.data.mul_(factor)
            module.bias.data.copy_(noise(module.bias, -0.1, 0.1))
            return module.forward(*args)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm))
        elif (
            isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and module.bias is not None
        ):
            spread = next((s for part, s in spreads.items() if part in name), None)
            if spread:
                handles.append(module.register_forward_hook(after_layer(spread)))
    with torch.no_grad():
        model.eval()([as_input(image)])
    for handle in handles:
        handle.remove()


# Layers whose outputs are not channels, by the last part of their names.
OUTPUTS = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits", "kps_score_lowres")


def narrow(model: nn.Module) -> None:
    """Gives random weights to a model that was built without memory: all its layers, with a quarter of their channels.

    With all of them, most of the work of this file would be in the heads.
    """
    generator = torch.Generator().manual_seed(3)
    for layer, module in model.named_modules():
        for tensors, kind in ((module._parameters, nn.Parameter), (module._buffers, torch.Tensor)):
            for name, value in tensors.items():
                if value is None:
                    continue
                shape = narrow_shape(layer.rpartition(".")[2], value)
                if value.ndim > 1:
                    new = torch.randn(shape, generator=generator) / value[0].numel() ** 0.5
                else:
                    new = torch.full(shape, float(name in ("weight", "running_var")))
                tensors[name] = kind(new)
    anchors = model.rpn.anchor_generator
    anchors.cell_anchors = list(map(anchors.generate_anchors, anchors.sizes, anchors.aspect_ratios))


def narrow_shape(layer: str, value: torch.Tensor) -> list[int]:
    """The shape of a weight with a quarter of its channels; the colors and a model's outputs are none."""
    shape = list(value.shape)
    outputs = 1 if layer == "kps_score_lowres" and value.ndim > 1 else 0  # a transposed convolution
    for axis in range(min(2, value.ndim)):
        if shape[axis] != 3 and not (layer in OUTPUTS and axis == outputs):
            shape[axis] //= 4
    return shape


# The builder, its arguments, and the spread of class logits that gives scores far from 0 and 1.
BUILDERS = {
    "mask_v1": (detection.maskrcnn_resnet50_fpn, {"num_classes": 7}, 2.0),
    "mask_v2": (detection.maskrcnn_resnet50_fpn_v2, {"num_classes": 91}, 2.5),
    "keypoint": (detection.keypointrcnn_resnet50_fpn, {}, 0.5),
}


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request, tmp_path_factory) -> Pair:
    builder, arguments, spread = BUILDERS[request.param]
    less = {name: value for name, (_, value) in LESS.items()}
    with torch.device("meta"):
        theirs = builder(weights=None, weights_backbone=None, **arguments, **less)
    narrow(theirs)
    calibrate(theirs, texture(120, 180, 5), 4, SPREAD | {"cls_score": spread})
    path = tmp_path_factory.mktemp(request.param) / "model.pth"
    torch.save(
        {"model": theirs.state_dict(), "epoch": 3}
        if request.param == "mask_v2"
        else theirs.state_dict(),
        path,
    )
    loaded = mr.load(path)
    path.unlink()
    ours = mr.MaskRCNN.from_config(override_config(loaded.config, dict(LESS.values()))).eval()
    ours.load_state_dict(loaded.state_dict())
    return Pair(theirs, ours)


# Portrait, and one so long that max_size decides; odd sides.
SIZES = ((211, 150), (70, 201))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_single_images_are_predicted_as_torchvision_does(pair, size):
    image = texture(*size, seed=1)
    with torch.no_grad():
        (theirs,) = pair.theirs.eval()([as_input(image)])
    with recorded_heatmaps() as maps:
        exact = mr.predict(pair.ours, image, exact=True)
        fast = mr.predict(pair.ours, image, exact=False)
    tolerances = {"boxes": 1e-3, "scores": 1e-4, "masks": 1e-4, "keypoints": 1e-2}
    compare(exact, theirs, maps[:1], **tolerances)
    tolerances = {"boxes": 0.05, "scores": 1e-3, "masks": 0.01, "keypoints": 1}
    compare(fast, theirs, maps[1:], **tolerances)


def test_batches_are_predicted_as_torchvision_does(pair):
    images = [texture(90, 140, 2), texture(91, 143, 1)]  # other sizes, one padded shape
    with torch.no_grad():
        theirs = pair.theirs.eval()([as_input(image) for image in images])
    for ours, one in zip(
        mr.predict(pair.ours, images, batch_size=2, exact=True), theirs, strict=True
    ):
        compare(ours, one, [], boxes=1e-3, scores=1e-4, masks=1e-4, keypoints=1e-2)


def compare(
    ours: mr.Instances,
    theirs: Mapping[str, torch.Tensor],
    maps: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    boxes: float,
    scores: float,
    masks: float,
    keypoints: float,
) -> None:
    assert len(ours) == len(theirs["boxes"]) >= 10, "too few detections prove nothing"
    inside = (theirs["boxes"][:, :2] > 1).all(1) & (
        theirs["boxes"][:, 2:] < torch.tensor(ours.size).flip(0) - 1
    ).all(1)
    assert inside.sum() >= 3, "detections that fill the image prove little"
    assert theirs["scores"].std() > 0.01
    apart = (ours.boxes - theirs["boxes"][:, None]).abs().amax(dim=-1) + 1e6 * (
        ours.labels + 1 != theirs["labels"][:, None]
    )
    partner = apart.argmin(dim=1)  # detections with nearly equal scores may be in either order
    assert sorted(partner.tolist()) == list(range(len(ours)))
    ours = ours[partner]
    torch.testing.assert_close(ours.scores, theirs["scores"], atol=scores, rtol=0)
    assert (ours.labels + 1 == theirs["labels"]).all()
    torch.testing.assert_close(ours.boxes, theirs["boxes"], atol=boxes, rtol=0)
    assert len(ours.labels.unique()) > 1 or len(ours.categories) == 1
    if "masks" in theirs:
        dense, probability = ours.masks.dense(), theirs["masks"][:, 0]
        # A box that is a hundredth of a pixel away moves the mask's edge as far, across the middle of a pixel whose
        # probability is nearly one half. Such pixels may differ, however small the mask, if they are few.
        differs = dense != (probability > 0.5)
        assert not (differs & ((probability - 0.5).abs() >= masks)).any()
        assert differs.sum() <= 0.002 * dense.sum()
        assert ((dense.sum((1, 2)) > 0).float().mean()) > 0.8
    if "keypoints" in theirs:
        for heatmaps, inputs in maps:
            own = heatmaps[partner], inputs[partner]
            assert_keypoints_close(
                ours.keypoints,
                theirs["keypoints"],
                theirs["boxes"],
                own,
                pixels=keypoints,
                logits=10 * scores,
            )
        if not maps:
            torch.testing.assert_close(
                ours.keypoints[..., :2], theirs["keypoints"][..., :2], atol=keypoints, rtol=0
            )
        if (
            keypoints < 1
        ):  # a box that grows past a whole pixel is read on another grid: the peak jumps
            torch.testing.assert_close(
                ours.keypoint_logits, theirs["keypoints_scores"], atol=1e-3, rtol=1e-3
            )


def test_losses_equal_torchvisions_on_the_same_samples_and_mask_targets(pair, monkeypatch):
    images, targets = training_batch(pair.ours)
    theirs, samples = their_losses(pair.theirs, images, targets)
    inject(monkeypatch, samples, [t["masks"] for t in targets])
    batch = mr.Batch.collate(
        [prepare_as_torchvision(i, pair.ours.config.input)[0] for i in images],
        seeds=[0, 1],
        normalized=True,
    )
    with torch.no_grad():
        ours = pair.ours.losses(batch, truth_of(pair.ours, targets))
    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box": "loss_box_reg",
    }
    names |= {"mask": "loss_mask", "keypoint": "loss_keypoint"}
    assert {names[k] for k in ours} == set(theirs)
    for name, value in ours.items():
        assert theirs[names[name]] > 1e-3
        torch.testing.assert_close(
            value, theirs[names[name]], rtol=1e-4, atol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def training_batch(model: mr.MaskRCNN) -> tuple[list[np.ndarray], list[dict[str, torch.Tensor]]]:
    """Two images at the model's own size (so that torchvision scales no target), with ellipses as objects."""
    rng = np.random.default_rng(0)
    images, targets = [], []
    for seed, (height, width) in enumerate(((SHORT, LONG - 24), (SHORT, LONG))):
        images.append(texture(height, width, seed))
        low = rng.uniform([5, 5], [width - 70, height - 70], (6, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 62, (6, 2))], axis=1)
        y, x = np.mgrid[:height, :width] + 0.5
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        masks = [
            ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
            for (cx, cy), (rx, ry) in zip(middle, half, strict=True)
        ]
        keypoints = middle[:, None] + half[:, None] * rng.uniform(-1.1, 1.1, (6, 17, 2))
        visible = rng.integers(0, 3, (6, 17, 1))
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(rng.integers(1, model.config.num_classes + 1, 6)),
            "masks": torch.tensor(np.stack(masks), dtype=torch.uint8),
            "keypoints": torch.tensor(
                np.concatenate([keypoints, visible], axis=2), dtype=torch.float32
            ),
        }
        targets.append(target)
    return images, targets


def truth_of(model: mr.MaskRCNN, targets: list[dict[str, torch.Tensor]]) -> mr.Truth:
    """Converts torchvision's targets to ours. The mask crops hold only the object's number: `inject` gives the masks themselves."""
    boxes = torch.stack([t["boxes"] for t in targets])
    shape = boxes.shape[:2]
    yes, keypoints = torch.ones(shape, dtype=torch.bool), 17 if model.config.keypoint else 0
    return mr.Truth(
        boxes=boxes,
        labels=torch.stack([t["labels"] - 1 for t in targets]),
        valid=yes,
        ignore=~yes,
        has_box=yes,
        masks=torch.arange(yes.numel(), dtype=torch.uint8).view(*shape, 1, 1),
        has_mask=yes,
        spans=torch.zeros(*shape, 2, dtype=torch.bool),
        keypoints=torch.stack([t["keypoints"][:, :keypoints] for t in targets]),
        has_keypoints=yes,
    )


def their_losses(
    model: nn.Module, images: list[np.ndarray], targets: list[dict[str, torch.Tensor]]
) -> tuple[dict[str, torch.Tensor], dict]:
    """torchvision's losses, BatchNorm with its stored statistics, and the anchors and RoIs it sampled."""
    samples: dict = {"rpn": [], "roi": [], "proposals": []}
    model.train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()

    def recording(sampler, key):
        def sample(labels):
            positive, negative = sampler(labels)
            samples[key] = [
                (p.nonzero()[:, 0], n.nonzero()[:, 0])
                for p, n in zip(positive, negative, strict=True)
            ]
            return positive, negative

        return sample

    rpn, heads = model.rpn, model.roi_heads
    saved = rpn.fg_bg_sampler, heads.fg_bg_sampler
    handle = heads.register_forward_pre_hook(
        lambda module, args: samples.update(proposals=[len(p) for p in args[1]])
    )
    torch.manual_seed(1)
    try:
        rpn.fg_bg_sampler, heads.fg_bg_sampler = (
            recording(saved[0], "rpn"),
            recording(saved[1], "roi"),
        )
        with torch.no_grad():
            losses = model([as_input(i) for i in images], [dict(t) for t in targets])
    finally:
        rpn.fg_bg_sampler, heads.fg_bg_sampler = saved
        handle.remove()
    return losses, samples


def inject(monkeypatch, samples: dict, masks: list[torch.Tensor]) -> None:
    """Gives our losses torchvision's samples and mask targets. Only the sampling is injected; the labels of boxes come from our own matching."""

    def chosen(key):
        def balanced_sample(positive, negative, keys, count, fraction):
            rows = []
            for b, (p, n) in enumerate(samples[key]):
                index = torch.cat([p, n])
                if (
                    key == "roi"
                ):  # theirs appends the true boxes to the valid proposals, ours to the padded proposals
                    own = samples["proposals"][b]
                    index = torch.where(
                        index < own, index, index - own + positive.shape[1] - len(masks[b])
                    )
                assert positive[b, index[: len(p)]].all(), "torchvision counts it as an object"
                assert negative[b, index[len(p) :]].all(), "torchvision counts it as background"
                rows.append(index)
            assert sum(len(p) for p, _ in samples[key]) > 3
            return nn.utils.rnn.pad_sequence(rows, True), nn.utils.rnn.pad_sequence(
                [torch.ones(len(r), dtype=torch.bool) for r in rows], True
            )

        return balanced_sample

    def mask_targets(numbers, boxes, rois, size):
        every = torch.stack(
            [m for t in masks for m in torch.nn.functional.pad(t, (0, LONG - t.shape[2]))]
        )
        return tv_roi_heads.project_masks_on_boxes(every, rois, numbers[:, 0, 0].long(), size)

    monkeypatch.setattr(our_rpn, "balanced_sample", chosen("rpn"))
    monkeypatch.setattr(our_box_head, "balanced_sample", chosen("roi"))
    monkeypatch.setattr(our_model, "mask_targets", mask_targets)


def test_frozen_batch_norm_uses_the_eps_that_is_given(tmp_path):
    with torch.device("meta"):
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d
        )
        theirs = detection.FasterRCNN(backbone, num_classes=3)
    narrow(theirs)
    for part in theirs.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var.uniform_(5e-6, 2e-5)  # as small as eps, so that eps has an effect
            part.weight.mul_(2e-3)
    path = Path(tmp_path / "model.pth")
    torch.save(theirs.state_dict(), path)

    image = torch.rand(1, 3, 64, 64)
    several = (0.0, 1e-5)
    with torch.no_grad():
        models = [mr.load(path, bn_eps=eps) for eps in several]
        ours = [model.neck(model.trunk(image)) for model in models]
        for eps, right, other in zip(several, ours, reversed(ours), strict=True):
            detection._utils.overwrite_eps(theirs, eps)
            for level, same, wrong in zip(
                theirs.backbone(image).values(), right, other, strict=True
            ):
                most = level.abs().max().item()
                torch.testing.assert_close(same, level, rtol=1e-4, atol=1e-4 * most)
                assert not torch.allclose(wrong, level, rtol=1e-2, atol=1e-2 * most)
