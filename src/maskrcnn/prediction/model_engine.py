"""How a `Predictor` computes with a model: the network prepared for prediction, on a device.

In:  a model and settings of prediction.
Out: a `ModelEngine`, from a `Batch` to `Detections`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..config import ModelConfig
from ..kernels.precision import computes_bfloat16
from ..model.maskrcnn import MaskRCNN
from ..ops.device import usable_device
from ..preprocess import prepare, prepare_as_torchvision
from ..structures import Batch, Detections
from .optimize import optimize_for_inference, reference
from .tta import TTAView, predict_views

Dtype = Literal["float32", "bfloat16", "auto"]


@dataclass
class ModelEngine:
    """A network, prepared for prediction.

    Batches are padded, so that images of different sizes can share one.
    """

    network: MaskRCNN
    """The prepared network."""
    views: Sequence[TTAView] = ()
    """Augmented views of each image; empty without test-time augmentation."""

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.network.config

    @property
    def size_divisor(self) -> int:
        """Both sides of a batch are padded to a multiple of this many pixels."""
        return self.config.input.size_divisor

    @property
    def normalizes_first(self) -> bool:
        """Whether images are normalized before they are resized.

        This is torchvision's order; with it the results equal torchvision's to the last bit.
        """
        return self.config.input.resize == "torch"

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor, Float[Tensor, "3 3"]]:
        """Returns the image at the model's input size, and the matrix to its pixels."""
        resize = prepare_as_torchvision if self.normalizes_first else prepare
        return resize(image, self.config.input)

    def __call__(self, batch: Batch) -> Detections:
        """Returns the objects in the images, on the CPU, in model-input pixels."""
        with torch.inference_mode():
            device = next(self.network.parameters()).device
            # CUDA has read unpinned memory when the call returns; other devices may not have
            batch = batch.to(device, non_blocking=device.type == "cuda")
            if self.views:
                return predict_views(self.network, batch, self.views).to("cpu")
            return self.network(batch).to("cpu")


_Key = tuple[bool, str | None, torch.device]
# The prepared copies of each model, and its fingerprint when they were made.
_PREPARED: WeakKeyDictionary[MaskRCNN, tuple[Any, dict[_Key, MaskRCNN]]] = WeakKeyDictionary()


def device_of(device: torch.device | str | None, model: MaskRCNN) -> torch.device:
    """A device with its index: "cuda" becomes "cuda:0"."""
    if device is None:
        return next(model.parameters()).device
    return usable_device(device)


def prepared_network(
    model: MaskRCNN, exact: bool, dtype: Dtype | None, device: torch.device
) -> MaskRCNN:
    """The model prepared for prediction on a device.

    Prepared copies are reused until the model's weights or settings change (it may be in training).
    """
    if dtype == "auto":
        dtype = "bfloat16" if computes_bfloat16(device) else "float32"
    if exact or (dtype is None and not model.optimized):
        dtype = "float32"

    on_device = device == next(model.parameters()).device
    if on_device and exact:
        return reference(model)
    if on_device and dtype is None:
        return model

    fingerprint = _fingerprint(model)
    if model not in _PREPARED or _PREPARED[model][0] != fingerprint:
        _PREPARED[model] = (fingerprint, {})
    copies = _PREPARED[model][1]

    key = (exact, dtype, device)
    if key not in copies:
        if exact:
            made = reference(model)
        elif dtype is None:
            made = model
        else:
            made = optimize_for_inference(model, dtype)
        copies[key] = made if on_device else copy.deepcopy(made).to(device)
    return copies[key]


def _fingerprint(model: MaskRCNN) -> Any:
    """What changes with the model: settings, storage, version counters, and a few values.

    A few values of each tensor show edits through `.data`, which bypass the version counter.
    Reading all weights would take a tenth of the time of predicting a small image.
    """
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers())]
    few = [t.as_strided((min(t.numel(), 4),), (max(t.numel() // 4, 1),)) for t in tensors]
    return (
        torch.cat([values.float() for values in few]).tolist(),
        [(t.data_ptr(), t._version) for t in tensors],
        tensors[0].device,
        [getattr(part, "config", None) for part in model.modules()],
    )
