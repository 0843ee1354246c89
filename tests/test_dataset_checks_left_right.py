"""Swapped left and right keypoints are detected, with few false alarms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn.annotations.categories import mirrored_keypoints
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.left_right import ENOUGH, find_swapped

NAMES = [
    "nose",
    "left_shoulder",
    "right_shoulder",
    "left_hip",
    "right_hip",
    "left_foot",
    "right_foot",
]
MIRRORED = mirrored_keypoints(NAMES)


def people(count: int, seed: int = 0, backs: float = 0.3) -> np.ndarray:
    """Figures [N, 7, 3], some from behind (without a nose); legs cross sometimes."""
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((count, len(NAMES), 3))
    for figure in keypoints:
        facing = 1 if rng.random() > backs else -1
        width, x, y = rng.uniform(20, 40), rng.uniform(50, 500), rng.uniform(50, 300)
        figure[:] = [
            (x, y - 20, 2),
            *((x + s * facing * width / 2, y + h, 2) for h in (0, 60, 120) for s in (1, -1)),
        ]
        if rng.random() < 0.1:
            figure[[5, 6], :2] = figure[[6, 5], :2]
        figure[:, :2] += rng.normal(0, 1, (len(NAMES), 2))
        figure[0] *= facing > 0
    return keypoints


def test_correct_figures_are_not_reported():
    assert find_swapped(people(300), MIRRORED) == {}


def test_a_swapped_pair_is_detected():
    keypoints = people(300)
    for row in (7, 200):
        keypoints[row, [3, 4]] = keypoints[row, [4, 3]]
    swapped = find_swapped(keypoints, MIRRORED)
    assert set(swapped) == {7, 200}
    assert all(3 in pairs for pairs in swapped.values())


def test_a_wholly_swapped_figure_is_detected_by_its_face():
    keypoints = people(300)
    row = int(np.flatnonzero(keypoints[:, 0, 2])[5])
    keypoints[row] = keypoints[row, list(MIRRORED)]
    swapped = find_swapped(keypoints, MIRRORED)
    assert list(swapped) == [row]
    assert set(swapped[row]) == {1, 3, 5}


def test_all_but_one_facing_the_same_way_makes_that_one_suspicious():
    keypoints = people(200, backs=0)
    keypoints[11] = keypoints[11, list(MIRRORED)]
    assert list(find_swapped(keypoints, MIRRORED)) == [11]


@pytest.mark.parametrize("count", [0, 1, ENOUGH - 1])
def test_too_few_objects_and_skeletons_without_sides_report_nothing(count: int):
    keypoints = people(count)
    keypoints[:1, [3, 4]] = keypoints[:1, [4, 3]]
    assert find_swapped(keypoints, MIRRORED) == {}
    assert find_swapped(people(100), tuple(range(len(NAMES)))) == {}


def test_the_check_reports_the_annotation_and_the_keypoints():
    keypoints = people(100)
    keypoints[42, [3, 4]] = keypoints[42, [4, 3]]
    annotations = [
        {
            "id": n + 1,
            "image_id": 1,
            "category_id": 1,
            "keypoints": keypoints[n].reshape(-1).round(1).tolist(),
            "bbox": [5, 5, 600, 480],
        }
        for n in range(100)
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 500, "width": 640}],
        "categories": [{"id": 1, "name": "figure", "keypoints": NAMES, "skeleton": []}],
        "annotations": annotations,
    }
    (problem,) = [
        p for p in check_dataset(data).problems if p.kind == "left and right look swapped"
    ]
    assert (problem.where, problem.annotation) == ("annotation 43 (a.png)", 42)
    assert "left_hip / right_hip" in problem.detail


def test_few_of_cocos_persons_are_reported(shared: Path):
    keypoints = []
    for part in ("train", "val"):
        raw = json.loads(
            (shared / "data" / "coco_mini_kp" / "annotations" / f"{part}.json").read_text()
        )
        names = next(c["keypoints"] for c in raw["categories"] if c.get("keypoints"))
        keypoints += [
            np.reshape(a["keypoints"], (-1, 3))
            for a in raw["annotations"]
            if any(a.get("keypoints") or [])
        ]
    assert len(find_swapped(np.array(keypoints, float), mirrored_keypoints(names))) <= 0.03 * len(
        keypoints
    )
