"""A trained model as the start for other categories: all that fits is kept, and the last layers begin anew but for the categories that stay.

In: a model and the categories of new data. Out: another model, with the old weights. In the last layers the rows of categories of equal name (for
heat maps: and equal joints) move to their new places; so does the background's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import Category, ModelConfig
from ..model.maskrcnn import MaskRCNN

Places = list[tuple[int, int]]  # (row in the old model, row in the new one)


def for_categories(config: ModelConfig, categories: Sequence[Category]) -> ModelConfig:
    """The configuration with other categories; without a keypoint head where none of them has joints."""
    joints = any(c.keypoints for c in categories)
    return replace(config, categories=tuple(categories), keypoint=config.keypoint if joints else None)


@torch.no_grad()
def transfer(model: MaskRCNN, config: ModelConfig) -> MaskRCNN:
    """A new model of this configuration that starts from the weights of `model`, which stays as it is.

    Args:
        model: trained, perhaps for other categories.
        config: of the new model, such as `for_categories(model.config, data.categories)`.

    Raises:
        ValueError: no weight of the trunk fits.
    """
    new = MaskRCNN.from_config(config)
    state, old = new.state_dict(), model.state_dict()
    last = _last_layers(model.config, config)
    fitting = [name for name, value in old.items() if name in state and name not in last and state[name].shape == value.shape]
    if not any(name.startswith("trunk.") for name in fitting):
        raise ValueError("no weight of the trunk fits the new configuration; start from a model with the same trunk, or from scratch")
    for name in fitting:
        state[name].copy_(old[name])
    for name, (places, axis) in last.items():
        if name in state and name in old:
            _move(state[name], old[name], places, axis)
    return new.to(next(model.parameters()).device)


def _last_layers(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[Places, int]]:
    """For each weight with rows for categories or joints: which row becomes which, and the axis that counts them."""
    by_name = {c.name: label for label, c in enumerate(old.categories)}
    kept = [(by_name[c.name], label) for label, c in enumerate(new.categories) if c.name in by_name]
    classes = [*kept, (old.num_classes, new.num_classes)]  # the background is last
    one = [(0, 0)]
    boxes = [(4 * a + i, 4 * b + i) for a, b in (one if new.box.class_agnostic else kept) for i in range(4)]
    layers: dict[str, tuple[Places, int]] = {"box_head.class_logits": (classes, 0)}
    if old.box.class_agnostic == new.box.class_agnostic:
        layers["box_head.box_deltas"] = (boxes, 0)
    if old.mask and new.mask and old.mask.class_agnostic == new.mask.class_agnostic:
        layers["mask_head.logits"] = (one if new.mask.class_agnostic else kept, 0)
    if old.keypoint and new.keypoint:
        layers["keypoint_head.heatmaps"] = (_joint_places(old, new, kept), 1)
    return {f"{layer}.{kind}": (places, axis if kind == "weight" else 0) for layer, (places, axis) in layers.items() for kind in ("weight", "bias")}


def _joint_places(old: ModelConfig, new: ModelConfig, kept: Places) -> Places:
    places: dict[int, int] = {}
    for a, b in kept:
        (start, count), (place, _) = old.keypoint_slices[a], new.keypoint_slices[b]
        if old.categories[a].keypoints == new.categories[b].keypoints:
            places |= {place + i: start + i for i in range(count)}
    return [(a, b) for b, a in places.items()]


def _move(new: Tensor, old: Tensor, places: Places, axis: int) -> None:
    if places and new.select(axis, 0).shape == old.select(axis, 0).shape:
        rows, targets = (torch.tensor(list(numbers)) for numbers in zip(*places, strict=True))
        new.index_copy_(axis, targets, old.cpu().index_select(axis, rows))
