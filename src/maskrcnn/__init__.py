"""Mask R-CNN: boxes, categories, pixel masks and keypoints of every object, from one joint model.

    import maskrcnn as mr

    model = mr.load("nuclei")
    result = mr.predict(model, "cells.png")

The names below are the public interface. They are imported on first use, so that `import maskrcnn`
is fast. Other names can be imported from their modules but may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .active_learning.rank import Ranking, rank_images
    from .annotations.annotation import Annotation
    from .annotations.coco_dataset import CocoDataset, Record
    from .annotations.merge import merge_datasets
    from .annotations.problems import DataError, DataWarning
    from .annotations.split import split_dataset
    from .augmentation.augment import AugmentedView
    from .augmentation.loader import TrainingLoader
    from .augmentation.own_augmentation import Augmentation
    from .augmentation.training_set import TrainingSet
    from .cluster.collect_parts import collect_parts
    from .cluster.dataset_summary import DatasetSummary
    from .cluster.predict_dataset import predict_dataset
    from .config import (
        AugmentConfig,
        BoxHeadConfig,
        BoxMaskConfig,
        Category,
        InputConfig,
        KeypointHeadConfig,
        MaskHeadConfig,
        ModelConfig,
        NeckConfig,
        RoIConfig,
        RPNConfig,
        TrainConfig,
        TrunkConfig,
        UnlabeledConfig,
    )
    from .dataset_checks.check_dataset import check_dataset
    from .dataset_checks.check_report import CheckReport
    from .draw.overlay import draw_instances
    from .evaluation.evaluate import Evaluation, evaluate
    from .export.certify import ExportMismatchError
    from .export.export_model import export_model
    from .formats.all_formats import register_format
    from .formats.convert import ConversionReport, convert_annotations
    from .formats.load_dataset import load_dataset
    from .images.image_files import image_files
    from .images.read import ImageError
    from .instances.instances import Instances
    from .model.extra_head import ExtraHead, MatchedRoIs
    from .model.maskrcnn import MaskRCNN
    from .prediction.optimize import optimize_for_inference
    from .prediction.predict_files import predict_files
    from .prediction.predictor import Predictor, predict
    from .presets import (
        joint_r50_fpn,
        keypointrcnn_r50_fpn,
        maskrcnn_r18_small,
        maskrcnn_r50_c4,
        maskrcnn_r50_fpn,
        maskrcnn_r50_fpn_torchvision,
        maskrcnn_r50_fpn_v2_torchvision,
        maskrcnn_r101_fpn,
    )
    from .recipe.recipe import Recipe, choose_recipe
    from .runtime.atomic_files import WriteError
    from .runtime.interruption import Interrupted
    from .settings import override_config
    from .structures import Batch, Detections, Proposals, Truth
    from .training.callback import ActiveRun, Callback
    from .training.examples import draw_examples
    from .training.fit import Run, train
    from .training.learner import NonFiniteLossError
    from .training.plan import TrainingPlan, plan_training
    from .training.sampler import BatchPlan
    from .training.trackers import MLflowLog, TrackioLog, WandbLog
    from .weights.download import DownloadError
    from .weights.load import load, save
    from .weights.pickles import WeightsError

__all__ = [
    "ActiveRun",
    "Annotation",
    "AugmentConfig",
    "Augmentation",
    "AugmentedView",
    "Batch",
    "BatchPlan",
    "BoxHeadConfig",
    "BoxMaskConfig",
    "Callback",
    "Category",
    "CheckReport",
    "CocoDataset",
    "ConversionReport",
    "DataError",
    "DataWarning",
    "DatasetSummary",
    "Detections",
    "DownloadError",
    "Evaluation",
    "ExportMismatchError",
    "ExtraHead",
    "ImageError",
    "InputConfig",
    "Instances",
    "Interrupted",
    "KeypointHeadConfig",
    "MLflowLog",
    "MaskHeadConfig",
    "MaskRCNN",
    "MatchedRoIs",
    "ModelConfig",
    "NeckConfig",
    "NonFiniteLossError",
    "Predictor",
    "Proposals",
    "RPNConfig",
    "Ranking",
    "Recipe",
    "Record",
    "RoIConfig",
    "Run",
    "TrackioLog",
    "TrainConfig",
    "TrainingLoader",
    "TrainingPlan",
    "TrainingSet",
    "TrunkConfig",
    "Truth",
    "UnlabeledConfig",
    "WandbLog",
    "WeightsError",
    "WriteError",
    "__version__",
    "check_dataset",
    "choose_recipe",
    "collect_parts",
    "convert_annotations",
    "draw_examples",
    "draw_instances",
    "evaluate",
    "export_model",
    "image_files",
    "joint_r50_fpn",
    "keypointrcnn_r50_fpn",
    "load",
    "load_dataset",
    "maskrcnn_r18_small",
    "maskrcnn_r50_c4",
    "maskrcnn_r50_fpn",
    "maskrcnn_r50_fpn_torchvision",
    "maskrcnn_r50_fpn_v2_torchvision",
    "maskrcnn_r101_fpn",
    "merge_datasets",
    "optimize_for_inference",
    "override_config",
    "plan_training",
    "predict",
    "predict_dataset",
    "predict_files",
    "rank_images",
    "register_format",
    "save",
    "split_dataset",
    "train",
]

# Where each public name is at run time. tests/test_typed_face.py compares this table with the
# imports above, which are what a type checker reads.
_NAMES = {
    "config": (
        "AugmentConfig",
        "BoxHeadConfig",
        "BoxMaskConfig",
        "Category",
        "InputConfig",
        "KeypointHeadConfig",
        "MaskHeadConfig",
        "ModelConfig",
        "NeckConfig",
        "RPNConfig",
        "RoIConfig",
        "TrainConfig",
        "TrunkConfig",
        "UnlabeledConfig",
    ),
    "settings": ("override_config",),
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
    "structures": ("Batch", "Detections", "Proposals", "Truth"),
    "instances.instances": ("Instances",),
    "draw.overlay": ("draw_instances",),
    "images.image_files": ("image_files",),
    "images.read": ("ImageError",),
    "model.maskrcnn": ("MaskRCNN",),
    "prediction.optimize": ("optimize_for_inference",),
    "annotations.annotation": ("Annotation",),
    "annotations.coco_dataset": ("CocoDataset", "Record"),
    "annotations.merge": ("merge_datasets",),
    "annotations.problems": ("DataError", "DataWarning"),
    "annotations.split": ("split_dataset",),
    "dataset_checks.check_dataset": ("check_dataset",),
    "dataset_checks.check_report": ("CheckReport",),
    "formats.convert": ("ConversionReport", "convert_annotations"),
    "formats.load_dataset": ("load_dataset",),
    "weights.download": ("DownloadError",),
    "weights.load": ("load", "save"),
    "weights.pickles": ("WeightsError",),
    "prediction.predict_files": ("predict_files",),
    "prediction.predictor": ("Predictor", "predict"),
    "cluster.collect_parts": ("collect_parts",),
    "cluster.dataset_summary": ("DatasetSummary",),
    "cluster.predict_dataset": ("predict_dataset",),
    "active_learning.rank": ("Ranking", "rank_images"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "export.certify": ("ExportMismatchError",),
    "export.export_model": ("export_model",),
    "recipe.recipe": ("Recipe", "choose_recipe"),
    "training.examples": ("draw_examples",),
    "training.fit": ("Run", "train"),
    "training.plan": ("TrainingPlan", "plan_training"),
    "training.learner": ("NonFiniteLossError",),
    "training.callback": ("ActiveRun", "Callback"),
    "training.trackers": ("MLflowLog", "WandbLog", "TrackioLog"),
    "runtime.interruption": ("Interrupted",),
    "runtime.atomic_files": ("WriteError",),
    "augmentation.loader": ("TrainingLoader",),
    "augmentation.training_set": ("TrainingSet",),
    "training.sampler": ("BatchPlan",),
    "model.extra_head": ("ExtraHead", "MatchedRoIs"),
    "augmentation.own_augmentation": ("Augmentation",),
    "augmentation.augment": ("AugmentedView",),
    "formats.all_formats": ("register_format",),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker knows the imports above, and reports any other name

    def __getattr__(name: str) -> object:
        if name not in _MODULE:
            raise AttributeError(
                f"module 'maskrcnn' has no attribute {name!r}; it has {', '.join(sorted(_MODULE))}"
            )
        module = import_module(f"{__name__}.{_MODULE[name]}")
        return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
