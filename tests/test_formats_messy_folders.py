"""Folders from practice: problems are fixed or reported, and written files can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.contours import fill
from maskrcnn.annotations.problems import DataError, DataWarning
from maskrcnn.formats.convert import write_all
from maskrcnn.formats.reading import Annotated

WIDTH, HEIGHT = 100, 80
SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
BOX_LINE = "0 0.5 0.5 0.2 0.2\n"
BOUNDS = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make_image(
    path: Path, mode: str = "L", value: int = 77, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def labelme(folder: Path, **labels: list[str]) -> Path:
    for name, listed in labels.items():
        make_image(folder / f"{name}.png")
        shapes = [
            {
                "label": label,
                "points": SQUARE,
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for label in listed
        ]
        head = {
            "imagePath": f"{name}.png",
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
            "imageData": None,
        }
        put(folder / f"{name}.json", {"version": "5.5.0", "flags": {}, "shapes": shapes, **head})
    return folder


def coco(
    objects: list[dict[str, Any]], categories: list[dict[str, Any]] | None = None, **of_image: Any
) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, **of_image}
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, **raw} for n, raw in enumerate(objects, start=1)
    ]
    return {
        "images": [image],
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "cell"}],
    }


def in_memory(folder: Path, content: dict[str, Any]) -> Annotated:
    make_image(folder / "a.png")
    return Annotated(content, folder, "given")


def names(data: mr.CocoDataset) -> list[list[str]]:
    return [[data.categories[a.label].name for a in record.annotations] for record in data]


def notes(data: mr.CocoDataset) -> list[str]:
    return [p.kind for p in data.warnings]


def yolo(folder: Path, label: str | None = BOX_LINE, **settings: Any) -> Path:
    make_image(folder / "images/a.png")
    if label is not None:
        put(folder / "labels/a.txt", label)
    return put(folder / "data.yaml", {"train": "images", "names": ["cat", "dog"], **settings})


# convert


@pytest.mark.parametrize("format_name", ["yolo-seg", "voc"])
def test_splits_with_different_categories_keep_the_names_of_their_objects(
    format_name: str, tmp_path: Path
):
    train, val = (
        labelme(tmp_path / "tr", a=["apple", "banana", "cherry"]),
        labelme(tmp_path / "va", b=["date", "banana", "cherry"]),
    )
    mr.convert_annotations(train, tmp_path / "out", format_name, val=val)
    datasets = [mr.load_dataset(f"{tmp_path / 'out'}:{split}") for split in ("train", "val")]
    assert [names(data) for data in datasets] == [
        [["apple", "banana", "cherry"]],
        [["date", "banana", "cherry"]],
    ]
    assert datasets[0].categories == datasets[1].categories


def test_a_category_with_other_keypoints_in_the_second_split_is_an_error(tmp_path: Path):
    parts = {
        s: in_memory(tmp_path / s, coco([], [{"id": 1, "name": "cell", "keypoints": [s]}]))
        for s in ("train", "val")
    }
    with pytest.raises(
        ValueError, match='"cell": its keypoints in val are val, in another split train'
    ):
        write_all(parts, tmp_path / "out", "yolo-pose")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train", "val"]


@pytest.mark.parametrize("format_name", ["yolo-seg", "labelme", "via", "cvat", "voc", "png"])
def test_what_only_coco_can_represent_is_reported(format_name: str, tmp_path: Path):
    cells = [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}]
    part = in_memory(
        tmp_path,
        coco(
            [{"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10]], "score": 0.5}],
            cells,
            labeled_categories=[1],
        ),
    )
    message = str(write_all({"": part}, tmp_path / "out", format_name))
    assert "labeled_categories) (1): a.png" in message
    assert ("scores (1): annotation 1 (a.png)" in message) == (
        format_name in ("yolo-seg", "voc", "png")
    )
    assert not write_all({"": part}, tmp_path / "coco", "coco")


@pytest.mark.parametrize("format_name", ["labelme", "via", "cvat"])
def test_left_and_right_that_names_do_not_show_are_reported(format_name: str, tmp_path: Path):
    skeleton = {"keypoints": ["first", "second"], "flip": [1, 0], "sigmas": [0.1, 0.1]}
    objects = [{"bbox": [1, 1, 20, 20], "keypoints": [5, 5, 2, 9, 9, 2]}]
    message = str(
        write_all(
            {"": in_memory(tmp_path, coco(objects, [{"id": 1, "name": "cell"} | skeleton]))},
            tmp_path / "out",
            format_name,
        )
    )
    assert "left and right keypoints (flip) that their names do not show (1): cell" in message
    assert "sigmas of keypoints (1): cell" in message


@pytest.mark.parametrize("format_name", ["yolo-seg", "labelme", "via", "cvat", "voc", "png"])
def test_categories_without_a_name_as_text_are_written(format_name: str, tmp_path: Path):
    objects = [
        {"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]], "category_id": n}
        for n in (1, 2)
    ]
    write_all(
        {
            "": in_memory(
                tmp_path, coco(objects, [{"id": 1, "name": None}, {"id": 2, "name": 7}, {"id": 3}])
            )
        },
        tmp_path / "out",
        format_name,
    )
    assert (
        {"1", "7"}
        <= {c.name for c in mr.load_dataset(tmp_path / "out").categories}
        <= {"1", "7", "3"}
    )


def test_absolute_and_relative_names_of_images_can_be_mixed(tmp_path: Path):
    content = coco([])
    content["images"].append(
        {**content["images"][0], "id": 2, "file_name": str(make_image(tmp_path / "in/sub/b.png"))}
    )
    write_all({"": in_memory(tmp_path / "in", content)}, tmp_path / "out", "yolo-seg")
    assert sorted(
        p.relative_to(tmp_path / "out/labels/train").as_posix()
        for p in (tmp_path / "out/labels").rglob("*.txt")
    ) == ["a.txt", "sub/b.txt"]


def test_splits_with_other_names_become_those_of_yolo(tmp_path: Path):
    parts = {
        s: in_memory(tmp_path / s, coco([{"bbox": [1, 1, 9, 9]}]))
        for s in ("instances_train2017", "valid")
    }
    write_all(parts, tmp_path / "out", "yolo-seg")
    assert (
        len(mr.load_dataset(f"{tmp_path / 'out'}:val"))
        == len(mr.load_dataset(f"{tmp_path / 'out'}:train"))
        == 1
    )
    with pytest.raises(ValueError, match='"valid" is a second split for the key "val"'):
        write_all({"val": parts["valid"], "valid": parts["valid"]}, tmp_path / "twice", "yolo-seg")


# YOLO


def test_yolo_reports_keypoint_sides_that_differ_from_those_of_the_first_category(tmp_path: Path):
    categories = [
        {"id": n, "name": f"{n}", "keypoints": ["a", "b"], "flip": flip}
        for n, flip in enumerate(([0, 1], [1, 0]), start=1)
    ]
    message = str(
        write_all(
            {"": in_memory(tmp_path, coco([{"bbox": [1, 1, 9, 9]}], categories))},
            tmp_path / "out",
            "yolo-pose",
        )
    )
    assert 'left and right of keypoints (flip) other than those of "1" (1): 2' in message


@pytest.mark.parametrize(
    "polygon", [[80, 10, 120, 10, 120, 30, 80, 30], [80, 10, 120, 50, 60, 90, -30, 40]]
)
def test_yolo_polygons_beyond_the_image_are_cut_off_with_the_same_pixels(
    polygon: list[int], tmp_path: Path
):
    write_all(
        {"": in_memory(tmp_path, coco([{"segmentation": [polygon]}]))}, tmp_path / "out", "yolo-seg"
    )
    (read,) = mr.load_dataset(tmp_path / "out")[0].annotations
    before, after = (
        rle.decode(fill(shape, (HEIGHT, WIDTH)))
        for shape in ([np.reshape(polygon, (-1, 2)).astype(float)], read.polygons)
    )
    assert (before == after).all()


@pytest.mark.parametrize("format_name", ["yolo-seg", "yolo-pose"])
def test_yolo_boxes_beyond_the_image_are_cut_off(format_name: str, tmp_path: Path):
    categories = [{"id": 1, "name": "cell", "keypoints": ["tip"]}]
    write_all(
        {"": in_memory(tmp_path, coco([{"bbox": [-30, 10, 40, 20]}], categories))},
        tmp_path / "out",
        format_name,
    )
    assert mr.load_dataset(tmp_path / "out")[0].annotations[0].box == (0, 10, 10, 30)


def test_yolo_leaves_out_a_mask_that_has_no_pixel_in_the_image(tmp_path: Path):
    corner = [-30, 10, 10, -30, -30, -30]
    losses = write_all(
        {"": in_memory(tmp_path, coco([{"segmentation": [corner]}]))}, tmp_path / "out", "yolo-seg"
    )
    assert "left out (1)" in str(losses)
    assert not (tmp_path / "out/labels/train/a.txt").read_text()


def test_yolo_keypoints_beyond_the_image_are_unlabeled_as_they_are_in_coco(tmp_path: Path):
    raw = {"bbox": [1, 1, 20, 20], "keypoints": [5, 5, 2, 120, 9, 2]}
    write_all(
        {
            "": in_memory(
                tmp_path, coco([raw], [{"id": 1, "name": "cell", "keypoints": ["a", "b"]}])
            )
        },
        tmp_path / "out",
        "yolo-pose",
    )
    assert mr.load_dataset(tmp_path / "out")[0].annotations[0].keypoints[:, 2].tolist() == [2, 0]


def test_yolo_names_may_have_quoted_numbers(tmp_path: Path):
    assert [
        c.name for c in mr.load_dataset(yolo(tmp_path, names={"0": "cat", "1": "dog"})).categories
    ] == ["cat", "dog"]


@pytest.mark.parametrize("wrong", ["cat", {"a": "cat"}])
def test_yolo_names_that_are_neither_list_nor_numbered_are_an_error(wrong: Any, tmp_path: Path):
    with pytest.raises(
        DataError,
        match=r"data\.yaml: expected names as a list, as \[cat, dog\], or by number, .* got .*cat",
    ):
        mr.load_dataset(yolo(tmp_path, names=wrong))


def test_yolo_confidences_instead_of_visibilities_are_rounded_with_a_warning(tmp_path: Path):
    data = mr.load_dataset(
        yolo(
            tmp_path, BOX_LINE.strip() + " 0.5 0.5 0.98 0.6 0.6 0.3 0.55 0.5 1\n", kpt_shape=[3, 3]
        )
    )
    assert data[0].annotations[0].keypoints[:, 2].tolist() == [2, 0, 1]
    assert notes(data) == ["visibility is not 0, 1 or 2"]


def test_yolo_images_without_labels_are_a_warning_and_an_error_if_all_are(tmp_path: Path):
    path = yolo(tmp_path)
    make_image(tmp_path / "images/b.png")
    data = mr.load_dataset(path)
    assert "1 of 2; the first would be" in data.describe_warnings()
    (tmp_path / "labels").rename(tmp_path / "label")
    with pytest.raises(
        DataError,
        match=r"none of 2 images has a text file; the first would be .*/labels/a\.txt",
    ):
        mr.load_dataset(path)


def test_yolo_paths_may_have_backslashes_and_text_files_a_byte_order_mark(tmp_path: Path):
    make_image(tmp_path / "images/train/a.png")
    put(tmp_path / "labels/train/a.txt", "\ufeff" + BOX_LINE)
    put(tmp_path / "train.txt", "\ufeffimages\\train\\a.png\n")
    for train in ("train.txt", "images\\train", "..\\images\\train"):
        assert names(
            mr.load_dataset(put(tmp_path / "data.yaml", {"train": train, "names": ["cat"]}))
        ) == [["cat"]]


def test_yolo_splits_that_are_listed_but_absent_are_left_out_with_a_warning(tmp_path: Path):
    path = yolo(tmp_path, test="../test/images")
    with pytest.warns(DataWarning, match='The split "test" was left out'):
        mr.convert_annotations(path, tmp_path / "out", "coco")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["train.json"]
    with pytest.raises(DataError, match=r"no folder or file \.\./test/images"):
        mr.convert_annotations(f"{path}:test", tmp_path / "again", "coco")


# Pascal VOC


def voc(path: Path, head: str = "<annotation>") -> None:
    make_image(path.with_suffix(".png"))
    named = f"<filename>{path.stem}.png</filename><object><name>cat</name>{BOUNDS}</object>"
    put(path, f"{head}{named}</annotation>")


def test_voc_in_folders_is_recognized_again(tmp_path: Path):
    content = coco([{"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 10, 30, 30]]}])
    content["images"] = [
        {**content["images"][0], "id": n, "file_name": str(make_image(tmp_path / f"in/{n}/a.png"))}
        for n in (1, 2)
    ]
    write_all({"": Annotated(content, tmp_path, "given")}, tmp_path / "out", "voc")
    assert names(mr.load_dataset(f"{tmp_path / 'out'}:train")) == [["cell"], []]
    for lists in (tmp_path / "out/ImageSets").rglob("*.txt"):
        lists.unlink()
    assert names(mr.load_dataset(tmp_path / "out")) == [["cell"], []]


def test_voc_with_attributes_of_the_annotation_is_recognized(tmp_path: Path):
    voc(tmp_path / "a.xml", '<annotation verified="yes">')
    assert names(mr.load_dataset(tmp_path)) == [["cat"]]


def test_voc_categories_may_have_colons(tmp_path: Path):
    objects = [{"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10]]}]
    write_all(
        {"": in_memory(tmp_path, coco(objects, [{"id": 1, "name": "a:b"}]))},
        tmp_path / "out",
        "voc",
    )
    assert [c.name for c in mr.load_dataset(tmp_path / "out").categories] == ["a:b"]


def test_voc_folders_of_roboflow_are_splits(tmp_path: Path):
    for split in ("test", "train", "valid"):
        voc(tmp_path / split / f"{split}.xml")
    mr.convert_annotations(tmp_path, tmp_path / "out", "coco")
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == ["test", "train", "valid"]
    assert mr.load_dataset(tmp_path)[0].file_name == "train.png"


# COCO


def test_coco_folders_of_roboflow_are_splits(tmp_path: Path):
    from maskrcnn.formats.load_dataset import validation_split

    for split in ("test", "train", "valid"):
        make_image(tmp_path / split / "a.png")
        put(tmp_path / split / "_annotations.coco.json", coco([{"bbox": [1, 1, 9, 9]}]))
    assert mr.load_dataset(tmp_path).image_folder == tmp_path / "train"
    assert validation_split(tmp_path) == f"{tmp_path}:valid"


def test_coco_images_are_located_although_the_first_are_missing(tmp_path: Path):
    content = coco([])
    content["images"] = [
        {**content["images"][0], "id": n, "file_name": f"{n}.png"} for n in range(1, 31)
    ]
    make_image(tmp_path / "images/30.png")
    put(tmp_path / "a.json", content)
    with pytest.warns(DataWarning, match="dropped"):
        data = mr.load_dataset(tmp_path / "a.json", on_error="drop")
    assert (len(data), data.image_folder) == (1, tmp_path / "images")


def test_an_image_folder_that_does_not_exist_is_not_returned(tmp_path: Path):
    from maskrcnn.formats.reading import image_folder

    assert image_folder(None, [tmp_path / "absent", tmp_path], ["a.png"]) is None
    assert image_folder(None, [tmp_path, tmp_path / "absent"], ["a.png"]) == tmp_path


# masks


def mask(path: Path) -> None:
    make_image(path, value=0)
    with Image.open(path) as opened:
        opened.paste(255, (10, 10, 30, 30))
        opened.save(path)


def test_images_without_a_mask_and_masks_without_an_image_are_warnings(tmp_path: Path):
    for name in "ab":
        make_image(tmp_path / f"images/{name}.png")
    mask(tmp_path / "masks/a.png")
    mask(tmp_path / "masks/c.png")
    message = mr.load_dataset(tmp_path).describe_warnings()
    assert "image without a mask (1)" in message
    assert "images/b.png" in message
    assert "mask without an image (1)" in message
    assert "masks/c.png" in message


def test_rows_of_objects_csv_that_match_nothing_are_warnings(tmp_path: Path):
    make_image(tmp_path / "images/a.png")
    for name in ("0.PNG", "1.png"):
        mask(tmp_path / "masks/a" / name)
    put(
        tmp_path / "objects.csv",
        "file,id,category,ignore\nmasks\\a\\0.PNG,1,cat,0\nmasks/b/1.png,1,dog,0\n",
    )
    data = mr.load_dataset(tmp_path)
    assert sorted(names(data)[0]) == ["cat", "object"]
    assert notes(data)[:2] == ["object without a row", "row without an object"]
