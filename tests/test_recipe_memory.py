"""Activation checkpointing, and the memory estimate of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_run
from torch.utils.flop_counter import FlopCounterMode
from training_run import tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import TrunkConfig
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.model.resnet import ResNet
from maskrcnn.recipe import memory_estimate
from maskrcnn.recipe.memory_estimate import (
    available_memory,
    peak_bytes,
    prediction_peak,
    step_peak,
    step_work,
    training_bytes,
    validation_bytes,
)
from maskrcnn.training.fit import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


def kept_bytes(compute: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("norm", "depth", "frozen_stages"),
    [("batch", 50, 0), ("batch", 18, 2), ("frozen", 18, 2), ("group", 18, 0)],
)
def test_gradients_and_statistics_are_the_same_with_checkpointing(
    norm: Any, depth: Any, frozen_stages: int
) -> None:
    config = TrunkConfig(
        depth=depth,
        stem_channels=8,
        res2_channels=16,
        width_per_group=4,
        norm=norm,
        frozen_stages=frozen_stages,
    )
    torch.manual_seed(0)
    plain, saving = ResNet(config).train(), ResNet(config).train()
    saving.load_state_dict(plain.state_dict())
    saving.activation_checkpointing = True
    images = torch.randn(2, 3, 32, 64)
    for trunk in (plain, saving):
        sum(features.square().mean() for features in trunk(images)).backward()  # ty: ignore[unresolved-attribute]
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name  # ty: ignore[invalid-argument-type]
    for (name, a), b in zip(plain.named_buffers(), saving.named_buffers(), strict=True):
        assert torch.equal(a, b[1]), name


def test_training_ends_at_the_same_weights_with_checkpointing(
    data: CocoDataset, tmp_path: Path
) -> None:
    config = tiny_config(steps=3, checkpoint_every=60.0)
    for name, given in (
        ("plain", config),
        ("saving", replace(config, activation_checkpointing=True)),
    ):
        train(
            tiny_model(data), data, config=given, out=tmp_path / name, progress=False, device="cpu"
        )
    assert training_run.weights_of(tmp_path / "plain/last.safetensors") == training_run.weights_of(
        tmp_path / "saving/last.safetensors"
    )


def test_checkpointing_a_timm_trunk_is_an_error(data: CocoDataset, tmp_path: Path) -> None:
    model = mr.maskrcnn_r18_small(data.categories)
    model = replace(model, trunk=replace(model.trunk, timm="resnet10t"))
    with pytest.raises(
        ValueError, match=r"needs the ResNet trunk, got trunk\.timm = \"resnet10t\""
    ):
        train(
            model,
            data,
            config=tiny_config(activation_checkpointing=True),
            out=tmp_path / "run",
            progress=False,
            device="cpu",
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shapes_alone_give_the_peak_of_a_real_network(
    data: CocoDataset, checkpointing: bool
) -> None:
    config = tiny_model(data)
    real = MaskRCNN.from_config(config).train()
    shapes = MaskRCNN.from_config(config).to("meta").train()
    peak = step_peak(shapes, 2, (64, 90), checkpointing)
    assert peak == pytest.approx(step_peak(real, 2, (64, 90), checkpointing), rel=0.02)
    assert prediction_peak(shapes, (64, 90)) == pytest.approx(
        prediction_peak(real.eval(), (64, 90)), rel=0.02
    )


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_operators_without_arithmetic_count_like_pytorchs(
    data: CocoDataset, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model(data, norm)
    network = MaskRCNN.from_config(config).to("meta").train()
    peak = step_peak(network, 2, (64, 96), False)
    work = step_work(config, 2, (64, 96))

    monkeypatch.setattr(memory_estimate, "_NORMALIZATIONS", {})
    monkeypatch.setattr(memory_estimate, "_ELEMENTWISE", frozenset())
    assert peak == step_peak(network, 2, (64, 96), False)
    with FlopCounterMode(display=False) as counter:
        memory_estimate._losses(network, 2, (64, 96), False)
    assert work == counter.get_total_flops() > 0


def test_the_peak_counts_what_is_alive_at_the_same_time() -> None:
    def compute() -> torch.Tensor:
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1  # at most two at once
        return torch.cat([x, x])

    assert peak_bytes(compute) == 4 * 3000


def test_masks_of_many_objects_do_not_take_their_memory_at_once() -> None:
    config = mr.maskrcnn_r18_small(1)
    many = replace(config, box=replace(config.box, max_detections=1000))
    few = replace(config, box=replace(config.box, max_detections=200))
    features = 800 * 64 * 14**2 * 4
    corners = 800 * 14**2 * 16 * 12
    assert validation_bytes(many, (256, 256)) - validation_bytes(few, (256, 256)) < 1.45 * (
        features + corners
    )


def test_the_estimate_shows_savings_of_checkpointing_and_half_precision() -> None:
    config = mr.maskrcnn_r50_fpn(1)
    config = replace(config, trunk=replace(config.trunk, frozen_stages=0, norm="batch"))
    whole = training_bytes(config, 2, (800, 1088))
    assert training_bytes(config, 2, (800, 1088), checkpointing=True) < 0.9 * whole
    assert training_bytes(config, 2, (800, 1088), half=True) < 0.9 * whole
    assert (
        1.5 * training_bytes(config, 1, (800, 1088))
        < whole
        < 2 * training_bytes(config, 1, (800, 1088))
    )


def test_checkpointing_keeps_less_than_half() -> None:
    trunk = ResNet(
        TrunkConfig(depth=18, stem_channels=8, res2_channels=16, norm="batch", frozen_stages=0)
    ).train()
    kept = []
    for trunk.activation_checkpointing in (False, True):
        kept.append(kept_bytes(lambda: trunk(torch.rand(2, 3, 64, 64))))
    assert kept[1] < 0.5 * kept[0]


def test_this_machine_has_memory() -> None:
    assert 2**27 < available_memory(torch.device("cpu")) < 2**45
