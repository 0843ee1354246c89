"""An estimate of the memory that training needs, and the memory that is free.

In: a model's configuration, the size of a batch. Out: bytes. The network runs on PyTorch's meta
device, which has the shapes of tensors but no data, forward and backward; `peak_bytes` counts what
is allocated at the same time. RoIAlign has no such form; its bytes are computed.

tests/test_recipe_memory.py compares the count with that of a real network. docs/journal.md has
the resident memory of real runs beside their estimates.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..augmentation.training_set import CACHE_BYTES
from ..config import ModelConfig, RoIConfig
from ..model.maskrcnn import MASKS_AT_ONCE, MaskRCNN
from ..model.resnet import ResNet
from ..model.shapes_only import shapes_only
from ..ops.pyramid import Pyramid

GIB = 2**30
# Share of the float32 bytes needed with bfloat16 autocast: losses, box arithmetic and normalization
# stay float32.
_HALF = 0.6
# Gaps between tensors, and workspaces of convolutions (reordered inputs and weights), as a factor
# on the tensors: the allocator of the C library cannot move what it has given away. Measured after
# some hundred steps, with unused memory returned every 10 s (training/trainer.py).
_GAPS = 1.4
_PROGRAM = 0.8 * GIB  # assumed where the system does not report it
# Libraries that are imported during a run: the metric, curves. Measured: 22 and 14 MB, and 11 MB
# for the loop itself.
_LIBRARIES = 0.05 * GIB
# Bytes of a detection in a validation: 1,100 as a COCO result with an RLE, and 4,100 while the
# metric compares all. Measured on 99 images of nuclei, from random weights: their masks are ragged.
_RESULT = 5200


def available_memory(device: torch.device) -> float:
    """Free bytes of the GPU, or of the machine within the limits of its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [
        int(text)
        for path in ("memory.max", "memory/memory.limit_in_bytes")
        if (text := _read(Path("/sys/fs/cgroup") / path)).isdigit()
    ]

    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return float(min([int(line.split()[1]) * 1024, *limits]))
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return 4.0 * GIB  # assumed where the system does not report it


def free_bytes(device: torch.device, limit: float | None) -> float:
    """Bytes that training may use beyond those of the program.

    Args:
        device: where the network is.
        limit: GiB that the whole process may use, or training on the GPU; None = all that is free.
    """
    if limit is None:
        return available_memory(device)
    if device.type == "cuda":
        return limit * GIB
    return max(0.0, limit * GIB - program_bytes() - _LIBRARIES)


def most_bytes(device: torch.device, limit: float | None) -> float:
    """Bytes that the whole process may have, or training on the GPU. Arguments: free_bytes."""
    if limit is not None:
        return limit * GIB
    free = available_memory(device)
    return free if device.type == "cuda" else program_bytes() + free


def program_bytes() -> float:
    """Resident bytes of this process: the program itself and the opened data."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmRSS:"):
            return float(int(line.split()[1]) * 1024)
    return _PROGRAM


def expected_peak(program: float, needed: float, device: str | None) -> float:
    """Bytes at the peak of a run: of this process, or of the GPU if it trains there.

    Args:
        program: bytes of this process before its first step.
        needed: bytes of training and validation beyond them.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
    """
    is_cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return needed if is_cuda else max(program + needed + _LIBRARIES, _so_far())


def _so_far() -> float:
    """The most resident bytes that this process has had; 0 where that is unknown."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return float(int(line.split()[1]) * 1024)
    return 0.0


def training_bytes(
    model: ModelConfig,
    batch_size: int,
    size: tuple[int, int],
    half: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes that training steps need beyond those of the program: state and activations.

    Args:
        model: configuration of the network.
        batch_size: images in one forward pass.
        size: (height, width) of a padded image.
        half: training in 16 bits.
        checkpointing: activation checkpointing of the trunk's stages.
    """
    return state_bytes(model) + activation_bytes(model, batch_size, size, half, checkpointing)


def state_bytes(model: ModelConfig) -> float:
    """Bytes of the weights and their average, and of the optimizer's two momenta."""
    total, trained = _parameters(model)
    return 4.0 * (2 * total + 2 * trained)


def activation_bytes(
    model: ModelConfig,
    batch_size: int,
    size: tuple[int, int],
    half: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes of a step's activations and gradients at their peak. Arguments: training_bytes."""
    gradients = 4.0 * _parameters(model)[1]
    activations = batch_size / 2 * (_peak_of_two(model, size, checkpointing) - gradients)
    return (gradients + activations * (_HALF if half else 1.0)) * _GAPS


@functools.lru_cache(maxsize=64)
def _peak_of_two(model: ModelConfig, size: tuple[int, int], checkpointing: bool) -> int:
    """Bytes of a step with two images; BatchNorm needs more than one value per channel."""
    return step_peak(_without_data(model), 2, size, checkpointing)


@functools.lru_cache(maxsize=64)
def validation_bytes(model: ModelConfig, size: tuple[int, int]) -> float:
    """Bytes of the prediction for one whole image, without gradients, with all detections.

    A prepared copy of the network (its folded weights) makes the predictions.
    """
    weights = 4.0 * _parameters(model)[0]
    return weights + prediction_peak(_without_data(model), size) * _GAPS


def saving_bytes(model: ModelConfig) -> float:
    """Bytes of a checkpoint while it is written: safetensors copies all tensors."""
    return state_bytes(model)


def image_bytes(pixels: int, images: int) -> float:
    """Bytes of original images of one size: as bytes, and as numbers while they are resized.

    Args:
        pixels: of an image.
        images: at the same time; two where copy-paste moves objects of one to another.
    """
    return 3.0 * pixels * images * (1 + 4)


def cache_bytes(pixels: float, images: int) -> float:
    """Bytes of the decoded images that a training set keeps.

    Args:
        pixels: of an image, on average.
        images: in the training set.
    """
    return min(float(CACHE_BYTES), 3.0 * pixels * images)


def results_bytes(model: ModelConfig, images: int, device: str) -> float:
    """Bytes of the detections in a validation, which are compared all together.

    Args:
        model: limits the detections of an image.
        images: in the validation set.
        device: of the training; the results are never on a GPU.
    """
    if device.startswith("cuda"):
        return 0.0
    return float(_RESULT * model.box.max_detections * images)


def step_work(model: ModelConfig, batch_size: int, size: tuple[int, int]) -> float:
    """Floating-point operations of a batch's forward pass: compares the costs of steps."""
    return batch_size / 2 * _work_of_two(model, size)


@functools.lru_cache(maxsize=64)
def _work_of_two(model: ModelConfig, size: tuple[int, int]) -> int:
    """Floating-point operations of the forward pass of two images."""
    with _Operations() as operations:
        _losses(_without_data(model), 2, size, checkpointing=False)
    return operations.total


@functools.lru_cache(maxsize=16)
def _without_data(model: ModelConfig) -> MaskRCNN:
    """A network on the meta device."""
    return shapes_only(model).train()


@functools.lru_cache(maxsize=16)
def _parameters(model: ModelConfig) -> tuple[int, int]:
    """How many numbers the network has, and how many of them are trained."""
    parameters = [(p.numel(), p.requires_grad) for p in _without_data(model).parameters()]
    return sum(n for n, _ in parameters), sum(n for n, trained in parameters if trained)


def step_peak(
    network: MaskRCNN, batch_size: int, size: tuple[int, int], checkpointing: bool
) -> int:
    """Bytes of activations and gradients at the peak of a training step.

    Args:
        network: on any device.
        batch_size: images.
        size: (height, width) of an image.
        checkpointing: activation checkpointing of the trunk's stages.
    """

    def compute() -> None:
        terms = _losses(network, batch_size, size, checkpointing)
        torch.autograd.backward([term.sum() for term in terms])

    try:
        return peak_bytes(compute) + _rois_in_training(network, batch_size)
    finally:
        network.zero_grad(set_to_none=True)


def prediction_peak(network: MaskRCNN, size: tuple[int, int]) -> int:
    """Bytes of activations at the peak of the prediction for one image.

    The levels of the pyramid are alive all the time. RPN and heads follow one after the other.
    """
    config = network.config
    with torch.no_grad():
        images = _images(network, 1, size)
        levels: list[Tensor] = []
        peaks = [peak_bytes(lambda: levels.extend(network.neck(network.trunk(images))))]
        held = images.nbytes + sum(level.nbytes for level in levels)
        parts = [peak_bytes(lambda: network.rpn(levels))]

        def of_head(
            head: Callable[[Tensor], Any], roi: RoIConfig, count: int, at_once: int | None = None
        ) -> int:
            features = _features(network, roi, count)
            part = features[: at_once or count]
            inside = peak_bytes(partial(_after_pooling, network, head, part))
            return _corner_bytes(roi, count) + features.nbytes + inside

        most = config.box.max_detections
        parts.append(of_head(network.box_head, config.box.roi, config.rpn.post_nms_test))
        if network.mask_head is not None and config.mask is not None:
            at_once = min(most, MASKS_AT_ONCE)
            labels = torch.zeros(at_once, dtype=torch.int64, device=images.device)
            head = partial(network.mask_head, labels=labels)
            parts.append(of_head(head, config.mask.roi, most, at_once))
        if network.keypoint_head is not None and config.keypoint is not None:
            parts.append(of_head(network.keypoint_head, config.keypoint.roi, most))
    return max(images.nbytes + peaks[0], held + max(parts))


def _losses(
    network: MaskRCNN, batch_size: int, size: tuple[int, int], checkpointing: bool
) -> list[Tensor]:
    """What trunk, neck, RPN and heads compute for the losses, with as many RoIs as they may use.

    The features of the RoIs are leaves instead of parts of the pyramid.
    """
    trunk = network.trunk
    if isinstance(trunk, ResNet):
        trunk.activation_checkpointing = checkpointing

    rpn = network.rpn
    images = _images(network, batch_size, size)
    samples = int(rpn.config.samples * (1 + rpn.config.positive_fraction))
    anchors = torch.zeros(batch_size, samples, dtype=torch.int64, device=images.device)
    levels = network.neck(trunk(images))
    terms = list(rpn.sampled(Pyramid.of(levels), anchors))
    with torch.no_grad():
        rpn(levels)
    for head, roi, count in _heads_in_training(network, batch_size, images.device):
        features = _features(network, roi, count).requires_grad_()
        terms += _tensors(_after_pooling(network, head, features))
    return terms


def _heads_in_training(
    network: MaskRCNN, batch_size: int, device: torch.device
) -> list[tuple[Callable[[Tensor], Any], RoIConfig, int]]:
    """Each head with the RoIs that the losses of a batch may use at most."""
    config = network.config
    positives = int(config.box.samples * config.box.positive_fraction)
    heads: list[tuple[Callable[[Tensor], Any], RoIConfig, int]] = [
        (network.box_head, config.box.roi, batch_size * config.box.samples)
    ]

    if network.mask_head is not None and config.mask is not None:
        count = batch_size * min(positives, config.mask.max_positives or positives)
        labels = torch.zeros(count, dtype=torch.int64, device=device)
        heads.append((partial(network.mask_head, labels=labels), config.mask.roi, count))
    if network.keypoint_head is not None and config.keypoint is not None:
        count = batch_size * min(positives, config.keypoint.max_positives or positives)
        heads.append((network.keypoint_head, config.keypoint.roi, count))
    return heads


def _rois_in_training(network: MaskRCNN, batch_size: int) -> int:
    """Bytes that RoIAlign keeps for the gradients of all heads."""
    heads = _heads_in_training(network, batch_size, torch.device("meta"))
    return sum(_corner_bytes(roi, count) for _, roi, count in heads)


def _corner_bytes(roi: RoIConfig, count: int) -> int:
    """Bytes of RoIAlign: index and weight of the four cells around each of its points."""
    return count * roi.size**2 * (roi.sampling_ratio or 2) ** 2 * 4 * (8 + 4)


def _images(network: MaskRCNN, batch_size: int, size: tuple[int, int]) -> Tensor:
    height, width = (-(-side // 32) * 32 for side in size)
    weight = next(network.parameters())
    return torch.zeros(batch_size, 3, height, width, device=weight.device)


def _features(network: MaskRCNN, roi: RoIConfig, count: int) -> Tensor:
    """The features of RoIs, as a pooler returns them."""
    device = next(network.parameters()).device
    return torch.zeros(count, network.neck.channels, roi.size, roi.size, device=device)


def _after_pooling(network: MaskRCNN, head: Callable[[Tensor], Any], features: Tensor) -> Any:
    return head(features if network.res5 is None else network.res5(features))


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in the arguments or results of an operator or a head."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made while the block runs, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = _result(func, args, kwargs or {})
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _result(func, args, kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=result)
        return result


def _result(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator returns.

    On the meta device PyTorch runs a normalization as some 30 operators in Python, and an
    elementwise operator as a dozen, which takes most of an estimate. Only shapes matter here.
    """
    if args and isinstance(args[0], Tensor) and args[0].device.type == "meta":
        if shapes := _NORMALIZATIONS.get(func):
            return shapes(*args)
        if func in _ELEMENTWISE:
            return _elementwise(func, *args)
    return func(*args, **kwargs)


def _elementwise(func: Any, first: Tensor, *others: Any) -> Tensor:
    """The first argument where it is changed in place, else a new tensor for all arguments."""
    if func._schema.is_mutable:
        return first
    shapes = {first.shape, *(other.shape for other in others if isinstance(other, Tensor))}
    if len(shapes) == 1:
        return torch.empty_like(first)
    return first.new_empty(torch.broadcast_shapes(*shapes))


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    channels = x.shape[1]
    return torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)


def _group_norm(
    x: Tensor,
    weight: Any,
    bias: Any,
    num_images: int,
    channels: int,
    area: int,
    groups: int,
    *_: Any,
) -> tuple[Tensor, ...]:
    size = (num_images, groups)
    return torch.empty_like(x), x.new_empty(size), x.new_empty(size)


def _normalization_backward(gradient: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """The gradients of input, weight and bias, if the last argument asks for them."""
    channels = x.shape[1]
    gradients = torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)
    return tuple(
        value if wanted else None for value, wanted in zip(gradients, rest[-1], strict=True)
    )


_NORMALIZATIONS = {
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_batch_norm_backward.default: _normalization_backward,
    torch.ops.aten.native_group_norm.default: _group_norm,
    torch.ops.aten.native_group_norm_backward.default: _normalization_backward,
}

# Those of the networks, on floating-point tensors of one type.
_ELEMENTWISE = frozenset(
    {
        torch.ops.aten.add.Tensor,
        torch.ops.aten.add_.Tensor,
        torch.ops.aten.hardtanh.default,
        torch.ops.aten.hardtanh_.default,
        torch.ops.aten.hardtanh_backward.default,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.relu.default,
        torch.ops.aten.relu_.default,
        torch.ops.aten.rsqrt.default,
        torch.ops.aten.sub.Tensor,
        torch.ops.aten.threshold_backward.default,
    }
)


def peak_bytes(compute: Callable[[], Any]) -> int:
    """Bytes of the tensors that a computation makes, at the moment when most of them are alive."""
    with _Allocations() as allocations:
        result = compute()
    del result
    return allocations.peak


def _read(path: Path) -> str:
    """The stripped text of a system file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
