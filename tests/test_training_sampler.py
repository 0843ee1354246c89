"""The batch plan: every picture once an epoch, shapes kept apart, processes together equal to one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.training.sampler import BatchPlan

sizes = {"count": st.integers(1, 40), "batch": st.integers(1, 9), "world": st.integers(1, 3), "seed": st.integers(0, 99)}


@given(**sizes)
@settings(max_examples=60, deadline=None)
def test_every_picture_is_seen_exactly_once_an_epoch(count: int, batch: int, world: int, seed: int) -> None:
    ratios = [2.0 if i % 3 else 0.5 for i in range(count)]
    plans = [BatchPlan(count, batch, ratios, seed, rank, world) for rank in range(world)]
    steps = -(-4 * count // (batch * world))
    stream = [example for step in range(steps) for plan in plans for example in plan.batch(step)]
    for epoch in range(4):
        assert sorted(index for index, _ in stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(**sizes)
@settings(max_examples=30, deadline=None)
def test_processes_see_together_what_one_with_their_whole_batch_sees(count: int, batch: int, world: int, seed: int) -> None:
    one = BatchPlan(count, batch * world, None, seed)
    several = [BatchPlan(count, batch, None, seed, rank, world) for rank in range(world)]
    for step in range(6):
        assert one.batch(step) == [example for plan in several for example in plan.batch(step)]


def test_a_batch_holds_one_shape_but_for_the_ends_of_an_epoch() -> None:
    ratios = [0.7 if i < 300 else 1.4 for i in range(500)]
    plan = BatchPlan(500, 8, ratios, seed=3)
    mixed = [step for step in range(500 * 4 // 8) if len({ratios[i] for i, _ in plan.batch(step)}) > 1]
    assert len(mixed) <= 4 * 2


def test_epochs_differ_in_order_and_in_every_seed() -> None:
    plan = BatchPlan(64, 16)
    first, second = ([e for step in range(start, start + 4) for e in plan.batch(step)] for start in (0, 4))
    assert [i for i, _ in first] != [i for i, _ in second]
    assert not {s for _, s in first} & {s for _, s in second}
    assert all(0 <= s < 2**62 for _, s in first + second)


def test_the_plan_has_no_memory() -> None:
    forward, backward = BatchPlan(13, 4, seed=1), BatchPlan(13, 4, seed=1)
    expected = [forward.batch(step) for step in range(20)]
    assert [backward.batch(step) for step in reversed(range(20))] == expected[::-1]
    assert list(forward.batches(7, 11)) == expected[7:11]
