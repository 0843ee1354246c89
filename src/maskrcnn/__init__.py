"""Mask R-CNN: boxes, categories, pixel masks and keypoints of every object, from one jointly trained model.

The public names are loaded on first use, so that `import maskrcnn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .version import __version__

_HOMES = {
    "config": ("Category", "ModelConfig", "TrainConfig", "AugmentConfig"),
    "presets": (
        "maskrcnn_r50_fpn",
        "maskrcnn_r101_fpn",
        "maskrcnn_r50_c4",
        "keypointrcnn_r50_fpn",
        "joint_r50_fpn",
        "maskrcnn_r50_fpn_torchvision",
        "maskrcnn_r50_fpn_v2_torchvision",
        "maskrcnn_r18_small",
    ),
    "structures": ("Batch", "Truth", "Proposals", "Detections"),
    "instances": ("Instances",),
    "model.maskrcnn": ("MaskRCNN",),
    "model.optimize": ("optimize_for_inference",),
    "annotations.coco_dataset": ("CocoDataset",),
    "annotations.merge": ("merge_datasets",),
    "dataset_checks.check_dataset": ("check_dataset",),
    "formats.load_dataset": ("load_dataset",),
    "formats.convert": ("convert_annotations",),
    "weights.load": ("load", "load_trunk", "save"),
    "prediction.predictor": ("predict",),
    "active_learning.rank": ("rank_images",),
    "evaluation.evaluate": ("evaluate",),
    "training.fit": ("train",),
    "recipe.recipe": ("choose_recipe",),
    "training.examples": ("draw_examples",),
    "runtime.keep_memory": ("keep_memory",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'maskrcnn' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}"
        )
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
