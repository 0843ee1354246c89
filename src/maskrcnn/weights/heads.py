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

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

Head = Literal["mask", "keypoint"]
PAPER_CHANNELS = 256  # of the pyramid of the paper's models; narrower ones get light heads


@dataclass(frozen=True)
class AnnotatedParts:
    """How many objects are annotated, and with what; regions to ignore do not count."""

    objects: int
    mask: int
    """Objects with a mask, or with labeled points instead of one."""
    keypoint: int
    """Objects with a labeled keypoint, of a category that has keypoints."""


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
    return AnnotatedParts(
        objects=len(objects),
        mask=sum(bool(a.get("segmentation") or a.get("point_coords")) for a in objects),
        keypoint=sum(a["category_id"] in with_skeleton and _has_keypoints(a) for a in objects),
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
                f"{name}: {count} of {parts.objects} objects have {head}s, which are not used: "
                f"the model has no {head} head. {_how_to_add(config, head)}"
            )
        elif exists and parts.objects and not count:
            problems.append(
                f"the {head} head is not trained: none of the {parts.objects} objects of {name} "
                f"has {head}s. It keeps its initial weights; to leave it out, set model.{head}=none"
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
