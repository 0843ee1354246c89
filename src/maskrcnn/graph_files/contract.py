"""What an exported file takes and returns, and what its metadata say about it.

Inputs:  "images" [B, H, W, 3] uint8 RGB of one size ("uint8"), or "pixels" [B, 3, h, w] float at
         the model's input size with "scale" [2], original pixels per input pixel in x and y
         ("prepared").
Outputs: boxes [B, D, 4] xyxy, scores [B, D], labels [B, D] (indices into the categories), valid
         [B, D]; masks [B, D, S, S], probabilities over a grid on the box; keypoints [B, D, J, 3]
         (x, y, score) and keypoint_logits [B, D, J]. Positions are original pixels. Rows beyond
         the objects are zero.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, TypedDict

from ..version import __version__

if TYPE_CHECKING:
    from ..config import ModelConfig

METADATA_KEY = "maskrcnn"
"""Key of the metadata in the file; its value is JSON."""
VERSION = 1
"""Of the contract. Files of another version are refused."""


class GraphCategory(TypedDict):
    """A category as the metadata of a file name it."""

    name: str
    id: int
    keypoints: list[str]
    skeleton: list[list[int]]


class GraphInput(TypedDict):
    """How a file takes images."""

    kind: Literal["uint8", "prepared"]
    min_size: int | None
    max_size: int | None
    scale: float
    rounding: str
    resize: str
    size_divisor: int
    channel_order: str
    mean: list[float]
    std: list[float]
    intensity_range: list[float] | None


class GraphMetadata(TypedDict):
    """The metadata of a file: all that a program needs to use it."""

    contract: int
    categories: list[GraphCategory]
    input: GraphInput
    outputs: list[str]
    score_threshold: float
    max_detections: int
    mask_threshold: float | None
    paste: str | None
    config: dict[str, object]
    """The model's whole configuration, as `maskrcnn.settings.to_dict` writes it."""
    versions: dict[str, str]
    license: str


def metadata_of(
    config: ModelConfig, input_kind: Literal["uint8", "prepared"], outputs: tuple[str, ...]
) -> GraphMetadata:
    """Returns the metadata that a file of a model with this configuration carries."""
    rule = config.input
    return GraphMetadata(
        contract=VERSION,
        categories=[
            GraphCategory(
                name=c.name,
                id=c.id,
                keypoints=list(c.keypoints),
                skeleton=[list(edge) for edge in c.skeleton],
            )
            for c in config.categories
        ],
        input=GraphInput(
            kind=input_kind,
            min_size=rule.min_size,
            max_size=rule.max_size,
            scale=rule.scale,
            rounding=rule.rounding,
            resize=rule.resize,
            size_divisor=rule.size_divisor,
            channel_order=rule.channel_order,
            mean=list(rule.mean),
            std=list(rule.std),
            intensity_range=None if rule.intensity_range is None else list(rule.intensity_range),
        ),
        outputs=list(outputs),
        score_threshold=config.box.score_threshold,
        max_detections=config.box.max_detections,
        mask_threshold=config.mask.threshold if config.mask else None,
        paste=config.mask.paste if config.mask else None,
        config=asdict(config),
        versions={"maskrcnn": __version__},
        license="the license of the weights; the code that wrote this file is Apache-2.0",
    )
