"""Mask R-CNN: boxes, categories, pixel masks and keypoints of every object, from one jointly trained model.

The public names are loaded on first use, so that `import maskrcnn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": ("Category", "ModelConfig", "TrainConfig", "AugmentConfig"),
    "presets": (
        "maskrcnn_r50_fpn",
        "maskrcnn_r101_fpn",
        "maskrcnn_r50_c4",
        "keypointrcnn_r50_fpn",
        "joint_r50_fpn",
        "torchvision_v1",
        "torchvision_v2",
        "maskrcnn_r18_small",
    ),
    "structures": ("Batch", "Truth", "Proposals", "Detections"),
    "instances": ("Instances",),
    "model.maskrcnn": ("MaskRCNN",),
    "model.fuse": ("optimize",),
    "data.coco": ("CocoDataset",),
    "data.merge": ("merge",),
    "doctor.check": ("check",),
    "formats.open": ("open_data",),
    "formats.convert": ("convert",),
    "weights.load": ("load", "load_trunk", "save"),
    "prediction.predictor": ("predict",),
    "prediction.rank": ("rank",),
    "evaluation.coco": ("evaluate",),
    "training.fit": ("train",),
    "training.recipe": ("recipe",),
    "training.examples": ("draw_examples",),
    "ops.allocation": ("keep_memory",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maskrcnn' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
