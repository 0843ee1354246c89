"""Certificates of exported files at full size: `python -m benchmarks.certificates [name ...]`.

Every kind of network that the package builds, with all its layers and channels, becomes a file that
is compared with its model on images of 800 px. Stores the rows in results/certificates.json and
writes the table of docs/deploy.md; models that are not named keep their rows.

Weights are random, and `calibrate` gives every layer that predicts the spread of a trained one: the
models return 100 detections, but many scores are nearly equal, which is harder than in trained ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import maskrcnn as mr
from maskrcnn.config import ModelConfig, TrunkConfig
from maskrcnn.export.certificate import Certificate
from maskrcnn.export.certify import certify
from maskrcnn.export.export_model import FORMATS
from maskrcnn.export.made_images import ImageGroup, draw_blobs

from . import page
from .timing import machine


def person_and_others() -> list[mr.Category | str]:
    """80 categories, of which one has 17 keypoints."""
    person = mr.Category("person", 1, keypoints=tuple(f"keypoint {i + 1}" for i in range(17)))
    return [person, *(f"category {i}" for i in range(2, 81))]


def c4() -> ModelConfig:
    """ResNet-50-C4 with the paper's 300 proposals."""
    config = mr.maskrcnn_r50_c4(80)
    return replace(config, rpn=replace(config.rpn, post_nms_test=300))


def dc5() -> ModelConfig:
    """ResNet-50-DC5 with one mask for all categories."""
    config = mr.maskrcnn_r50_fpn(80)
    return replace(
        config,
        neck=replace(config.neck, kind="dc5"),
        rpn=replace(config.rpn, sizes=((32, 64, 128, 256, 512),)),
        mask=config.mask and replace(config.mask, class_agnostic=True),
    )


def timm_soft() -> ModelConfig:
    """FPN on timm's EfficientNet-Lite0, Soft-NMS, one box for all categories."""
    config = mr.maskrcnn_r50_fpn(80)
    return replace(
        config,
        trunk=TrunkConfig(timm="efficientnet_lite0", norm="batch", frozen_stages=0),
        box=replace(config.box, nms="soft", class_agnostic=True),
    )


MODELS: dict[str, tuple[str, str, Callable[[], ModelConfig]]] = {
    "r50_fpn.xml": (
        "ResNet-50-FPN, masks and keypoints",
        "OpenVINO",
        lambda: mr.joint_r50_fpn(person_and_others()),
    ),
    "v2.onnx": (
        "torchvision's `resnet50_fpn_v2`",
        "ONNX",
        lambda: mr.maskrcnn_r50_fpn_v2_torchvision(90),
    ),
    "timm.onnx": ("timm's EfficientNet-Lite0, FPN, Soft-NMS", "ONNX", timm_soft),
    "dc5.onnx": ("ResNet-50-DC5, one mask for all categories", "ONNX", dc5),
    "c4.onnx": ("ResNet-50-C4", "ONNX", c4),
    "r50_fpn.pt2": (
        "ResNet-50-FPN, masks and keypoints",
        ".pt2",
        lambda: mr.joint_r50_fpn(person_and_others()),
    ),
}
"""File: model, format, configuration."""


def groups() -> list[ImageGroup]:
    """An image beside an empty one, both 800 x 1066 in the network."""
    size = (300, 400)
    return [ImageGroup("one of two empty", [draw_blobs(size, 2), np.zeros((*size, 3), np.uint8)])]


@torch.no_grad()
def calibrate(model: mr.MaskRCNN, image: np.ndarray) -> None:
    """Scales the layers that predict, one after the other, to the spread of a trained network."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    if model.config.input.resize == "torch":  # such models take normalized pixels
        pixels = pixels / 64 - 2
    batch = mr.Predictor(model, exact=True).collate(pixels[None], [torch.eye(3)])
    rpn = model.rpn
    box = model.box_head

    pyramid = model.pyramid(batch)
    logits, deltas = rpn(pyramid.levels)
    _spread(rpn.objectness, _channels(logits, rpn.objectness), 2.0)
    _spread(rpn.deltas, _channels(deltas, rpn.deltas), 0.3)

    heads: list[tuple[nn.Module, float, int]] = [
        (box.class_logits, 2.5, 0),
        (box.box_deltas, 1.0, 1),
    ]
    for layer, spread, number in heads:
        with _result_of(box) as results:
            model.detect(pyramid, batch)
        values = results[0][number]
        _spread(layer, values.reshape(len(values), -1), spread)

    detections = model.detect(pyramid, batch)
    boxes = detections.boxes[0, detections.valid[0]]
    labels = detections.labels[0, detections.valid[0]]
    where = torch.zeros_like(labels)
    if model.mask_head is not None:
        own = model.predict_masks(pyramid, boxes, labels, where).logit().clamp(-1e4, 1e4)
        model.mask_head.logits.weight.mul_(3.0 / own.std())
    if model.keypoint_head is not None:
        maps = model.predict_heatmaps(pyramid, boxes, where)
        model.keypoint_head.heatmaps.weight.mul_(3.0 / maps.std())


@contextmanager
def _result_of(part: nn.Module) -> Iterator[list[Any]]:
    results: list[Any] = []
    hook = part.register_forward_hook(lambda *call: results.append(call[2]))
    try:
        yield results
    finally:
        hook.remove()


def _channels(levels: list[Tensor], layer: nn.Module) -> Tensor:
    """Outputs of all anchors [n, channels of the layer]."""
    return torch.cat([level.reshape(-1, layer.out_channels) for level in levels])


def _spread(layer: Any, values: Tensor, spread: float) -> None:
    """Gives the outputs of a layer mean 0 and a standard deviation."""
    mean = values.mean(dim=0)
    factor = spread / (values - mean).std()
    layer.weight.mul_(factor)
    layer.bias.copy_(factor * (layer.bias - mean))


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The row of a model; a file that is in the folder is certified again, and not exported."""
    text, form, config = MODELS[name]
    path = folder / name
    weights = path.with_suffix(".safetensors")
    is_old = path.exists() and weights.exists()
    if is_old:
        model = mr.load(weights)
        exported = time.perf_counter()
    else:
        torch.manual_seed(0)
        model = mr.MaskRCNN.from_config(config()).eval()
        calibrate(model, groups()[0].images[0])
        mr.save(model, weights)
        exported = time.perf_counter()
        mr.export_model(model, path, certificate=False)
    start = time.perf_counter()
    found, _ = certify(path, model, FORMATS[path.suffix], groups=groups(), show_progress=False)
    seconds = time.perf_counter() - start

    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    megabytes = sum(part.stat().st_size for part in parts) / 1e6
    row = {"model": text, "format": form, "file, MB": megabytes, **row_of(found)}
    return row | {"s": seconds, "export s": "" if is_old else start - exported}


def row_of(certificate: Certificate) -> dict[str, Any]:
    """The figures of a certificate."""
    total = certificate.total
    return {
        "objects": total.matched,
        "boxes, px": total.boxes,
        "scores": total.scores,
        "masks, IoU": total.mask_iou if certificate.has_masks else "",
        "keypoints, px": total.keypoints if certificate.has_keypoints else "",
        "without counterpart": sum(total.unmatched.values()),
        "reasons": dict(total.unmatched),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certificates", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--folder", type=Path, help="keeps the files, and certifies those there")
    given = parser.parse_args()
    if unknown := set(given.names) - {*MODELS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MODELS)}")

    stored = page.RESULTS / "certificates.json"
    for name in given.names or MODELS:
        before = json.loads(stored.read_text())["measured"] if stored.exists() else {}
        with tempfile.TemporaryDirectory() as temporary:
            row = measure(name, given.folder or Path(temporary))
        print(name, row, file=sys.stderr, flush=True)

        rows = {n: row if n == name else before[n] for n in MODELS if n == name or n in before}
        result = {
            "command": "python -m benchmarks.certificates",
            "taken s": round(sum(row["s"] + (row["export s"] or 0) for row in rows.values())),
            "machine": machine(),
            "rows": list(rows.values()),
            "measured": rows,
        }
        stored.write_text(json.dumps(result, indent=1) + "\n")
        page.refresh()


if __name__ == "__main__":
    main()
