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

import json
import math
from pathlib import Path
from typing import Literal, TypedDict

from ..config import ModelConfig
from ..settings import from_dict, to_dict
from ..version import __version__

InputKind = Literal["uint8", "prepared"]
METADATA_KEY = "maskrcnn"
"""Key of the metadata in the file; its value is JSON."""
VERSION = 1
"""Of the contract. Files of another version are refused."""
MOST_TEXT = 1 << 24
"""Characters of metadata that are read; a thousand categories take a hundredth of it."""
MOST_PIXELS = 1 << 14
"""Largest side, in pixels, to which a file's resize rule may enlarge images."""
MOST_SCALE = 16
"""Largest factor by which it may."""
MOST_DETECTIONS = 100_000
"""Largest number of objects per image that a file may return."""


class GraphCategory(TypedDict):
    """A category as the metadata of a file name it."""

    name: str
    id: int
    keypoints: list[str]
    skeleton: list[list[int]]


class GraphInput(TypedDict):
    """How a file takes images."""

    kind: InputKind
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


def output_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of what a file of a model with this configuration returns, in order."""
    names = ("boxes", "scores", "labels", "valid")
    if config.mask is not None:
        names += ("masks",)
    if config.keypoint is not None:
        names += ("keypoints", "keypoint_logits")
    return names


def stage_names(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the intermediate results inside a file: they are no outputs of it, but
    can be made so.
    """
    return (*(f"features_{level}" for level in range(len(config.rpn.sizes))), "proposals")


def metadata_of(
    config: ModelConfig, input_kind: InputKind, outputs: tuple[str, ...]
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
        config=to_dict(config),
        versions={"maskrcnn": __version__},
        license="the license of the weights; the code that wrote this file is Apache-2.0",
    )


def read_metadata(text: str | None, where: str | Path) -> tuple[GraphMetadata, ModelConfig]:
    """Reads and checks the metadata of a file that somebody else may have made.

    Args:
        text: the value of `METADATA_KEY` in the file; None if it has none.
        where: the file, for messages.

    Returns:
        The metadata, and the model's configuration in them.

    Raises:
        ValueError: there are none, they are damaged, or of another version.
    """
    if not text:
        raise ValueError(
            f"{where}: expected a file that maskrcnn export wrote, got one without its metadata; "
            "run files of other makers with their own tools"
        )
    if len(text) > MOST_TEXT:
        raise ValueError(
            f"{where}: metadata of {len(text):,} characters, at most {MOST_TEXT:,} are read"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: its metadata are not valid JSON ({error})") from None

    version = found.get("contract") if isinstance(found, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{where}: expected metadata of contract {VERSION}, got {version!r:.40}; "
            f"export the model again with maskrcnn {__version__}"
        )
    try:
        config = from_dict(ModelConfig, found["config"])
        kind = found["input"]["kind"]
        outputs = tuple(found["outputs"])
        _check_settings(config, kind, outputs)
        expected = metadata_of(config, kind, outputs)
        expected["versions"] = {str(name): str(v) for name, v in found["versions"].items()}
        expected["license"] = str(found["license"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{where}: its metadata cannot be used: {reason:.200}; export the model again"
        ) from None

    # What is written twice, for programs in other languages, has to agree. The configuration of an
    # older file lacks settings added since, which keep their defaults.
    for name, value in expected.items():
        if name != "config" and found.get(name) != value:
            raise ValueError(
                f'{where}: its metadata contradict themselves: "{name}" differs from "config"; '
                "export the model again"
            )
    return expected, config


def _check_settings(config: ModelConfig, kind: object, outputs: tuple[str, ...]) -> None:
    """Checks what a configuration's types leave open and running a file depends on."""
    if kind not in ("uint8", "prepared"):
        raise ValueError(f'input.kind: expected "uint8" or "prepared", got {kind!r:.40}')
    if missing := set(output_names(config)) - set(outputs):
        raise ValueError(f"outputs: {', '.join(sorted(missing))} is missing")

    rule = config.input
    bounds: dict[str, tuple[float | None, float]] = {
        "input.scale": (rule.scale, MOST_SCALE),
        "input.min_size": (rule.min_size, MOST_PIXELS),
        "input.max_size": (rule.max_size, MOST_PIXELS),
        "input.size_divisor": (rule.size_divisor, MOST_PIXELS),
        "box.max_detections": (config.box.max_detections, MOST_DETECTIONS),
        "mask.threshold": (config.mask.threshold if config.mask else None, 1),
        **{f"input.std[{i}]": (value, math.inf) for i, value in enumerate(rule.std)},
    }
    for name, (value, most) in bounds.items():
        if value is not None and not 0 < value <= most:
            raise ValueError(f"{name}: expected above 0, at most {most:,}, got {value}")
    if not 0 <= config.box.score_threshold <= 1:
        raise ValueError(f"box.score_threshold: expected 0 to 1, got {config.box.score_threshold}")
