"""From images to their objects: `predict(model, "street.jpg")`.

In:  a model; one image (a file, an array [H, W, 3], a PIL image) or several (a folder, a list, an iterator).
Out: Instances in each image's own pixels; one for one image, an iterator in the order of the input for several.

Images whose inputs pad to the same shape go through the model together, so an image's answer does not depend on its neighbors. No more than
a few batches are held at once: a folder of any size can be read through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..config import ModelConfig
from ..images.files import image_files
from ..images.read import ImageError, read_image
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..model.optimize import optimize_for_inference, reference
from ..preprocess import prepare, prepare_as_torchvision
from ..structures import Batch, Detections
from .tta import View, answer_from_views, views_of

Form = Literal["fast", "reference"]
ImageInput = str | Path | np.ndarray | Image.Image
LOOKAHEAD = 4
"""Batches' worth of images that may wait for others of their shape."""


@dataclass(frozen=True)
class Source:
    """An image that is to be read, and what it is called."""

    image: ImageInput
    image_id: int | None = None
    file_name: str | None = None


@dataclass
class _Waiting:
    """An image at the model's input size, and its answer once there is one."""

    source: Source
    image: UInt8[np.ndarray, "H W 3"]
    pixels: Tensor | None
    to_model: Float[Tensor, "3 3"]
    shape: tuple[int, ...]
    answer: Instances | None = None


def predict(
    model: MaskRCNN | str | Path,
    images: ImageInput | Iterable[ImageInput],
    *,
    min_score: float | None = None,
    batch_size: int = 1,
    form: Form = "fast",
    device: torch.device | str | None = None,
    tta: str | None = None,
) -> Any:
    """The objects in one image (Instances), or in each of several (an iterator of Instances, in their order).

    Args:
        model: a model, or what `load` reads.
        images: a file, an array [H, W, 3] RGB (also gray, 16-bit), a PIL image; or a folder (all images under it, sorted), a list, an iterator.
        min_score: objects scored lower are left out; by default the model's own threshold, below which it gives none.
        batch_size: images of equal padded shape that go through the model together.
        form: "fast" (folded BatchNorm, channels last; equal to 0.05 px) or "reference" (the plain network).
        device: where to run; by default where the model is. A copy elsewhere is kept there while the model lives as it is.
        tta: see each image several times and join the answers, slower and better: "flip" (mirrored), "turns" (by right angles), "scales" (0.8 and
            1.25 times as large), or several of them with commas.

    Raises:
        ImageError: an image cannot be read.
        ValueError: `min_score` below the model's own threshold, an unknown form or kind of tta, a folder without images.
    """
    if isinstance(images, Tensor):
        raise TypeError(
            "images are uint8 arrays [H, W, 3]; for a tensor [3, H, W] give tensor.permute(1, 2, 0).numpy()"
        )
    answer = answering(model, form=form, device=device, min_score=min_score, tta=tta)
    if isinstance(images, str | Path) and not Path(images).is_dir():
        return next(stream(answer, [Source(images, 1, Path(images).name)], keep_images=True))
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim <= 3):
        return next(stream(answer, [Source(images)], keep_images=True))
    return stream(answer, _sources(images), batch_size=batch_size)


@dataclass(frozen=True)
class Answering:
    """A model made ready to answer, and how much of its answers is wanted."""

    network: MaskRCNN
    min_score: float
    views: tuple[View, ...] = ()
    """In which each image is seen; none = as it is."""

    def __call__(self, batch: Batch) -> Detections:
        """What the network finds, on the CPU."""
        with torch.inference_mode():
            place = next(self.network.parameters()).device
            batch = batch.to(
                place, non_blocking=place.type == "cuda"
            )  # which has read unpinned memory when the call returns
            found = (
                answer_from_views(self.network, batch, self.views)
                if self.views
                else self.network(batch)
            )
            return found.to("cpu")

    @property
    def normalizes_first(self) -> bool:
        """Images are normalized before they are resized: torchvision's order, equal to it to the last bit."""
        return self.network.config.input.resize == "torch"


def answering(
    model: MaskRCNN | str | Path,
    *,
    form: Form = "fast",
    device: torch.device | str | None = None,
    min_score: float | None = None,
    tta: str | None = None,
) -> Answering:
    """The model in the form in which it shall answer."""
    if isinstance(model, str | Path):
        from ..weights.load import load

        model = load(model)
    if form not in ("fast", "reference"):
        raise ValueError(f'form "{form}" is unknown; choose "fast" or "reference"')
    lowest = model.config.box.score_threshold
    if min_score is not None and min_score < lowest:
        raise ValueError(
            f"min_score is {min_score}, but the model gives no objects below its own box.score_threshold of {lowest}"
        )
    place = (
        next(model.parameters()).device if device is None else torch.empty(0, device=device).device
    )  # "cuda" with its number
    return Answering(
        _in_form(model, form, place), lowest if min_score is None else min_score, views_of(tta)
    )


def stream(
    answer: Answering,
    sources: Iterable[Source],
    *,
    batch_size: int = 1,
    keep_images: bool = False,
    on_error: Callable[[Source, ImageError], None] | None = None,
) -> Iterator[Instances]:
    """The answers in the order of the sources.

    Args:
        answer: the model.
        sources: what to read; read a few batches ahead at most.
        batch_size: images of equal padded shape that go together.
        keep_images: let the answers carry the pixels of files, else their path.
        on_error: told of an image that cannot be read, which is then left out; by default that is an error.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    waiting: list[_Waiting] = []
    for source in sources:
        try:
            waiting.append(_read(source, answer, keep_images))
        except ImageError as error:
            if on_error is None:
                raise
            on_error(source, error)
            continue
        peers = _peers(waiting, waiting[-1])
        if len(peers) == batch_size:
            _answer_together(answer, peers)
        elif len(waiting) >= LOOKAHEAD * batch_size:
            _answer_together(answer, _peers(waiting, waiting[0]))
        yield from _ready(waiting)
    while waiting:
        _answer_together(answer, _peers(waiting, waiting[0]))
        yield from _ready(waiting)


def to_instances(
    detections: Detections,
    row: int,
    scale: tuple[float, float],
    size: tuple[int, int],
    config: ModelConfig,
    min_score: float,
) -> Instances:
    """The objects of one image of a batch in that image's own pixels; boxes clipped to it, those without area dropped.

    Args:
        detections: of the batch, in model-input pixels.
        row: which image.
        scale: original pixels per input pixel, in x and y.
        size: the original height and width.
        config: the model's.
        min_score: objects scored lower are left out.
    """
    factor = torch.tensor(scale, dtype=torch.float32)
    boxes = detections.boxes[row].float() * factor.repeat(2)
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
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
    return Instances(
        size=size,
        boxes=boxes[keep],
        scores=detections.scores[row][keep].float(),
        labels=detections.labels[row][keep],
        categories=config.categories,
        mask_grids=None if detections.masks is None else detections.masks[row][keep].float(),
        keypoints=keypoints,
        keypoint_logits=None
        if detections.keypoint_logits is None
        else detections.keypoint_logits[row][keep].float(),
        paste=config.mask.paste if config.mask else "border",
        mask_threshold=config.mask.threshold if config.mask else 0.5,
        coco_offset=config.keypoint.coco_offset if config.keypoint else 0.5,
        intensity_range=config.input.intensity_range,
    )


def _sources(images: Any) -> Iterator[Source]:
    if isinstance(images, str | Path):
        return (
            Source(path, n, path.relative_to(images).as_posix())
            for n, path in enumerate(image_files(images), start=1)
        )
    return (
        Source(p, n, Path(p).name if isinstance(p, str | Path) else None)
        for n, p in enumerate(images, start=1)
    )


def _read(source: Source, answer: Answering, keep_image: bool) -> _Waiting:
    config = answer.network.config
    image = read_image(source.image, config.input.intensity_range)
    pixels, to_model = (prepare_as_torchvision if answer.normalizes_first else prepare)(
        image, config.input
    )
    divisor = config.input.size_divisor
    shape = tuple(-(-side // divisor) * divisor for side in pixels.shape[1:])
    kept = Path(source.image) if isinstance(source.image, str | Path) and not keep_image else image
    return _Waiting(replace(source, image=kept), image, pixels, to_model, shape)


def _peers(waiting: list[_Waiting], one: _Waiting) -> list[_Waiting]:
    return [w for w in waiting if w.answer is None and w.shape == one.shape]


def _answer_together(answer: Answering, group: list[_Waiting]) -> None:
    config = answer.network.config
    images, matrices = (
        [w.pixels for w in group if w.pixels is not None],
        [w.to_model for w in group],
    )
    batch = Batch.collate(
        images,
        config.input.size_divisor,
        matrices,
        [0] * len(group),
        normalized=answer.normalizes_first,
    )
    detections = answer(batch)
    for row, one in enumerate(group):
        assert one.pixels is not None
        (height, width), (input_height, input_width) = one.image.shape[:2], one.pixels.shape[1:]
        instances = to_instances(
            detections,
            row,
            (width / input_width, height / input_height),
            (height, width),
            config,
            answer.min_score,
        )
        named = replace(
            instances,
            image_id=one.source.image_id,
            file_name=one.source.file_name,
            source=one.source.image,
        )
        one.answer, one.pixels = named, None


def _ready(waiting: list[_Waiting]) -> Iterator[Instances]:
    """Takes the answered images from the front."""
    while waiting and waiting[0].answer is not None:
        yield waiting.pop(0).answer  # ty: ignore[invalid-yield]


# The forms of each model that were made, by kind and place, and what the model was when they were made.
_FORMS: WeakKeyDictionary[MaskRCNN, tuple[Any, dict[tuple[Form, torch.device], MaskRCNN]]] = (
    WeakKeyDictionary()
)


def _in_form(model: MaskRCNN, form: Form, place: torch.device) -> MaskRCNN:
    """The model in a form and a place, made anew when its weights or settings have changed since (it may be in training)."""
    stays = place == next(model.parameters()).device
    if stays and form == "reference":
        return reference(model)
    if stays and model.optimized:
        return model
    state = _fingerprint(model)
    if model not in _FORMS or _FORMS[model][0] != state:
        _FORMS[model] = (state, {})
    forms = _FORMS[model][1]
    if (form, place) not in forms:
        made = (
            reference(model)
            if form == "reference"
            else model
            if model.optimized
            else optimize_for_inference(model)
        )
        forms[form, place] = made if stays else copy.deepcopy(made).to(place)
    return forms[form, place]


def _fingerprint(model: MaskRCNN) -> Any:
    """What changes with the model: its settings, its tensors' places and version counters, and a few values of each tensor.

    The values are for edits through `.data`, which count no version. Reading all weights instead would take a tenth of a small image's prediction.
    """
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers())]
    few = [t.as_strided((min(t.numel(), 4),), (max(t.numel() // 4, 1),)) for t in tensors]
    return (
        torch.cat([values.float() for values in few]).tolist(),
        [(t.data_ptr(), t._version) for t in tensors],
        tensors[0].device,
        [getattr(part, "config", None) for part in model.modules()],
    )
