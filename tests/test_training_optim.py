"""Optimizer, schedule, averaged weights: equal to the obvious formula, and to themselves after a round trip."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from maskrcnn.config import TrainConfig
from maskrcnn.training.optim import (
    EMA,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    rate_factor,
    scaled_rate,
    set_rate,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).to(
        memory_format=torch.channels_last
    )


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def test_the_rate_is_linear_in_the_batch_for_sgd_and_its_root_for_adamw() -> None:
    config = TrainConfig(learning_rate=0.1, reference_batch=4, batch_size=8, accumulate=2)
    assert scaled_rate(replace(config, optimizer="sgd"), world=4) == pytest.approx(1.6)
    assert scaled_rate(replace(config, optimizer="adamw"), world=4) == pytest.approx(0.4)


def test_the_rate_warms_up_and_then_falls() -> None:
    cosine = [rate_factor(step, 1000, TrainConfig(warmup=50)) for step in range(1000)]
    assert cosine[:51] == pytest.approx([(step + 1) / 51 for step in range(51)])
    assert all(a >= b for a, b in itertools.pairwise(cosine[50:]))
    assert 0 < cosine[-1] < 1e-4
    stepped = [
        rate_factor(step, 1000, TrainConfig(warmup=50, schedule="step", milestones=(0.5, 0.8)))
        for step in range(1000)
    ]
    assert (stepped[499], stepped[500], stepped[799], stepped[800]) == pytest.approx(
        (1, 0.1, 0.1, 0.01)
    )
    assert rate_factor(1, 20, TrainConfig(warmup=50)) == pytest.approx(2 / 3), (
        "warm-up is at most a tenth of the run"
    )
    assert [
        rate_factor(step, None, TrainConfig(warmup=50)) for step in (0, 50, 900)
    ] == pytest.approx([1 / 51, 1, 1])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_only_trainable_weights_move_and_vectors_do_not_decay(kind: str) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig(optimizer=kind, weight_decay=0.5))
    for p in model.parameters():
        p.data.fill_(1.0)
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    set_rate(optimizer, 0.1)
    optimizer.step()
    moved = {name: float(p.detach().max()) != 1 for name, p in model.named_parameters()}
    assert moved == {name: name == "3.weight" for name in moved}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizer_continues_bit_for_bit_from_its_flat_tensors(kind: str) -> None:
    whole, config = network(), TrainConfig(optimizer=kind, learning_rate=0.01)
    descend(whole, make_optimizer(whole, config), range(6))
    first = network()
    optimizer = make_optimizer(first, config)
    descend(first, optimizer, range(3))
    second = network()
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, config)
    saved = {
        name: value.clone().contiguous()
        for name, value in optimizer_tensors(first, optimizer).items()
    }
    load_optimizer_tensors(second, resumed, saved)
    descend(second, resumed, range(3, 6))
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_average_follows_weights_and_running_statistics() -> None:
    model = network()
    ema = EMA(model, decay=0.6)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.05))
    for step in range(8):
        descend(model, optimizer, range(step, step + 1))
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value.double()
                if value.is_floating_point()
                else value.double()
            )
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
