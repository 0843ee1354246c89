"""Training examples: an image as the model sees it and the truth that lies on it.

`TrainingSet(..).example(index, seed)`:
    image uint8 [H, W, 3]  ->  view (augment.py)  ->  image [3, h, w], 0..255
    boxes, masks, keypoints     ->  the view's matrix  ->  Truth of one image, in model-input pixels

An example is a function of (index, seed) alone; nothing else is random. `collate` joins examples to (Batch, Truth).

What becomes of an object in a view:
- Its box is the annotated one moved and clipped. Where a crop cuts it, or the image is rotated, it is the box around what is seen of its mask.
- Its mask is a crop in its own box, at `mask.truth_size`.
- Less than a pixel wide or high: dropped. Less than a tenth of its box left by a crop: *ignore*, neither object nor background.
- Keypoints outside the view are unlabeled. An object of keypoints alone has `has_box` False and the hull of its labeled keypoints for a box, each side at
  least 8 px and a fifth of the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..annotations.annotation import KEYPOINT_OFFSET, mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError
from ..config import AugmentConfig, ModelConfig
from ..preprocess import prepare
from ..structures import Batch, Truth
from . import geometry
from .augment import View, draw_view, warp
from .copy_paste import draw_place, paste
from .moved_masks import Mask, mask_of
from .objects import Objects, Shape

CACHE_BYTES = 2**30
_SLIVER = 0.1  # of a box
_HULL_SIDE, _HULL_PART = 8.0, 0.2
_COLOR_STEP = 4  # every so many pixels are looked at for the mean color
_NEAR_COLOR = (
    32.0  # of 255, mean over the channels: images of one kind, not black ones and white ones
)


@dataclass(frozen=True)
class Example:
    """One image, as the model sees it, and its truth."""

    image: Tensor
    """[3, h, w], 0..255, uint8 or float32."""
    truth: Truth
    """Of this one image."""
    to_model: Float[Tensor, "3 3"]
    """From original to model-input pixels."""
    image_id: int
    seed: int


@dataclass(frozen=True)
class _LoadedImage:
    """A decoded image and its objects, in its own pixels."""

    image: np.ndarray
    image_id: int
    boxes: np.ndarray  # [n, 4]; of the mask, or the hull of the keypoints, where none is annotated
    has_box: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    masks: list[Mask | None]
    keypoints: np.ndarray  # [n, J, 3] at the heat-map channels
    labeled: np.ndarray | None  # [C], None = all categories

    @property
    def nbytes(self) -> int:
        return (
            self.image.nbytes
            + self.keypoints.nbytes
            + sum(m.nbytes + 500 for m in self.masks if m is not None)
        )


class TrainingSet:
    """A data set as examples for one model.

    Decoded images and masks stay in memory, the least recently used first to go, up to `cache_bytes`.

    Args:
        dataset: its categories are the model's.
        model: says how large an image is seen, how large mask truth is, and where keypoints stand.
        augment: None = the whole image as `predict` sees it.
        cache_bytes: memory for decoded images, in each process.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        model: ModelConfig,
        augment: AugmentConfig | None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        _check_categories(dataset, model)
        self.dataset, self.model, self.augment, self.cache_bytes = (
            dataset,
            model,
            augment,
            cache_bytes,
        )
        self._cache: OrderedDict[int, _LoadedImage] = OrderedDict()
        self._cached_bytes = 0
        self._num_keypoints = model.num_keypoint_channels if model.keypoint is not None else 0
        self._mirror = _mirrored_channels(model, self._num_keypoints)
        self._colors: dict[int, np.ndarray] = {}
        if augment is not None and augment.copy_paste:
            _check_copy_paste(dataset, augment)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> Example:
        return self.example(*index_and_seed)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": OrderedDict(), "_cached_bytes": 0}

    def aspect_ratio(self, index: int) -> float:
        """Height / width of an image."""
        height, width = self.dataset.size(index)
        return height / width

    def example(self, index: int, seed: int) -> Example:
        """The example of an image for a seed."""
        loaded = self._image(index)
        if self.augment is None:
            image, to_model = prepare(loaded.image, self.model.input)
            view = View(to_model.double().numpy(), (image.shape[1], image.shape[2]))
            return Example(image, self._truth(loaded, view), to_model, loaded.image_id, seed)
        rng = np.random.default_rng(seed)
        view = self._draw_view(loaded, rng)
        pixels, objects = warp(loaded.image, view, self.model.input), self._objects(loaded, view)
        if self.augment.copy_paste and rng.random() < self.augment.copy_paste:
            other = self._image(self._partner(index, rng))
            part, corner = draw_place(
                replace(self._draw_view(other, rng), color=view.color), view.size, rng
            )
            pasted = (
                warp(other.image, part, self.model.input),
                self._objects(other, part, tight=True),
            )
            pixels, objects = paste(pixels, objects, *pasted, corner, rng)
        image = torch.from_numpy(
            np.array(pixels.transpose(2, 0, 1), order="C")
        )  # a copy even of one pixel, whose strides may be negative
        return Example(
            image,
            self._to_truth(objects, loaded),
            torch.from_numpy(view.matrix).float(),
            loaded.image_id,
            seed,
        )

    def _draw_view(self, image: _LoadedImage, rng: np.random.Generator) -> View:
        assert self.augment is not None
        return draw_view(
            self.augment, self.model.input, image.image.shape[:2], image.boxes[~image.ignore], rng
        )

    def _partner(self, index: int, rng: np.random.Generator) -> int:
        """The image that gives its objects: the nearest in mean color of some drawn at random, itself where none will do."""
        assert self.augment is not None
        drawn = rng.integers(len(self), size=self.augment.copy_paste_choices).tolist()
        drawn = [i for i in drawn if self.dataset.labeled(i) == self.dataset.labeled(index)]
        if len(drawn) == 0 or self.augment.copy_paste_choices == 1:
            return drawn[0] if drawn else index
        distances = [np.abs(self._mean_color(i) - self._mean_color(index)).mean() for i in drawn]
        nearest = int(np.argmin(distances))
        return drawn[nearest] if distances[nearest] <= _NEAR_COLOR else index

    def _mean_color(self, index: int) -> np.ndarray:
        if index not in self._colors:
            self._colors[index] = (
                self._image(index).image[::_COLOR_STEP, ::_COLOR_STEP].mean(axis=(0, 1))
            )
        return self._colors[index]

    def _image(self, index: int) -> _LoadedImage:
        """From the cache, or from the disk."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        image = self._load(index)
        self._cache[index] = image
        self._cached_bytes += image.nbytes
        while self._cached_bytes > self.cache_bytes:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return image

    def _load(self, index: int) -> _LoadedImage:
        record = self.dataset[index]
        objects = record.annotations
        keypoints = np.zeros((len(objects), self._num_keypoints, 3))
        for row, annotation in zip(keypoints, objects, strict=True):
            if self.model.keypoint is not None and annotation.keypoints is not None:
                start, count = self.model.keypoint_slices[annotation.label]
                row[start : start + count] = annotation.keypoints
                # the model's own convention of where in its pixel a whole-number keypoint lies
                row[:, :2] += (self.model.keypoint.coco_offset - KEYPOINT_OFFSET) * (row[:, 2:] > 0)
        boxes = [a.box or mask_bounds(a) for a in objects]
        return _LoadedImage(
            image=self.dataset.image(index, self.model.input.intensity_range),
            image_id=record.image_id,
            boxes=np.array(
                [b or _hull(a.keypoints) for b, a in zip(boxes, objects, strict=True)],
                dtype=np.float64,
            ).reshape(-1, 4),
            has_box=np.array([b is not None for b in boxes], dtype=bool),
            labels=np.array([a.label for a in objects], dtype=np.int64),
            ignore=np.array([a.ignore for a in objects], dtype=bool),
            masks=[mask_of(a) for a in objects],
            keypoints=keypoints,
            labeled=None
            if record.labeled is None
            else np.isin(np.arange(self.model.num_classes), list(record.labeled)),
        )

    def _truth(self, image: _LoadedImage, view: View) -> Truth:
        """All that is annotated, moved into the view."""
        return self._to_truth(self._objects(image, view), image)

    def _to_truth(self, objects: Objects, image: _LoadedImage) -> Truth:
        return objects.truth(
            None if self.model.mask is None else self.model.mask.truth_size, image.labeled
        )

    def _objects(self, image: _LoadedImage, view: View, tight: bool = False) -> Objects:
        """What is annotated in an image, in a view; `tight`: with the boxes around the masks, whatever boxes are annotated."""
        keypoints = self._keypoints(image, view)
        moved = geometry.move_boxes(view.matrix, image.boxes)
        boxes = _clip(moved, view.size)
        sliver = np.zeros(len(boxes), bool)
        if tight or not view.whole:
            clipped = boxes.copy()
            self._refit(boxes, moved, keypoints, image, view, tight)
            boxes = _clip(boxes, view.size)  # the ends of moved polygons are a rounding error off
            left = (
                boxes if geometry.straight(view.matrix) else clipped
            )  # a rotation widens what it moves
            sliver = _areas(left) < _SLIVER * _areas(moved)
        shapes = [None if mask is None else Shape(mask, view.matrix) for mask in image.masks]
        return Objects(boxes, image.has_box, image.labels, image.ignore | sliver, shapes, keypoints)

    def _keypoints(self, image: _LoadedImage, view: View) -> np.ndarray:
        """[n, J, 3] in the view; left and right change places in a mirror, those outside are zero."""
        keypoints = image.keypoints.copy()
        keypoints[:, :, :2] = geometry.move_points(view.matrix, keypoints[:, :, :2])
        if geometry.mirrored(view.matrix):
            keypoints = np.take_along_axis(
                keypoints, self._mirror[image.labels][:, :, None], axis=1
            )
        inside = (
            (keypoints[:, :, :2] >= 0) & (keypoints[:, :, :2] <= (view.size[1], view.size[0]))
        ).all(axis=2)
        return keypoints * (inside & (keypoints[:, :, 2] > 0))[:, :, None]

    def _refit(
        self,
        boxes: np.ndarray,
        moved: np.ndarray,
        keypoints: np.ndarray,
        image: _LoadedImage,
        view: View,
        tight: bool,
    ) -> None:
        """Changes in place the boxes that a crop cut or a rotation widened (or all) to those around what is seen."""
        rotated = not geometry.straight(view.matrix)
        cut = (np.abs(boxes - moved) > 0.5).any(axis=1)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        for i in np.flatnonzero((cut | rotated | tight) & inside):
            mask = image.masks[i]
            if mask is not None:
                boxes[i] = mask.seen(view.matrix, view.size) or 0
            elif not image.has_box[i]:
                boxes[i] = (
                    _clip(np.array(_hull(keypoints[i])), view.size) if keypoints[i].any() else 0
                )


def collate(examples: Sequence[Example], size_divisor: int) -> tuple[Batch, Truth]:
    """A batch of examples, padded, and their truth."""
    batch = Batch.collate(
        [e.image for e in examples],
        size_divisor,
        to_model=[e.to_model for e in examples],
        seeds=[e.seed for e in examples],
        image_ids=[e.image_id for e in examples],
    )
    return batch, Truth.collate([e.truth for e in examples])


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.clip(boxes, 0, (size[1], size[0], size[1], size[0]))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _hull(keypoints: np.ndarray | None) -> tuple[float, float, float, float]:
    """The box around the labeled ones of some keypoints [j, 3], grown where it is too thin to be a region."""
    if keypoints is None:
        raise AssertionError("an annotation without box, mask and keypoints passed the checks")
    points = keypoints[keypoints[:, 2] > 0, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    side = np.maximum(high - low, max(_HULL_SIDE, _HULL_PART * float((high - low).max())))
    middle = (low + high) / 2
    x0, y0, x1, y1 = *(middle - side / 2), *(middle + side / 2)
    return float(x0), float(y0), float(x1), float(y1)


def _mirrored_channels(model: ModelConfig, num_keypoints: int) -> np.ndarray:
    """[categories, keypoints]: for each heat-map channel the one whose keypoint it shows in a mirror image."""
    channels = np.tile(np.arange(num_keypoints), (model.num_classes, 1))
    if model.keypoint is not None:
        for row, category, (start, count) in zip(
            channels, model.categories, model.keypoint_slices, strict=True
        ):
            row[[start + j for j in category.mirrored]] = np.arange(start, start + count)
    return channels


def _check_categories(dataset: CocoDataset, model: ModelConfig) -> None:
    """Raises DataError where labels or keypoints of the data are not the model's."""
    theirs, ours = dataset.categories, model.categories
    if len(theirs) != len(ours):
        suggestion = "open the data with categories=model.categories, or make the model with categories=data.categories"
        raise DataError(
            f"{dataset.name}: {len(theirs)} categories, the model has {len(ours)}; {suggestion}"
        )
    for label, (category, own) in enumerate(zip(theirs, ours, strict=True)):
        if model.keypoint is not None and len(category.keypoints) != len(own.keypoints):
            found = f'category "{category.name}" (label {label}) has {len(category.keypoints)} keypoints, the model {len(own.keypoints)}'
            raise DataError(
                f"{dataset.name}: {found}; make the model with categories=data.categories"
            )


def _check_copy_paste(dataset: CocoDataset, augment: AugmentConfig) -> None:
    """Raises where there is nothing to paste, or nothing to choose from."""
    if augment.copy_paste_choices < 1:
        raise ValueError(
            f"augment.copy_paste_choices is {augment.copy_paste_choices}, must be at least 1"
        )
    if not any(
        mask_bounds(a)
        for record in map(dataset.__getitem__, range(len(dataset)))
        for a in record.annotations
        if not a.ignore
    ):
        raise DataError(
            f"{dataset.name}: augment.copy_paste is {augment.copy_paste:g}, but no object has a mask to cut it out by; set it to 0"
        )
