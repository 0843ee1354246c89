"""Data sets annotated for different categories merge into one that records which are annotated in each image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_samples import HEIGHT, WIDTH, content, write
from models import tiny_config

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.labeled_categories import labeled_ids
from maskrcnn.annotations.merge import merge_datasets
from maskrcnn.annotations.problems import DataError
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.evaluation.evaluate import evaluate


def of_category(category: int, **changes: Any) -> dict[str, Any]:
    """The content of the samples, with annotations of one category only."""
    data = content()
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == category]
    data["categories"] = [{**c, **changes} for c in data["categories"] if c["id"] == category]
    return data


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, None),
        ({"labeled_categories": [1, 2, 3]}, None),
        ({"labeled_categories": [2, 9]}, {2}),
        ({"neg_category_ids": [3], "not_exhaustive_category_ids": []}, {1, 3}),
        ({"neg_category_ids": [3], "not_exhaustive_category_ids": [1]}, {3}),
        ({"not_exhaustive_category_ids": [2]}, {1, 3}),
    ],
)
def test_labeled_categories_follow_from_the_keys_of_an_entry(
    entry: dict[str, Any], expected: set[int] | None
) -> None:
    assert labeled_ids(entry, {1}, {1, 2, 3}) == expected


def test_merged_images_and_annotations_are_those_of_the_parts(folders: tuple[Path, Path]) -> None:
    figures, boxes = (
        CocoDataset(of_category(9), folders[0]),
        CocoDataset(of_category(4), folders[1]).subset([1, 0]),
    )
    merged = merge_datasets([figures, boxes])
    assert [c.name for c in merged.categories] == ["figure", "box"]
    assert [r.file_name for r in merged] == ["a/0.png", "a/1.png", "a/2.png", "b/1.png", "b/0.png"]
    assert len({r.image_id for r in merged}) == 5
    assert [r.labeled for r in merged] == [{0}] * 3 + [{1}] * 2
    for n, part in enumerate([*figures, *boxes]):
        assert (
            merged.image(n) == [*map(figures.image, range(3)), *map(boxes.image, range(2))][n]
        ).all()
        for ours, theirs in zip(merged[n].annotations, part.annotations, strict=True):
            assert merged.categories[ours.label].name == ("figure" if n < 3 else "box")
            assert ours.box == theirs.box
            assert str(ours.keypoints) == str(theirs.keypoints)


def test_one_image_of_two_data_sets_has_the_annotations_of_both(folders: tuple[Path, Path]) -> None:
    merged = merge_datasets(
        [CocoDataset(of_category(9), folders[0]), CocoDataset(of_category(4), folders[0])]
    )
    whole = CocoDataset(content(), folders[0])
    assert [r.labeled for r in merged] == [None] * 3
    assert [len(r.annotations) for r in merged] == [len(r.annotations) for r in whole]


def test_data_sets_that_do_not_fit_are_refused_with_a_suggestion(
    folders: tuple[Path, Path],
) -> None:
    figures = CocoDataset(of_category(9), folders[0])
    other = of_category(9, keypoints=["nose", "tail", "paw"])
    with pytest.raises(DataError, match=r'(?s)category "figure".*skeleton.*Rename'):
        merge_datasets([figures, CocoDataset(other, folders[1])])
    with pytest.raises(DataError, match=r"a?0\.png: two of the data sets annotate figure"):
        merge_datasets([figures, CocoDataset(of_category(9), folders[0])])
    with pytest.raises(DataError, match=r"no folder of images"):
        merge_datasets([figures, CocoDataset(of_category(4))])
    with pytest.raises(ValueError, match="at least one"):
        merge_datasets([])


def test_wrong_keys_are_reported(folders: tuple[Path, Path]) -> None:
    for wrong in ("figure", [5], [4.5]):
        data = content()
        data["images"][1]["labeled_categories"] = wrong
        with pytest.raises(DataError, match=r"images\[1\].*labeled_categories"):
            CocoDataset(data, folders[0])


def test_a_category_that_the_file_lacks_is_not_annotated_anywhere(
    folders: tuple[Path, Path],
) -> None:
    both = CocoDataset(content(), folders[0]).categories
    data = CocoDataset(of_category(4), folders[0], categories=both)
    label = [c.name for c in both].index("box")
    assert [r.labeled for r in data] == [{label}] * 3


def test_examples_carry_their_labeled_categories(folders: tuple[Path, Path]) -> None:
    merged = merge_datasets(
        [CocoDataset(of_category(9), folders[0]), CocoDataset(of_category(4), folders[1])]
    )
    training = TrainingSet(merged, tiny_config(merged.categories), None)
    _, truth = collate([training.example(0, 0), training.example(4, 0)], 32)
    assert truth.labeled is not None
    assert truth.labeled.tolist() == [[True, False], [False, True]]
    whole = TrainingSet(
        CocoDataset(content(), folders[0], categories=merged.categories),
        tiny_config(merged.categories),
        None,
    )
    assert whole.example(0, 0).truth.labeled is None
    assert isinstance(truth.labeled, torch.Tensor)


def results(*detections: tuple[int, int, list[float], float]) -> list[dict[str, Any]]:
    return [
        {"image_id": i, "category_id": c, "bbox": box, "score": s} for i, c, box, s in detections
    ]


def test_detections_of_unlabeled_categories_are_not_mistakes() -> None:
    truth: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{i}", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "area": 100, "iscrowd": 0}
            for n, (i, c, box) in enumerate(
                [(1, 1, [0, 0, 10, 10]), (2, 2, [20, 20, 10, 10]), (3, 1, [5, 5, 10, 10])], start=1
            )
        ],
    }
    right = results(
        (1, 1, [0, 0, 10, 10], 0.8), (2, 2, [20, 20, 10, 10], 0.8), (3, 1, [5, 5, 10, 10], 0.8)
    )
    extra = results(
        (1, 2, [40, 40, 10, 10], 0.9), (3, 1, [40, 40, 10, 10], 0.9)
    )  # not labeled; not all annotated
    wrong = results((1, 1, [40, 40, 10, 10], 0.9))
    partial = copy.deepcopy(truth)
    partial["images"][0]["labeled_categories"] = [1]
    partial["images"][2]["not_exhaustive_category_ids"] = [1]

    def numbers(detections: list[dict[str, Any]], data: dict[str, Any]) -> tuple[float, float]:
        metrics = evaluate(detections, data).bbox
        assert metrics is not None
        return metrics["AP"], metrics["AR"]

    assert (
        numbers(right, truth)
        == numbers(right, partial)
        == numbers(right + extra, partial)
        == (1, 1)
    )
    assert numbers(right + extra, truth)[0] < 0.9
    assert numbers(right + wrong, partial)[0] == numbers(right + wrong, truth)[0] < 0.9
