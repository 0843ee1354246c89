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
from maskrcnn.training.processes import Processes
from maskrcnn.training.run_request import RunRequest
from maskrcnn.training.setup import check_settings
from maskrcnn.training.trainer import Trainer


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
    assert set(kinds(report)) <= {"rare category", "images that look alike"}
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
    assert kinds(report.validation, False)["validation images like training images"] == ["images"]
    assert [p.kind for p in report.errors] == ["training image in validation"]
    assert "the same pixels as image 72 (2.png) of the training data" in report.describe()
    assert "1 of 3, such as image 72 (2.png), like image 70 (0.png)" in report.describe()


def test_copies_are_errors_and_images_of_one_bench_are_one_hint(tmp_path: Path):
    """A part of 16 x 16 pixels lies elsewhere in each image; one image is there again, saved as a small JPEG."""
    data = content()
    data["images"] = [
        {"id": n, "file_name": f"{n}.png", "height": 240, "width": 320} for n in range(1, 9)
    ]
    data["annotations"] = [
        {"id": n, "image_id": n, "category_id": 4, "bbox": [5, 5, 20, 20]} for n in range(1, 9)
    ]
    noise(tmp_path / "bench.png", 3)
    bench = Image.open(tmp_path / "bench.png").resize((320, 240))
    for n in range(1, 8):
        image = bench.copy()
        image.paste((255, 255, 255), (32 * n, 80, 32 * n + 16, 96))
        image.save(tmp_path / f"{n}.png")
    small = Image.open(tmp_path / "3.png").resize((160, 120), Image.Resampling.BICUBIC)
    small.save(tmp_path / "8.jpg", quality=60)
    data["images"][7] |= {"file_name": "8.jpg", "height": 120, "width": 160}
    (tmp_path / "data.json").write_text(json.dumps(data))

    report = check_dataset(tmp_path / "data.json", val=False)
    assert kinds(report, True) == {"copy of an image": ["image 8 (8.jpg)"]}
    assert "in another size or quality, of image 3 (3.png)" in report.describe()
    hints = [p for p in report.problems if p.kind == "images that look alike"]
    assert [p.detail[:7] for p in hints] == ["7 of 8,"]


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
    request = RunRequest(
        model=tiny_model(data),
        data=data,
        config=tiny_config(),
        out=tmp_path / "run",
        processes=Processes.start("cpu"),
    )
    Trainer(request).close()
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("annotation given twice") == 1
    assert (
        "annotations: 1 warning: annotation given twice (1); maskrcnn check lists them" in printed
    )


# What training would refuse


def boxes(name: str, categories: Sequence[str], count: int = 2, first: int = 0) -> dict[str, Any]:
    """One object of each category in each image; images of one name look the same."""
    return {
        "images": [
            {"id": n, "file_name": f"{name}{n}.png", "height": HEIGHT, "width": WIDTH}
            for n in range(first, first + count)
        ],
        "categories": [{"id": 5 + k, "name": c} for k, c in enumerate(categories)],
        "annotations": [
            {"id": 10 * n + k + 1, "image_id": n, "category_id": 5 + k, "bbox": [5, 5, 20, 20]}
            for n in range(first, first + count)
            for k in range(len(categories))
        ],
    }


def written(folder: Path, name: str, data: dict[str, Any]) -> Path:
    for image in data["images"]:
        noise(folder / image["file_name"], sum(map(ord, image["file_name"])))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return path


def refusal(train: Path, val: Path | None, out: Path) -> str:
    """Why training refuses the data; "" if it does not."""
    settings = {"steps": 1, "batch_size": 1}
    try:
        plan = mr.plan_training(
            train,
            val=val,
            settings=settings,
            recipe=False,
            model="maskrcnn_r18_small",
            out=out,
            device="cpu",
            progress=False,
        )
        check_settings(plan.recipe.training, plan.data)
    except ValueError as error:
        return str(error)
    return ""


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no category in common": (["a"], ["b"], "categories do not match"),
    "another spelling": (["a", "Tree"], ["a", "tree"], "categories do not match"),
    "a category more, with objects": (["a"], ["a", "b"], "annotation of an unknown category"),
    "no object": ([], ["a"], "no object to learn"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_is_an_error_of_check(name: str, tmp_path: Path):
    of_train, of_val, kind = REFUSED[name]
    data = boxes("t", of_train)
    data["categories"] = data["categories"] or [{"id": 1, "name": "a"}]
    train = written(tmp_path, "train", data)
    val = written(tmp_path, "val", boxes("v", of_val, first=50))
    assert refusal(train, val, tmp_path / "out")
    report = check_dataset(train, val=val)
    assert kind in {p.kind for p in report.errors}


def test_validation_data_with_the_same_names_in_another_order_are_fine(tmp_path: Path):
    train = written(tmp_path, "train", boxes("t", ["a", "b"]))
    val = written(tmp_path, "val", boxes("v", ["b", "a"], first=50))
    assert refusal(train, val, tmp_path / "out") == ""
    assert check_dataset(train, val=val).errors == ()


def test_one_image_cannot_be_split_and_check_says_so(tmp_path: Path):
    one = written(tmp_path, "one", boxes("t", ["a"], 1))
    assert "cannot split off" in refusal(one, None, tmp_path / "out")
    assert [p.kind for p in check_dataset(one).errors] == ["no validation images"]
    assert check_dataset(one, val=False).errors == ()


def test_objects_that_are_all_crowds_are_an_error_of_check_as_training_refuses_them():
    data = boxes("t", ["a"])
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    assert [p.kind for p in check_dataset(data).errors] == ["no object to learn"]


def test_errors_of_check_count_what_fix_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = boxes("t", ["a"])
    data["annotations"] += [
        {"id": 90, "image_id": 0, "category_id": 5, "bbox": [1, 1, 0, 4]},
        {"id": 91, "image_id": 0, "category_id": 5, "bbox": ["a", 1, 9, 4]},
    ]
    path = written(tmp_path, "train", data)
    assert run(["check", str(path), "--no-val"]) == 1
    assert "--fix FILE repairs 1 of the errors" in capsys.readouterr().out


def test_fix_covers_the_validation_split_in_one_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = [{"id": 900, "image_id": 0, "category_id": 5, "bbox": [1, 1, 0, 4]}]
    train = boxes("t", ["a"])
    val = boxes("v", ["a"], first=0)
    val["images"][0]["id"] = "0"
    for data in (train, val):
        data["annotations"] += copy.deepcopy(broken)
    files = [written(tmp_path, "train", train), written(tmp_path, "val", val)]
    before = [file.read_bytes() for file in files]
    fixed = tmp_path / "out" / "fixed.json"
    words = ["check", str(files[0]), "--val", str(files[1])]
    assert run([*words, "--fix", str(fixed)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("fixed: 1 change") == 2
    assert "numbers written as text (1): read as numbers" in printed.split("fixed: 1 change")[2]
    fixed_val = tmp_path / "out" / "fixed_val.json"
    assert (
        f"--data {fixed} --images {tmp_path} --val {fixed_val} --val-images {tmp_path}" in printed
    )
    assert [file.read_bytes() for file in files] == before

    images = ["--images", str(tmp_path)]
    assert run(["check", str(fixed), *images, "--val", str(fixed_val)]) == 0
    assert run([*words, "--fix", str(tmp_path / "val.json")]) == 2
    (tmp_path / "train.json").rename(tmp_path / "x_val.json")
    words[1] = str(tmp_path / "x_val.json")
    assert run([*words, "--fix", str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()
