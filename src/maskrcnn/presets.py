"""Ready-made model configurations: the paper's, torchvision's, and a small one for small data.

In:  the categories (a count, names, or `Category` objects) and, for a skeleton, the keypoints
     (a count or names).
Out: a `ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from .config import (
    BoxHeadConfig,
    Category,
    InputConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    NeckConfig,
    RoIConfig,
    RPNConfig,
    TrunkConfig,
)

# The presets that take the categories of any data set.
Preset = Literal[
    "maskrcnn_r18_small",
    "maskrcnn_r50_fpn",
    "maskrcnn_r101_fpn",
    "maskrcnn_r50_c4",
    "maskrcnn_r50_fpn_torchvision",
    "maskrcnn_r50_fpn_v2_torchvision",
]

# RGB on a scale of 0..1, as torchvision normalizes images for all its models.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_categories(
    categories: int | Sequence[str | Category], keypoints: int | Sequence[str] = ()
) -> tuple[Category, ...]:
    """Makes categories from a count or names; `Category` objects are kept as they are.

    Args:
        categories: how many (they are named "1", "2", ...), or names, or `Category` objects.
        keypoints: how many, or their names; each new category gets all of them.
    """
    if isinstance(categories, int):
        categories = [str(i + 1) for i in range(categories)]
    if isinstance(keypoints, int):
        keypoints = [f"keypoint {j}" for j in range(keypoints)]

    names = tuple(keypoints)
    return tuple(
        c if isinstance(c, Category) else Category(c, i + 1, keypoints=names)
        for i, c in enumerate(categories)
    )


def _with_keypoints(config: ModelConfig, **settings: Any) -> ModelConfig:
    """Adds the paper's keypoint head if a category has a skeleton."""
    if config.num_keypoint_channels == 0:
        return config
    return replace(config, keypoint=KeypointHeadConfig(**settings))


def maskrcnn_r50_fpn(
    num_classes: int | Sequence[str | Category] = 80, keypoints: int | Sequence[str] = ()
) -> ModelConfig:
    """Returns the paper's ResNet-50-FPN with a box head and a mask head.

    A keypoint head is added if `keypoints` is given or a category has a skeleton.

    Args:
        num_classes: how many categories, or their names, or `Category` objects.
        keypoints: how many keypoints each category has, or their names.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r50_fpn(["cat", "dog"])
        >>> config.trunk.depth, [category.name for category in config.categories]
        (50, ['cat', 'dog'])

    Source: He et al. 2017, sections 3 and 4; Lin et al. 2017 for the pyramid.
    """
    return _with_keypoints(ModelConfig(make_categories(num_classes, keypoints)))


def maskrcnn_r101_fpn(
    num_classes: int | Sequence[str | Category] = 80, keypoints: int | Sequence[str] = ()
) -> ModelConfig:
    """Returns the paper's ResNet-101-FPN (see `maskrcnn_r50_fpn` for the arguments).

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r101_fpn(["cat", "dog"])
        >>> config.trunk.depth
        101

    Source: He et al. 2017, section 4.
    """
    config = maskrcnn_r50_fpn(num_classes, keypoints)
    return replace(config, trunk=replace(config.trunk, depth=101))


def maskrcnn_r50_c4(num_classes: int | Sequence[str | Category] = 80) -> ModelConfig:
    """Returns the paper's ResNet-50-C4: one level of stride 16, res5 as the RoI head, 14-px masks.

    Args:
        num_classes: how many categories, or their names, or `Category` objects.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r50_c4(["cat", "dog"])
        >>> config.neck.kind
        'c4'

    Source: He et al. 2017, figure 4, left.
    """
    return ModelConfig(
        make_categories(num_classes),
        trunk=TrunkConfig(stride_in_1x1=True),
        input=InputConfig(size_divisor=1),
        neck=NeckConfig(kind="c4"),
        rpn=RPNConfig(
            sizes=((32, 64, 128, 256, 512),),
            convs=(1024,),
            pre_nms_train=12000,
            pre_nms_test=6000,
            post_nms_train=2000,
        ),
        box=BoxHeadConfig(roi=RoIConfig(size=14, sampling_ratio=0), fcs=()),
        mask=MaskHeadConfig(roi=RoIConfig(size=14, sampling_ratio=0), convs=()),
    )


def keypointrcnn_r50_fpn(
    num_classes: int | Sequence[str | Category] = ("person",), keypoints: int | Sequence[str] = 17
) -> ModelConfig:
    """Returns the paper's keypoint model: boxes and keypoints of persons, no masks.

    Args:
        num_classes: how many categories, or their names, or `Category` objects.
        keypoints: how many keypoints each category has, or their names.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.keypointrcnn_r50_fpn()
        >>> config.mask, len(config.categories[0].keypoints)
        (None, 17)

    Source: He et al. 2017, section 5.
    """
    return replace(maskrcnn_r50_fpn(num_classes, keypoints), mask=None)


def joint_r50_fpn(
    num_classes: int | Sequence[str | Category] = ("person",), keypoints: int | Sequence[str] = 17
) -> ModelConfig:
    """Returns a ResNet-50-FPN that predicts boxes, masks and keypoints of persons.

    Args:
        num_classes: how many categories, or their names, or `Category` objects.
        keypoints: how many keypoints each category has, or their names.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.joint_r50_fpn()
        >>> config.mask is not None, config.keypoint is not None
        (True, True)

    Source: He et al. 2017, table 5, last row.
    """
    return maskrcnn_r50_fpn(num_classes, keypoints)


def _times_255(values: tuple[float, float, float]) -> tuple[float, float, float]:
    return (values[0] * 255, values[1] * 255, values[2] * 255)


def _torchvision(config: ModelConfig) -> ModelConfig:
    """Replaces the settings in which torchvision's models differ from the paper's."""
    box_roi = RoIConfig(size=7, aligned=False, level_epsilon="log")

    return replace(
        config,
        input=InputConfig(
            resize="torch",
            rounding="floor",
            mean=_times_255(IMAGENET_MEAN),
            std=_times_255(IMAGENET_STD),
        ),
        rpn=replace(
            config.rpn,
            order="ratio",
            rounded=True,
            stride="padded",
            nms_score="probability",
            min_size=1e-3,
            smooth_l1_beta=1 / 9,
            post_nms_train=2000,
        ),
        box=replace(config.box, roi=box_roi, smooth_l1_beta=1 / 9, min_size=1e-2),
        mask=config.mask
        and replace(config.mask, roi=replace(box_roi, size=14), paste="torchvision"),
        keypoint=config.keypoint
        and replace(
            config.keypoint,
            roi=replace(box_roi, size=14),
            decode="bicubic",
            coco_offset=0.0,
            shared=True,
        ),
    )


def maskrcnn_r50_fpn_torchvision(
    num_classes: int | Sequence[str | Category] = 90, keypoints: int | Sequence[str] = ()
) -> ModelConfig:
    """Returns torchvision's maskrcnn_resnet50_fpn.

    With keypoints and `mask=None` it is torchvision's keypointrcnn_resnet50_fpn.

    Args:
        num_classes: how many categories, or their names, or `Category` objects. torchvision's COCO
            models count 90, because they keep COCO's unused ids.
        keypoints: how many keypoints each category has, or their names.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r50_fpn_torchvision(90)
        >>> config.num_classes, config.input.resize
        (90, 'torch')

    Source: torchvision, models/detection/mask_rcnn.py and keypoint_rcnn.py.
    """
    return _torchvision(maskrcnn_r50_fpn(num_classes, keypoints))


def maskrcnn_r50_fpn_v2_torchvision(
    num_classes: int | Sequence[str | Category] = 90, keypoints: int | Sequence[str] = ()
) -> ModelConfig:
    """Returns torchvision's maskrcnn_resnet50_fpn_v2.

    It has BatchNorm in trunk, pyramid and heads, a convolutional box head and two RPN convolutions.
    The arguments are those of `maskrcnn_r50_fpn_torchvision`.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r50_fpn_v2_torchvision(90)
        >>> config.trunk.norm
        'batch'

    Source: Li et al. 2021, "Benchmarking Detection Transfer Learning with Vision Transformers", as
    torchvision builds it.
    """
    config = maskrcnn_r50_fpn_torchvision(num_classes, keypoints)

    return replace(
        config,
        trunk=replace(config.trunk, norm="batch"),
        neck=replace(config.neck, norm="batch"),
        rpn=replace(config.rpn, convs=(256, 256)),
        box=replace(config.box, convs=(256,) * 4, fcs=(1024,), norm="batch"),
        mask=config.mask and replace(config.mask, norm="batch"),
    )


def maskrcnn_r18_small(
    num_classes: int | Sequence[str | Category] = 1, keypoints: int | Sequence[str] = ()
) -> ModelConfig:
    """Returns a ResNet-18-FPN with light heads, for CPUs and small data.

    It trains from scratch and takes images at their own scale, up to 1024 px.

    Args:
        num_classes: how many categories, or their names, or `Category` objects.
        keypoints: how many keypoints each category has, or their names.

    Example:
        >>> import maskrcnn as mr
        >>> config = mr.maskrcnn_r18_small(["nucleus"])
        >>> config.trunk.depth, config.keypoint
        (18, None)

    Source: this package; its trunk and neck are narrower versions of He et al. 2017.
    """
    config = ModelConfig(
        make_categories(num_classes, keypoints),
        input=InputConfig(min_size=None, max_size=1024),
        trunk=TrunkConfig(depth=18, res2_channels=64, norm="batch", frozen_stages=0),
        neck=NeckConfig(channels=64, norm="batch"),
        rpn=RPNConfig(
            sizes=((16,), (32,), (64,), (128,), (256,)),
            convs=(64,),
            pre_nms_train=500,
            pre_nms_test=500,
            post_nms_train=500,
            post_nms_test=500,
            samples=128,
        ),
        box=BoxHeadConfig(fcs=(256,), samples=128, max_detections=300),
        mask=MaskHeadConfig(
            convs=(64, 64, 64), upsample=(64,), norm="batch", max_positives=32, truth_size=56
        ),
    )

    return _with_keypoints(config, convs=(64,) * 4, norm="batch", max_positives=32)
