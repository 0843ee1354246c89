"""All problems of a data set are reported on opening, with annotation and suggestion; harmless ones are warnings."""

from __future__ import annotations

import time

import numpy as np
import pytest
from coco_samples import HEIGHT, WIDTH, content, write
from PIL import Image

from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset, DataError, DataWarning

BROKEN = {
    "box without area": {"bbox": [5, 5, -3, 4]},
    "box is not four numbers": {"bbox": [5, 5, 4, None]},
    "box outside the image": {"bbox": [200, 5, 4, 4]},
    "broken polygon": {"segmentation": [[1, 2, 3, 4, 5]]},
    "segmentation format not recognized": {"segmentation": [1, 2, 3, 4, 5, 6]},
    "RLE size mismatch": {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}},
    "broken RLE": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 4]}},
    "keypoints without names": {"keypoints": [1, 1, 2]},
    "wrong number of keypoints": {"category_id": 9, "keypoints": [1, 1, 2]},
    "unknown visibility": {"category_id": 9, "keypoints": [1, 1, 7, 0, 0, 0, 0, 0, 0]},
    "nothing annotated": {"bbox": None},
    "annotation of an unknown image": {"image_id": 5},
    "annotation of an unknown category": {"category_id": 5},
    "annotation id used twice": {"id": 2},
}


def _with(*extra: dict) -> dict:
    data = content()
    for number, change in enumerate(extra):
        data["annotations"].append(
            {"id": 100 + number, "image_id": 71, "category_id": 4, "bbox": [1, 1, 5, 5]} | change
        )
    return data


@pytest.mark.parametrize("kind", BROKEN)
def test_each_kind_of_broken_annotation_is_reported(kind):
    with pytest.raises(DataError, match=kind) as error:
        CocoDataset(_with(BROKEN[kind]))
    text = str(error.value)
    assert f"annotation {BROKEN[kind].get('id', 100)}" in text
    assert "1 problem" in text
    assert 'on_error="drop"' in text


def test_all_problems_are_listed_at_once_grouped_and_counted(tmp_path):
    many = [{"bbox": [5, 5, 0, 4]}] * 25
    path = write(tmp_path, _with(*BROKEN.values(), *many))
    with pytest.raises(DataError) as error:
        CocoDataset(path, tmp_path)
    text = str(error.value)
    for kind in BROKEN:
        assert kind in text
    assert text.startswith("train.json: ")
    assert "box without area (26)" in text
    assert "... and 6 more" in text
    assert "annotation 100 (1.png): bbox width is -3 and height 4, both must be > 0" in text


def test_dropping_leaves_the_rest_and_warns_of_what_was_dropped():
    with pytest.warns(DataWarning, match=r"annotation 100 .*(.|\n)*These were dropped"):
        data = CocoDataset(_with(*BROKEN.values()), on_error="drop")
    assert sum(len(data[i].annotations) for i in range(3)) == len(content()["annotations"])
    assert {p.kind for p in data.dropped} == set(BROKEN)
    assert len(data.truth()["annotations"]) == len(content()["annotations"])


def test_harmless_problems_are_warnings_and_are_handled():
    wide = [[1, 1, 4, 1, 4, 4, 1, 4]]
    data = CocoDataset(
        _with(
            {"bbox": [70, 50, 20, 20]},
            {"bbox": [30, 30, 40, 20], "segmentation": wide},
            {"bbox": [1, 1, 0, 3], "segmentation": wide},
            {"segmentation": [*wide, [5, 5, 6, 6]]},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
            {"category_id": 9, "keypoints": [90, 5, 2, 2, 2, 2, 40, 40, 1], "num_keypoints": 1},
            {"bbox": [5.5, 5.5, 20, 30]},
        )
    )
    kinds = {p.kind: p for p in data.warnings}
    assert set(kinds) == {
        "box reaches beyond the image",
        "box far from its mask",
        "box without area, but a mask",
        "polygon without area",
        "empty mask",
        "keypoint outside the image",
        "keypoint outside its box",
        "num_keypoints is wrong",
        "same box used twice",
        "annotation given twice",
    }
    assert "annotation 101" in data.describe_warnings()
    clipped, far, flat, parts, empty, keypoints, _ = data[1].annotations[3:]
    assert clipped.box == (70, 50, 80, 60)
    assert far.box == (30, 30, 70, 50)
    assert flat.box is None
    assert len(parts.polygons) == 1
    assert (empty.rle, empty.box) == (None, (1, 1, 6, 6))
    assert keypoints.keypoints[:, 2].tolist() == [0, 2, 1]
    assert not data.dropped


def test_an_object_without_area_is_left_out_with_a_warning_as_in_coco_train2017():
    flat = {
        "bbox": [9.98, 8.56, 15.52, 0.0],
        "segmentation": [[9.98, 8.56, 25.5, 8.56, 25.5, 8.56, 9.98, 8.56]],
        "area": 0.0,
    }
    nothing = {"bbox": None, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}
    data = CocoDataset(_with(flat, nothing))
    assert len(data[1].annotations) == 3
    assert len(data.truth()["annotations"]) == len(content()["annotations"])
    assert [p.where for p in data.warnings if p.kind == "object without area"] == [
        "annotation 100 (1.png)",
        "annotation 101 (1.png)",
    ]


def test_an_object_without_area_but_with_keypoints_is_kept():
    data = CocoDataset(
        _with(
            {
                "category_id": 9,
                "bbox": [9, 8, 5, 0],
                "segmentation": [[9, 8, 14, 8, 9, 8]],
                "keypoints": [10, 8, 2, 0, 0, 0, 0, 0, 0],
            }
        )
    )
    assert data[1].annotations[-1].keypoints[0].tolist() == [10.5, 8.5, 2]


def test_suspicious_entries_are_warnings():
    bow_tie = [10, 10, 40, 40, 40, 10, 10, 40]
    data = _with(
        {"bbox": [10, 5, 50, 35], "segmentation": [bow_tie, [50, 5, 60, 5, 60, 15]]},
        {"bbox": [2, 2, 40, 40], "segmentation": [[2, 2, 42, 2, 42, 42, 2, 42]], "area": 500},
        {"bbox": [3, 3, 9, 9], "area": "much"},
        {"id": 0, "bbox": [4, 4, 9, 9]},
    )
    data["images"].append({"id": 99, "file_name": "1.png", "height": HEIGHT, "width": WIDTH})
    warnings = {(p.kind, p.where, p.detail) for p in CocoDataset(data).warnings}
    assert warnings == {
        ("polygon crosses itself", "annotation 100 (1.png)", "1 polygon of the mask"),
        ("area is wrong", "annotation 101 (1.png)", "area is 500, the mask has 1600 px"),
        ("area is wrong", "annotation 102 (1.png)", "area is 'much'"),
        (
            "annotation with id 0",
            "annotation 0 (1.png)",
            "pycocotools counts a match with it as no match",
        ),
        ("image listed twice", "images[3]", "1.png is also images[1]"),
    }


def test_images_that_are_missing_or_broken_or_have_the_wrong_size_are_listed(tmp_path):
    data = content()
    data["images"].append({"id": 73, "file_name": "none.png", "height": 5, "width": 5})
    data["images"].append({"id": 70, "file_name": "1.png", "height": HEIGHT, "width": WIDTH})
    data["images"].append({"id": None, "file_name": "1.png", "height": HEIGHT, "width": WIDTH})
    data["images"].append({"id": 74, "file_name": "1.png", "height": HEIGHT})
    path = write(tmp_path, data)
    (tmp_path / "0.png").write_text("no image")
    Image.new("RGB", (9, 7)).save(tmp_path / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "2.png", exif=exif)
    with pytest.raises(DataError) as error:
        CocoDataset(path, tmp_path)
    text = str(error.value)
    assert "file not found" in text
    assert "image 70 (0.png)" in text
    assert "the file is 9 x 7 pixels, the annotations say 80 x 60" in text
    assert "width and height ignore the EXIF rotation" in text
    assert "image id used twice" in text
    assert "image entry is broken" in text
    assert "image without size" in text
    with pytest.warns(DataWarning):
        assert len(CocoDataset(path, tmp_path, on_error="drop")) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "got a list"),
        ('{"images": []}', "no list annotations and no list categories"),
        (None, "annotation file not found"),
    ],
)
def test_a_file_that_is_not_a_coco_file_is_refused_with_the_reason(text, reason, tmp_path):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        CocoDataset(tmp_path / "a.json", tmp_path)
    with pytest.raises(DataError, match="folder not found"):
        CocoDataset(content(), tmp_path / "nowhere")


def test_thousands_of_annotations_are_checked_in_a_second():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:40, 10:50] = True
    data = content()
    parts = {"segmentation": rle.encode(mask), "bbox": [10, 5, 40, 35]}
    data["annotations"] = [{"id": i, "image_id": 70, "category_id": 4} | parts for i in range(4000)]
    start = time.process_time()
    CocoDataset(data)
    assert time.process_time() - start < 2
