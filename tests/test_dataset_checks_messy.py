"""Annotations as real tools and people write them: every problem is reported and none raises a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from coco_samples import HEIGHT, WIDTH, content, write
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError
from maskrcnn.cli import run
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.check_report import CheckReport


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


def with_annotation(**fields: Any) -> dict[str, Any]:
    """One valid object and one with these fields."""
    data = content()
    first = data["annotations"][0]
    data["annotations"] = [
        first,
        {"id": 99, "image_id": first["image_id"], "category_id": first["category_id"], **fields},
    ]
    return data


def kinds(report: CheckReport) -> set[str]:
    return {p.kind for p in report.problems}


def test_missing_images_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content()))
    assert run(["check", str(path)]) == 1
    assert "no image found (1): pass their folder as images= (--images)" in capsys.readouterr().out
    assert "no image found" not in kinds(check_dataset(content())), (
        "a dict without a folder means: check the annotations only"
    )


def test_a_polygon_outside_the_image_is_an_error_and_one_beyond_its_border_a_warning() -> None:
    far, beyond, inside = ([[x, 5, x + 30, 5, x + 30, 40]] for x in (WIDTH + 20, WIDTH - 10, 5))
    reports = {
        name: check_dataset(with_annotation(segmentation=mask))
        for name, mask in (("far", far), ("beyond", beyond), ("inside", inside))
    }
    assert [p.kind for p in reports["far"].errors] == ["mask outside the image"]
    assert reports["beyond"].errors == ()
    assert "mask reaches beyond the image" in kinds(reports["beyond"])
    assert not {"mask outside the image", "mask reaches beyond the image"} & kinds(
        reports["inside"]
    )


def test_a_duplicate_object_without_a_box_is_reported() -> None:
    data = with_annotation(segmentation=[[5, 5, 30, 5, 30, 40]])
    data["annotations"].append({**data["annotations"][1], "id": 100})
    assert "annotation given twice" in kinds(check_dataset(data))


@pytest.mark.parametrize("as_written", [float, str])
def test_ids_and_sizes_written_as_1_0_or_in_quotes_are_whole_numbers(
    tmp_path: Path, as_written: Any
) -> None:
    plain, odd = content(), content()
    for entries, fields in (
        (odd["images"], ("id", "width", "height")),
        (odd["annotations"], ("id", "image_id", "category_id")),
        (odd["categories"], ("id",)),
    ):
        for entry in entries:
            entry.update({name: as_written(entry[name]) for name in fields})
    write(tmp_path, plain)
    one, two = mr.CocoDataset(plain, tmp_path), mr.CocoDataset(odd, tmp_path)
    assert two.truth() == one.truth()
    assert type(two.truth()["images"][0]["height"]) is int


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"segmentation": {"size": None, "counts": [1]}}, "RLE size mismatch"),
        ({"segmentation": {"size": 80, "counts": [1]}}, "RLE size mismatch"),
        ({"bbox": [1, 1, 5, 5], "keypoints": 5}, "wrong number of keypoints"),
        ({"bbox": [1, 1, 5, 5], "category_id": [1]}, "annotation of an unknown category"),
        ({"bbox": [1, 1, 5, 5], "image_id": [1]}, "annotation of an unknown image"),
    ],
)
def test_broken_entries_are_reported_and_left_unchanged_by_fix(
    tmp_path: Path, fields: dict[str, Any], kind: str
) -> None:
    report = check_dataset(with_annotation(**fields), fix=tmp_path / "fixed.json")
    assert kind in {p.kind for p in report.errors}
    assert report.fixed is not None
    assert kind in {p.kind for p in report.fixed.remaining}


def test_duplicates_without_an_id_are_fixed(tmp_path: Path) -> None:
    data = with_annotation(bbox=[1, 1, 5, 5])
    del data["annotations"][1]["id"]
    data["annotations"].append(dict(data["annotations"][1]))
    report = check_dataset(data, fix=tmp_path / "fixed.json")
    assert len(json.loads((tmp_path / "fixed.json").read_text())["annotations"]) == 2
    assert "annotation without id" in {
        p.kind for p in (report.fixed.changes if report.fixed else ())
    }


def test_a_skeleton_that_is_not_a_list_of_pairs_is_reported() -> None:
    data = content()
    figure = next(c for c in data["categories"] if c.get("keypoints"))
    figure["skeleton"] = [1, 2]
    with pytest.raises(DataError, match=r"skeleton: expected pairs of keypoints.*got \[1, 2\]"):
        mr.CocoDataset(data)


def test_a_category_without_a_name_is_called_by_its_id() -> None:
    data = content()
    data["categories"][0]["name"] = None
    number = data["categories"][0]["id"]
    assert next(c for c in mr.CocoDataset(data).categories if c.id == number).name == str(number)


def yolo(folder: Path) -> Path:
    """One image to train on, and one to validate on, whose object is of class 7."""
    for part, line, gray in (("train", "0 0.5 0.5 0.2 0.2", 0), ("val", "7 0.5 0.5 0.2 0.2", 99)):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        Image.new("L", (64, 48), gray).save(folder / "images" / part / "a.png")
        (folder / "labels" / part / "a.txt").write_text(line)
    path = folder / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [cell]\n")
    return path


def test_the_validation_split_of_the_data_is_checked_unless_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(yolo(tmp_path))
    assert run(["check", path]) == 1
    assert "class 7" in capsys.readouterr().out
    assert run(["check", path, "--no-val"]) == 0


def test_a_listed_but_missing_validation_split_is_an_error_and_the_rest_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = yolo(tmp_path)
    path.write_text("train: images/train\nval: ../valid/images\nnames: [cell]\n")
    assert run(["check", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "1 image, 1 annotation, " in printed
    assert "no validation images (1)" in printed
    assert run(["check", str(path), "--no-val"]) == 0


def test_fix_of_another_format_keeps_unreadable_shapes_listed_and_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    shapes = [
        {"label": "cell", "shape_type": "polygon", "points": [[1, 1], [20, 1], [20, 20]]},
        {"label": "cell", "shape_type": "linestrip", "points": [[1, 1], [20, 1], [20, 20]]},
    ]
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "version": "5",
                "imagePath": "a.png",
                "imageHeight": HEIGHT,
                "imageWidth": WIDTH,
                "shapes": shapes,
            }
        )
    )
    fixed = tmp_path / "elsewhere" / "fixed.json"
    report = check_dataset(tmp_path, fix=fixed)
    assert report.fixed is not None
    assert any("linestrip" in p.detail or "linestrip" in p.kind for p in report.fixed.remaining)
    run(["check", str(tmp_path), "--fix", str(fixed)])
    assert f"fixed.json --images {tmp_path}" in capsys.readouterr().out
    assert len(mr.CocoDataset(fixed, tmp_path)) == 1
