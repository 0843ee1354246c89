"""From images to their objects: `predict(model, "street.jpg")`, or a `Predictor` for many calls.

In:  a model; one image (see `read_input`) or several (a list, an iterator).
Out: Instances in each image's own pixels; an iterator in the order of the input for several images.

Only images whose inputs pad to the same shape share a batch, so the predictions for an image do
not depend on its neighbors. At most a few batches are held at once, whatever the number of images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..config import ModelConfig
from ..images.image_files import ImageWarning
from ..images.open_image import pixel_limit
from ..images.read import ImageError
from ..images.remote import is_url
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..structures import Batch, Detections
from .graph_engine import GraphEngine, is_graph_file
from .image_advice import advised_for_predict
from .image_input import ImageInput, check_input, is_image, read_input
from .image_sources import (
    ImageSource,
    image_sources,
    one_source,
    several_expected,
    several_frames,
)
from .model_engine import Dtype, ModelEngine, device_of, prepared_network
from .tta import parse_tta

LOOKAHEAD = 4
"""Number of batches whose images may wait for others of the same padded shape."""
_SHOWN = 3  # names in a warning


@dataclass
class PreparedImage:
    """An image as it was read, and as the model takes it."""

    image: UInt8[np.ndarray, "H W 3"]
    pixels: Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]
    """At the model's input size, not padded."""
    to_model: Float[Tensor, "3 3"]
    """From the image's pixels to the model's."""
    frames: int = 1
    """Frames of the image. More than 1: only the first is used."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image as it was read."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per model-input pixel, in x and y."""
        height, width = self.size
        input_height, input_width = self.pixels.shape[1:]
        return width / input_width, height / input_height


@dataclass
class _Pending:
    """An image that waits for its batch; `result` is set once it was predicted."""

    source: ImageSource
    prepared: PreparedImage | None
    padded_shape: tuple[int, ...]
    result: Instances | None = None


class Predictor:
    """Runs a model, or an exported file, on images, with all settings of prediction.

    A Predictor uses the weights that the model had when the Predictor was created. After further
    training, create a new one. The prepared copies are cached with the model, so that this costs
    little when the model has not changed.

    Args:
        model: a model, or what `load` reads: a catalog name, a run folder, a file. Or a file that
            `export_model` wrote; it runs without its model, and has no `dtype`, `exact` or `tta`.
        device: where to run, such as "cpu" or "cuda:1"; by default where the model is, and for an
            exported file a GPU where its runtime has one.
        dtype: precision of the convolutions and linear layers: "float32" (the default), "bfloat16",
            or "auto": bfloat16 where the device supports it natively, else float32. A model from
            `optimize_for_inference` keeps its precision by default.
        exact: use the plain network with torchvision's RoIAlign instead of the optimized one, which
            differs from it by at most 0.05 px and is faster. Runs in float32.
        tta: test-time augmentation, more accurate and slower: "flip" (mirrored), "turns" (rotated
            by right angles), "scales" (0.8 and 1.25 times as large), or a comma-separated list of
            these. Detections of all views are merged.
        min_score: drop detections with a lower score, 0 to 1; by default the model's own
            `box.score_threshold`, the lowest value allowed.
        intensity_range: values of 16-bit and floating-point images that become black and white,
            such as (0, 4095); by default the model's own `input.intensity_range`.
        max_pixels: largest width x height that is decoded; by default that of
            MASKRCNN_MAX_PIXELS, else 500 million.

    Raises:
        ValueError: `min_score` is below the model's threshold, an unknown `dtype` or `tta`,
            `exact` with another precision than float32, or a wrong range or limit. For an exported
            file also: a setting that it does not have, or no file of this package.
        ImportError: the runtime of an exported file is not installed.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> predictor = mr.Predictor(mr.load("nuclei"), min_score=0.5)
        >>> image, _ = draw_micrograph(0, (96, 128))
        >>> result = predictor(image)
        >>> result.size == image.shape[:2]
        True
        >>> [len(instances) for instances in predictor.stream([image, image])] == [len(result)] * 2
        True
    """

    def __init__(
        self,
        model: MaskRCNN | str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: Dtype | None = None,
        exact: bool = False,
        tta: str | None = None,
        min_score: float | None = None,
        intensity_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        if intensity_range is not None and not intensity_range[0] < intensity_range[1]:
            raise ValueError(
                f"intensity_range: expected (low, high) with low < high, got {intensity_range}"
            )
        if dtype not in (None, "float32", "bfloat16", "auto"):
            raise ValueError(f'dtype: expected "float32", "bfloat16" or "auto", got {dtype!r}')
        if exact and dtype not in (None, "float32"):
            raise ValueError(f'exact=True: expected dtype="float32", got "{dtype}"; omit dtype')
        views = parse_tta(tta)

        self.engine: ModelEngine | GraphEngine
        """Computes with the prepared network or with the exported file."""
        if isinstance(model, str | Path) and is_graph_file(model):
            self.engine = GraphEngine.load(
                model, device, dtype, refused={"tta": tta, "exact": exact}
            )
        else:
            if isinstance(model, str | Path):
                from ..weights.load import load

                model = load(model)
            network = prepared_network(model, exact, dtype, device_of(device, model))
            self.engine = ModelEngine(network, views)

        lowest = self.config.box.score_threshold
        if min_score is not None and min_score < lowest:
            raise ValueError(
                f"min_score: expected at least {lowest}, the model's own box.score_threshold, "
                f"got {min_score}"
            )
        self.min_score = lowest if min_score is None else min_score
        self.intensity_range = intensity_range or self.config.input.intensity_range
        """Values of 16-bit and floating-point images that become black and white."""
        self.max_pixels = pixel_limit(max_pixels)
        """Largest width x height that is decoded."""

    def __call__(self, image: ImageInput | ImageSource) -> Instances:
        """The objects in one image, in its own pixels.

        Args:
            image: see `predict`.

        Raises:
            ImageError: the image cannot be read.
            ValueError: the path is a folder or a wildcard pattern.
            TypeError: this is not an image.
        """
        source = one_source(image)
        try:
            prepared = self.prepare(source.image)
        except ImageError as error:
            raise advised_for_predict(error) from None
        if prepared.frames > 1:
            warnings.warn(several_frames([source], 1), ImageWarning, stacklevel=2)
        (instances,) = self.predict_prepared([prepared])
        return replace(instances, image_id=source.image_id, file_name=source.file_name)

    def stream(
        self,
        images: Iterable[ImageInput | ImageSource],
        batch_size: int = 1,
        *,
        keep_images: bool = False,
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
        on_frames: Callable[[ImageSource], None] | None = None,
    ) -> Iterator[Instances]:
        """The objects in each of several images, in the order of the images.

        Args:
            images: of any kind that `predict` takes; read a few batches ahead at most. Their ids
                count from 1.
            batch_size: up to this many images of equal padded shape share one forward pass.
            keep_images: keep the pixels of files in the results, not only their paths.
            on_error: called with an image that cannot be read, which is then skipped; by default
                the error is raised.
            on_frames: called with an image that has several frames, of which only the first is
                used; by default one warning counts these images.

        Raises:
            ImageError: an image cannot be read and there is no `on_error`.
            ValueError: `images` is a path, or `batch_size` is below 1.
            TypeError: an entry is not an image; the message has its index.
        """
        if isinstance(images, str | Path):
            raise ValueError(several_expected(images))
        sources = image_sources(images)
        if on_frames is not None:
            return self._stream(sources, batch_size, keep_images, on_error, on_frames)
        return self._warning_of_frames(sources, batch_size, keep_images, on_error)

    @property
    def config(self) -> ModelConfig:
        """The model's configuration: categories with skeletons, thresholds, the resize rule."""
        return self.engine.config

    @property
    def network(self) -> MaskRCNN:
        """The prepared network.

        Raises:
            ValueError: this is an exported file, which has none.
        """
        if isinstance(self.engine, GraphEngine):
            raise ValueError(
                f"{self.engine.runner.path}: expected a model, got an exported file, which only "
                "predicts; use the model from which it was exported"
            )
        return self.engine.network

    def prepare(self, image: ImageInput) -> PreparedImage:
        """Reads an image and resizes it as the model takes it.

        Raises:
            ImageError: the image cannot be read.
        """
        pixels, frames = read_input(image, self.intensity_range, self.max_pixels)
        return PreparedImage(pixels, *self.engine.prepare(pixels), frames)

    def padded_shape(self, image: PreparedImage) -> tuple[int, ...]:
        """(height, width) of a batch of this image alone; images of one shape share batches."""
        divisor = self.engine.size_divisor
        return tuple(-(-side // divisor) * divisor for side in image.pixels.shape[1:])

    def predict_prepared(self, images: Sequence[PreparedImage]) -> list[Instances]:
        """The objects in prepared images of one padded shape, by one forward pass."""
        batch = self.collate([i.pixels for i in images], [i.to_model for i in images])
        detections = self.engine(batch)

        results = []
        for row, image in enumerate(images):
            instances = to_instances(
                detections, row, image.scale, image.size, self.config, self.min_score
            )
            results.append(
                replace(instances, source=image.image, intensity_range=self.intensity_range)
            )
        return results

    def collate(self, images: Iterable[Tensor], to_model: Iterable[Tensor]) -> Batch:
        """A batch of prepared pixels, padded to the largest, with fixed seeds."""
        pixels = list(images)
        return Batch.collate(
            pixels,
            self.engine.size_divisor,
            list(to_model),
            [0] * len(pixels),
            normalized=self.engine.normalizes_first,
        )

    def _warning_of_frames(
        self,
        sources: Iterable[ImageSource],
        batch_size: int,
        keep_images: bool,
        on_error: Callable[[ImageSource, ImageError], None] | None,
    ) -> Iterator[Instances]:
        """Streams, and at the end warns once about all images with several frames."""
        shown: list[ImageSource] = []
        count = 0

        def note(source: ImageSource) -> None:
            nonlocal count
            count += 1
            if len(shown) < _SHOWN:
                shown.append(replace(source, image=source.file_name or "an image"))

        yield from self._stream(sources, batch_size, keep_images, on_error, note)
        if count:
            warnings.warn(several_frames(shown, count), ImageWarning, stacklevel=2)

    def _stream(
        self,
        sources: Iterable[ImageSource],
        batch_size: int,
        keep_images: bool,
        on_error: Callable[[ImageSource, ImageError], None] | None,
        on_frames: Callable[[ImageSource], None],
    ) -> Iterator[Instances]:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        queue: list[_Pending] = []
        for index, source in enumerate(sources):
            try:
                queue.append(self._read(source, keep_images))
            except ImageError as error:
                if not isinstance(source.image, str | Path):  # they are named already
                    error = error.about(f"images[{index}]")
                error = advised_for_predict(error)
                if on_error is None:
                    raise error from None
                on_error(source, error)
                continue
            read = queue[-1].prepared
            if read is not None and read.frames > 1:
                on_frames(source)

            # a full batch runs at once; the oldest image does not wait forever for a full one
            group = _same_shape(queue, queue[-1])
            if len(group) == batch_size:
                self._predict_batch(group)
            elif len(queue) >= LOOKAHEAD * batch_size:
                self._predict_batch(_same_shape(queue, queue[0]))
            yield from _pop_finished(queue)

        while queue:
            self._predict_batch(_same_shape(queue, queue[0]))
            yield from _pop_finished(queue)

    def _read(self, source: ImageSource, keep_image: bool) -> _Pending:
        prepared = self.prepare(source.image)
        image: ImageInput = prepared.image
        if isinstance(source.image, str | Path) and not is_url(source.image) and not keep_image:
            image = Path(source.image)
        return _Pending(replace(source, image=image), prepared, self.padded_shape(prepared))

    def _predict_batch(self, group: list[_Pending]) -> None:
        """Sets `result` of images that share a padded shape, and frees their pixels."""
        prepared = [pending.prepared for pending in group if pending.prepared is not None]
        results = self.predict_prepared(prepared)
        for pending, instances in zip(group, results, strict=True):
            pending.result = replace(
                instances,
                image_id=pending.source.image_id,
                file_name=pending.source.file_name,
                source=pending.source.image,
            )
            pending.prepared = None


@overload
def predict(
    model: MaskRCNN | str | Path,
    images: ImageInput,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
    exact: bool = False,
    tta: str | None = None,
    min_score: float | None = None,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> Instances: ...


@overload
def predict(
    model: MaskRCNN | str | Path,
    images: Iterable[ImageInput],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
    exact: bool = False,
    tta: str | None = None,
    min_score: float | None = None,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> Iterator[Instances]: ...


def predict(
    model: MaskRCNN | str | Path,
    images: ImageInput | Iterable[ImageInput],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
    exact: bool = False,
    tta: str | None = None,
    min_score: float | None = None,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> Instances | Iterator[Instances]:
    """The objects in one image (Instances), or in several (an iterator of Instances, in order).

    A call of `Predictor`, which documents the settings from `device` on.

    Args:
        model: a model, or what `load` reads.
        images: one image: a file name, an http(s) URL as text, the bytes of a file, a binary file
            object, a PIL image, an array [H, W, 3] RGB (also gray, and 16-bit), or a tensor
            [3, H, W] RGB, uint8 or floating point 0 to 1. A URL is read up to 256 MB and 60
            seconds. Several: a list or an iterator of these; for a folder or a pattern such as
            "photos/*.jpg", `image_files`.
        batch_size: of several images, up to this many of equal padded shape share a forward pass.
        device: see `Predictor`.
        dtype: see `Predictor`.
        exact: see `Predictor`.
        tta: see `Predictor`.
        min_score: see `Predictor`.
        intensity_range: see `Predictor`.
        max_pixels: see `Predictor`.

    Raises:
        ImageError: an image cannot be read.
        ValueError: `images` is a folder or a pattern, or a setting is wrong.
        TypeError: `images`, or an entry of it, is not an image.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.micrograph import draw_micrograph
        >>> model = mr.load("nuclei")
        >>> result = mr.predict(model, draw_micrograph(0, (96, 128))[0], min_score=0.5)
        >>> len(result) > 5
        True
        >>> images = [draw_micrograph(seed, (96, 128))[0] for seed in (0, 1)]
        >>> [instances.image_id for instances in mr.predict(model, images, batch_size=2)]
        [1, 2]
    """
    is_one = is_image(images)
    if is_one:
        one_source(images)  # reports a folder before the model is loaded
    elif not isinstance(images, Iterable) or isinstance(images, Mapping):
        check_input(images, "images")

    predictor = Predictor(
        model,
        device=device,
        dtype=dtype,
        exact=exact,
        tta=tta,
        min_score=min_score,
        intensity_range=intensity_range,
        max_pixels=max_pixels,
    )
    if is_one:
        return predictor(cast(ImageInput, images))
    return predictor.stream(cast(Iterable[ImageInput], images), batch_size)


def to_instances(
    detections: Detections,
    row: int,
    scale: tuple[float, float],
    size: tuple[int, int],
    config: ModelConfig,
    min_score: float,
) -> Instances:
    """The objects of one image of a batch, in that image's own pixels.

    Boxes are clipped to the image; those without area are dropped.

    Args:
        detections: of the batch, in model-input pixels.
        row: which image of the batch.
        scale: original pixels per model-input pixel, in x and y.
        size: height and width of the original image.
        config: the model's.
        min_score: drop detections with a lower score.
    """
    factor = torch.tensor(scale, dtype=torch.float32)
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    boxes = detections.boxes[row].float() * factor.repeat(2)
    boxes = boxes.clamp(min=0).minimum(limit)

    keep = (
        detections.valid[row]
        & (detections.scores[row] >= min_score)
        & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    )

    keypoints = None
    if detections.keypoints is not None:
        keypoints = detections.keypoints[row][keep].float()
        keypoints = torch.cat([keypoints[..., :2] * factor, keypoints[..., 2:]], dim=-1)

    def kept(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[row][keep].float()

    return Instances(
        size=size,
        boxes=boxes[keep],
        scores=detections.scores[row][keep].float(),
        labels=detections.labels[row][keep],
        categories=config.categories,
        mask_grids=kept(detections.masks),
        keypoints=keypoints,
        keypoint_logits=kept(detections.keypoint_logits),
        paste=config.mask.paste if config.mask else "border",
        mask_threshold=config.mask.threshold if config.mask else 0.5,
        coco_offset=config.keypoint.coco_offset if config.keypoint else 0.5,
        intensity_range=config.input.intensity_range,
    )


def _same_shape(queue: list[_Pending], one: _Pending) -> list[_Pending]:
    return [p for p in queue if p.result is None and p.padded_shape == one.padded_shape]


def _pop_finished(queue: list[_Pending]) -> Iterator[Instances]:
    """Takes predicted images from the front of the queue."""
    while queue and (result := queue[0].result) is not None:
        queue.pop(0)
        yield result
