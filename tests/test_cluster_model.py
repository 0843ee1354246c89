"""The simulation of a cluster names the stage at which more machines no longer help."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.cluster_model import (
    PAGE,
    RESULTS,
    Cluster,
    filled,
    planning,
    scenarios,
    simulate,
)

FAST = Cluster(
    "no limit but the GPUs",
    images=1_000_000,
    workers_per_gpu=8,
    images_per_object=500,
    fetch_s=0.01,
    cpu_s=0.001,
    list_s=0.0,
    part_size=64,
    driver_tasks_per_s=1e5,
    retried=0.0,
)


def test_with_nothing_else_in_the_way_the_gpus_decide():
    result = simulate(FAST)
    assert result["slowest"] == "GPUs"
    assert 0.85 < result["GPU used"] <= 1
    ideal = FAST.images / FAST.gpu_images_per_s / 3600
    assert ideal < result["GPU hours"] < 1.2 * ideal


@pytest.mark.parametrize(
    ("change", "slowest"),
    [
        ({"cpu_s": 0.1}, "CPU part of the workers"),
        ({"images_per_object": 1, "list_s": 1.0}, "lister"),
        ({"images_per_object": 1, "gets_per_s": 500.0}, "store"),
        ({"driver_tasks_per_s": 10.0}, "driver"),
    ],
)
def test_each_stage_can_be_the_slowest(change: dict, slowest: str):
    limited = replace(FAST, **change)
    result = simulate(limited)
    assert result["slowest"] == slowest
    assert result["days"] > simulate(FAST)["days"]
    if slowest != "CPU part of the workers":
        more = simulate(replace(limited, gpus=2 * limited.gpus))
        assert more["days"] == pytest.approx(result["days"], rel=0.1)


def test_planning_holds_a_bounded_amount_of_memory():
    assert max(planning(40_000)["plan MB"].values()) < 40


def test_the_stored_constants_give_every_scenario():
    measured = json.loads(RESULTS.read_text())
    rows = [simulate(job) for job in scenarios(measured, 10_000_000, 10)]
    assert len(rows) == 7
    assert all(row["days"] > 0 for row in rows)
    assert max(measured["plan MB"].values()) < 60


def test_the_page_shows_the_stored_constants():
    """If this fails: python -m benchmarks.cluster_model."""
    assert PAGE.read_text() == filled(PAGE.read_text(), json.loads(RESULTS.read_text()))
