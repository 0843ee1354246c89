"""COCO files of every kind are read, and the truth they give is read by pycocotools."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from coco_samples import HEIGHT, KEYPOINTS, WIDTH, content, write
from PIL import Image
from pycocotools.coco import COCO

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.categories import mirrored_keypoints, parse_categories
from maskrcnn.annotations.coco_dataset import CocoDataset, DataError
from maskrcnn.config import Category


def test_every_kind_of_annotation_is_read(tmp_path):
    data = CocoDataset(write(tmp_path), tmp_path)
    assert [c.name for c in data.categories] == ["box", "figure"]  # by id
    assert len(data) == 3
    figure, dense, crowd = data[0].annotations
    assert (figure.label, dense.label, crowd.label) == (1, 0, 0)
    assert figure.box == (10, 10, 40, 45)
    assert figure.polygons[0].shape == (3, 2)
    assert figure.keypoints.tolist() == [[22.5, 15.5, 2], [30.5, 20.5, 1], [15.5, 25.5, 2]]
    assert rle.area(dense.rle) == dense.area == 365
    assert crowd.ignore
    assert crowd.box is None
    assert rle.area(crowd.rle) == 15 * 70
    boxed, keypoints, parts = data[1].annotations
    assert (boxed.polygons, boxed.rle, boxed.keypoints) == (None, None, None)
    assert keypoints.box is None
    assert keypoints.keypoints[2].tolist() == [0, 0, 0]
    assert len(parts.polygons) == 2
    assert data[2].annotations == ()
    assert data[0].path == tmp_path / "0.png"
    assert (data.image(0) == np.asarray(Image.open(tmp_path / "0.png"))).all()


def test_a_dict_is_read_like_a_file(tmp_path):
    write(tmp_path)
    data = CocoDataset(content(), tmp_path)
    assert len(data[0].annotations) == 3
    assert data.image(1).shape == (HEIGHT, WIDTH, 3)
    assert CocoDataset(content()).image_folder is None
    with pytest.raises(DataError, match=r"none of its images \(3\) is found"):
        CocoDataset(content()).image(0)


def test_the_folder_of_the_annotations_is_the_default_for_images(tmp_path):
    assert CocoDataset(write(tmp_path)).image(2).shape == (HEIGHT, WIDTH, 3)


def test_requested_categories_set_the_labels_and_the_order_of_keypoints(tmp_path):
    wanted = (
        Category("ghost", 1),
        Category("figure", 2, keypoints=("right_hand", "nose", "tail")),
        Category("box", 3),
    )
    data = CocoDataset(write(tmp_path), tmp_path, categories=wanted)
    assert [c.id for c in data.categories][1:] == [9, 4]
    assert len({c.id for c in data.categories}) == 3
    figure = data[0].annotations[0]
    assert figure.label == 1
    assert figure.keypoints.tolist() == [[15.5, 25.5, 2], [22.5, 15.5, 2], [0, 0, 0]]
    with pytest.raises(
        DataError, match=r'annotation of an unknown category.*\n.*annotation 1 .*9 \("figure"\)'
    ):
        CocoDataset(write(tmp_path), tmp_path, categories=wanted[2:])
    with pytest.raises(DataError, match="none of the requested categories is in the file"):
        CocoDataset(write(tmp_path), tmp_path, categories=wanted[:1])


def test_a_subset_has_the_chosen_images_in_their_order(tmp_path):
    data = CocoDataset(write(tmp_path), tmp_path)
    part = data.subset([2, 0])
    with pytest.raises(IndexError, match="image index 3 is out of range for 3 images"):
        data.subset([0, 3])
    assert [part[i].image_id for i in range(2)] == [72, 70]
    assert [i["id"] for i in part.truth()["images"]] == [72, 70]
    assert len(part.truth()["annotations"]) == 3
    assert len(data) == 3


def test_printed_it_is_a_sentence_for_users_of_the_commands(tmp_path):
    data = CocoDataset(write(tmp_path), tmp_path)
    assert str(data).startswith(f"{data.name}: {len(data)} images, ")
    assert repr(data) == f"CocoDataset({data})"


def test_functions_of_data_sets_refuse_the_name_of_a_file(tmp_path):
    path = write(tmp_path)
    data = CocoDataset(path)
    for call in (
        lambda: mr.choose_recipe(path),
        lambda: mr.choose_recipe(data, val=str(path)),
        lambda: mr.split_dataset(path),
        lambda: mr.merge_datasets([data, path]),
    ):
        with pytest.raises(TypeError, match=r"expected a CocoDataset, got '.*json'; open it with"):
            call()
    with pytest.raises(TypeError, match="expected a list of data sets"):
        mr.merge_datasets(data)


def test_truth_is_complete_for_pycocotools(tmp_path, capsys):
    truth = CocoDataset(write(tmp_path), tmp_path).truth()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    loaded = COCO(tmp_path / "truth.json")
    capsys.readouterr()
    annotations = {a["id"]: a for a in loaded.loadAnns(loaded.getAnnIds())}
    assert annotations[3]["bbox"] == [5, 40, 70, 15]  # the bounding box of the mask
    assert annotations[3]["iscrowd"] == 1
    assert annotations[4]["area"] == 600
    assert annotations[5]["bbox"] == [40.5, 20.5, 20, 10]
    assert annotations[5]["keypoints"] == [40, 20, 2, 60, 30, 1, 0, 0, 0]
    assert annotations[5]["num_keypoints"] == 2
    assert annotations[6]["area"] == pytest.approx(300 + 150)
    for annotation in annotations.values():
        if "segmentation" in annotation:
            assert loaded.annToMask(annotation).sum() > 0


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("name", ["nuclei", "coco_mini_kp"])
def test_real_data_opens_and_its_truth_equals_the_file(shared, name, part):
    path = shared / "data" / name / "annotations" / f"{part}.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][::3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    raw = {a["id"]: copy.deepcopy(a) for a in content["annotations"]}
    data = CocoDataset(content, shared / "data" / name / "images")
    assert sum(len(record.annotations) for record in data) == len(raw)
    for annotation in data.truth()["annotations"]:
        for key, value in annotation.items():
            if key in raw[annotation["id"]]:
                assert value == raw[annotation["id"]][key], (annotation["id"], key)
    assert data.intensity_range() is None
    assert data.image(0).shape == (*data.size(0), 3)


def test_sixteen_bit_images_give_a_range_that_fits_them(tmp_path):
    path = write(tmp_path)
    values = np.linspace(500, 4000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    values[0, 0] = 65535  # a hot pixel
    for i in (1, 2):
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    data = CocoDataset(path, tmp_path)
    low, high = data.intensity_range()
    assert low == pytest.approx(500, abs=15)
    assert high == pytest.approx(4000, abs=15)
    image = data.image(1, data.intensity_range())
    assert (image[1, 0, 0], image[-1, -1, 0]) == (pytest.approx(6, abs=3), 255)
    assert data.subset([0]).intensity_range() is None


def test_left_and_right_are_inferred_from_the_names():
    assert mirrored_keypoints(("nose", "left_eye", "right_eye")) == (0, 2, 1)
    assert mirrored_keypoints(("Left Eye", "Right Eye", "eye L", "eye R", "L_hip", "R_hip")) == (
        1,
        0,
        3,
        2,
        5,
        4,
    )
    assert mirrored_keypoints(("LEye", "REye", "LEFTEAR", "RIGHTEAR", "hip.l", "hip.r")) == (
        1,
        0,
        3,
        2,
        5,
        4,
    )
    assert mirrored_keypoints(("l", "r", "left", "tail", "floor", "lower")) == (1, 0, 2, 3, 4, 5)


def test_skeletons_sigmas_and_flips_of_the_file_are_kept():
    entry = {
        "id": 5,
        "name": "figure",
        "keypoints": KEYPOINTS,
        "skeleton": [[1, 2]],
        "sigmas": [0.1, 0.2, 0.3],
    }
    (category,) = parse_categories([entry])
    assert category == Category(
        "figure", 5, tuple(KEYPOINTS), ((0, 1),), (0, 2, 1), (0.1, 0.2, 0.3)
    )
    assert parse_categories([entry | {"flip": [0, 1, 2]}])[0].mirrored == (0, 1, 2)
    assert parse_categories([entry | {"flip_pairs": [["nose", "right_hand"]]}])[0].mirrored == (
        2,
        1,
        0,
    )
    assert parse_categories([entry | {"flip_pairs": [[0, 1]]}])[0].mirrored == (1, 0, 2)
    with pytest.raises(ValueError, match=r"flip_pairs: .*got \[0, 7\]"):
        parse_categories([entry | {"flip_pairs": [[0, 7]]}])


def test_all_problems_of_the_categories_are_reported_at_once(tmp_path: Path):
    data = content()
    data["categories"] = [
        {"id": 4, "name": "a"},
        {"id": 4, "name": "b"},
        {"name": "c"},
        {"id": 6, "name": "d", "keypoints": ["x"], "skeleton": [[1, 2]]},
    ]
    with pytest.raises(DataError, match="id 4 is used twice") as error:
        CocoDataset(write(tmp_path, data), tmp_path)
    assert "categories[2]: expected an object" in str(error.value)
    assert "categories[3]" in str(error.value)
    assert "keypoints outside" in str(error.value)
