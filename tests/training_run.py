"""A training small enough to be killed many times: synthetic 64-px scenes, a network with few channels.

`main` runs one in this process, `by_two_nodes` each by two processes on two nodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import AugmentConfig, ModelConfig, TrainConfig, UnlabeledConfig
from maskrcnn.presets import maskrcnn_r18_small

SIDE = 64


def draw(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` images, each with a rectangle (box and mask) and a stick (box and two keypoints); the annotation file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    images, annotations = [], []
    for i in range(count):
        image = Image.new("RGB", (SIDE, SIDE), (40, 60, 80))
        pen = ImageDraw.Draw(image)
        x, y, w, h = (int(v) for v in torch.randint(8, 28, (4,), generator=random))
        pen.rectangle([x, y, x + w - 1, y + h - 1], fill=(220, 90, 60))
        u, v, length = (int(v) for v in torch.randint(16, 30, (3,), generator=random))
        pen.line([(u, v), (u + length, v + length)], fill=(250, 240, 120), width=3)
        image.save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        stick = {
            "bbox": [u, v, length, length],
            "area": length**2,
            "keypoints": [u, v, 2, u + length, v + length, 2],
            "num_keypoints": 2,
        }
        objects = [
            {"category_id": 1, "bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]},
            {"category_id": 2, **stick},
        ]
        annotations += [
            {"id": 2 * i + k + 1, "image_id": i + 1, "iscrowd": 0, **a}
            for k, a in enumerate(objects)
        ]
    categories = [
        {"id": 1, "name": "card"},
        {"id": 2, "name": "stick", "keypoints": ["top", "end"], "skeleton": [[1, 2]]},
    ]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def tiny_model(data: CocoDataset, norm: Any = "batch") -> ModelConfig:
    """Mask, keypoint and box heads of a few channels: a step takes milliseconds."""
    config = maskrcnn_r18_small(data.categories)
    assert config.mask
    assert config.keypoint
    head = "none" if norm == "frozen" else norm
    return replace(
        config,
        trunk=replace(config.trunk, stem_channels=8, res2_channels=8, norm=norm),
        neck=replace(config.neck, channels=8, norm=head),
        rpn=replace(
            config.rpn,
            sizes=((8,), (16,), (32,), (64,), (128,)),
            convs=(8,),
            pre_nms_train=60,
            post_nms_train=30,
            post_nms_test=20,
            samples=32,
        ),
        box=replace(config.box, fcs=(16,), samples=200, max_detections=10),
        mask=replace(
            config.mask, convs=(8,), upsample=(8,), norm=head, max_positives=4, truth_size=28
        ),
        keypoint=replace(config.keypoint, convs=(8,), norm=head, max_positives=4),
    )


def tiny_config(**changes: Any) -> TrainConfig:
    """A dozen steps that change every kind of state."""
    augment = AugmentConfig(flip_horizontal=0.5, scale=(0.8, 1.2), brightness=0.2)
    config = TrainConfig(
        steps=16,
        batch_size=2,
        warmup=4,
        checkpoint_every=1e-9,
        tensorboard=False,
        evaluate_every=2.0,
        augment=augment,
    )
    return replace(config, **changes)


def weights_of(path: Path) -> str:
    """A hash over the tensors of a safetensors file, not over its header."""
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for key in sorted(file.keys()):
            digest.update(key.encode() + file.get_tensor(key).tobytes())
    return digest.hexdigest()


def main(settings: dict[str, Any]) -> None:
    """Trains as `settings` say: data, validation, out, resume, norm, unlabeled (a folder), unlabeled_config; TrainConfig fields under train."""
    from maskrcnn.training.fit import train

    data = CocoDataset(settings["data"])
    validation = CocoDataset(settings["validation"]) if settings.get("validation") else None
    config = tiny_config(
        **{
            k: AugmentConfig(**v) if k == "augment" else v
            for k, v in settings.get("train", {}).items()
        }
    )
    config = replace(config, unlabeled=UnlabeledConfig(**settings.get("unlabeled_config", {})))
    model = tiny_model(data, settings.get("norm", "batch"))
    options = {
        "resume": settings.get("resume", False),
        "progress": False,
        "device": "cpu",
        "unlabeled": settings.get("unlabeled"),
    }
    train(model, data, val=validation, config=config, out=settings["out"], **options)


def by_two_nodes(trainings: list[dict[str, Any]]) -> None:
    """Trains by two processes on two nodes, as `torchrun --nnodes=2 --rdzv-endpoint=127.0.0.1:PORT` on each of them does.

    The agents are forked instead of importing everything four times. For `fresh_process`.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="nodes",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        start_method="fork",
        monitor_interval=0.05,
    )
    other = os.fork()
    status = 1
    try:
        elastic_launch(config, train_together)(trainings)
        status = 0
    finally:
        if other == 0:
            os._exit(status)
        assert os.waitpid(other, 0)[1] == 0


def train_together(trainings: list[dict[str, Any]]) -> None:
    for settings in trainings:
        main(settings)
    torch.distributed.destroy_process_group()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(count: int, work: Callable[[int], int]) -> list[int]:
    """Forks processes that train together; each exits with what `work(rank)` returns. Their ids."""
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(shared | {"RANK": str(rank)})
                status = work(rank)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


def statuses(children: list[int]) -> list[int]:
    """The exit statuses of forked processes, once they have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
