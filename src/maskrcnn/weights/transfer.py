"""Starts a model for other categories from a trained one.

In:  a model and the configuration of a new one.
Out: the new model with all weights that fit, and a report that names those that did not.

In the last layers, the rows of categories and keypoints of the same name move to their new indices,
and so does the row of the background. All other rows start from random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import Category, ModelConfig
from ..model.maskrcnn import MaskRCNN
from ..runtime.counted import counted

Rows = list[tuple[int, int]]  # (row in the old model, row in the new one)


def for_categories(config: ModelConfig, categories: Sequence[Category]) -> ModelConfig:
    """Returns a configuration with its categories replaced.

    The keypoint head is removed if none of them has keypoints. Categories share its channels only
    if they have the same keypoints.
    """
    skeletons = {c.keypoints for c in categories if c.keypoints}
    head = config.keypoint if skeletons else None
    if head and len(skeletons) > 1:
        head = replace(head, shared=False)
    return replace(config, categories=tuple(categories), keypoint=head)


@dataclass(frozen=True)
class Transfer:
    """A report of which weights of the old model the new one keeps."""

    kept: int
    """Number of tensors that were copied, in whole or in part."""
    total: int
    """Number of tensors of the new model."""
    reinitialized: tuple[str, ...]
    """Parts of the new model that start from random weights; for the last layers, with the names of
    their categories and keypoints."""
    unused: tuple[str, ...]
    """Parts of the old model that the new one does not have."""

    @property
    def new_heads(self) -> tuple[str, ...]:
        """The heads of the new model that start from random weights as a whole: mask, keypoint."""
        return tuple(h for h in ("mask", "keypoint") if f"{h}_head" in self.reinitialized)

    def __str__(self) -> str:
        sentences = [f"kept {self.kept} of {counted(self.total, 'tensor')}"]
        sentences += [f"The {h} head is new: it starts from random weights" for h in self.new_heads]
        whole = tuple(f"{h}_head" for h in self.new_heads)
        others = [part for part in self.reinitialized if not part.startswith(whole)]
        if others:
            sentences.append(f"Random weights: {'; '.join(others)}")
        if self.unused:
            sentences.append(f"Not used: {'; '.join(self.unused)}")
        return ". ".join(sentences)


def transfer(model: MaskRCNN, config: ModelConfig) -> MaskRCNN:
    """Returns a new model that starts from the weights of `model` (see `transferred`)."""
    return transferred(model, config)[0]


@torch.no_grad()
def transferred(model: MaskRCNN, config: ModelConfig) -> tuple[MaskRCNN, Transfer]:
    """Builds a new model that starts from the weights of `model`, which stays unchanged.

    Args:
        model: the trained model.
        config: of the new model, such as `for_categories(model.config, data.categories)`.

    Returns:
        The new model, on the device of the old one, and a report of the weights.

    Raises:
        ValueError: no weight of the trunk fits.
    """
    new = MaskRCNN.from_config(config)
    state = new.state_dict()
    old = model.state_dict()
    last = _last_layers(model.config, config)
    fitting = [
        name
        for name, value in old.items()
        if name in state and name not in last and state[name].shape == value.shape
    ]
    if not any(name.startswith("trunk.") for name in fitting):
        raise ValueError(
            "no weight of the trunk fits the new configuration; "
            "start from a model with the same trunk, or from scratch"
        )

    for name in fitting:
        state[name].copy_(old[name])
    moved = [
        name
        for name, (rows, axis) in last.items()
        if name in state and name in old and _move(state[name], old[name], rows, axis)
    ]

    kept = {*fitting, *moved}
    reinitialized = (
        *_parts(state.keys() - kept - last.keys(), state),
        *_fresh_rows(model.config, config, moved),
    )
    unused = _parts(old.keys() - kept - (last.keys() & state.keys()), old)
    report = Transfer(len(kept), len(state), reinitialized, unused)
    return new.to(next(model.parameters()).device), report


def _parts(names: Set[str], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns the modules that hold weights; a head only once if all its weights are among them."""
    whole = {
        head
        for head in {name.split(".")[0] for name in names}
        if all(n in names for n in state if n.startswith(f"{head}."))
    }

    parts = set()
    for name in names:
        head = name.split(".")[0]
        parts.add(head if head in whole else name.rsplit(".", 1)[0])
    return tuple(sorted(parts))


def _fresh_rows(old: ModelConfig, new: ModelConfig, moved: Sequence[str]) -> list[str]:
    """Names the categories and keypoints whose rows of the last layers start from random weights.

    In a layer that does not fit at all, these are all of them.
    """
    known = {c.name for c in old.categories}
    fresh = ", ".join(c.name for c in new.categories if c.name not in known)
    every = ", ".join(c.name for c in new.categories)

    per_category = {
        "box_head.class_logits": True,
        "box_head.box_deltas": not new.box.class_agnostic,
        "mask_head.logits": new.mask is not None and not new.mask.class_agnostic,
    }
    parts = []
    for layer, has_rows in per_category.items():
        names = fresh if f"{layer}.weight" in moved else every
        if has_rows and names:
            parts.append(f"{layer} of {names}")
    if new.keypoint is None:
        return parts

    taken = set()
    if "keypoint_head.heatmaps.weight" in moved:
        taken = {row for _, row in _keypoint_rows(old, new)}
    for category, (start, count) in zip(new.categories, new.keypoint_slices, strict=True):
        keypoints = [category.keypoints[i] for i in range(count) if start + i not in taken]
        if keypoints:
            parts.append(f"keypoint_head.heatmaps of {category.name}: {', '.join(keypoints)}")
    return parts


def _last_layers(old: ModelConfig, new: ModelConfig) -> dict[str, tuple[Rows, int]]:
    """Returns, for each weight with rows per category or keypoint, which rows move and on which
    axis.
    """
    by_name = {c.name: label for label, c in enumerate(old.categories)}
    kept = [(by_name[c.name], label) for label, c in enumerate(new.categories) if c.name in by_name]
    classes = [*kept, (old.num_classes, new.num_classes)]  # the background is last
    one = [(0, 0)]
    boxes = [
        (4 * a + i, 4 * b + i)
        for a, b in (one if new.box.class_agnostic else kept)
        for i in range(4)
    ]

    layers: dict[str, tuple[Rows, int]] = {"box_head.class_logits": (classes, 0)}
    if old.box.class_agnostic == new.box.class_agnostic:
        layers["box_head.box_deltas"] = (boxes, 0)
    if old.mask and new.mask and old.mask.class_agnostic == new.mask.class_agnostic:
        layers["mask_head.logits"] = (one if new.mask.class_agnostic else kept, 0)
    if old.keypoint and new.keypoint:
        layers["keypoint_head.heatmaps"] = (_keypoint_rows(old, new), 1)
    return {
        f"{layer}.{kind}": (rows, axis if kind == "weight" else 0)
        for layer, (rows, axis) in layers.items()
        for kind in ("weight", "bias")
    }


def _keypoint_rows(old: ModelConfig, new: ModelConfig) -> Rows:
    """Returns which heat maps move: those of keypoints with the same name.

    They are looked for in the category of the same name, or else in one with the same keypoints.
    """
    if old.keypoint is None:
        return []
    by_name = {category.name: label for label, category in enumerate(old.categories)}
    by_keypoints = {category.keypoints: label for label, category in enumerate(old.categories)}

    sources: dict[int, int] = {}  # the old row of each new row
    for category, (new_start, _) in zip(new.categories, new.keypoint_slices, strict=True):
        label = by_name.get(category.name, by_keypoints.get(category.keypoints))
        if label is None:
            continue
        keypoints = old.categories[label].keypoints
        old_start, _ = old.keypoint_slices[label]
        for i, keypoint in enumerate(category.keypoints):
            if keypoint in keypoints:
                sources[new_start + i] = old_start + keypoints.index(keypoint)
    return [(source, row) for row, source in sources.items()]


def _move(new: Tensor, old: Tensor, rows: Rows, axis: int) -> bool:
    """Copies rows to their new indices; returns whether there were any and they fit."""
    if not rows or new.select(axis, 0).shape != old.select(axis, 0).shape:
        return False
    sources, targets = (torch.tensor(list(indices)) for indices in zip(*rows, strict=True))
    new.index_copy_(axis, targets, old.cpu().index_select(axis, sources))
    return True
