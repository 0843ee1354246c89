"""What a GPU would refuse is refused here: the model runs on stand-ins of GPU tensors, which have a shape, a type and a place but no values.

They refuse an operation between the GPU and the processor, and every value that is needed other than by `ask`. PyTorch's gradients need a real
device, so they are of tensors on "meta", another place that is not the processor. tests/test_model_ahead.py compares the values of these forms on
the processor.
"""

from __future__ import annotations

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
from maskrcnn.model import anchors, maskrcnn
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.ops import device, heatmaps
from maskrcnn.structures import Batch, Truth

FOUND = 3
MODELS: dict[str, Callable[[], ModelConfig]] = {
    "small": lambda: mr.maskrcnn_r18_small(3),
    "keypoint": mr.joint_r50_fpn,
    "keypoints alone": mr.keypointrcnn_r50_fpn,
    "one level": lambda: mr.maskrcnn_r50_c4(5),
    "torchvision's": lambda: mr.maskrcnn_r50_fpn_v2_torchvision(5, 3),
    "adaptive RoIAlign": lambda: _changed(
        mr.maskrcnn_r18_small(3), roi=replace(mr.maskrcnn_r18_small(3).box.roi, sampling_ratio=0)
    ),
    "soft NMS": lambda: _changed(mr.maskrcnn_r18_small(3), nms="soft"),
}


def _changed(config: ModelConfig, **box: Any) -> ModelConfig:
    return replace(config, box=replace(config.box, **box))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The numbers that the model asks for; the answer is always the same."""
    asked: list[Tensor] = []

    def to_host(*numbers: Tensor) -> list[Any]:
        asked.extend(numbers)
        with unset_fake_temporarily():
            return [torch.full(n.shape, FOUND).tolist() for n in numbers]

    for module in (device, maskrcnn, heatmaps):
        monkeypatch.setattr(module, "to_host", to_host)
    device._kept.cache_clear()
    yield asked
    device._kept.cache_clear()


@pytest.fixture
def gpu(asked: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Tensors without values, on a GPU that is not there."""
    numbers = anchors._numbers
    monkeypatch.setattr(anchors, "_numbers", lambda *given: _outside(numbers, *given))
    with FakeTensorMode():
        yield asked


def _outside(function: Callable[..., Any], *given: Any) -> Any:
    """The values of a function of plain numbers."""
    with unset_fake_temporarily():
        return function(*given)


def build(config: ModelConfig, place: str = "cuda") -> tuple[MaskRCNN, Batch, Truth]:
    """A model, two images and their truth in a place."""
    batch, truth = _outside(_inputs, config)
    there = lambda t: torch.empty(t.shape, dtype=t.dtype, device=place)  # noqa: E731
    with torch.device(place):
        model = MaskRCNN.from_config(config)
    labeled = torch.ones(2, config.num_classes, dtype=torch.bool, device=place)
    return model, batch._map(there), replace(truth._map(there), labeled=labeled)


def _inputs(config: ModelConfig) -> tuple[Batch, Truth]:
    batch = make_batch([(256, 320), (320, 192)])
    return batch, make_truth(config, batch)


def places(tensors: Any) -> set[str]:
    return {value.device.type for value in tensors if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", MODELS)
def test_losses_stay_on_the_gpu(name: str, gpu: list[Tensor]) -> None:
    model, batch, truth = build(MODELS[name]())
    losses = model.train().losses(batch, truth)
    assert places(losses.values()) == {"cuda"}
    assert places(gpu) == {"cuda"}


@pytest.mark.parametrize("name", MODELS)
def test_every_trained_weight_has_a_gradient_in_its_place(name: str, asked: list[Tensor]) -> None:
    model, batch, truth = build(MODELS[name](), "meta")
    total(model.train().losses(batch, truth)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.grad.device.type for p in trained if p.grad is not None} == {"meta"}
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in MODELS), ("keypoint", "bfloat16")]
)
def test_answers_stay_on_the_gpu(name: str, dtype: Any, gpu: list[Tensor]) -> None:
    model, batch, _ = build(MODELS[name]())
    fast = mr.optimize_for_inference(model.eval(), dtype)
    with torch.inference_mode():
        found = fast(batch)
    assert places(vars(found).values()) == {"cuda"}
    assert found.valid.shape == (2, model.config.box.max_detections)
    assert len(gpu) == (
        2 if name in ("soft NMS", "torchvision's") else 1
    )  # torchvision's keypoints are sought in heat maps as large as the boxes


def test_the_reference_stays_on_the_gpu(gpu: list[Tensor]) -> None:
    model, batch, _ = build(mr.maskrcnn_r18_small(3))
    with torch.inference_mode():
        found = mr.model.optimize.reference(model)(batch)
    assert places(vars(found).values()) == {"cuda"}


def test_the_stand_in_refuses_what_a_gpu_refuses(gpu: list[Tensor]) -> None:
    there = torch.empty(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
