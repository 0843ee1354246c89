"""A tiny model with many detections, and a folder of tiny images of several shapes, one of them broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import tiny_config
from PIL import Image

import maskrcnn as mr

SHAPES = ((48, 64), (64, 48), (48, 64), (32, 80), (64, 64), (48, 64), (64, 48), (50, 50))
BROKEN = "b/broken.png"
MIN_SCORE = 0.2


def tiny_model(keypoints: int = 2) -> mr.MaskRCNN:
    torch.manual_seed(0)
    config = tiny_config(3, keypoints)
    config = replace(config, input=replace(config.input, min_size=64, max_size=96))
    return mr.MaskRCNN.from_config(config).eval()


def write_images(folder: Path, count: int = len(SHAPES), broken: bool = True) -> Path:
    """Images in two folders, in file formats that differ, and one that is no image."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for n in range(count):
        pixels = generator.integers(0, 256, (*SHAPES[n % len(SHAPES)], 3), dtype=np.uint8)
        path = folder / ("a" if n % 2 else "b") / f"{n:02d}.{'png' if n % 3 else 'tif'}"
        Image.fromarray(pixels).save(path)
    if broken:
        (folder / BROKEN).write_bytes(b"no image")
        (folder / "a" / "notes.docx").write_bytes(b"left out")
    return folder


def results_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "results.json").read_text())
