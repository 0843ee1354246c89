"""`check_dataset` reports problems of annotations, images and the validation set, and caches decoding."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_samples import HEIGHT, WIDTH, content, write
from PIL import Image
from training_run import draw, tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.dataset_checks import decode_images
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.check_report import CheckReport
from maskrcnn.training.fit import Trainer
from maskrcnn.training.processes import Processes


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


def kinds(report: CheckReport | None, is_error: bool | None = None) -> dict[str, list[str]]:
    assert report is not None
    where: dict[str, list[str]] = {}
    for p in report.problems:
        if is_error in (None, p.is_error):
            where.setdefault(p.kind, []).append(p.where)
    return where


def data_set(folder: Path, change: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = content()
    if change:
        change(data)
    return write(folder, data)


def test_a_clean_set_has_no_errors_and_the_check_is_part_of_the_package(tmp_path: Path):
    report = mr.check_dataset(data_set(tmp_path), tmp_path)
    assert report.errors == ()
    assert set(kinds(report)) <= {"rare category", "near-duplicate images"}
    assert report.counts.startswith("train.json: 3 images, 6 annotations, 2 categories; 0 errors")


def test_data_may_be_a_dict_or_an_open_dataset():
    for given in (content(), mr.CocoDataset(content())):
        assert kinds(check_dataset(given)) == {
            "rare category": ['category "box" (id 4)', 'category "figure" (id 9)']
        }


def test_only_decoding_detects_truncated_images(tmp_path: Path):
    path = data_set(tmp_path)
    file = tmp_path / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    assert kinds(check_dataset(path, decode_images=False), True) == {}
    assert kinds(check_dataset(path), True) == {
        "image that cannot be decoded": ["image 71 (1.png)"]
    }
    assert kinds(check_dataset(path), True) == {
        "image that cannot be decoded": ["image 71 (1.png)"]
    }  # from the cache


def test_an_unchanged_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = data_set(tmp_path)
    decoded: list[str] = []
    decode_file = decode_images._decode_file
    monkeypatch.setattr(
        decode_images, "_decode_file", lambda p: decoded.append(p.name) or decode_file(p)
    )
    first = check_dataset(path)
    assert sorted(decoded) == ["0.png", "1.png", "2.png"]
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    second = check_dataset(path)
    assert decoded[3:] == ["1.png"]
    assert (kinds(first).get("same image twice"), kinds(second)["same image twice"]) == (
        None,
        ["image 71 (1.png)"],
    )


def test_an_unwritable_cache_folder_disables_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = data_set(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "file" / "home"))
    assert check_dataset(path).errors == ()


def noise(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(
        0, 256, (HEIGHT // 10, WIDTH // 10, 3), dtype=np.uint8
    )
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(path)


def test_training_images_in_the_validation_set_are_reported(tmp_path: Path):
    train, val = data_set(tmp_path / "a"), data_set(tmp_path / "b")
    for n in range(3):
        noise(tmp_path / "a" / f"{n}.png", n)
    noise(tmp_path / "b" / "0.png", 7)
    shutil.copy(tmp_path / "a" / "2.png", tmp_path / "b" / "1.png")
    Image.open(tmp_path / "a" / "0.png").point(lambda v: int(v * 0.8)).save(
        tmp_path / "b" / "2.png"
    )
    report = check_dataset(train, val=val)
    assert kinds(report.validation, True) == {"training image in validation": ["image 71 (1.png)"]}
    assert kinds(report.validation, False)["validation image like a training image"] == [
        "image 72 (2.png)"
    ]
    assert [p.kind for p in report.errors] == ["training image in validation"]
    assert "the same pixels as image 72 (2.png) of the training data" in report.describe()


def test_a_file_in_both_lists_is_reported_without_decoding(tmp_path: Path):
    path = data_set(tmp_path)
    report = check_dataset(path, val=path, decode_images=False).validation
    assert len(kinds(report, True)["training image in validation"]) == 3


def test_objects_beyond_the_anchors_and_the_maximum_detections_are_reported():
    data = content() | {"images": [{"id": 1, "file_name": "a.png", "height": 1000, "width": 1000}]}
    boxes: Sequence[tuple[int, Sequence[float]]] = [
        (1, [1, 1, 7, 7]),
        (2, [1, 1, 8, 8]),
        (3, [1, 1, 511, 511]),
        (4, [0, 0, 514, 514]),
    ]
    data["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 4, "bbox": box} for i, box in boxes
    ]
    by_kind = kinds(check_dataset(data))
    assert by_kind["object too small for the anchors"] == ["annotation 1 (a.png)"]
    assert by_kind["object too large for the anchors"] == ["annotation 4 (a.png)"]
    crowd = [
        {"id": n, "image_id": 1, "category_id": 4, "bbox": [n, n, 20, 20]} for n in range(1, 302)
    ]
    assert kinds(check_dataset(data | {"annotations": crowd}))["more objects than detections"] == [
        "a.png"
    ]


def test_rare_and_empty_categories_and_id_0_are_reported():
    data = content()
    data["categories"] += [{"id": 0, "name": "none"}, {"id": 5, "name": "many"}]
    data["annotations"] += [
        {"id": 50 + n, "image_id": 72, "category_id": 5, "bbox": [n, 1, 20, 20]} for n in range(10)
    ]
    by_kind = kinds(check_dataset(data))
    assert (
        by_kind["category without objects"]
        == by_kind["category with id 0"]
        == ['category "none" (id 0)']
    )
    assert by_kind["rare category"] == ['category "box" (id 4)', 'category "figure" (id 9)']


def test_relative_boxes_are_reported():
    data = content()
    data["annotations"] = [
        {"id": n + 1, "image_id": 70, "category_id": 4, "bbox": [0.1, 0.2, 0.3, 0.01 * n + 0.1]}
        for n in range(12)
    ]
    assert "boxes are relative" in kinds(check_dataset(data), True)


def test_annotations_of_an_image_without_size_are_not_reported_one_by_one():
    data = content()
    del data["images"][0]["width"]
    assert kinds(check_dataset(data), True) == {"image without size": ["images[0]"]}


def test_boxes_of_objects_are_annotated_or_taken_from_their_masks():
    data = content()
    objects = check_dataset(data).objects
    assert objects.boxes[0].tolist() == [10, 10, 40, 45]
    assert objects.boxes[2].tolist() == [5, 40, 75, 55]  # RLE, no bbox
    assert np.isnan(objects.boxes[4]).all()  # keypoints alone
    assert objects.boxes[5].tolist() == [5, 5, 45, 50]  # polygons, no bbox
    assert objects.ignore.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("part", ["train", "val"])
def test_coco_itself_has_warnings_only(part: str, shared: Path):
    folder = shared / "data" / "coco_mini_kp"
    report = check_dataset(
        folder / "annotations" / f"{part}.json", folder / "images", decode_images=False
    )
    assert report.errors == ()
    assert len(report.problems) < 120


def test_the_command_reports_fixes_draws_and_exits_with_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = data_set(
        tmp_path,
        lambda data: data["annotations"].append(
            {"id": 9, "image_id": 71, "category_id": 4, "bbox": [5, 5, 0, 4]}
        ),
    )
    words = ["check", str(path), "--images", str(tmp_path)]
    assert (
        run([*words, "--fix", str(tmp_path / "fixed.json"), "--html", str(tmp_path / "page.html")])
        == 1
    )
    printed = capsys.readouterr().out
    assert "annotation 9 (1.png): bbox width is 0 and height 4, both must be > 0" in printed
    assert "fixed: 1 change" in printed
    assert "to fix by hand: 0 errors" in printed
    assert (tmp_path / "page.html").is_file()
    assert run(["check", str(tmp_path / "fixed.json"), "--images", str(tmp_path)]) == 0
    assert run(["check", str(tmp_path / "absent.json")]) == 2
    assert run([*words, "--fix", str(path)]) == 2
    assert "never overwrites" in capsys.readouterr().err


def test_all_problems_are_listed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    many = [
        {"id": 100 + n, "image_id": 71, "category_id": 4, "bbox": [5, 5, -1, 4]} for n in range(30)
    ]
    path = data_set(tmp_path, lambda data: data["annotations"].extend(many))
    run(["check", str(path), "--no-decode"])
    assert "and 10 more" in capsys.readouterr().out
    run(["check", str(path), "--no-decode", "--all"])
    printed = capsys.readouterr().out
    assert "annotation 129" in printed
    assert "more" not in printed.split("warnings")[0]


def test_a_training_summarizes_warnings_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = json.loads(draw(tmp_path / "data", 4).read_text())
    raw["annotations"].append(copy.deepcopy(raw["annotations"][0]) | {"id": 99})
    data = mr.CocoDataset(raw, tmp_path / "data")
    processes = Processes.start("cpu")
    Trainer(
        tiny_model(data),
        data,
        None,
        tiny_config(),
        tmp_path / "run",
        processes,
        resume=False,
        progress=True,
    ).close()
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("annotation given twice") == 1
    assert (
        "annotations: 1 warning: annotation given twice (1); maskrcnn check lists them" in printed
    )
