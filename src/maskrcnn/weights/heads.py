"""Which heads a data set needs: every mask and keypoint in it should reach the loss.

In:  a data set, the configuration of a model. Out: the configuration with a head for everything
     that is annotated; as text, what is annotated without a head and which heads have no truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..annotations.coco_types import CocoAnnotation
from ..config import Category, KeypointHeadConfig, MaskHeadConfig, ModelConfig
from ..runtime.counted import counted

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

Head = Literal["mask", "keypoint"]
BOX_CONTEXT = 1.3
"""The factor `mask.context` of models that learn masks from boxes."""
LEAST_BOX_SHARE = 0.05
"""Share of the objects that must lack a mask before boxes train masks. Fewer add little, and
the larger boxes cost the other masks some detail."""
PAPER_CHANNELS = 256  # of the pyramid of the paper's models; narrower ones get light heads


@dataclass(frozen=True)
class AnnotatedParts:
    """How many objects are annotated, and with what; regions to ignore do not count."""

    objects: int
    mask: int
    """Objects with a mask, or with labeled points instead of one."""
    keypoint: int
    """Objects with a labeled keypoint, of a category that has keypoints."""
    unmasked: int = 0
    """Objects with a box and no mask."""
    pointed: int = 0
    """Those of them that have labeled points."""

    @property
    def masks_from_boxes(self) -> bool:
        """Whether enough objects have a box and no mask to train masks with these boxes."""
        return self.unmasked > 0 and self.unmasked >= LEAST_BOX_SHARE * self.objects

    @property
    def box_masks(self) -> str:
        """How many objects have a box and no mask, as text."""
        share = 100 * self.unmasked / max(self.objects, 1)
        have = "has" if self.unmasked == 1 else "have"
        points = f", {self.pointed:,} of them labeled points" if self.pointed else ""
        return (
            f"{self.unmasked:,} of {counted(self.objects, 'object')} ({share:.3g} %) "
            f"{have} a box and no mask{points}"
        )


def annotated_parts(
    annotations: Iterable[CocoAnnotation], categories: Iterable[Category]
) -> AnnotatedParts:
    """Counts what is annotated.

    Args:
        annotations: COCO annotations.
        categories: theirs.
    """
    with_skeleton = {c.id for c in categories if c.keypoints}
    objects = [a for a in annotations if not (a.get("iscrowd") or a.get("ignore"))]
    pointed = [bool(a.get("point_coords") and not a.get("segmentation")) for a in objects]
    unmasked = [bool(a.get("bbox") and not a.get("segmentation")) for a in objects]
    return AnnotatedParts(
        objects=len(objects),
        mask=sum(bool(a.get("segmentation") or a.get("point_coords")) for a in objects),
        keypoint=sum(a["category_id"] in with_skeleton and _has_keypoints(a) for a in objects),
        unmasked=sum(unmasked),
        pointed=sum(both and labeled for both, labeled in zip(unmasked, pointed, strict=True)),
    )


def parts_of(data: CocoDataset) -> AnnotatedParts:
    """Counts what is annotated in a data set."""
    return annotated_parts(data.content()["annotations"], data.categories)


def with_needed_heads(
    config: ModelConfig, parts: AnnotatedParts
) -> tuple[ModelConfig, tuple[Head, ...]]:
    """Adds the heads that the data need and a model lacks.

    Args:
        config: the model's, with the categories of the data.
        parts: what is annotated.

    Returns:
        The configuration, and the heads that were added. A C4 model cannot have a keypoint head;
        `head_problems` reports that.
    """
    added: list[Head] = []
    light = config.neck.kind == "fpn" and config.neck.channels < PAPER_CHANNELS
    width = config.neck.channels

    if parts.mask and config.mask is None:
        norm = config.keypoint.norm if config.keypoint else config.neck.norm
        if config.neck.kind == "c4":  # res5 is the head's tower
            head = MaskHeadConfig(roi=config.box.roi, convs=(), norm=norm)
        elif light:
            head = MaskHeadConfig(
                convs=(width,) * 3, upsample=(width,), norm=norm, max_positives=32, truth_size=56
            )
        else:
            head = MaskHeadConfig(norm=norm)
        config = replace(config, mask=head)
        added.append("mask")

    if parts.keypoint and config.keypoint is None and config.neck.kind != "c4":
        norm = config.mask.norm if config.mask else config.neck.norm
        if light:
            head = KeypointHeadConfig(convs=(width,) * 4, norm=norm, max_positives=32)
        else:
            head = KeypointHeadConfig(norm=norm)
        config = replace(config, keypoint=head)
        added.append("keypoint")
    return config, tuple(added)


def with_fitted_context(config: ModelConfig, parts: AnnotatedParts) -> ModelConfig:
    """Fits `mask.context` to the data, where the configuration leaves it open.

    Args:
        config: the model's.
        parts: what is annotated in the training data.
    """
    if config.mask is None or config.mask.context is not None or not parts.masks_from_boxes:
        return config
    return replace(config, mask=replace(config.mask, context=BOX_CONTEXT))


def learns_from_boxes(config: ModelConfig) -> bool:
    """Returns whether objects with a box and no mask train a model's mask head by the box."""
    return config.mask is not None and (config.mask.context or 1) > 1


def masks_from_boxes(config: ModelConfig, parts: AnnotatedParts) -> str:
    """Returns what boxes without masks do for the mask head, as text; empty if there are none.

    Args:
        config: of the model in training.
        parts: what is annotated in the training data.
    """
    if config.mask is None or not parts.unmasked:
        return ""
    if learns_from_boxes(config):
        return f"{parts.box_masks}: these boxes train masks (mask.context {config.mask.context:g})"
    return (
        f"{parts.box_masks}: these boxes do not train masks; "
        f"model.mask.context={BOX_CONTEXT:g} would use them"
    )


def head_problems(config: ModelConfig, parts: AnnotatedParts, name: str) -> list[str]:
    """What is annotated and not trained, and which heads have nothing to be trained with.

    Args:
        config: the model's.
        parts: what is annotated in the training data.
        name: of the data.

    Returns:
        One text per problem, with a suggestion.
    """
    counts: Mapping[Head, int] = {"mask": parts.mask, "keypoint": parts.keypoint}
    problems = []

    for head, count in counts.items():
        exists = getattr(config, head) is not None
        if count and not exists:
            problems.append(
                f"{name}: the {head}s of {count:,} of {counted(parts.objects, 'object')} are not "
                f"used: the model has no {head} head. {_how_to_add(config, head)}"
            )
        elif head == "mask" and learns_from_boxes(config) and parts.unmasked:
            continue
        elif exists and parts.objects and not count:
            problems.append(
                f"the {head} head is not trained: none of the objects of {name} "
                f"({parts.objects:,}) has {head}s. It keeps its initial weights; "
                f"to leave it out, set model.{head}=none"
            )
    return problems


def _how_to_add(config: ModelConfig, head: Head) -> str:
    if head == "keypoint" and config.neck.kind == "c4":
        return "A model with a C4 neck cannot have one; start from a model with FPN"
    return (
        "To train them, start from the weights: maskrcnn train --pretrained "
        "(plan_training(..., pretrained=...)) adds the head"
    )


def _has_keypoints(annotation: CocoAnnotation) -> bool:
    return any(v > 0 for v in (annotation.get("keypoints") or ())[2::3])
