"""A training step of ours and of torchvision's model with the same sizes and weights on the same
images; and whether the data loader keeps up.

A step is forward, backward and optimizer. torchvision's model runs as its users call it, with
lists of float images and of targets with dense masks. Ours is the step of `mr.train`, which also
clips the gradients and averages the weights. Both have the same trained layers, anchors, proposals,
sampled RoIs and fused AdamW; both keep freed memory, as `maskrcnn train` does. "box RoIs" and "mask
RoIs" are the inputs of the heads in a step; times are comparable only if these are about equal.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import (
    MaskRCNN,
    anchor_utils,
    backbone_utils,
    faster_rcnn,
    mask_rcnn,
)
from torchvision.models.resnet import resnet18

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.config import AugmentConfig, ModelConfig, TrainConfig
from maskrcnn.runtime.keep_memory import keep_memory
from maskrcnn.synthetic.scenes import draw_scene
from maskrcnn.synthetic.shapes import CATEGORIES
from maskrcnn.training.optim import make_optimizer
from maskrcnn.training.processes import Processes
from maskrcnn.training.run_request import RunRequest
from maskrcnn.training.trainer import Trainer
from maskrcnn.weights.from_torchvision import convert

from .limits import dtypes, left_out, rates
from .models import calibrate, random_image
from .timing import in_turns

# The learning rate is so small that the weights hardly change.
RATES = TrainConfig(
    learning_rate=1e-5, workers=0, tensorboard=False, checkpoint_every=1e9, steps=1000
)
NAMES = [c.name for c in CATEGORIES]


@dataclass(frozen=True)
class Case:
    """A model, its batch, and the number of timed rounds."""

    name: str
    config: ModelConfig
    theirs: Callable[[], nn.Module]
    side: int
    tiles: int
    batch: int
    rounds: int
    loaded: int
    """Number of steps with the data loader."""
    augment: AugmentConfig
    """Augmentation in the loader, as in training; the timed steps run without it."""


def run(quick: bool) -> dict[str, Any]:
    """Measures the time of a step, then the share of it spent waiting for data."""
    keep_memory()
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(quick):
            data = mosaics(Path(folder) / case.name / "images", case.side, case.tiles, count=12)
            step_rows, seconds[case.name] = steps(case, data, Path(folder))
            rows += step_rows + [
                waiting(case, data, Path(folder), precision, 2 if quick else case.loaded)
                for precision in dtypes()
            ]
    return {"rows": rows, **left_out(), "seconds": seconds}


def cases(quick: bool) -> list[Case]:
    """The small model on a batch of crops, and ResNet-50-FPN on one large image."""
    crops = AugmentConfig(
        crop=256,
        scale=(1.0, 1.25),
        flip_vertical=0.5,
        right_angles=True,
        brightness=0.2,
        contrast=0.2,
    )

    small = Case(
        "maskrcnn_r18_small",
        mr.maskrcnn_r18_small(NAMES),
        small_torchvision,
        256,
        3,
        4,
        9,
        25,
        crops,
    )
    large = Case(
        "maskrcnn_r50_fpn",
        mr.maskrcnn_r50_fpn_torchvision(NAMES),
        large_torchvision,
        800,
        3,
        1,
        4,
        5,
        AugmentConfig(),
    )
    return [replace(small, rounds=2)] if quick else [small, large]


def steps(
    case: Case, data: mr.CocoDataset, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Times of a step on the same batch: torchvision, ours in float32, ours in bfloat16."""
    theirs = case.theirs()
    state = convert(theirs.state_dict(), bn_eps=1e-5)[1]
    model = mr.MaskRCNN.from_config(case.config)
    model.load_state_dict(state)
    images = TrainingSet(data, model.config, None)
    batch, truth = collate(
        [images.example(i, seed=i) for i in range(case.batch)], model.config.input.size_divisor
    )

    precisions = {f"ours {dtype}": dtype for dtype in dtypes()}
    trainers = {}
    for name, precision in precisions.items():
        trainers[name] = trainer(
            model,
            data,
            replace(RATES, batch_size=case.batch, dtype=precision),
            folder / case.name / name,
        )
        trainers[name].learner.batches = itertools.repeat((batch, truth))

    work = {"torchvision": torchvision_step(theirs, data, case.batch)} | {
        name: t.step for name, t in trainers.items()
    }
    heads = {"torchvision": theirs.roi_heads} | {
        name: t.learner.model for name, t in trainers.items()
    }
    roi_counts = {name: rois(heads[name], step) for name, step in work.items()}

    times = in_turns(work, case.rounds)
    rows = [{"what": f"{case.name}, {row.pop('what')}", **row} for row in times.rows("torchvision")]
    for row, name in zip(rows, work, strict=True):
        row |= roi_counts[name]
        if name in trainers:
            limit = limit_of(trainers[name].step, precisions[name])
            row["limit s"] = limit
            row["times its limit"] = times.median(name) / limit
    return rows, times.seconds


def limit_of(step: Callable[[], Any], dtype: str) -> float:
    """Seconds that the operations of a step take at the machine's best rate.

    They are counted without the oneDNN kernels, which PyTorch's counter does not know.
    """
    with (
        patch("maskrcnn.kernels.onednn._is_candidate", lambda x: False),
        FlopCounterMode(display=False) as counter,
    ):
        step()
    return counter.get_total_flops() / rates()[f"{dtype} GFLOP/s"] / 1e9


def torchvision_step(model: nn.Module, data: mr.CocoDataset, count: int) -> Callable[[], None]:
    """Forward, backward and optimizer step, as in torchvision's reference training script."""
    optimizer = make_optimizer(model.train(), RATES)
    images = [torch.tensor(data.image(i)).permute(2, 0, 1).float() / 255 for i in range(count)]
    targets = [target(data, i) for i in range(count)]

    def step() -> None:
        loss = torch.stack([*model(images, targets).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def target(data: mr.CocoDataset, index: int) -> dict[str, Tensor]:
    """Truth in torchvision's format: boxes, labels from 1, a dense mask per object."""
    objects = data[index].annotations
    return {
        "boxes": torch.tensor([a.box for a in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([a.label + 1 for a in objects]),
        "masks": torch.stack(
            [torch.from_numpy(rle.decode(a.rle)).to(torch.uint8) for a in objects]
        ),
    }


def rois(model: Any, step: Callable[[], Any]) -> dict[str, int]:
    """Number of RoIs that each of the two heads gets in a step."""
    counts: dict[str, int] = {}
    handles = []
    for name in ("box", "mask"):
        hook = lambda module, inputs, name=name: counts.update({f"{name} RoIs": len(inputs[0])})  # noqa: E731
        handles.append(model.get_submodule(f"{name}_head").register_forward_pre_hook(hook))
    step()
    for handle in handles:
        handle.remove()
    return counts


def waiting(
    case: Case, data: mr.CocoDataset, folder: Path, precision: str, count: int
) -> dict[str, Any]:
    """Share of the step time spent waiting for one loader process; excludes the steps during which
    that process starts.
    """
    config = replace(RATES, batch_size=case.batch, dtype=precision, workers=1, augment=case.augment)
    with contextlib.closing(
        trainer(
            mr.MaskRCNN.from_config(case.config),
            data,
            config,
            folder / case.name / f"loaded {precision}",
        )
    ) as training:
        rows = [training.step() for _ in range(2 + count)][2:]

    waited = sum(row["data_wait"] for row in rows)
    took = sum(case.batch / row["images_per_second"] for row in rows)
    return {
        "what": f"{case.name}, {precision}, 1 worker",
        "s": took / count,
        "input wait %": 100 * waited / took,
    }


def trainer(model: mr.MaskRCNN, data: mr.CocoDataset, config: TrainConfig, out: Path) -> Trainer:
    """A trainer before its first step."""
    processes = Processes.start("cpu")
    return Trainer(
        RunRequest(
            model=model, data=data, config=config, out=out, processes=processes, progress=False
        )
    )


def mosaics(folder: Path, side: int, tiles: int, count: int) -> mr.CocoDataset:
    """Images of `side` pixels, each a grid of `tiles` x `tiles` synthetic scenes with about 3.5
    objects each.
    """
    categories = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
    folder.mkdir(parents=True)
    part, side = side // tiles, side // tiles * tiles
    for i in range(count):
        pixels = np.zeros((side, side, 3), np.uint8)
        for tile in range(tiles**2):
            y, x = (part * n for n in divmod(tile, tiles))
            pixels[y : y + part, x : x + part], objects = draw_scene((i, tile), part)

            for entry in objects:
                left, top, width, height = entry["bbox"]
                crop, x0, y0 = rle.decode_crop(entry["segmentation"])
                moved = {
                    "bbox": [left + x, top + y, width, height],
                    "segmentation": rle.encode_crop(crop, x0 + x, y0 + y, (side, side)),
                }
                number = {"id": len(content["annotations"]), "image_id": i}
                content["annotations"].append(
                    {**number, **moved, **{k: entry[k] for k in ("category_id", "area", "iscrowd")}}
                )

        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        content["images"].append({"id": i, "file_name": f"{i}.jpg", "width": side, "height": side})
    return mr.CocoDataset(content, folder)


def small_torchvision() -> nn.Module:
    """torchvision's modules with the sizes of `maskrcnn_r18_small`."""
    torch.manual_seed(0)
    config = mr.maskrcnn_r18_small()
    stages, widths = {f"layer{i + 1}": str(i) for i in range(4)}, [64, 128, 256, 512]

    return MaskRCNN(
        backbone_utils.BackboneWithFPN(resnet18(), stages, widths, 64, norm_layer=nn.BatchNorm2d),
        num_classes=None,
        min_size=255,
        max_size=1024,
        rpn_anchor_generator=anchor_utils.AnchorGenerator(
            config.rpn.sizes, (config.rpn.ratios,) * 5
        ),
        rpn_pre_nms_top_n_train=config.rpn.pre_nms_train,
        rpn_post_nms_top_n_train=config.rpn.post_nms_train,
        rpn_batch_size_per_image=config.rpn.samples,
        box_head=faster_rcnn.FastRCNNConvFCHead((64, 7, 7), [], [256]),
        box_predictor=faster_rcnn.FastRCNNPredictor(256, 5),
        box_batch_size_per_image=config.box.samples,  # a quarter is positive: 32, the limit of our mask loss
        mask_head=mask_rcnn.MaskRCNNHeads(64, (64, 64, 64), 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(64, 64, 5),
    )


def large_torchvision() -> Any:
    """torchvision's ResNet-50-FPN in its fine-tuning setup: frozen BatchNorm, three trained stages;
    calibrated random weights.
    """
    torch.manual_seed(0)
    trunk = backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=3
    )
    model: Any = MaskRCNN(trunk, num_classes=5)
    calibrate(model.eval(), random_image(400, 533))
    # As before calibration: proposals stay near their anchors, so that some match an object.
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.01)
    return model
