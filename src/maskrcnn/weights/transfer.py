"""A trained model as the start for other categories: all that fits is kept, and the last layers begin anew but for the categories that stay.

In: a model and the categories of new data. Out: another model, with the old weights, and what did not fit, by name. In the last layers the rows of
categories of equal name, and of keypoints of equal name, move to their new places; so does the background's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import Category, ModelConfig
from ..model.maskrcnn import MaskRCNN

Places = list[tuple[int, int]]  # (row in the old model, row in the new one)


def for_categories(config: ModelConfig, categories: Sequence[Category]) -> ModelConfig:
    """The configuration with other categories; without a keypoint head where none of them has keypoints."""
    keypoints = any(c.keypoints for c in categories)
    return replace(
        config, categories=tuple(categories), keypoint=config.keypoint if keypoints else None
    )


@dataclass(frozen=True)
class Transfer:
    """What became of the weights of a model from which another one starts."""

    kept: int
    """Tensors that were taken over, in whole or in part."""
    total: int
    """Tensors of the new model."""
    anew: tuple[str, ...]
    """Parts that begin with random weights, and of the last layers the categories and keypoints that do."""
    unused: tuple[str, ...]
    """Parts of the old model that have no place in the new one."""

    def __str__(self) -> str:
        lines = [f"kept {self.kept} of {self.total} tensors"]
        lines += [
            f"{said}: {'; '.join(parts)}"
            for said, parts in (("begins anew", self.anew), ("not used", self.unused))
            if parts
        ]
        return ". ".join(line[:1].upper() + line[1:] if i else line for i, line in enumerate(lines))


def transfer(model: MaskRCNN, config: ModelConfig) -> MaskRCNN:
    """A new model of this configuration that starts from the weights of `model`, which stays as it is (see `transferred`)."""
    return transferred(model, config)[0]


@torch.no_grad()
def transferred(model: MaskRCNN, config: ModelConfig) -> tuple[MaskRCNN, Transfer]:
    """A new model of this configuration that starts from the weights of `model`, which stays as it is, and what was kept.

    Args:
        model: trained, perhaps for other categories or skeletons.
        config: of the new model, such as `for_categories(model.config, data.categories)`.

    Raises:
        ValueError: no weight of the trunk fits.
    """
    new = MaskRCNN.from_config(config)
    state, old = new.state_dict(), model.state_dict()
    last = _last_layers(model.config, config)
    fitting = [
        name
        for name, value in old.items()
        if name in state and name not in last and state[name].shape == value.shape
    ]
    if not any(name.startswith("trunk.") for name in fitting):
        raise ValueError(
            "no weight of the trunk fits the new configuration; start from a model with the same trunk, or from scratch"
        )
    for name in fitting:
        state[name].copy_(old[name])
    moved = [
        name
        for name, (places, axis) in last.items()
        if name in state and name in old and _move(state[name], old[name], places, axis)
    ]
    kept = {*fitting, *moved}
    anew = (
        *_parts(state.keys() - kept - last.keys(), state),
        *_fresh_rows(model.config, config, moved),
    )
    report = Transfer(
        len(kept), len(state), anew, _parts(old.keys() - kept - (last.keys() & state.keys()), old)
    )
    return new.to(next(model.parameters()).device), report


def _parts(names: Set[str], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Weights as the modules that hold them, and as the head where it is all of one."""
    whole = {
        head
        for head in {name.split(".")[0] for name in names}
        if all(n in names for n in state if n.startswith(f"{head}."))
    }
    return tuple(
        sorted(
            {
                head if (head := name.split(".")[0]) in whole else name.rsplit(".", 1)[0]
                for name in names
            }
        )
    )


def _fresh_rows(old: ModelConfig, new: ModelConfig, moved: Sequence[str]) -> list[str]:
    """The categories and keypoints whose rows of the last layers begin anew; all of them in a layer that fits nowhere."""
    known = {c.name for c in old.categories}
    fresh = ", ".join(c.name for c in new.categories if c.name not in known)
    every = ", ".join(c.name for c in new.categories)
    layers = {
        "box_head.class_logits": (new.num_classes, fresh),
        "box_head.box_deltas": (not new.box.class_agnostic, fresh),
    }
    layers["mask_head.logits"] = (new.mask is not None and not new.mask.class_agnostic, fresh)
    said = [
        f"{name} of {text}"
        for name, (there, some) in layers.items()
        if there and (text := some if f"{name}.weight" in moved else every)
    ]
    if new.keypoint is None:
        return said
    taken = (
        {b for _, b in _keypoint_places(old, new)}
        if "keypoint_head.heatmaps.weight" in moved
        else set()
    )
    for category, (start, count) in zip(new.categories, new.keypoint_slices, strict=True):
        keypoints = [category.keypoints[i] for i in range(count) if start + i not in taken]
        said += (
            [f"keypoint_head.heatmaps of {category.name}: {', '.join(keypoints)}"]
            if keypoints
            else []
        )
    return said


def _last_layers(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[Places, int]]:
    """For each weight with rows for categories or keypoints: which row becomes which, and the axis that counts them."""
    by_name = {c.name: label for label, c in enumerate(old.categories)}
    kept = [(by_name[c.name], label) for label, c in enumerate(new.categories) if c.name in by_name]
    classes = [*kept, (old.num_classes, new.num_classes)]  # the background is last
    one = [(0, 0)]
    boxes = [
        (4 * a + i, 4 * b + i)
        for a, b in (one if new.box.class_agnostic else kept)
        for i in range(4)
    ]
    layers: dict[str, tuple[Places, int]] = {"box_head.class_logits": (classes, 0)}
    if old.box.class_agnostic == new.box.class_agnostic:
        layers["box_head.box_deltas"] = (boxes, 0)
    if old.mask and new.mask and old.mask.class_agnostic == new.mask.class_agnostic:
        layers["mask_head.logits"] = (one if new.mask.class_agnostic else kept, 0)
    if old.keypoint and new.keypoint:
        layers["keypoint_head.heatmaps"] = (_keypoint_places(old, new), 1)
    return {
        f"{layer}.{kind}": (places, axis if kind == "weight" else 0)
        for layer, (places, axis) in layers.items()
        for kind in ("weight", "bias")
    }


def _keypoint_places(old: ModelConfig, new: ModelConfig) -> Places:
    """The heat maps of keypoints of equal name, in the category of equal name or else in one with the same skeleton."""
    if old.keypoint is None:
        return []
    by_name, by_keypoints = (
        {key(c): label for label, c in enumerate(old.categories)}
        for key in (lambda c: c.name, lambda c: c.keypoints)
    )
    places: dict[int, int] = {}
    for category, (place, _) in zip(new.categories, new.keypoint_slices, strict=True):
        label = by_name.get(category.name, by_keypoints.get(category.keypoints))
        if label is not None:
            keypoints, (start, _) = old.categories[label].keypoints, old.keypoint_slices[label]
            places |= {
                place + i: start + keypoints.index(keypoint)
                for i, keypoint in enumerate(category.keypoints)
                if keypoint in keypoints
            }
    return [(a, b) for b, a in places.items()]


def _move(new: Tensor, old: Tensor, places: Places, axis: int) -> bool:
    """Copies rows to their new places; whether there were any that fit."""
    if not places or new.select(axis, 0).shape != old.select(axis, 0).shape:
        return False
    rows, targets = (torch.tensor(list(numbers)) for numbers in zip(*places, strict=True))
    new.index_copy_(axis, targets, old.cpu().index_select(axis, rows))
    return True
