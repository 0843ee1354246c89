"""11. Heads of one's own: any value per object, learned jointly with boxes, masks and keypoints.

RoI features [K, C, S, S] of the box head's grid  ->  whatever the head predicts, or in training a
loss. `model.extra_heads.add` adds one. docs/extending.md has an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..ops.device import to_host
from ..ops.pyramid import Pyramid
from ..ops.rows import Rows
from ..structures import Batch, Detections, Truth
from .box_head import RoISample

OWN_TERMS = ("rpn_objectness", "rpn_box", "classification", "box", "mask", "keypoint")
"""The names of the losses of the built-in parts."""


@dataclass(frozen=True)
class MatchedRoIs:
    """The RoIs of a training batch that cover an object, with that object."""

    features: Float[Tensor, "K C S S"]
    """Of each RoI, on the grid of the box head."""
    boxes: Float[Tensor, "K 4"]
    """xyxy, model-input pixels."""
    labels: Int64[Tensor, "K"]
    """Category of the object, 0..C-1."""
    annotation_ids: Int64[Tensor, "K"]
    """Id of the object's annotation, to look up anything that the data says about it; -1 where it
    has none, as pseudo-labels."""
    valid: Bool[Tensor, "K"]
    """False in padding rows, which must not count. There is at least one row."""
    image: Int64[Tensor, "K"]
    """Index of the image in the batch."""
    object: Int64[Tensor, "K"]
    """Index of the object in `truth`."""
    pyramid: Pyramid
    """Features of the whole images."""
    batch: Batch
    truth: Truth


class ExtraHead(nn.Module):
    """A head of your own: override `forward` and `loss`, and add it by
    `model.extra_heads.add`.

    It gets the features of `model.extra_heads.channels` channels. Its loss has its name, and its
    weights are stored with the model's; `load` needs `heads={name: head}` to fill them. It takes no
    part in the model's `forward`: `model.extra_heads.predict` computes its predictions.

    Example:
        >>> import torch
        >>> import maskrcnn as mr
        >>> class SizeHead(mr.ExtraHead):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(channels, 1)
        ...     def forward(self, features):
        ...         return self.linear(features.mean(dim=(2, 3)))[:, 0]
        ...     def loss(self, rois):
        ...         sides = (rois.boxes[:, 2:] - rois.boxes[:, :2]).log().mean(dim=1)
        ...         errors = (self(rois.features) - sides).abs() * rois.valid
        ...         return errors.sum() / rois.valid.sum().clamp(min=1)
        >>> model = mr.MaskRCNN.from_config(mr.maskrcnn_r18_small(["nucleus"]))
        >>> model.extra_heads.add("size", SizeHead(model.extra_heads.channels))
        >>> list(model.extra_heads)
        ['size']
    """

    def forward(self, features: Float[Tensor, "K C S S"]) -> Tensor:
        """Returns a prediction [K, ...] for each RoI."""
        raise NotImplementedError(f"{type(self).__name__} must override forward")

    def loss(self, rois: MatchedRoIs) -> Tensor:
        """Returns the loss of a batch, a scalar.

        All parameters must take part, also in a batch without valid rows: processes that train
        together agree on which parameters have gradients.
        """
        raise NotImplementedError(f"{type(self).__name__} must override loss")


@runtime_checkable
class RoIFeatures(Protocol):
    """What the heads need of their model, a `MaskRCNN`.

    Methods alone: from Python 3.12 on, a protocol does not find the parts of an `nn.Module`.
    """

    def box_features(
        self, pyramid: Pyramid, boxes: Tensor, image: Tensor
    ) -> Float[Tensor, "K C S S"]:
        """Reads the features that the box head gets for each box."""
        ...


class ExtraHeads(nn.ModuleDict):
    """The heads of one's own of a model, by name: `model.extra_heads`.

    Their weights are stored with the model's; `load` needs `heads={name: head}` to fill them. They
    take no part in the model's `forward`: `predict` computes their predictions.

    Args:
        channels: of the RoI features that they get.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def by_name(self) -> dict[str, ExtraHead]:
        """Returns the heads as a dictionary."""
        return {name: head for name, head in self.items() if isinstance(head, ExtraHead)}

    def add(self, name: str, head: ExtraHead) -> None:
        """Adds a head, which the model's `losses` trains jointly with the others.

        Args:
            name: an identifier, such as "age"; its loss has this name.
            head: on the model's device.

        Raises:
            ValueError: the name is no identifier, or is taken.
            TypeError: not an `ExtraHead`.
        """
        if not isinstance(head, ExtraHead):
            raise TypeError(f"expected an object of a subclass of ExtraHead, got {head!r:.80}")
        taken = (*OWN_TERMS, *self)
        if not name.isidentifier() or name in taken:
            raise ValueError(
                f'"{name}": expected an identifier other than the names in use: {", ".join(taken)}'
            )
        self[name] = head

    def predict(
        self, model: RoIFeatures, pyramid: Pyramid, detections: Detections
    ) -> dict[str, Tensor]:
        """Returns the predictions [B, D, ...] of each head, zero in padding rows.

        Args:
            model: the model that they belong to.
            pyramid: features of all images, `model.pyramid(batch)`.
            detections: `model.detect(pyramid, batch)` or `model(batch)`.
        """
        if not self:
            return {}
        rows = Rows.of(detections.valid, detections.num_valid)
        boxes = rows.gather(detections.boxes)
        features = model.box_features(pyramid, boxes, rows.image)
        return {name: rows.scatter(head(features)) for name, head in self.items()}

    def losses(
        self, model: RoIFeatures, pyramid: Pyramid, rois: RoISample, batch: Batch, truth: Truth
    ) -> dict[str, Tensor]:
        """Computes the loss of each head on the positive RoIs."""
        if not self:
            return {}

        # Without any such RoI an invalid one stands in: a head without input has no gradients.
        has_objects = truth.boxes.shape[1] > 0
        positive = rois.positive & has_objects
        (count,) = to_host(positive.sum())
        rows = Rows.of(positive, max(count, 1))
        boxes = rows.gather(rois.boxes)
        index = rows.gather(rois.truth_index)
        ids = torch.full_like(index, -1)
        if truth.annotation_ids is not None and has_objects:
            ids = truth.annotation_ids[rows.image, index]

        matched = MatchedRoIs(
            features=model.box_features(pyramid, boxes, rows.image),
            boxes=boxes,
            labels=rows.gather(rois.labels),
            annotation_ids=ids,
            valid=rows.gather(positive),
            image=rows.image,
            object=index,
            pyramid=pyramid,
            batch=batch,
            truth=truth,
        )
        return {name: head.loss(matched) for name, head in self.by_name().items()}
