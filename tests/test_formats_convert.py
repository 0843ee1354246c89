"""`convert`, `load_dataset` and `predict --format`: recognition, splits, output files, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from coco_samples import content, write
from models import tiny_config

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError
from maskrcnn.cli import run
from maskrcnn.formats.all_formats import FORMAT_BY_NAME, FORMATS
from maskrcnn.formats.format_name import FormatName
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.synthetic.shapes import CATEGORIES

ALL = tuple(FORMAT_BY_NAME)


def test_the_names_that_commands_offer_are_those_of_the_formats():
    assert get_args(FormatName) == ALL
    assert len({known.name for known in FORMATS}) == len(FORMATS)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write(tmp_path / "in")


@pytest.mark.parametrize("format_name", [f for f in ALL if f != "yolo-pose"])
def test_every_format_is_recognized_and_converted_on(format_name: str, coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "out", format_name)
    data = mr.load_dataset(tmp_path / "out")
    assert len(data) == 3
    assert {c.name for c in data.categories} == {"figure", "box"}
    assert all(data.image(i).shape == (60, 80, 3) for i in range(3))
    mr.convert_annotations(tmp_path / "out", tmp_path / "again.json", "coco")
    assert len(mr.load_dataset(tmp_path / "again.json")) == 3


def test_coco_to_coco_changes_nothing_that_is_annotated(coco: Path, tmp_path: Path):
    report = mr.convert_annotations(coco, tmp_path / "out.json", "coco")
    assert not report.lost
    assert (report.images, report.annotations) == (
        3,
        len(json.loads(coco.read_text())["annotations"]),
    )
    assert str(report) == (
        f"{tmp_path / 'out.json'}: 3 images, {report.annotations} annotations written as coco; nothing lost"
    )
    before, after = json.loads(coco.read_text()), json.loads((tmp_path / "out.json").read_text())
    assert after["categories"] == before["categories"]
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert {k: v for k, v in old.items() if v != []} == {
            k: new[k] for k, v in old.items() if v != []
        }
    assert [i["file_name"] for i in after["images"]] == [f"in/{i}.png" for i in range(3)]


def test_nothing_is_overwritten_and_an_error_leaves_nothing(coco: Path, tmp_path: Path):
    kept = tmp_path / "out"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists"):
        mr.convert_annotations(coco, kept, "labelme")
    assert [p.name for p in kept.iterdir()] == ["mine.txt"]
    (tmp_path / "in" / "1.png").rename(tmp_path / "in" / "0.bmp")
    coco.write_text(coco.read_text().replace("1.png", "0.bmp"))
    with pytest.raises(ValueError, match=r"two images map to one file, 0\.json"):
        mr.convert_annotations(coco, tmp_path / "new", "labelme")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("format_name", ["yolo-seg", "voc"])
def test_two_sources_become_the_splits_of_one_folder(format_name: str, coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "out", format_name, val=coco)
    for split in ("train", "val"):
        data = mr.load_dataset(f"{tmp_path / 'out'}:{split}")
        assert len(data) == 3
    mr.convert_annotations(tmp_path / "out", tmp_path / "labelme", "labelme")
    assert sorted(p.name for p in (tmp_path / "labelme").iterdir()) == ["train", "val"]
    mr.convert_annotations(tmp_path / "out", tmp_path / "coco", "coco")
    assert sorted(p.name for p in (tmp_path / "coco").iterdir()) == ["train.json", "val.json"]
    mr.convert_annotations(f"{tmp_path / 'out'}:val", tmp_path / "one.json", "coco")
    assert len(mr.load_dataset(f"{tmp_path / 'coco'}:val")) == 3
    with pytest.raises(DataError, match=r'no split "vall"; it has train, val\. Did you mean "val"'):
        mr.load_dataset(f"{tmp_path / 'out'}:vall")
    with pytest.raises(
        ValueError, match="has the splits train, val; to add a second source, name one of them"
    ):
        mr.convert_annotations(tmp_path / "out", tmp_path / "x", format_name, val=coco)


def test_losses_of_a_category_count_once_for_all_splits(tmp_path: Path):
    hand: dict = content()
    names = ["arrow", "hook", "nose"]
    hand["categories"][0] |= {"keypoints": names, "flip": [1, 0, 2], "sigmas": [0.1, 0.1, 0.2]}
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in", hand)
    report = mr.convert_annotations(path, tmp_path / "out", "labelme", val=path)
    of_category = {
        kind: where for kind, where in report.lost.locations.items() if "keypoints" in kind
    }
    assert len(of_category) == 2
    assert set(map(tuple, of_category.values())) == {("figure",)}
    assert report.lost.locations["limbs of skeletons"] == ["figure"]


def test_images_are_referenced_linked_or_copied(coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "a", "labelme")
    assert json.loads((tmp_path / "a" / "0.json").read_text())["imagePath"] == "../in/0.png"
    mr.convert_annotations(coco, tmp_path / "b", "labelme", image_files="copy")
    assert json.loads((tmp_path / "b" / "0.json").read_text())["imagePath"] == "images/0.png"
    mr.convert_annotations(coco, tmp_path / "c", "yolo-seg", image_files="link")
    assert (tmp_path / "c" / "images" / "train" / "0.png").is_symlink()
    with pytest.raises(ValueError, match="must be beside the annotations; use image_files="):
        mr.convert_annotations(coco, tmp_path / "d", "voc", image_files="reference")
    with pytest.raises(ValueError, match=r"expected a folder for .*, got a single file"):
        mr.convert_annotations(coco, tmp_path / "e.json", "coco", image_files="copy")
    for folder in "abc":
        assert mr.load_dataset(tmp_path / folder).image(0).shape == (60, 80, 3)


def test_an_unknown_source_lists_the_known_formats(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError) as caught:
        mr.load_dataset(tmp_path)
    for name in ("COCO", "YOLO", "LabelMe", "VIA", "CVAT", "VOC", "masks"):
        assert name.lower() in str(caught.value).lower()
    (tmp_path / "task.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unpack it first"):
        mr.load_dataset(tmp_path / "task.zip")
    with pytest.raises(DataError, match="file or folder not found"):
        mr.load_dataset(tmp_path / "absent.json")
    with pytest.raises(ValueError, match='unknown format "labelmee", did you mean "labelme"'):
        mr.convert_annotations(tmp_path, tmp_path / "out", "labelmee")


def test_yolo_pose_needs_one_skeleton(coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "pose", "yolo-pose")
    data = mr.load_dataset(tmp_path / "pose")
    assert [c.keypoints for c in data.categories] == [("nose", "left_hand", "right_hand")] * 2
    two = content()
    two["categories"][1]["keypoints"] = ["corner"]
    (tmp_path / "in" / "two.json").write_text(json.dumps(two))
    with pytest.raises(ValueError, match="box: 1, figure: 3"):
        mr.convert_annotations(tmp_path / "in" / "two.json", tmp_path / "x", "yolo-pose")


def test_a_problem_names_the_location_in_the_other_format(coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "out", "labelme")
    path = tmp_path / "out" / "0.json"
    path.write_text(path.read_text().replace('"box"', '"box"', 1))
    shapes = json.loads(path.read_text())
    shapes["shapes"][0]["points"] = [[500, 500], [600, 500], [600, float("nan")]]
    path.write_text(json.dumps(shapes))
    with pytest.raises(DataError, match=re.escape("0.json, shapes[0] (../in/0.png)")):
        mr.load_dataset(tmp_path / "out")


def test_categories_and_on_error_are_passed_on(coco: Path, tmp_path: Path):
    mr.convert_annotations(coco, tmp_path / "out", "cvat")
    wanted = [mr.Category("figure", 1, keypoints=("nose",)), mr.Category("unknown", 2)]
    with pytest.raises(DataError, match="unknown category"):
        mr.load_dataset(tmp_path / "out", categories=wanted)
    with pytest.warns(UserWarning, match="dropped"):
        data = mr.load_dataset(tmp_path / "out", categories=wanted, on_error="drop")
    assert [c.name for c in data.categories] == ["figure", "unknown"]


def test_the_command_converts_and_reports_what_is_lost(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run(["convert", str(coco), str(tmp_path / "out"), "--format", "voc"]) == 0
    message = capsys.readouterr().out
    assert "written as voc; the format cannot represent:" in message
    assert "keypoints (2): annotation 1 (0.png)" in message
    assert run(["convert", str(coco), str(tmp_path / "out"), "--format", "voc"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert run(["convert", str(coco), str(tmp_path / "all"), "--format", "coco"]) == 0
    assert "nothing lost" in capsys.readouterr().out


def test_predictions_are_written_as_annotations_to_correct(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    write_scenes(tmp_path / "scenes", 1, seed=1, size=96)
    mr.save(mr.MaskRCNN.from_config(tiny_config(CATEGORIES)), tmp_path / "m.safetensors")
    words = [
        "predict",
        str(tmp_path / "m.safetensors"),
        str(tmp_path / "scenes" / "images"),
        "--out",
        str(tmp_path / "out"),
        "--min-score",
        "0.05",
    ]
    assert run([*words, "--format", "labelme"]) == 0
    assert "annotations to correct" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    data = mr.load_dataset(tmp_path / "out" / "labelme")
    assert [c.name for c in data.categories] == [c.name for c in CATEGORIES]
    assert len(data[0].annotations) == len(results)
    assert data.content()["annotations"][0]["score"] == pytest.approx(results[0]["score"], abs=1e-6)
    assert data.image(0).shape[:2] == data.size(0)
    assert run([*words, "--format", "labelme"]) == 2  # before the work, not after it
    assert "already exists" in capsys.readouterr().err
    assert run([*words, "--format", "yolo"]) == 0
    assert (tmp_path / "out" / "yolo-pose").is_dir(), "for some of these categories have keypoints"


def test_real_masks_survive_every_format_that_can_represent_them(shared: Path, tmp_path: Path):
    source = json.loads((shared / "data/nuclei/annotations/val.json").read_text())
    ids = {i["id"] for i in source["images"][:6]}
    few = {
        "images": source["images"][:6],
        "annotations": [a for a in source["annotations"] if a["image_id"] in ids],
    }
    (tmp_path / "few.json").write_text(json.dumps(few | {"categories": source["categories"]}))
    for format_name in ("yolo-seg", "labelme", "via", "cvat", "voc", "png-each"):
        report = mr.convert_annotations(
            tmp_path / "few.json",
            tmp_path / format_name,
            format_name,
            images=shared / "data/nuclei/images",
        )
        assert not report.lost
        mr.convert_annotations(tmp_path / format_name, tmp_path / f"{format_name}.json", "coco")
        back = json.loads((tmp_path / f"{format_name}.json").read_text())
        masks = [
            [
                sorted(_counts(d, i["id"]))
                for i in sorted(d["images"], key=lambda i: Path(i["file_name"]).name)
            ]
            for d in (few, back)
        ]
        assert masks[0] == masks[1], format_name


def _counts(data: dict, image_id: int) -> list[str]:
    from maskrcnn.formats.writing import rle_of, size_of

    image = next(i for i in data["images"] if i["id"] == image_id)
    return [
        (rle_of(a, size_of(image)) or {})["counts"]
        for a in data["annotations"]
        if a["image_id"] == image_id
    ]
