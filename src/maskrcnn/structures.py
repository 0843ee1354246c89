"""What flows between the parts: padded tensors with a `valid` mask, so that nothing is a list of dicts.

Coordinates are continuous pixels of the model's input: pixel i covers [i, i + 1). Boxes are (x0, y0, x1, y1), sizes (height, width).
Letters: B images, N true objects, P proposals, D detections, J keypoints, S mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .ops.device import is_async

T = TypeVar("T", bound="_Tensors")


class _Tensors:
    """Moves a dataclass of tensors as one."""

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """The same on another device: all tensors under way at once, with one wait for them, or none if `non_blocking`."""
        moved = self._map(lambda t: t.to(device, non_blocking=True))
        here, there = (
            {v.device for v in vars(part).values() if isinstance(v, Tensor)}
            for part in (self, moved)
        )
        if here != there and not non_blocking:
            for ahead in filter(is_async, here | there):
                torch.accelerator.synchronize(ahead)
        return moved

    def pin_memory(self: T) -> T:
        """The same in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda t: t.pin_memory())

    def _map(self: T, function: Callable[[Tensor], Tensor]) -> T:
        changed: dict[str, Any] = {}
        for f in fields(self):  # ty: ignore[invalid-argument-type]
            value = getattr(self, f.name)
            changed[f.name] = function(value) if isinstance(value, Tensor) else value
        return replace(self, **changed)  # ty: ignore[invalid-argument-type]


@dataclass(frozen=True)
class Batch(_Tensors):
    """Images of a batch at the model's input size, padded at the right and the bottom."""

    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    """RGB, 0..255, not normalized; padding is zero. Whole numbers travel to the device as bytes."""
    sizes: Int64[Tensor, "B 2"]
    """Height and width of each image inside its padding."""
    to_model: Float[Tensor, "B 3 3"]
    """Matrix from the original image's pixels to the model's."""
    seeds: Int64[Tensor, "B"]
    """One seed an image for the random choice of anchors and RoIs: what is drawn depends on the image, not on its place in the batch."""
    image_ids: tuple[int, ...] = ()
    normalized: bool = False
    """The images are normalized already (`preprocess.prepare_as_torchvision`), and the model leaves them as they are."""

    @classmethod
    def collate(
        cls,
        images: Sequence[Tensor],
        size_divisor: int = 32,
        to_model: Sequence[Tensor] | None = None,
        seeds: Sequence[int] | None = None,
        image_ids: Sequence[int] = (),
        normalized: bool = False,
    ) -> Batch:
        """Pads images [3, h, w] to one tensor whose sides are multiples of `size_divisor`: uint8 if all are, else float32."""
        if not images:
            raise ValueError("a batch needs at least one image")
        height, width = (
            -(-max(i.shape[d] for i in images) // size_divisor) * size_divisor for d in (1, 2)
        )
        kind = torch.uint8 if all(image.dtype == torch.uint8 for image in images) else torch.float32
        padded = torch.zeros(len(images), 3, height, width, dtype=kind, device=images[0].device)
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]].copy_(image)
        eye = torch.eye(3).expand(len(images), 3, 3)
        return cls(
            images=padded,
            sizes=torch.tensor([i.shape[1:] for i in images], device=padded.device),
            to_model=(eye if to_model is None else torch.stack(list(to_model))).to(
                padded.device, torch.float32
            ),
            seeds=(
                torch.randint(2**62, (len(images),)) if seeds is None else torch.tensor(list(seeds))
            ).to(padded.device),
            image_ids=tuple(image_ids),
            normalized=normalized,
        )


@dataclass(frozen=True)
class Truth(_Tensors):
    """What is annotated in the images of a batch. Each object may have any part of a box, a mask and keypoints."""

    boxes: Float[Tensor, "B N 4"]
    """For an object annotated by keypoints alone: the hull of its visible keypoints."""
    labels: Int64[Tensor, "B N"]
    """0..C-1."""
    valid: Bool[Tensor, "B N"]
    """False in padding rows."""
    ignore: Bool[Tensor, "B N"]
    """Crowd and ignore regions: what lies in them is neither object nor background."""
    has_box: Bool[Tensor, "B N"]
    masks: UInt8[Tensor, "B N S S"]
    """Coverage 0..255 of each cell of an S x S grid over the object's own box."""
    has_mask: Bool[Tensor, "B N"]
    keypoints: Float[Tensor, "B N J 3"]
    """x, y, visibility (0 unlabeled, 1 hidden, 2 visible), in the model's heat-map channels: a category's keypoints at its slice."""
    has_keypoints: Bool[Tensor, "B N"]
    labeled: Bool[Tensor, "B C"] | None = None
    """Whether every object of a category is annotated in an image; where not, what nobody marked may still be one. None = all of them."""

    @classmethod
    def empty(
        cls, images: int = 1, objects: int = 0, mask_size: int = 112, keypoints: int = 0
    ) -> Truth:
        """All-padding truth: the start of any construction, and the truth of an image without objects."""
        shape = (images, objects)
        flags = {
            name: torch.zeros(shape, dtype=torch.bool)
            for name in ("valid", "ignore", "has_box", "has_mask", "has_keypoints")
        }
        return cls(
            boxes=torch.zeros(*shape, 4),
            labels=torch.zeros(shape, dtype=torch.int64),
            masks=torch.zeros(*shape, mask_size, mask_size, dtype=torch.uint8),
            keypoints=torch.zeros(*shape, keypoints, 3),
            **flags,
        )

    @classmethod
    def collate(cls, truths: Sequence[Truth]) -> Truth:
        """Joins truths (of any number of images each) into one, padding the objects to the largest count."""
        most = max(t.boxes.shape[1] for t in truths)

        def joined(name: str) -> Tensor:
            parts = [getattr(t, name) for t in truths]
            return torch.cat(
                [
                    torch.cat([p, p.new_zeros(p.shape[0], most - p.shape[1], *p.shape[2:])], dim=1)
                    for p in parts
                ]
            )

        return cls(
            **{f.name: joined(f.name) for f in fields(cls) if f.name != "labeled"},
            labeled=cls._labeled(truths),
        )

    @staticmethod
    def _labeled(truths: Sequence[Truth]) -> Bool[Tensor, "B C"] | None:
        partial = [t.labeled for t in truths if t.labeled is not None]
        if not partial:
            return None
        rows = [
            partial[0].new_ones(len(t.boxes), partial[0].shape[1])
            if t.labeled is None
            else t.labeled
            for t in truths
        ]
        return torch.cat(rows)


@dataclass(frozen=True)
class Proposals(_Tensors):
    """Regions that the RPN takes for objects, best first."""

    boxes: Float[Tensor, "B P 4"]
    scores: Float[Tensor, "B P"]
    """Objectness logits."""
    valid: Bool[Tensor, "B P"]


@dataclass(frozen=True)
class Detections(_Tensors):
    """The model's answer for a batch, best first, in model-input pixels."""

    boxes: Float[Tensor, "B D 4"]
    scores: Float[Tensor, "B D"]
    """0..1."""
    labels: Int64[Tensor, "B D"]
    """0..C-1."""
    valid: Bool[Tensor, "B D"]
    masks: Float[Tensor, "B D S S"] | None = None
    """Probability, over the grid of the own box, that a cell belongs to the object."""
    keypoints: Float[Tensor, "B D J 3"] | None = None
    """x, y, score; row by row the keypoints of the detection's own category first, zeros beyond them. The score is the normalized peak, 0..1."""
    keypoint_logits: Float[Tensor, "B D J"] | None = None
    """Raw height of each peak."""
