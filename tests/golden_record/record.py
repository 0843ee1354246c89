"""Records results of the program: `python record.py OUT [section ...]`, for compare.py.

Writes OUT/arrays.npz and OUT/values.json. The keys are numbered or neutral, so that they do not
depend on the names in the program. Values whose key begins with `text/` are for information only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.contours import fill, simplify, trace
from maskrcnn.annotations.split import split_dataset
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.cli import run as run_command
from maskrcnn.config import (
    AugmentConfig,
    Category,
    KeypointHeadConfig,
    ModelConfig,
    NeckConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
    UnlabeledConfig,
)
from maskrcnn.draw.overlay import draw_instances
from maskrcnn.kernels.nms import Candidates, select_at_once, select_one_by_one, select_soft
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.prediction.optimize import optimize_for_inference, reference
from maskrcnn.presets import (
    maskrcnn_r18_small,
    maskrcnn_r50_c4,
    maskrcnn_r50_fpn,
    maskrcnn_r50_fpn_v2_torchvision,
)
from maskrcnn.settings import to_dict
from maskrcnn.structures import Batch, Truth
from maskrcnn.synthetic.micrograph import draw_micrograph
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows
from maskrcnn.weights.trunk_weights import load_trunk

SMALL = 2048  # arrays of up to this many numbers are stored whole, of larger ones the hash, the sum and samples
FEW = 8
SPOTS = ("nose", "left_hand", "right_hand")
FIGURES = (
    Category("hand", 1, keypoints=("thumb", "wrist")),
    Category("stone", 2),
    Category("figure", 3, keypoints=SPOTS, skeleton=((0, 1), (0, 2)), flip=(0, 2, 1)),
)
OLD_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
HEIGHT, WIDTH = 60, 80
FORMATS = ("coco", "yolo-seg", "yolo-pose", "labelme", "via", "cvat", "voc", "png", "png-each")


class Record:
    """Arrays and plain values by key."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.values: dict[str, Any] = {}

    def add(self, key: str, value: Any) -> None:
        """Records a value of any kind; values with parts get numbered keys."""
        if isinstance(value, Tensor):
            self.array(key, exact(value))
        elif isinstance(value, np.ndarray):
            self.array(key, value)
        elif isinstance(value, Image.Image):
            self.array(key, np.asarray(value))
        elif is_dataclass(value):
            names = [f.name for f in fields(value) if f.name not in ("num_valid", "annotation_ids")]
            self.add(key, [getattr(value, name) for name in names])
        elif isinstance(value, list | tuple) and any(has_array(part) for part in value):
            for number, part in enumerate(value):
                self.add(f"{key}/{number}", part)
        else:
            self.plain(key, value)

    def array(self, key: str, value: np.ndarray) -> None:
        """Records an array."""
        if value.size <= SMALL and value.dtype != object:
            self.once(self.arrays, key, np.array(value))
            return
        flat = np.ascontiguousarray(value).reshape(-1)
        few = flat[np.linspace(0, len(flat) - 1, FEW).astype(int)]
        self.once(self.arrays, f"{key}/few", few)
        self.once(self.arrays, f"{key}/sum", flat.astype(np.float64).sum())
        self.plain(f"{key}/hash", [str(value.dtype), list(value.shape), digest(flat.tobytes())])

    def plain(self, key: str, value: Any) -> None:
        """Records plain data."""
        self.once(self.values, key, value)

    def once(self, place: dict[str, Any], key: str, value: Any) -> None:
        """Stores a value under a new key; raises an error if the key exists."""
        if key in self.arrays or key in self.values:
            raise KeyError(f"{key}: is in the record already")
        place[key] = value

    def write(self, out: Path) -> None:
        """Writes both files."""
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / "arrays.npz", **self.arrays)
        (out / "values.json").write_text(json.dumps(self.values, indent=0))


def exact(value: Tensor) -> np.ndarray:
    """Converts a tensor to NumPy without loss; NumPy has no bfloat16."""
    value = value.detach().cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def has_array(value: Any) -> bool:
    """Whether there are arrays or objects with parts in it."""
    if isinstance(value, list | tuple):
        return any(has_array(part) for part in value)
    return isinstance(value, Tensor | np.ndarray | Image.Image) or is_dataclass(value)


def digest(content: bytes) -> str:
    """The hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def unnamed(value: Any) -> Any:
    """Plain data in which each dict is the list of its values, in their order."""
    if isinstance(value, dict):
        return [unnamed(part) for part in value.values()]
    if isinstance(value, list | tuple):
        return [unnamed(part) for part in value]
    return OLD_DTYPES.get(value, value) if isinstance(value, str) else value


def named(value: Any) -> Any:
    """Plain data of a known format (COCO), whose keys count: each dict is a list of pairs.

    Results of earlier versions did not name their categories.
    """
    if isinstance(value, dict):
        return [[key, named(part)] for key, part in value.items() if key != "category_name"]
    if isinstance(value, list | tuple):
        return [named(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


# Networks and synthetic truth


def settle(part: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Makes the statistics of a normalization those of what comes in."""
    part.running_mean.copy_(given[0].mean((0, 2, 3)))
    part.running_var.copy_(given[0].var((0, 2, 3), unbiased=False) + 1e-3)


def lively(config: ModelConfig, seed: int = 0) -> MaskRCNN:
    """A random network with spread-out predictions and the statistics of noise."""
    torch.manual_seed(seed)
    model = MaskRCNN.from_config(config)
    last = (
        model.rpn.objectness,
        model.rpn.deltas,
        model.box_head.class_logits,
        model.box_head.box_deltas,
    )
    with torch.no_grad():
        for part in model.modules():
            weight = getattr(part, "weight", None)
            if weight is not None and weight.dim() > 1:
                weight.normal_(std=(2 / weight[0].numel()) ** 0.5)
        for part in last:
            part.weight.mul_(0.3)
        view = reference(model)
        for part in view.modules():
            if hasattr(part, "running_mean"):
                part.register_forward_pre_hook(settle)
        view(make_batch())
    return model


def narrow(config: ModelConfig) -> ModelConfig:
    """Bottlenecks of a few channels, and few proposals."""
    trunk = replace(config.trunk, stem_channels=8, res2_channels=32, width_per_group=8)
    rpn = replace(config.rpn, post_nms_train=60, post_nms_test=60, samples=64)
    box = replace(config.box, samples=48, max_detections=20)
    return replace(config, trunk=trunk, rpn=rpn, box=box)


def small_config() -> ModelConfig:
    """The small preset as it is, with boxes, masks and keypoints."""
    return maskrcnn_r18_small(FIGURES)


def single_level_config() -> ModelConfig:
    """Like ResNet-50-C4, with frozen normalization and adaptive pooling."""
    config = narrow(maskrcnn_r50_c4(3))
    rpn = replace(config.rpn, sizes=((16, 32, 64),), convs=(32,))
    return replace(config, rpn=rpn, box=replace(config.box, nms="soft"))


def grouped_config() -> ModelConfig:
    """ResNeXt with GroupNorm, and the less usual choice wherever there is one."""
    config = narrow(maskrcnn_r50_fpn(FIGURES))
    return replace(
        config,
        input=replace(config.input, channel_order="bgr", min_size=None, scale=1.5),
        trunk=replace(config.trunk, groups=2, width_per_group=8, norm="group", frozen_stages=0),
        neck=replace(config.neck, channels=16, norm="group", fuse="average"),
        rpn=replace(config.rpn, convs=(16, 16), offset=0.5, smooth_l1_beta=0.1),
        box=replace(
            config.box,
            convs=(16,),
            fcs=(32,),
            norm="group",
            sigmoid=True,
            class_agnostic=True,
            smooth_l1_beta=0.1,
            nms="all",
        ),
        mask=replace(
            config.mask,
            convs=(16,),
            upsample=(16, 8),
            norm="group",
            class_agnostic=True,
            paste="grid",
            truth_size=56,
        ),
        keypoint=KeypointHeadConfig(convs=(16,), norm="group", max_positives=8),
    )


def peer_config() -> ModelConfig:
    """torchvision's choices, with a skeleton that all categories share."""
    config = narrow(maskrcnn_r50_fpn_v2_torchvision(2, 5))
    return replace(
        config,
        neck=replace(config.neck, channels=16),
        rpn=replace(config.rpn, convs=(16, 16)),
        box=replace(config.box, convs=(16, 16), fcs=(32,)),
        mask=replace(config.mask, convs=(16,), upsample=(16,), truth_size=28),
        keypoint=replace(config.keypoint, convs=(16, 16)),
    )


def dilated_config() -> ModelConfig:
    """One dilated level, with keypoints."""
    config = narrow(maskrcnn_r50_fpn(FIGURES))
    return replace(
        config,
        neck=NeckConfig(kind="dc5"),
        rpn=RPNConfig(sizes=((16.0, 32.0, 64.0),), convs=(16,), samples=64),
        box=replace(config.box, fcs=(32,)),
        mask=replace(config.mask, convs=(16,), upsample=(16,), max_positives=6),
        keypoint=KeypointHeadConfig(convs=(16,), roi=RoIConfig(size=7, sampling_ratio=0)),
    )


def foreign_trunk_config() -> ModelConfig:
    """A timm trunk."""
    config = maskrcnn_r18_small(2)
    trunk = replace(config.trunk, timm="mobilenetv3_small_050", norm="frozen", frozen_stages=0)
    return replace(config, trunk=trunk, box=replace(config.box, max_detections=20))


def make_batch(sizes: tuple[tuple[int, int], ...] = ((96, 128), (128, 96))) -> Batch:
    """Images of noise."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    return Batch.collate(images, seeds=[7 + number for number in range(len(sizes))])


def make_truth(config: ModelConfig, batch: Batch, objects: int = 5) -> Truth:
    """Boxes, each with a disc and, where its category has them, keypoints."""
    generator = torch.Generator().manual_seed(2)
    count = len(batch.sizes)
    spots = config.num_keypoint_channels if config.keypoint else 0
    side = config.mask.truth_size if config.mask else 1
    truth = Truth.empty(count, objects, side, spots)
    low = torch.rand(count, objects, 2, generator=generator) * 50
    high = low + 20 + 25 * torch.rand(count, objects, 2, generator=generator)
    truth.boxes[...] = torch.cat([low, high], dim=-1)
    truth.labels[...] = torch.randint(config.num_classes, (count, objects), generator=generator)
    for flag in (truth.valid, truth.has_box, truth.has_mask):
        flag[...] = True
    ramp = (torch.arange(side) + 0.5) / side - 0.5
    truth.masks[...] = ((ramp[:, None] ** 2 + ramp**2) < 0.2).to(torch.uint8) * 255
    if spots:
        starts, counts = torch.tensor(config.keypoint_slices)[truth.labels].unbind(dim=-1)
        channel = torch.arange(spots)
        own = (channel >= starts[..., None]) & (channel < (starts + counts)[..., None])
        drawn = torch.rand(count, objects, spots, 2, generator=generator)
        places = low[:, :, None] + (high - low)[:, :, None] * drawn
        truth.keypoints[..., :2] = torch.where(own[..., None], places, 0.0)
        truth.keypoints[..., 2] = own * 2.0
        truth.has_keypoints[...] = own.any(dim=-1)
    return truth


def make_partial_truth(config: ModelConfig, batch: Batch) -> Truth:
    """The same with crowds, partly annotated objects, and categories that are not annotated."""
    truth = make_truth(config, batch, 7)
    truth.ignore[0, 0] = True
    truth.ignore[1, 3] = True
    truth.has_mask[:, 1] = False
    truth.has_box[:, 2] = False
    truth.has_mask[:, 2] = False
    truth.has_keypoints[:, 4] = False
    truth.valid[1, 6] = False
    labeled = torch.ones(len(batch.sizes), config.num_classes, dtype=torch.bool)
    labeled[0, 1] = False
    labeled[1, 0] = False
    return replace(truth, labeled=labeled)


def add_losses(record: Record, key: str, model: MaskRCNN, batch: Batch, truth: Truth) -> None:
    """Every term and the gradient of every parameter."""
    model.zero_grad()
    losses = model.losses(batch, truth)
    record.add(f"{key}/losses", list(losses.values()))
    total(losses).backward()
    for number, parameter in enumerate(model.parameters()):
        gradient = parameter.grad
        record.add(f"{key}/gradients/{number}", "none" if gradient is None else gradient)
    record.add(f"{key}/buffers", [value.clone() for value in model.buffers()])


CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "small": small_config,
    "single_level": single_level_config,
    "grouped": grouped_config,
    "peer": peer_config,
    "dilated": dilated_config,
    "foreign_trunk": foreign_trunk_config,
}


def add_survivors(record: Record) -> None:
    """Every form of NMS on the same boxes."""
    generator = torch.Generator().manual_seed(6)
    low = torch.rand(2, 200, 2, generator=generator) * 80
    boxes = torch.cat([low, low + 5 + 40 * torch.rand(2, 200, 2, generator=generator)], dim=-1)
    scores = torch.rand(2, 200, generator=generator)
    groups = torch.randint(3, (2, 200), generator=generator)
    valid = torch.rand(2, 200, generator=generator) > 0.1
    candidates = Candidates(boxes, scores, groups, valid)
    record.add("networks/survivors/single", select_one_by_one(candidates, 0.4, 50))
    record.add("networks/survivors/together", select_at_once(candidates, 0.4, 50))
    chosen, decayed = select_soft(candidates, 0.5, 0.05, 50)
    record.add("networks/survivors/soft", [*chosen[:2], decayed])


def networks(record: Record, folder: Path) -> None:
    """Losses, gradients and predictions of six networks."""
    add_survivors(record)
    batch = make_batch()
    for name, make in CONFIGS.items():
        config = make()
        model = lively(config)
        record.plain(f"networks/{name}/config", unnamed(to_dict(config)))
        with torch.no_grad():
            record.add(f"networks/{name}/found", model.eval()(batch))
            record.add(f"networks/{name}/reference", reference(model)(batch))
            record.add(f"networks/{name}/fast", optimize_for_inference(model)(batch))
        truth = make_truth(config, batch)
        add_losses(record, f"networks/{name}/whole", model.train(), batch, truth)
        partial = make_partial_truth(config, batch)
        add_losses(record, f"networks/{name}/partial", model.eval(), batch, partial)
    model = lively(small_config()).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch, make_truth(model.config, batch))
    record.add("networks/half/losses", list(losses.values()))


# Predictions


def noise_image(seed: int, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A smooth random image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
    shape = (size[1], size[0])
    return np.asarray(Image.fromarray(coarse).resize(shape, Image.Resampling.BILINEAR))


def add_answer(record: Record, key: str, found: Any) -> None:
    """Records all fields of the predictions for one image."""
    record.add(f"{key}/boxes", found.boxes)
    record.add(f"{key}/scores", found.scores)
    record.add(f"{key}/labels", found.labels)
    if found.mask_grids is not None:
        record.add(f"{key}/grids", found.mask_grids)
        record.add(f"{key}/dense", found.masks.dense())
        record.add(f"{key}/areas", found.masks.area())
    if found.keypoints is not None:
        record.add(f"{key}/keypoints", found.keypoints)
        record.add(f"{key}/peaks", found.keypoint_logits)
    record.plain(f"{key}/coco", named(found.to_coco(image_id=1)))


def predictions(record: Record, folder: Path) -> None:
    """The shipped model on drawn micrographs, and a joint model on noise."""
    nuclei = mr.load("nuclei")
    record.plain("nuclei/config", unnamed(to_dict(nuclei.config)))
    drawn = [draw_micrograph(seed, (160, 192), 14) for seed in (11, 12)]
    images = [image for image, _ in drawn]
    record.add("nuclei/images", images)
    record.add("nuclei/truth", [masks for _, masks in drawn])
    for number, found in enumerate(mr.predict(nuclei, images, batch_size=2)):
        add_answer(record, f"nuclei/fast/{number}", found)
    found = mr.predict(nuclei, images[0], min_score=0.5)
    add_answer(record, "nuclei/sure", found)
    plain = {"boxes": False, "names": False, "enlarge": True, "line_width": 2}
    record.add("nuclei/overlay", draw_instances(found, **plain))
    add_answer(record, "nuclei/reference", mr.predict(nuclei, images[0], exact=True))
    add_answer(record, "nuclei/flip", mr.predict(nuclei, images[1], tta="flip"))
    add_answer(
        record, "nuclei/half", mr.predict(mr.optimize_for_inference(nuclei, "bfloat16"), images[1])
    )
    config = small_config()
    model = lively(replace(config, box=replace(config.box, max_detections=40))).eval()
    image = noise_image(3)
    add_answer(record, "joint/fast", mr.predict(model, image))
    views = mr.predict(model, image, tta="flip,turns,scales", min_score=0.2)
    add_answer(record, "joint/views", views)
    record.add(
        "joint/overlay",
        draw_instances(mr.predict(model, image)[:6], **plain | {"line_width": None}),
    )
    for name in ("grouped", "peer"):
        config = replace(CONFIGS[name](), input=replace(CONFIGS[name]().input, min_size=128))
        add_answer(record, f"joint/{name}", mr.predict(lively(config).eval(), image))
    path = mr.save(model, folder / "model.safetensors", dtype=torch.float16)
    add_answer(record, "joint/saved", mr.predict(mr.load(path), image))
    Image.fromarray(image).save(folder / "image.png")
    out = folder / "found"
    words = ["predict", str(path), str(folder / "image.png"), "--out", str(out)]
    assert run_command([*words, "--format", "labelme"]) == 0
    record.plain("joint/command", named(json.loads((out / "results.json").read_text())))
    add_data(record, "joint/drafts", mr.load_dataset(out / "labelme"))


def foreign_files(record: Record, folder: Path) -> None:
    """Detectron2's models if they are available; random ones of torchvision."""
    shared = Path(os.environ.get("GOLDEN_SHARED", "")) / "golden"
    for name in ("r50_fpn_joint", "r50_c4", "x50_fpn"):
        path = shared / "detectron2" / name / "model_final.pth"
        if not os.environ.get("GOLDEN_SHARED") or not path.is_file():
            record.plain(f"detectron/{name}", "absent")
            continue
        model = mr.load(path)
        record.plain(f"detectron/{name}/config", unnamed(to_dict(model.config)))
        record.add(f"detectron/{name}/weights", list(model.state_dict().values()))
        add_answer(record, f"detectron/{name}", mr.predict(model, shared / "image.png"))
    from torchvision.models import resnet18
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    torch.manual_seed(5)
    torch.save(resnet18().state_dict(), folder / "trunk.pth")
    model = MaskRCNN.from_config(maskrcnn_r18_small(1))
    load_trunk(model, folder / "trunk.pth")
    record.add("peer/trunk", list(model.trunk.state_dict().values()))
    whole = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_keypoints=4)
    torch.save(whole.state_dict(), folder / "whole.pth")
    loaded = mr.load(folder / "whole.pth")
    record.plain("peer/config", unnamed(to_dict(loaded.config)))
    for number, value in enumerate(loaded.state_dict().values()):
        record.add(f"peer/weights/{number}", value.reshape(-1)[:: max(1, value.numel() // 64)])


# Training


class Clock:
    """A clock that advances by a second per call, and an end of the run after some rows."""

    def __init__(self, rows: Path | None = None, last: int = 0) -> None:
        self.rows = rows
        self.last = last
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        written = self.rows is not None and self.rows.exists()
        if written and self.rows.read_bytes().count(b"\n") > self.last:
            raise InterruptedError
        return self.now


def tiny_network(data: CocoDataset, norm: Any = "batch") -> ModelConfig:
    """All heads, of a few channels."""
    config = maskrcnn_r18_small(data.categories)
    assert config.mask
    assert config.keypoint
    return replace(
        config,
        trunk=replace(config.trunk, stem_channels=8, res2_channels=8, norm=norm),
        neck=replace(config.neck, channels=8, norm=norm),
        rpn=replace(
            config.rpn,
            sizes=((8,), (16,), (32,), (64,), (128,)),
            convs=(8,),
            pre_nms_train=60,
            post_nms_train=30,
            post_nms_test=20,
            samples=32,
        ),
        box=replace(config.box, fcs=(16,), samples=16, max_detections=10),
        mask=replace(
            config.mask, convs=(8,), upsample=(8,), norm=norm, max_positives=4, truth_size=28
        ),
        keypoint=replace(config.keypoint, convs=(8,), norm=norm, max_positives=4),
    )


def add_run(record: Record, key: str, out: Path) -> None:
    """Content of a run folder, without names and times."""
    rows = read_rows(out / "metrics.csv")
    record.plain(f"{key}/rows", [list(row.values()) for row in rows])
    header = (out / "metrics.csv").read_text().splitlines()[0]
    record.plain(f"text/{key}/header", header)
    for name in ("last", "best"):
        path = out / f"{name}.safetensors"
        if path.exists():
            record.add(f"{key}/{name}", list(mr.load(path).state_dict().values()))
    tensors, content = read_checkpoint(out / "checkpoint.safetensors")
    for group, held in enumerate(tensors.values()):
        hashes = sorted(digest(exact(value).tobytes()) for value in held.values())
        record.plain(f"{key}/checkpoint/{group}", hashes)
    record.plain(f"{key}/steps", content["state"]["step"])
    settings = json.loads((out / "config.json").read_text())
    for part in ("model", "train"):
        record.plain(f"{key}/settings/{part}", unnamed(settings[part]))
    text = (out / "config.json").read_text()
    record.plain(f"text/{key}/settings", text.replace(str(out.parent), "FOLDER"))
    record.add(f"{key}/sheet", np.asarray(Image.open(out / "examples.png")))


def trained(record: Record, folder: Path) -> None:
    """Short runs: whole, stopped and resumed, with unannotated images, and from a model."""
    data = CocoDataset(write_scenes(folder / "data", 8, seed=1, size=96), folder / "data/images")
    judged = CocoDataset(write_scenes(folder / "val", 3, seed=2, size=96), folder / "val/images")
    write_scenes(folder / "more", 5, seed=3, size=96)
    augment = AugmentConfig(
        scale=(0.7, 1.3),
        rotation=20.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.05,
        copy_paste=0.7,
        copy_paste_choices=2,
    )
    config = TrainConfig(
        steps=8,
        batch_size=2,
        warmup=2,
        ema=0.9,
        checkpoint_every=1e-9,
        tensorboard=False,
        evaluate_every=1.0,
        augment=augment,
    )
    network = tiny_network(data)
    for key, stop in (("resumed", 3), ("whole", 0)):
        out = folder / key
        if stop:
            try:
                clock = Clock(out / "metrics.csv", stop)
                train(
                    network, data, val=judged, config=config, out=out, progress=False, clock=clock
                )
            except InterruptedError:
                record.plain(f"trained/{key}/stopped", len(read_rows(out / "metrics.csv")))
        train(
            network,
            data,
            val=judged,
            config=config,
            out=out,
            resume=True,
            progress=False,
            clock=Clock(),
        )
        add_run(record, f"trained/{key}", out)
    record.plain("trained/evaluation", judge(folder / "whole", judged))
    eager = UnlabeledConfig(
        ratio=1.0,
        burn_in=0.25,
        ramp=0.25,
        threshold=0.3,
        ignore_threshold=0.2,
        mask_threshold=0.0,
        keypoint_threshold=0.0,
    )
    config = replace(config, steps=6, unlabeled=eager, evaluate_every=9.0)
    out = folder / "teacher"
    given = {"unlabeled": folder / "more/images", "progress": False, "clock": Clock()}
    train(lively(tiny_network(data, "group")), data, config=config, out=out, **given)
    add_run(record, "trained/teacher", out)
    config = TrainConfig(
        steps=3,
        batch_size=1,
        accumulate=2,
        optimizer="sgd",
        schedule="step",
        learning_rate=0.01,
        dtype="bfloat16",
        activation_checkpointing=True,
        repeat_threshold=0.9,
        tensorboard=False,
        augment=AugmentConfig(flip_vertical=0.5, right_angles=True, crop=64),
    )
    few = CocoDataset(folder / "data/annotations.json", folder / "data/images")
    few = mr.merge_datasets([few.subset(range(3)), judged])
    record.plain("trained/merged", named(few.truth()))
    network = replace(tiny_network(few), neck=NeckConfig(channels=16, norm="batch"))
    out = folder / "continued"
    given = {"pretrained": folder / "whole", "progress": False, "clock": Clock()}
    train(network, few, config=config, out=out, **given)
    add_run(record, "trained/continued", out)


def judge(model: Any, data: Any) -> list[Any]:
    """The numbers of an evaluation; categories in their order, not by name."""
    evaluation = mr.evaluate(model, data)
    parts = (evaluation.bbox, evaluation.segm, evaluation.keypoints, evaluation.per_category)
    counts = (evaluation.num_images, evaluation.num_objects, evaluation.max_detections)
    return [unnamed(parts), counts]


# Data


def sample_content() -> dict[str, Any]:
    """COCO's dict with each form of annotation: polygons, holes, crowds, keypoints, lone boxes."""
    holed = np.zeros((HEIGHT, WIDTH), bool)
    holed[10:30, 50:70] = True
    holed[15:20, 55:62] = False
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[40:55, 5:75] = True
    triangle = [10.0, 10.0, 40.0, 12.0, 20.0, 45.0]
    parts = [
        [5.0, 5.0, 25.0, 5.0, 25.0, 20.0, 5.0, 20.0],
        [30.0, 30.0, 45.0, 30.0, 45.0, 50.0],
    ]
    crossing = [[50.0, 5.0, 70.0, 25.0, 70.0, 5.0, 50.0, 25.5]]
    spots = [22, 15, 2, 30, 20, 1, 15, 25, 2]
    images = [
        {"id": 70 + n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(4)
    ]
    figure = {"id": 9, "name": "figure", "keypoints": list(SPOTS), "skeleton": [[1, 2], [1, 3]]}
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": rle.counts(rle.encode(crowd)).tolist()}
    annotations: list[dict[str, Any]] = [
        {
            "image_id": 70,
            "category_id": 9,
            "bbox": [10, 10, 30, 35],
            "segmentation": [triangle],
            "keypoints": spots,
            "num_keypoints": 3,
        },
        {
            "image_id": 70,
            "category_id": 4,
            "bbox": [50, 10, 20, 20],
            "segmentation": rle.encode(holed),
            "area": 365,
        },
        {"image_id": 70, "category_id": 4, "segmentation": uncompressed, "iscrowd": 1},
        {"image_id": 71, "category_id": 4, "bbox": [5.5, 5.5, 20, 30]},
        {"image_id": 71, "category_id": 9, "keypoints": [40, 20, 2, 60, 30, 1, 0, 0, 0]},
        {"image_id": 71, "category_id": 4, "segmentation": parts, "keypoints": [], "ignore": 0},
        {"image_id": 73, "category_id": 4, "segmentation": crossing},
        {"image_id": 73, "category_id": 4, "bbox": [2, 30, 20, 20], "score": 0.5},
    ]
    return {
        "images": images,
        "categories": [figure, {"id": 4, "name": "box"}],
        "annotations": [{"id": n + 1, **entry} for n, entry in enumerate(annotations)],
    }


def write_sample(folder: Path, content: dict[str, Any]) -> Path:
    """The annotation file with its images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(content["images"]):
        if not (folder / image["file_name"]).exists():
            pixels = noise_image(number, (HEIGHT, WIDTH))
            Image.fromarray(pixels).save(folder / image["file_name"])
    path = folder / "sample.json"
    path.write_text(json.dumps(content))
    return path


def add_data(record: Record, key: str, data: CocoDataset) -> None:
    """Everything read from a dataset."""
    order = sorted(range(len(data)), key=lambda n: Path(data[n].file_name).name)
    for number, index in enumerate(order):
        one = data[index]
        record.array(f"{key}/{number}/pixels", data.image(index))
        size = (one.height, one.width)
        record.plain(f"{key}/{number}/size", size)
        for place, annotation in enumerate(one.annotations):
            at = f"{key}/{number}/objects/{place}"
            record.plain(f"{at}/label", annotation.label)
            record.plain(f"{at}/box", named(annotation.box))
            record.plain(f"{at}/numbers", named((annotation.area, annotation.mask_area)))
            record.plain(f"{at}/ignored", bool(annotation.ignore))
            if annotation.keypoints is not None:
                record.array(f"{at}/keypoints", np.asarray(annotation.keypoints))
            if annotation.polygons is not None:
                record.add(f"{at}/polygons", list(annotation.polygons))
            mask = annotation.rle
            if annotation.polygons:
                mask = fill(annotation.polygons, size)
            if mask is not None:
                record.array(f"{at}/mask", rle.decode(mask))
                record.plain(f"{at}/runs", rle.counts(mask).tolist())
    categories = [[c.keypoints, c.skeleton, c.flip, c.sigmas] for c in data.categories]
    record.plain(f"{key}/categories", named(categories))
    record.plain(f"{key}/truth", named(without_names(data.truth())))


def without_names(truth: dict[str, Any]) -> dict[str, Any]:
    """COCO's dict with bare file names."""
    images = [{**image, "file_name": Path(image["file_name"]).name} for image in truth["images"]]
    return {**truth, "images": images}


def converted(record: Record, folder: Path) -> None:
    """One COCO file, written in every format and read again."""
    path = write_sample(folder / "source", sample_content())
    add_data(record, "converted/source", mr.load_dataset(path))
    for name in FORMATS:
        out = folder / name
        losses = mr.convert_annotations(path, out, name).lost
        counts = [int(count) for count in re.findall(r" \((\d+)\): ", str(losses))]
        record.plain(f"converted/{name}/lost", counts)
        record.plain(f"text/converted/{name}/lost", str(losses))
        for file in sorted(p for p in out.rglob("*") if p.is_file()):
            told = f"text/converted/{name}/{file.relative_to(out).as_posix()}"
            record.plain(told, digest(file.read_bytes()))
        add_data(record, f"converted/{name}", mr.load_dataset(out))
    mr.convert_annotations(path, folder / "simple", "labelme", simplify=1.0)
    add_data(record, "converted/simple", mr.load_dataset(folder / "simple"))
    rng = np.random.default_rng(4)
    masks = np.kron(rng.random((6, 8, 10)) < 0.6, np.ones((4, 4), bool))
    for number, mask in enumerate(masks):
        found = trace(mask)
        record.add(f"converted/traced/{number}", found)
        record.add(f"converted/simplified/{number}", [simplify(ring, 1.5) for ring in found])
        record.plain(f"converted/filled/{number}", named(fill(found, mask.shape)))


def messy_content() -> dict[str, Any]:
    """The same data with typical errors of people and tools."""
    content = sample_content()
    square = [[20, 20, 40, 20, 40, 30, 20, 30]]
    nothing = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    three = [90, 5, 2, 2, 2, 2, 4, 4, 1]
    entries: list[dict[str, Any]] = [
        {"bbox": [70, 50, 20, 20], "area": 400},
        {"bbox": [30, 20, 900, 10], "segmentation": square},
        {"bbox": [40, 20, -20, 10], "segmentation": square},
        {"bbox": [40, 20, -20, 10]},
        {"bbox": [1, None, 3, 4], "segmentation": square},
        {"bbox": [40, 20, 0, 10]},
        {"category_id": 9, "bbox": [1, 1, 0, 0], "keypoints": [2, 2, 2, 0, 0, 0, 0, 0, 0]},
        {"bbox": [20, 20, 40, 30], "segmentation": square, "area": 1200},
        {"bbox": [200, 20, 4, 4]},
        {"bbox": [20, 20, 20, 10], "segmentation": square[0]},
        {"bbox": [20, 20, 20, 10], "segmentation": [*square, [1, 1, 5, 5]]},
        {"segmentation": [*square, [1, 1, 5]]},
        {"segmentation": nothing},
        {"segmentation": {"counts": nothing["counts"]}},
        {"segmentation": {"size": [5, 5], "counts": [20, 5]}},
        {"category_id": 9, "keypoints": three, "num_keypoints": 3},
        {"category_id": 9, "keypoints": [3, 5, 2, 2, 2, 2, 0, 0, 0], "num_keypoints": 17},
        {"category_id": 9, "keypoints": [3, 5, 2]},
        {"bbox": [20, 20, 20, 10], "segmentation": square, "area": 5000},
        {"bbox": [20, 20, 20, 10], "area": "large"},
        {"category_id": 77},
        {"image_id": 999, "bbox": [1, 1, 5, 5]},
        {"id": 0, "bbox": [2, 3, 8, 8]},
        {"id": None, "bbox": [3, 3, 8, 8]},
        {"id": 100, "bbox": [4, 3, 8, 8]},
        {"id": 130, "bbox": [30, 30, 9, 9]},
        {"id": 131, "bbox": [30, 30, 9, 9]},
        {"segmentation": [[95, 5, 110, 5, 110, 40]]},
        {"segmentation": [[70, 5, 100, 5, 100, 40]]},
    ]
    for number, entry in enumerate(entries):
        basis = {"id": 100 + number, "image_id": 71, "category_id": 4, "bbox": [1, 1, 5, 5]}
        content["annotations"].append({**basis, "attributes": {"shade": number}, **entry})
    images = content["images"]
    images += [
        {"id": 80, "file_name": "bare.png"},
        {"id": 81, "file_name": "turned.png", "height": WIDTH, "width": HEIGHT},
        {"id": 82, "file_name": "broken.png", "height": HEIGHT, "width": WIDTH},
        {"id": 83, "file_name": "missing.png", "height": HEIGHT, "width": WIDTH},
        {"id": 84, "file_name": "copy.png", "height": HEIGHT, "width": WIDTH},
        dict(images[1]),
        {"id": 72, "file_name": "3.png", "height": HEIGHT, "width": WIDTH},
    ]
    reach = {"id": 300, "image_id": 81, "category_id": 4, "bbox": [5, 5, 70, 40]}
    content["annotations"].append(reach)
    return content


def write_messy(folder: Path) -> Path:
    """The messy file with its images, of which one is truncated and one is missing."""
    content = messy_content()
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(noise_image(number, (HEIGHT, WIDTH))).save(folder / f"{number}.png")
    for name in ("bare", "turned"):
        Image.fromarray(noise_image(len(name) + 20, (HEIGHT, WIDTH))).save(folder / f"{name}.png")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8)).save(
        file, "png"
    )
    (folder / "broken.png").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    shutil.copy(folder / "0.png", folder / "copy.png")
    path = folder / "messy.json"
    path.write_text(json.dumps(content))
    return path


def add_findings(record: Record, key: str, findings: Any) -> None:
    """The problems, each kind as the number of its first appearance."""
    kinds: dict[str, int] = {}
    told = []
    for one in findings:
        kind = kinds.setdefault(one.kind, len(kinds))
        where = [int(number) for number in re.findall(r"\d+", one.where)]
        told.append([kind, one.is_error, one.annotation, one.image, where])
    record.plain(f"{key}/found", told)
    record.plain(f"{key}/kinds", len(kinds))
    record.plain(f"text/{key}/kinds", list(kinds))


def checked(record: Record, folder: Path) -> None:
    """A messy file checked and fixed, two good ones compared."""
    path = write_messy(folder / "messy")
    judged = write_sample(folder / "judged", sample_content())
    fixed = folder / "fixed.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = mr.check_dataset(path, val=judged, fix=fixed, progress=False)
    add_findings(record, "checked/messy", report.problems)
    add_findings(record, "checked/done", report.fixed.changes)
    add_findings(record, "checked/left", report.fixed.remaining)
    add_findings(record, "checked/judged", report.validation.problems)
    record.plain("checked/fixed", named(json.loads(fixed.read_text())))
    parts = [getattr(report.objects, f.name) for f in fields(report.objects)]
    record.add("checked/objects", [part for part in parts if isinstance(part, np.ndarray)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = mr.check_dataset(fixed, folder / "messy", progress=False)
    add_findings(record, "checked/again", again.problems)
    scenes = write_scenes(folder / "scenes", 6, seed=9, size=96)
    content = json.loads(scenes.read_text())
    record.plain("checked/scenes", named(content["annotations"]))
    first, second = split_dataset(mr.load_dataset(scenes, folder / "scenes/images"), 0.3, seed=3)
    for key, part in (("kept", first), ("held", second)):
        record.plain(f"checked/split/{key}", [part[n].image_id for n in range(len(part))])
    swapped = mr.check_dataset(swapped_content(), progress=False)
    add_findings(record, "checked/swapped", swapped.problems)
    page = folder / "page.html"
    report = mr.check_dataset(scenes, folder / "scenes/images", html=page, progress=False)
    add_findings(record, "checked/drawn", report.problems)
    text = page.read_text()
    record.plain("text/checked/page", digest(text.replace(str(folder), "FOLDER").encode()))
    corners = sample_content()
    rng = np.random.default_rng(0)
    low = rng.integers(0, 40, (30, 2))
    high = np.minimum(low + rng.integers(3, 20, (30, 2)), (WIDTH, HEIGHT))
    corners["annotations"] = [
        {"id": n + 1, "image_id": 70, "category_id": 4, "bbox": [*a, *b]}
        for n, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    ]
    report = mr.check_dataset(corners, fix=folder / "corners.json", progress=False)
    add_findings(record, "checked/corners", report.problems)
    record.plain("checked/cornered", named(json.loads((folder / "corners.json").read_text())))


def swapped_content() -> dict[str, Any]:
    """Eighty figures, of which one has left and right exchanged."""
    rng = np.random.default_rng(3)
    content = sample_content()
    content["annotations"] = []
    for number in range(80):
        x, y = rng.integers(5, 50, 2).tolist()
        spots = [x + 10, y - 4, 2, x + 20, y, 2, x, y, 2]
        if number == 23:
            spots = [x + 10, y - 4, 2, x, y, 2, x + 20, y, 2]
        basis = {"image_id": 70 + number % 4, "category_id": 9, "bbox": [x - 1, y - 5, 24, 9]}
        content["annotations"].append({"id": number + 1, **basis, "keypoints": spots})
    return content


def add_examples(record: Record, key: str, examples: TrainingSet) -> None:
    """Two batches, as the network gets them."""
    for number in range(2):
        drawn = [examples.example(index, 40 * number + index) for index in (0, 2 + number)]
        batch, truth = collate(drawn, 32)
        record.add(f"{key}/{number}/batch", batch)
        record.add(f"{key}/{number}/truth", truth)


def learned_from(record: Record, folder: Path) -> None:
    """Training examples, with and without augmentation, and annotations of some categories only."""
    path = write_scenes(folder / "data", 6, seed=4, size=128)
    data = CocoDataset(path, folder / "data/images")
    model = tiny_network(data)
    plans = {
        "plain": None,
        "usual": AugmentConfig(),
        "strong": AugmentConfig(
            flip_horizontal=0.5,
            flip_vertical=0.5,
            right_angles=True,
            rotation=45.0,
            scale=(0.3, 2.0),
            crop=96,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            copy_paste=1.0,
            copy_paste_choices=3,
        ),
    }
    for name, augment in plans.items():
        add_examples(record, f"examples/{name}", TrainingSet(data, model, augment))
    sheet = mr.draw_examples(data, model, TrainConfig(augment=AugmentConfig(copy_paste=0.5)), 4)
    record.add("examples/sheet", sheet)
    content = sample_content()
    content["images"][0]["neg_category_ids"] = [4]
    content["images"][1]["neg_category_ids"] = [4]
    content["images"][1]["not_exhaustive_category_ids"] = [9]
    partial = CocoDataset(write_sample(folder / "partial", content), folder / "partial")
    examples = TrainingSet(partial, tiny_network(partial), AugmentConfig(rotation=10.0))
    add_examples(record, "examples/partial", examples)
    looked_for = [partial.labeled(n) for n in range(len(partial))]
    record.plain("examples/looked_for", [None if s is None else sorted(s) for s in looked_for])
    deep = folder / "deep"
    deep.mkdir()
    images = []
    for number in range(3):
        values = np.random.default_rng(number).normal(900, 120, (48, 64)).clip(0, 65535)
        Image.fromarray(values.astype(np.uint16)).save(deep / f"{number}.png")
        entry = {"id": number + 1, "file_name": f"{number}.png", "height": 48, "width": 64}
        images.append(entry)
    box = {"category_id": 1, "bbox": [5, 5, 20, 12]}
    boxes = [{"id": n + 1, "image_id": n + 1, **box} for n in range(3)]
    whole = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    data = CocoDataset(whole, deep)
    record.plain("examples/deep/range", data.intensity_range())
    record.array("examples/deep/pixels", data.image(1, data.intensity_range()))


def chosen(record: Record, folder: Path) -> None:
    """Recipes for several data, initial weights and machines."""
    path = write_scenes(folder / "data", 12, seed=5, size=128)
    data = CocoDataset(path, folder / "data/images")
    sample = CocoDataset(write_sample(folder / "sample", sample_content()), folder / "sample")
    wanted: dict[str, tuple[CocoDataset, dict[str, Any]]] = {
        "plain": (data, {}),
        "large": (data, {"model": "maskrcnn_r50_fpn", "memory": 3.0}),
        "little_memory": (data, {"memory": 1.2}),
        "timed": (data, {"max_time": 600.0, "settings": {"augment.crop": 96, "batch_size": 2}}),
        "sample": (sample, {}),
        "detector": (sample, {"pretrained": "nuclei"}),
    }
    for name, (given, more) in wanted.items():
        found = mr.choose_recipe(given, device="cpu", **{"memory": 8.0, **more})
        record.plain(f"recipe/{name}/model", unnamed(to_dict(found.model)))
        record.plain(f"recipe/{name}/training", unnamed(to_dict(found.training)))
        values = [value for _, value, _ in found.reasons]
        record.plain(f"recipe/{name}/values", unnamed(named(values)))
        record.plain(f"text/recipe/{name}", str(found))


def judged(record: Record, folder: Path) -> None:
    """Evaluation of synthetic results."""
    path = write_scenes(folder / "data", 6, seed=6, size=128)
    truth = json.loads(path.read_text())
    rng = np.random.default_rng(8)
    results = []
    for entry in truth["annotations"]:
        for _ in range(int(rng.integers(1, 4))):
            shift = rng.normal(0, 3, 4)
            mask = np.roll(rle.decode(entry["segmentation"]), rng.integers(-3, 4, 2), axis=(0, 1))
            box = np.add(entry["bbox"], shift).clip(1).round(2).tolist()
            category = int(entry["category_id"])
            found = {"image_id": entry["image_id"], "category_id": category, "bbox": box}
            found |= {"segmentation": rle.encode(mask), "score": float(rng.random())}
            if entry.get("keypoints"):
                spots = np.array(entry["keypoints"], float).reshape(-1, 3)
                spots[:, :2] += rng.normal(0, 2, (len(spots), 2))
                spots[:, 2] = rng.random(len(spots))
                found["keypoints"] = spots.reshape(-1).tolist()
            results.append(found)
    results.append({**next(r for r in results if "keypoints" not in r), "score": 0.99})
    record.plain("judged/whole", judge(results, truth))
    truth["images"][0]["neg_category_ids"] = [1]
    truth["images"][1]["not_exhaustive_category_ids"] = [4, 2]
    truth["annotations"][3]["iscrowd"] = 1
    record.plain("judged/partial", judge(results, truth))
    found = mr.evaluate(results, truth, max_detections=7, out=folder / "out")
    record.plain("judged/few", unnamed(found.to_dict()))
    record.plain("judged/results", named(json.loads((folder / "out/results.json").read_text())))
    model = lively(tiny_network(CocoDataset(path, folder / "data/images"))).eval()
    data = mr.load_dataset(path, folder / "data/images")
    record.plain("judged/model", judge(model, data))


def ranked(record: Record, folder: Path) -> None:
    """The order in which to annotate images."""
    path = write_scenes(folder / "data", 9, seed=7, size=96)
    data = CocoDataset(path, folder / "data/images")
    config = tiny_network(data)
    model = lively(replace(config, box=replace(config.box, score_threshold=0.2))).eval()
    files = folder / "data/images"
    first = sorted(files.iterdir())[0]
    Image.open(first).resize((120, 120)).save(files / "z.png")
    Image.fromarray(np.zeros((96, 96, 3), np.uint8) + 90).save(files / "y.png")
    for name, known in (("all", None), ("some", data.subset([1, 4]))):
        ranking = mr.rank_images(model, files, labeled=known)
        rows = []
        for one in ranking:
            values = [getattr(one, f.name) for f in fields(one)]
            rows.append([value for value in values if not isinstance(value, Path)])
        record.plain(f"ranked/{name}", rows)
        ranking.write(folder / "ranking.csv")
        record.plain(f"text/ranked/{name}", (folder / "ranking.csv").read_text())


SECTIONS: dict[str, Callable[[Record, Path], None]] = {
    "recipe": chosen,  # first: the program's own memory, which later sections enlarge, counts
    "networks": networks,
    "predictions": predictions,
    "foreign_files": foreign_files,
    "trained": trained,
    "converted": converted,
    "checked": checked,
    "examples": learned_from,
    "judged": judged,
    "ranked": ranked,
}


def main(out: Path, wanted: list[str]) -> None:
    """Makes the record, or some sections of it."""
    print(f"maskrcnn {mr.__file__}", flush=True)
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MASKRCNN_HOME"] = str(Path(folder) / "home")
        for name in wanted or SECTIONS:
            start = time.monotonic()
            place = Path(folder) / name
            place.mkdir()
            SECTIONS[name](record, place)
            print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
    record.write(out)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(Path(sys.argv[1]), sys.argv[2:])
