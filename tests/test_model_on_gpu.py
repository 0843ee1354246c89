"""The model runs on fake GPU tensors, which have a shape, a type and a device but no values.

They refuse what a GPU would refuse: an operation between the GPU and the CPU, and every value that is read other than by
`to_host`. PyTorch's gradients need a real device, so they are tested on "meta", another device that is not the CPU.
tests/test_model_async.py compares the values of these code paths on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import make_batch, make_truth
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

import maskrcnn as mr
from maskrcnn.config import ModelConfig
from maskrcnn.kernels import nms
from maskrcnn.model import anchors, maskrcnn
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.model.shapes_only import shapes_only
from maskrcnn.ops import device
from maskrcnn.structures import Batch, Truth

COUNT = 3


def _shallow(config: ModelConfig) -> ModelConfig:
    """With fewer blocks of the same kinds: each costs as much on a simulated GPU, whatever its size."""
    return replace(config, trunk=replace(config.trunk, depth=18))


MODELS: dict[str, Callable[[], ModelConfig]] = {
    "small": lambda: mr.maskrcnn_r18_small(3),
    "keypoint": lambda: _shallow(mr.joint_r50_fpn()),
    "keypoints alone": lambda: _shallow(mr.keypointrcnn_r50_fpn()),
    "one level": lambda: _shallow(mr.maskrcnn_r50_c4(5)),
    "torchvision's": lambda: _shallow(mr.maskrcnn_r50_fpn_v2_torchvision(5, 3)),
    "adaptive RoIAlign": lambda: _changed(
        mr.maskrcnn_r18_small(3), roi=replace(mr.maskrcnn_r18_small(3).box.roi, sampling_ratio=0)
    ),
    "soft NMS": lambda: _changed(mr.maskrcnn_r18_small(3), nms="soft"),
}
FAKE = FakeTensorMode()
WITH_OWN_LOSSES = [name for name in MODELS if name != "soft NMS"]


def _changed(config: ModelConfig, **box: Any) -> ModelConfig:
    return replace(config, box=replace(config.box, **box))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The numbers that the model reads on the host; they are always the same."""
    read: list[Tensor] = []

    def to_host(*numbers: Tensor) -> list[Any]:
        read.extend(numbers)
        with unset_fake_temporarily():
            return [torch.full(n.shape, COUNT).tolist() for n in numbers]

    for module in (device, maskrcnn):
        monkeypatch.setattr(module, "to_host", to_host)
    device._cached.cache_clear()
    yield read
    device._cached.cache_clear()


@pytest.fixture
def gpu(read: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Fake tensors without values on a simulated GPU."""
    values = anchors._cell_values
    monkeypatch.setattr(anchors, "_cell_values", lambda *given: _outside(values, *given))
    # Every operation asks whether there is a real GPU, and each time PyTorch opens the driver's library.
    is_available = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(nms, "ROUNDS", 2)  # all rounds are the same operations
    with FAKE:
        yield read


def _outside(function: Callable[..., Any], *given: Any) -> Any:
    """Calls a function outside the fake mode, with real values."""
    with unset_fake_temporarily():
        return function(*given)


@functools.cache
def build(name: str, device: str = "cuda") -> tuple[MaskRCNN, Batch, Truth]:
    """A model, two images and their truth on a device."""
    config = MODELS[name]()
    batch, truth = _outside(_inputs, config)
    move = lambda t: torch.empty(t.shape, dtype=t.dtype, device=device)  # noqa: E731
    model = _outside(shapes_only, config)
    model._apply(move)
    labeled = torch.ones(2, config.num_classes, dtype=torch.bool, device=device)
    return model, batch._map(move), replace(truth._map(move), labeled=labeled)


def _inputs(config: ModelConfig) -> tuple[Batch, Truth]:
    batch = make_batch([(256, 320), (320, 192)])
    return batch, make_truth(config, batch)


def devices(tensors: Any) -> set[str]:
    return {value.device.type for value in tensors if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", WITH_OWN_LOSSES)
def test_losses_stay_on_the_gpu(name: str, gpu: list[Tensor]) -> None:
    model, batch, truth = build(name)
    losses = model.train().losses(batch, truth)
    assert devices(losses.values()) == {"cuda"}
    assert devices(gpu) == {"cuda"}


@pytest.mark.parametrize("name", WITH_OWN_LOSSES)
def test_every_trained_weight_has_a_gradient_on_its_device(name: str, read: list[Tensor]) -> None:
    model, batch, truth = build(name, "meta")
    total(model.train().losses(batch, truth)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.grad.device.type for p in trained if p.grad is not None} == {"meta"}
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in MODELS), ("keypoint", "bfloat16")]
)
def test_detections_stay_on_the_gpu(name: str, dtype: Any, gpu: list[Tensor]) -> None:
    model, batch, _ = build(name)
    fast = mr.optimize_for_inference(model.eval(), dtype)
    with torch.inference_mode():
        detections = fast(batch)
    assert devices(vars(detections).values()) == {"cuda"}
    assert detections.valid.shape == (2, model.config.box.max_detections)
    assert len(gpu) == (
        2 if name in ("soft NMS", "torchvision's") else 1
    )  # torchvision's keypoints are decoded in heatmaps as large as the boxes


def test_the_reference_model_stays_on_the_gpu(gpu: list[Tensor]) -> None:
    model, batch, _ = build("small")
    with torch.inference_mode():
        detections = mr.prediction.optimize.reference(model)(batch)
    assert devices(vars(detections).values()) == {"cuda"}


def test_the_stand_in_refuses_what_a_gpu_refuses(gpu: list[Tensor]) -> None:
    on_gpu = torch.empty(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu + torch.ones(3)
    with pytest.raises(DataDependentOutputException):
        on_gpu.sum().item()
