"""Every input of the collected reports (shared/cases) gives its right value through the public functions.

The kinds behind them are tested elsewhere with data that the tests make; docs/robustness.md says where.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.annotation import Annotation
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.cli import run
from maskrcnn.images.read import read_header


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


@pytest.fixture
def cases(shared: Path) -> Path:
    return shared / "cases"


def only(data: CocoDataset) -> Annotation:
    (annotation,) = data[0].annotations
    return annotation


def corners(annotation: Annotation) -> list[list[float]]:
    assert annotation.polygons is not None
    return annotation.polygons[0].tolist()


def test_data_with_keypoints_need_a_keypoint_head(cases: Path):
    data = mr.load_dataset(cases / "pretrained_without_head" / "ann.json")
    assert sum(a.keypoints is not None for i in range(len(data)) for a in data[i].annotations) > 0
    assert data.categories[0].keypoints  # test_weights_pretrained.py measures the first loss


def test_an_upright_size_is_all_that_is_fixed(cases: Path, tmp_path: Path):
    folder = cases / "fix_damages_exif_sizes"
    words = ["check", str(folder / "exif.json"), "--no-val"]
    assert run([*words, "--fix", str(tmp_path / "fixed.json")]) == 1
    before = json.loads((folder / "exif.json").read_text())
    after = json.loads((tmp_path / "fixed.json").read_text())
    assert (after["images"][0]["width"], after["images"][0]["height"]) == (80, 100)
    assert after["annotations"] == before["annotations"]
    words[1] = str(tmp_path / "fixed.json")
    assert run([*words, "--images", str(folder)]) == 0


def test_iscrowd_as_text_is_an_object(cases: Path):
    data = mr.load_dataset(cases / "iscrowd_text" / "text.json")
    assert not only(data).ignore
    assert any(note.what == "iscrowd written as text" for note in data.notes)


def test_a_voc_polygon_is_read_unshifted(cases: Path):
    found = only(mr.load_dataset(cases / "voc_polygon" / "voc"))
    assert corners(found) == [[10, 10], [40, 10], [40, 30]]
    assert found.mask_area == 300


def test_a_rotated_box_is_a_polygon(cases: Path):
    found = only(mr.load_dataset(cases / "rotated_boxes" / "rot.json"))
    assert found.mask_area == pytest.approx(360)
    assert found.box == pytest.approx((16.67, 14.67, 63.33, 61.33), abs=0.01)


def test_labelme_shapes(cases: Path, tmp_path: Path):
    folder = cases / "labelme_tool_shapes"
    with_pixels = mr.load_dataset(folder / "a")
    assert with_pixels.image(0).shape == (80, 100, 3)
    assert only(with_pixels).mask_area == 600
    assert only(mr.load_dataset(folder / "b")).mask_area == 600
    mask = only(mr.load_dataset(folder / "d")).rle
    assert mask is not None
    assert (rle.area(mask), rle.bbox(mask)) == (651, (11, 11, 42, 32))


def test_windows_paths_are_found_and_fixed(cases: Path, tmp_path: Path):
    file = cases / "coco_windows_paths" / "win.json"
    assert mr.load_dataset(file).image(0).shape == (80, 100, 3)
    words = ["check", str(file), "--no-val", "--fix", str(tmp_path / "fixed.json")]
    assert run(words) == 0
    assert json.loads((tmp_path / "fixed.json").read_text())["images"][0]["file_name"] == (
        "images/a.png"
    )


def test_three_pages_that_are_channels_are_one_image(cases: Path):
    header = read_header(cases / "several_frames" / "imagej_3ch.tif")
    assert header.frames == 1


def test_a_huge_image_is_within_the_limit(cases: Path):
    assert read_header(cases / "huge_image" / "huge.png").size == (20_000, 20_000)


def test_boxes_with_text_are_numbers_and_noted(cases: Path):
    data = mr.load_dataset(cases / "roboflow_strings" / "ann.json")
    assert only(data).box == (10, 12, 50.5, 42.25)
    assert "numbers written as text (1): read as numbers" in data.describe_notes()


def test_matterport_folders_are_splits(cases: Path, capsys: pytest.CaptureFixture[str]):
    folder = cases / "matterport_layout"
    names = [mr.load_dataset(f"{folder}:{split}")[0].file_name for split in ("train", "val")]
    assert [Path(name).name for name in names] == ["train.png", "val.png"]


def test_one_yolo_split_finds_its_names(cases: Path):
    data = mr.load_dataset(cases / "yolo_split_alone" / "valid")
    assert (len(data), len(data[0].annotations)) == (1, 1)
    assert not data.categories[0].name.isdigit()


def test_what_is_no_image_is_refused_by_name():
    model = mr.load("nuclei")
    with pytest.raises(TypeError, match=r"images: expected a file name, .* got None"):
        mr.predict(model, None)  # ty: ignore[no-matching-overload]
    with pytest.raises(TypeError, match=r"images\[1\]: expected .* got None"):
        list(mr.predict(model, [np.zeros((32, 32, 3), np.uint8), None]))  # ty: ignore[no-matching-overload]
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    assert mr.predict(model, buffer.getvalue()).size == (64, 64)


def test_messages_about_keypoints_show_plain_numbers():
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "a", "keypoints": ["x", "y"]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "keypoints": k}
            for k in ([float("nan"), 5, 2, 5, 5, 2], [1, 2, 3, 4], [200.5, 5, 2, 5, 5, 7])
        ],
    }
    with pytest.raises(mr.DataError) as raised:
        CocoDataset(content)
    assert "np." not in str(raised.value)
    assert "nan" in str(raised.value)


def test_the_inputs_can_be_copied(cases: Path, tmp_path: Path):
    """Where a report is about a folder, a copy of it under another name gives the same."""
    shutil.copytree(cases / "yolo_split_alone", tmp_path / "Größe (1)")
    assert len(mr.load_dataset(tmp_path / "Größe (1)" / "valid")[0].annotations) == 1


def test_the_robustness_page_names_tests_that_exist():
    tests = Path(__file__).parent
    files = {path.name: path.read_text() for path in tests.glob("*.py")}
    names = {name for text in files.values() for name in re.findall(r"^def test_(\w+)", text, re.M)}
    page = (tests.parent / "docs" / "robustness.md").read_text()
    for quoted in re.findall(r"`([^`\n]+)`", page):
        start = re.fullmatch(r"(?:test_)?(\w+?)(?:\.\.\.|_\*)", quoted)
        if start:
            assert any(name.startswith(start[1]) for name in names), quoted
        elif quoted.startswith("test_") and quoted.endswith(".py"):
            assert quoted in files
