"""The batch plan: every image once per epoch, one shape per batch, several processes equal one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import TrainConfig
from maskrcnn.training.sampler import BatchPlan, repeat_factors, training_plan

sizes = {
    "count": st.integers(1, 40),
    "batch": st.integers(1, 9),
    "world": st.integers(1, 3),
    "seed": st.integers(0, 99),
}


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_every_image_occurs_exactly_once_per_epoch(
    count: int, batch: int, world: int, seed: int
) -> None:
    ratios = [2.0 if i % 3 else 0.5 for i in range(count)]
    plans = [BatchPlan(count, batch, ratios, seed, rank, world) for rank in range(world)]
    steps = -(-4 * count // (batch * world))
    stream = [example for step in range(steps) for plan in plans for example in plan.batch(step)]
    for epoch in range(4):
        assert sorted(index for index, _ in stream[epoch * count : (epoch + 1) * count]) == list(
            range(count)
        )


@given(**sizes)
@settings(max_examples=30, deadline=None)
def test_processes_together_get_the_images_of_one_with_the_whole_batch(
    count: int, batch: int, world: int, seed: int
) -> None:
    one = BatchPlan(count, batch * world, None, seed)
    several = [BatchPlan(count, batch, None, seed, rank, world) for rank in range(world)]
    for step in range(6):
        assert one.batch(step) == [example for plan in several for example in plan.batch(step)]


def test_a_batch_holds_one_shape_but_for_the_ends_of_an_epoch() -> None:
    ratios = [0.7 if i < 300 else 1.4 for i in range(500)]
    plan = BatchPlan(500, 8, ratios, seed=3)
    mixed = [
        step for step in range(500 * 4 // 8) if len({ratios[i] for i, _ in plan.batch(step)}) > 1
    ]
    assert len(mixed) <= 4 * 2


def test_epochs_differ_in_order_and_in_every_seed() -> None:
    plan = BatchPlan(64, 16)
    first, second = (
        [e for step in range(start, start + 4) for e in plan.batch(step)] for start in (0, 4)
    )
    assert [i for i, _ in first] != [i for i, _ in second]
    assert not {s for _, s in first} & {s for _, s in second}
    assert all(0 <= s < 2**62 for _, s in first + second)


def test_the_plan_has_no_memory() -> None:
    forward, backward = BatchPlan(13, 4, seed=1), BatchPlan(13, 4, seed=1)
    expected = [forward.batch(step) for step in range(20)]
    assert [backward.batch(step) for step in reversed(range(20))] == expected[::-1]
    assert list(forward.batches(7, 11)) == expected[7:11]


factors = st.lists(st.floats(1, 6), min_size=1, max_size=30).map(np.array)


@given(repeats=factors, batch=st.integers(1, 9), world=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_images_are_repeated_as_often_as_their_factors_say(
    repeats: np.ndarray, batch: int, world: int, seed: int
) -> None:
    ratios = [2.0 if i % 3 else 0.5 for i in range(len(repeats))]
    plans = [
        BatchPlan(len(repeats), batch, ratios, seed, rank, world, repeats=repeats)
        for rank in range(world)
    ]
    length = plans[0].epoch_length
    assert repeats.sum() - 1e-6 <= length < repeats.sum() + 1
    stream = [
        example
        for step in range(-(-4 * length // (batch * world)))
        for plan in plans
        for example in plan.batch(step)
    ]
    assert len(set(stream)) == len(stream)  # each repetition has a seed of its own
    scaled = repeats * (length / repeats.sum())
    for epoch in range(4):
        times = Counter(index for index, _ in stream[epoch * length : (epoch + 1) * length])
        for index, factor in enumerate(scaled):
            assert math.floor(factor - 1e-9) <= times[index] <= math.ceil(factor + 1e-9)


def test_the_mean_of_the_repetitions_is_the_factor() -> None:
    repeats = np.array([1.0, 1.25, 1.5, 2.9, 1.0, 3.35])
    plan = BatchPlan(6, 11, seed=5, repeats=repeats)  # 11 images per epoch
    times = Counter(index for step in range(800) for index, _ in plan.batch(step))
    assert [times[i] / 800 for i in range(6)] == pytest.approx(repeats, abs=0.06)


def test_a_plan_with_repetitions_has_no_memory() -> None:
    forward, backward = (BatchPlan(13, 4, seed=1, repeats=np.linspace(1, 3, 13)) for _ in range(2))
    expected = [forward.batch(step) for step in range(20)]
    assert [backward.batch(step) for step in reversed(range(20))] == expected[::-1]


def test_without_repetitions_the_plan_is_the_one_of_earlier_versions() -> None:
    """So that their runs can be resumed."""
    plan = BatchPlan(5, 2, [0.5, 2, 0.5, 2, 2], seed=3)
    assert [index for step in range(5) for index, _ in plan.batch(step)] == [
        2,
        0,
        4,
        1,
        3,
        1,
        4,
        3,
        0,
        2,
    ]
    assert plan.batch(2)[1][1] == 3741041316683413899


def test_repeat_factors_equal_a_loop_over_categories() -> None:
    rng = np.random.default_rng(0)
    labels = [set(rng.integers(0, 12, rng.integers(0, 5)) ** 2 // 11) for _ in range(60)]
    factors = repeat_factors(labels, 0.5)
    for image, factor in zip(labels, factors, strict=True):
        wanted = 1.0
        for label in image:
            share = sum(label in other for other in labels) / 60
            if share < 0.5:
                wanted = max(wanted, (0.5 / share) ** 0.5)
        assert factor == pytest.approx(wanted)
    assert factors.max() > 1.5
    assert repeat_factors([[0, 1], [0], [0], [0], []], 0.8).tolist() == [2.0, 1.0, 1.0, 1.0, 1.0]


def test_a_training_repeats_images_of_rare_categories_and_not_those_of_regions_to_ignore() -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in range(16)]
    box = {"bbox": [1, 1, 5, 5], "area": 25}
    objects = [
        {"id": i + 1, "image_id": i, "category_id": 7, "iscrowd": 0, **box} for i in range(15)
    ]
    objects += [
        {"id": 20, "image_id": 15, "category_id": 9, "iscrowd": 0, **box},
        {"id": 21, "image_id": 0, "category_id": 9, "iscrowd": 1, **box},
    ]
    data = CocoDataset(
        {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 7, "name": "a"}, {"id": 9, "name": "b"}],
        }
    )
    config = TrainConfig(batch_size=3, repeat_threshold=0.25)
    plan = training_plan(data, config)
    assert plan.epoch_length == 17
    epoch = Counter(index for step in range(17) for index, _ in plan.batch(step))
    assert epoch == dict.fromkeys(range(15), 3) | {15: 6}
    assert training_plan(data, TrainConfig(batch_size=3)).epoch_length == 16
