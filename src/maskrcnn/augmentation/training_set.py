"""Training examples: an image as the model's input and its truth in the same pixels.

`TrainingSet(...).example(index, seed)`:
    1. The image and its annotations are decoded, or come from the cache (`_LoadedImage`).
    2. A random view is drawn (augment.py).
    3. The image is warped into the view (augment.py): uint8 [H, W, 3] -> [3, h, w], 0..255.
    4. Boxes, masks and keypoints are moved by the view's matrix (objects.py, moved_masks.py).
    5. Sometimes objects of another image are pasted onto it (copy_paste.py).
    6. The objects become the Truth of one image, in model-input pixels (objects.py).

An example is a function of (index, seed) alone; nothing else is random. `collate` makes a (Batch,
Truth) of several examples; loader.py does so in worker processes.

What happens to an object in a view:
- Its box is the annotated one, moved and clipped. Where a crop cuts it, or the image is rotated, it
  is the bounding box of the visible part of its mask.
- Its mask is a crop in its own box, at `mask.truth_size`.
- Less than a pixel wide or high, it is dropped. With less than a tenth of its box left by a crop,
  it is *ignore*, neither object nor background.
- Points labeled instead of a mask are moved; those outside the view are dropped.
- Of an object with a box and no mask, the colors show where its visible part ends (cut_out.py). If
  none of its colors are in the view, it is *ignore*. Where they do not tell it from what is around
  it, its box is the clipped one.
- A box without a mask trains the mask head (`Truth.spans`). A clipped box that a crop cuts at the
  left or right need not be reached in all of its rows; likewise for the columns. A box that the
  view rotates, other than by right angles, does not fit and does not train masks.
- Keypoints outside the view are unlabeled. An object with keypoints only has `has_box` False and
  the hull of its labeled keypoints as its box, each side at least 8 px and a fifth of the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..annotations.annotation import (
    KEYPOINT_OFFSET,
    Annotation,
    BoxXYXY,
    is_unmasked,
    mask_bounds,
)
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError
from ..config import AugmentConfig, ModelConfig
from ..images.read import ImageError
from ..preprocess import prepare
from ..runtime.counted import counted
from ..structures import Batch, Truth
from . import geometry
from .augment import AugmentedView, draw_view, warp
from .copy_paste import draw_paste_position, paste
from .cut_out import masks_by_color
from .moved_masks import Mask, Pixels, mask_of
from .objects import ViewMask, ViewObjects
from .own_augmentation import Augmentation, changed_pixels

CACHE_BYTES = 2**30
_STREAM = 3  # of the seed that draws one's own changes; the plain seed draws those of AugmentConfig
_MASK_OVERHEAD = 500  # bytes of Python objects per mask
_CUT = 0.5  # px that a view must remove from a side of a box that counts as cut
_MIN_BOX_LEFT = 0.1  # of a box; with less left by a crop an object is ignored

# Sides of the hull of keypoints are at least these pixels, and this part of the longer side.
_MIN_HULL_SIDE = 8.0
_MIN_HULL_SHARE = 0.2

# The mean color is that of every 4th pixel in each direction. Images with a mean difference of at
# most 32 of 255 over the channels are of one kind; this keeps black ones and white ones apart.
_COLOR_STEP = 4
_NEAR_COLOR = 32.0


class UnreadableExampleError(ImageError):
    """An image of a training set cannot be read; `image_id` says which."""

    def __init__(self, message: str, image_id: int) -> None:
        super().__init__(message)
        self.image_id = image_id


@dataclass(frozen=True)
class Example:
    """One image as model input, and its truth."""

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
    boxes: np.ndarray
    """[n, 4]; the bounds of the mask, or the hull of the keypoints, where no box is annotated."""
    has_box: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    masks: list[Mask | None]
    by_color: np.ndarray
    """[n]; which masks nobody drew: where the colors show the object (cut_out.py)."""
    keypoints: np.ndarray
    """[n, J, 3] at the heatmap channels."""
    points: np.ndarray
    """[n, P, 3]: x, y, label of the points that are annotated instead of masks (`Truth.points`)."""
    unmasked: np.ndarray
    """[n]; whether an object has a box and nobody drew its mask."""
    annotation_ids: np.ndarray
    labeled: np.ndarray | None
    """[C], None = all categories."""

    @property
    def nbytes(self) -> int:
        masks = (mask for mask in self.masks if mask is not None)
        num_bytes = sum(mask.nbytes + _MASK_OVERHEAD for mask in masks)
        return self.image.nbytes + self.keypoints.nbytes + num_bytes


class TrainingSet:
    """A data set as examples for one model.

    Decoded images and masks stay in memory up to `cache_bytes`; the least recently used are evicted
    first.

    Args:
        dataset: its categories are the model's.
        model: defines the input size, the size of mask truth, and the keypoint convention.
        augment: random changes. None = the whole image, as in `predict`.
        cache_bytes: memory for decoded images in each process, in bytes.
        augmentation: random changes of your own, after those of `augment`.

    Raises:
        DataError: the categories are not the model's, or copy-paste is on and no object has a mask
            or a box.
        ValueError: `augment.copy_paste_choices` is less than 1.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> example = mr.TrainingSet(data, model, mr.AugmentConfig()).example(0, seed=1)
        >>> example.image.shape[0], len(example.truth.boxes)
        (3, 1)
    """

    def __init__(
        self,
        dataset: CocoDataset,
        model: ModelConfig,
        augment: AugmentConfig | None,
        cache_bytes: int = CACHE_BYTES,
        augmentation: Augmentation | None = None,
    ) -> None:
        _check_categories(dataset, model)
        if augment is not None and augment.copy_paste:
            _check_copy_paste(dataset, augment)
        self.dataset = dataset
        self.model = model
        self.augment = augment
        self.cache_bytes = cache_bytes
        self.augmentation = augmentation

        self._cache: OrderedDict[int, _LoadedImage] = OrderedDict()
        self._cached_bytes = 0
        self._num_keypoints = model.num_keypoint_channels if model.keypoint is not None else 0
        self._mirrored_channels = _mirrored_channels(model, self._num_keypoints)
        self._mean_colors: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> Example:
        return self.example(*index_and_seed)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict(), "_cached_bytes": 0}

    def aspect_ratio(self, index: int) -> float:
        """Returns height / width of an image."""
        height, width = self.dataset.size(index)
        return height / width

    def example(self, index: int, seed: int) -> Example:
        """Returns the example of an image for a seed.

        Args:
            index: of the image in the data set.
            seed: determines the view and what is pasted.

        Raises:
            UnreadableExampleError: the image, or one to paste from, cannot be read.
        """
        loaded = self._image(index)
        if self.augment is None:
            image, to_model = prepare(loaded.image, self.model.input)
            size = (image.shape[1], image.shape[2])
            view = AugmentedView(to_model.double().numpy(), size)
            return Example(image, self._truth(loaded, view), to_model, loaded.image_id, seed)

        rng = np.random.default_rng(seed)
        view = self._draw_view(loaded, rng)
        own_rng = np.random.default_rng((seed, _STREAM))
        if self.augmentation is not None:
            view = self.augmentation.view(view, own_rng)
        pixels = warp(loaded.image, view, self.model.input)
        objects = self._objects(loaded, view)
        if self.augment.copy_paste and rng.random() < self.augment.copy_paste:
            pixels, objects = self._paste(index, view, pixels, objects, rng)
        if self.augmentation is not None:
            pixels = changed_pixels(self.augmentation, pixels, own_rng)

        # a copy even of one pixel, whose strides may be negative
        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        truth = self._to_truth(objects, loaded)
        to_model = torch.from_numpy(view.matrix).float()
        return Example(image, truth, to_model, loaded.image_id, seed)

    def _draw_view(self, image: _LoadedImage, rng: np.random.Generator) -> AugmentedView:
        assert self.augment is not None
        size = image.image.shape[:2]
        return draw_view(self.augment, self.model.input, size, image.boxes[~image.ignore], rng)

    def _paste(
        self,
        index: int,
        view: AugmentedView,
        pixels: np.ndarray,
        objects: ViewObjects,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, ViewObjects]:
        """Pastes objects of another image onto the view of this one."""
        partner = self._image(self._partner(index, rng))
        partner_view = replace(self._draw_view(partner, rng), color=view.color)
        part, corner = draw_paste_position(partner_view, view.size, rng)
        source = warp(partner.image, part, self.model.input)
        source_objects = self._objects(partner, part, tight=True)
        return paste(pixels, objects, source, source_objects, corner, rng)

    def _partner(self, index: int, rng: np.random.Generator) -> int:
        """Draws the image whose objects are pasted.

        Of some random images it is the nearest in mean color, or the image itself if none is near.
        """
        assert self.augment is not None
        choices = self.augment.copy_paste_choices
        drawn = rng.integers(len(self), size=choices).tolist()
        drawn = [i for i in drawn if self.dataset.labeled(i) == self.dataset.labeled(index)]
        if len(drawn) == 0 or choices == 1:
            return drawn[0] if drawn else index

        distances = [np.abs(self._mean_color(i) - self._mean_color(index)).mean() for i in drawn]
        nearest = int(np.argmin(distances))
        return drawn[nearest] if distances[nearest] <= _NEAR_COLOR else index

    def _mean_color(self, index: int) -> np.ndarray:
        if index not in self._mean_colors:
            sample = self._image(index).image[::_COLOR_STEP, ::_COLOR_STEP]
            self._mean_colors[index] = sample.mean(axis=(0, 1))
        return self._mean_colors[index]

    def _image(self, index: int) -> _LoadedImage:
        """Returns an image from the cache, or from disk."""
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

        bounds = [a.box or mask_bounds(a) for a in objects]
        boxes = [b or _hull(a.keypoints) for b, a in zip(bounds, objects, strict=True)]

        labeled = None
        if record.labeled is not None:
            labeled = np.isin(np.arange(self.model.num_classes), list(record.labeled))

        try:
            pixels = self.dataset.image(index, self.model.input.intensity_range)
        except ImageError as error:
            raise UnreadableExampleError(str(error), record.image_id) from error
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        masks = [mask_of(a) for a in objects]
        points = _points(objects)
        unmasked = np.array([is_unmasked(a) and not a.ignore for a in objects], dtype=bool)
        by_color = unmasked if self.augment is not None else np.zeros(len(objects), bool)
        if by_color.any():
            found = masks_by_color(pixels, boxes, points)
            masks = [f if b else m for f, b, m in zip(found, by_color, masks, strict=True)]
        return _LoadedImage(
            image=pixels,
            image_id=record.image_id,
            boxes=boxes,
            has_box=np.array([b is not None for b in bounds], dtype=bool),
            labels=np.array([a.label for a in objects], dtype=np.int64),
            ignore=np.array([a.ignore for a in objects], dtype=bool),
            masks=masks,
            by_color=by_color,
            keypoints=keypoints,
            points=points,
            unmasked=unmasked,
            annotation_ids=np.array([a.id for a in objects], dtype=np.int64),
            labeled=labeled,
        )

    def _truth(self, image: _LoadedImage, view: AugmentedView) -> Truth:
        """Returns all annotations, moved into the view."""
        return self._to_truth(self._objects(image, view), image)

    def _to_truth(self, objects: ViewObjects, image: _LoadedImage) -> Truth:
        mask_size = None if self.model.mask is None else self.model.mask.truth_size
        return objects.truth(mask_size, image.labeled)

    def _objects(
        self, image: _LoadedImage, view: AugmentedView, tight: bool = False
    ) -> ViewObjects:
        """Returns the objects of an image in a view.

        `tight`: every box of an object with an annotated mask becomes the bounds of the mask,
        whatever box is annotated.
        """
        keypoints = self._keypoints(image, view)
        moved = geometry.move_boxes(view.matrix, image.boxes)
        boxes = _clip(moved, view.size)

        ignore = image.ignore
        if tight or not view.whole:
            clipped = boxes.copy()
            lost = self._refit(boxes, moved, keypoints, image, view, tight)
            # the bounds of moved polygons may be off by a rounding error
            boxes = _clip(boxes, view.size)
            # a rotation widens the moved boxes, so that the refitted ones cannot be compared with
            # them
            comparable = boxes if geometry.is_axis_aligned(view.matrix) else clipped
            ignore = ignore | lost | (_areas(comparable) < _MIN_BOX_LEFT * _areas(moved))

        masks = [
            None if mask is None else ViewMask(mask, view.matrix, by_color=bool(by_color))
            for mask, by_color in zip(image.masks, image.by_color, strict=True)
        ]
        return ViewObjects(
            boxes,
            image.has_box,
            image.labels,
            ignore,
            masks,
            keypoints,
            _moved_points(image.points, view),
            _spans(image, moved, view),
            image.annotation_ids,
        )

    def _keypoints(self, image: _LoadedImage, view: AugmentedView) -> np.ndarray:
        """Returns keypoints [n, J, 3] in the view, those outside as zeros.

        Left and right are swapped in a mirror image.
        """
        keypoints = image.keypoints.copy()
        keypoints[:, :, :2] = geometry.move_points(view.matrix, keypoints[:, :, :2])
        if geometry.mirrored(view.matrix):
            channels = self._mirrored_channels[image.labels][:, :, None]
            keypoints = np.take_along_axis(keypoints, channels, axis=1)

        xy = keypoints[:, :, :2]
        inside = ((xy >= 0) & (xy <= (view.size[1], view.size[0]))).all(axis=2)
        return keypoints * (inside & (keypoints[:, :, 2] > 0))[:, :, None]

    def _refit(
        self,
        boxes: np.ndarray,
        moved: np.ndarray,
        keypoints: np.ndarray,
        image: _LoadedImage,
        view: AugmentedView,
        tight: bool,
    ) -> np.ndarray:
        """Changes boxes in place to the bounds of the visible part of each object.

        Only boxes that a crop cut or a rotation widened are changed, or all of them if `tight`. A
        mask by color changes only the sides that are cut: where it ends too early, the annotated
        side is still the right one.

        Returns:
            Which objects show no color of theirs in the view, though nobody drew a mask that would
            say that they are not there: [n].
        """
        is_rotated = not geometry.is_axis_aligned(view.matrix)
        is_cut = (np.abs(boxes - moved) > _CUT).any(axis=1)
        is_inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        keeps_sides = image.by_color & (not is_rotated)
        lost = np.zeros(len(boxes), bool)

        for i in np.flatnonzero((is_cut | is_rotated | tight) & is_inside):
            mask = image.masks[i]
            if mask is None:
                if not image.has_box[i]:
                    hull = np.array(_hull(keypoints[i])) if keypoints[i].any() else np.zeros(4)
                    boxes[i] = _clip(hull, view.size)
                continue

            bounds = mask.bounds(view.matrix, view.size)
            if bounds is not None:
                annotated = boxes[i].copy()
                boxes[i] = bounds
                if keeps_sides[i]:
                    is_seen = _sides_in_view(bounds, mask, view)
                    boxes[i][is_seen] = annotated[is_seen]
            elif image.by_color[i]:
                lost[i] = True
            else:
                boxes[i] = 0
        return lost


def _sides_in_view(bounds: BoxXYXY, mask: Mask, view: AugmentedView) -> np.ndarray:
    """Which sides of a mask by color a view shows: where the bounds of all of it are.

    There the annotated side is the exact one.
    """
    assert isinstance(mask, Pixels)
    return np.abs(bounds - geometry.move_boxes(view.matrix, mask.extent)) < _CUT


def _points(objects: Sequence[Annotation]) -> np.ndarray:
    """Labeled points [n, P, 3] of objects without a mask, padded with zeros."""
    most = 0
    for a in objects:
        if a.points is not None and a.mask_area is None:
            most = max(most, len(a.points))
    points = np.zeros((len(objects), most, 3))
    for row, a in zip(points, objects, strict=True):
        if a.points is not None and a.mask_area is None:
            row[: len(a.points)] = a.points + np.array([0, 0, 1])
    return points


def _moved_points(points: np.ndarray, view: AugmentedView) -> np.ndarray:
    """Labeled points [n, P, 3] in the view, those outside as zeros."""
    xy = geometry.move_points(view.matrix, points[..., :2])
    inside = ((xy >= 0) & (xy <= (view.size[1], view.size[0]))).all(axis=-1)
    moved = np.concatenate([xy, points[..., 2:]], axis=-1)
    return moved * (inside & (points[..., 2] > 0))[..., None]


def _spans(image: _LoadedImage, moved: np.ndarray, view: AugmentedView) -> np.ndarray:
    """Whether objects with a box and no mask reach all its columns and all its rows: [n, 2]."""
    if not geometry.is_axis_aligned(view.matrix):
        return np.zeros((len(moved), 2), dtype=bool)
    is_cut = np.abs(_clip(moved, view.size) - moved) > _CUT
    cut_columns = is_cut[:, 0] | is_cut[:, 2]
    cut_rows = is_cut[:, 1] | is_cut[:, 3]
    refitted = np.array([mask is not None for mask in image.masks], dtype=bool)
    return image.unmasked[:, None] & (
        refitted[:, None] | ~np.stack([cut_rows, cut_columns], axis=1)
    )


def collate(examples: Sequence[Example], size_divisor: int) -> tuple[Batch, Truth]:
    """Returns a padded batch of examples, and their truth.

    Args:
        examples: at least one.
        size_divisor: padded sides are multiples of it.
    """
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
    """Returns the bounding box of the labeled keypoints of [j, 3], enlarged where it is thin."""
    if keypoints is None:
        raise AssertionError("an annotation without box, mask and keypoints passed the checks")
    points = keypoints[keypoints[:, 2] > 0, :2]
    low = points.min(axis=0)
    high = points.max(axis=0)
    min_side = max(_MIN_HULL_SIDE, _MIN_HULL_SHARE * float((high - low).max()))
    side = np.maximum(high - low, min_side)
    center = (low + high) / 2
    x0, y0 = center - side / 2
    x1, y1 = center + side / 2
    return float(x0), float(y0), float(x1), float(y1)


def _mirrored_channels(model: ModelConfig, num_keypoints: int) -> np.ndarray:
    """Returns for each heatmap channel the one it becomes in a mirror: [categories, keypoints]."""
    channels = np.tile(np.arange(num_keypoints), (model.num_classes, 1))
    if model.keypoint is not None:
        for row, category, (start, count) in zip(
            channels, model.categories, model.keypoint_slices, strict=True
        ):
            row[[start + j for j in category.mirrored]] = np.arange(start, start + count)
    return channels


def _check_categories(dataset: CocoDataset, model: ModelConfig) -> None:
    """Raises DataError where labels or keypoints of the data are not the model's."""
    if len(dataset.categories) != len(model.categories):
        raise DataError(
            f"{dataset.name}: the data has {counted(len(dataset.categories), 'category')}, "
            f"the model has {len(model.categories)}. Open the data with "
            "categories=model.categories, or make the model with categories=data.categories"
        )
    if model.keypoint is None:
        return

    for label, (of_data, of_model) in enumerate(
        zip(dataset.categories, model.categories, strict=True)
    ):
        if len(of_data.keypoints) != len(of_model.keypoints):
            raise DataError(
                f'{dataset.name}: category "{of_data.name}" (label {label}) has '
                f"{counted(len(of_data.keypoints), 'keypoint')}, "
                f"the model has {len(of_model.keypoints)}. "
                "Make the model with categories=data.categories"
            )


def _check_copy_paste(dataset: CocoDataset, augment: AugmentConfig) -> None:
    """Raises where there is nothing to paste, or nothing to choose from."""
    if augment.copy_paste_choices < 1:
        raise ValueError(
            f"augment.copy_paste_choices: expected at least 1, got {augment.copy_paste_choices}"
        )
    annotations = (a for i in range(len(dataset)) for a in dataset[i].annotations)
    if not any(a.box or mask_bounds(a) for a in annotations if not a.ignore):
        raise DataError(
            f"{dataset.name}: augment.copy_paste is {augment.copy_paste:g}, "
            "but no object has a mask or a box to paste; set it to 0"
        )
