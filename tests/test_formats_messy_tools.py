"""Files from real tools and people: each is read, or an error names the problem, its location and a fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError

GB2312 = '<?xml version="1.0" encoding="gb2312"?><a/>'
CORNERS = [[10, 10], [30, 10], [30, 30], [10, 30]]
CVAT_SHAPE = '<polygon label="cat" points="10,10;30,10;30,30;10,30"/>'
VIA_SHAPE = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [10, 10, 30, 30]}
CSV_HEAD = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
CSV_ROW = 'a.png,1,"{}",1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":10,""height"":10}","{""label"":""кот""}"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    return tmp_path


def shape(
    label: Any = "cat", points: Any = CORNERS, kind: str = "polygon", **more: Any
) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "shape_type": kind,
        "flags": {},
        **more,
    }


def labelme(folder: Path, *shapes: Any, image: str = "a.png") -> Path:
    content = {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": image,
        "imageHeight": 80,
        "imageWidth": 100,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def region(drawn: Any = VIA_SHAPE, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": drawn, "region_attributes": attributes}


def via(folder: Path, *regions: Any, image: str = "a.png", attributes: Any = None) -> Path:
    metadata = {"a.png1": {"filename": image, "size": 1, "regions": regions, "file_attributes": {}}}
    path = folder / "via.json"
    path.write_text(
        json.dumps({"_via_img_metadata": metadata, "_via_attributes": {"region": attributes or {}}})
    )
    return path


def cvat(
    folder: Path,
    shapes: str = CVAT_SHAPE,
    labels: tuple[str, ...] = ("cat",),
    photo: str = "a.png",
    width: str = "100",
) -> Path:
    declared = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in labels)
    path = folder / "annotations.xml"
    image = f'<image id="0" name="{photo}" width="{width}" height="80">{shapes}</image>'
    path.write_text(
        f"<annotations><meta><task><labels>{declared}</labels></task></meta>{image}</annotations>"
    )
    return path


def names(data: mr.CocoDataset) -> list[str]:
    return [category.name for category in data.categories]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        mr.load_dataset(path)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::maskrcnn.annotations.problems.DataWarning")
def test_a_broken_file_beside_labelme_files_is_a_problem_of_its_own(folder: Path):
    labelme(folder, shape())
    (folder / "b.json").touch()
    assert "b.json: expected JSON with shapes and imagePath" in refusal(folder)
    assert len(mr.load_dataset(folder, on_error="drop")[0].annotations) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.yaml", b"b: [1"), ("list.csv", "кот,1".encode("cp1251")), ("list.json", b"{")],
    ids=["yaml", "csv", "json"],
)
def test_foreign_files_beside_do_not_hide_the_format(file: str, content: bytes, folder: Path):
    (folder / file).write_bytes(content)
    path = cvat(folder) if file == "list.json" else via(folder, region(label="cat"))
    assert names(mr.load_dataset(path.parent)) == ["cat"]


def test_files_that_cannot_be_read_are_named_where_there_is_no_format(folder: Path):
    (folder / "config.yaml").write_text("b: [1")
    message = refusal(folder)
    assert "no annotations of a known format" in message
    assert "Not readable: config.yaml: not valid YAML" in message


@pytest.mark.parametrize("label", ["", " ", None])
def test_labelme_shapes_without_label_are_problems(label: Any, folder: Path):
    assert "object without category (1)" in refusal(labelme(folder, shape(label), shape()))


def test_cvat_shapes_without_label_are_problems(folder: Path):
    assert "object without category (1)" in refusal(
        cvat(folder, CVAT_SHAPE + '<polygon points="1,1;9,1;9,9"/>')
    )


def test_cvat_labels_are_one_category_only_if_one_is_a_skeleton(folder: Path):
    both = CVAT_SHAPE + CVAT_SHAPE.replace("cat", "cat skeleton")
    assert names(mr.load_dataset(cvat(folder, both, ("cat", "cat skeleton")))) == [
        "cat",
        "cat skeleton",
    ]


def test_blanks_around_names_make_no_further_category(folder: Path):
    options = {"label": {"type": "dropdown", "options": {" cat": ""}}}
    assert names(mr.load_dataset(via(folder, region(label=" cat"), attributes=options))) == ["cat"]
    (folder / "via.json").unlink()
    assert names(
        mr.load_dataset(labelme(folder, shape(" cat"), shape("cat ", [[1, 1], [9, 1], [9, 9]])))
    ) == ["cat"]


def test_labels_txt_may_begin_with_a_byte_order_mark(folder: Path):
    (folder / "labels.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert names(mr.load_dataset(labelme(folder, shape()))) == ["cat", "dog"]


def test_via_warns_which_of_several_attributes_it_uses_as_the_category(folder: Path):
    data = mr.load_dataset(via(folder, region(Type="1", name="Bob")))
    (note,) = data.warnings
    assert str(data.notes[0]) == 'attribute "Type" (1): not used'
    assert '"name" is used as the category, of the attributes Type, name' in note.detail
    data = mr.load_dataset(via(folder, region(category="cat", name="Bob")))
    assert (data.warnings, str(data.notes[0])) == ((), 'attribute "name" (1): not used')


def test_labelme_rectangles_of_four_corners_are_boxes_and_rotated_ones_masks(folder: Path):
    rotated = [[50, 40], [60, 50], [50, 60], [40, 50]]
    shapes = (
        shape(kind="rectangle"),
        shape(points=rotated, kind="rectangle"),
        shape(points=[[70, 40], [80, 50], [70, 60], [60, 50]], kind="rotation"),
    )
    box, *others = mr.load_dataset(labelme(folder, *shapes))[0].annotations
    assert (box.box, box.mask_area) == ((10, 10, 30, 30), None)
    assert [a.mask_area for a in others] == [200, 200]


@pytest.mark.parametrize("image", ["C:\\Users\\me\\a.png", "/home/other/a.png"])
def test_labelme_images_of_another_machine_are_located_next_to_the_file(image: str, folder: Path):
    assert mr.load_dataset(labelme(folder, shape(), image=image))[0].file_name == "a.png"


def test_labelme_names_an_image_with_another_spelling(folder: Path):
    assert 'its imagePath is "a.JPG", the image beside it is "a.png"' in refusal(
        labelme(folder, shape(), image="a.JPG")
    )


@pytest.mark.parametrize("write", [via, cvat])
def test_backslashes_lead_to_images(write: Any, folder: Path):
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    given = [region(label="cat")] if write is via else []
    assert (
        mr.load_dataset(
            write(folder, *given, **{"image" if write is via else "photo": "sub\\a.png"})
        )[0].file_name
        == "sub/a.png"
    )


def test_csv_of_via_1_is_read(folder: Path):
    (folder / "via.csv").write_text(f"#{CSV_HEAD}\n{CSV_ROW}\n", encoding="utf-8")
    assert names(mr.load_dataset(folder / "via.csv")) == ["кот"]


@pytest.mark.parametrize("alone", [True, False])
def test_projects_of_via_3_are_an_error_with_a_suggestion(alone: bool, folder: Path):
    (folder / "via.json").write_text(
        json.dumps(
            {"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}
        )
    )
    assert "export it as COCO" in refusal(folder / "via.json" if alone else folder)


def test_broken_labelme_shapes_are_problems_with_their_location(folder: Path):
    corners = [[1, 1], [2, 2]]
    message = refusal(
        labelme(
            folder,
            shape(),
            "text",
            None,
            shape(points=[]),
            shape(points=corners, kind="mask"),
            shape(flags=["ignore"]),
        )
    )
    assert "broken shape (5)" in message
    for index, detail in (
        (1, "expected an object with label and points, got 'text'"),
        (2, "expected an object with label and points, got None"),
        (3, "has no points"),
        (4, "has no mask"),
        (5, ""),
    ):
        assert f"a.json, shapes[{index}]: {detail}" in message


@pytest.mark.parametrize(("point", "visibility"), [({}, "2"), ({"cx": 12, "cy": 12}, "visible")])
def test_broken_points_of_via_are_problems(point: dict[str, int], visibility: str, folder: Path):
    keypoint = region(
        {"name": "point", **point}, label="cat", group="1", keypoint="nose", visibility=visibility
    )
    assert "broken point (1)" in refusal(via(folder, region(label="cat", group="1"), keypoint))


def test_regions_of_via_that_are_no_objects_are_problems(folder: Path):
    text = {"shape_attributes": VIA_SHAPE, "region_attributes": "cat"}
    assert "region without category (2)" in refusal(via(folder, region(label="cat"), "text", text))


@pytest.mark.parametrize("width", ["wide", "inf", "1e400", "nan"])
def test_sizes_of_cvat_that_are_no_numbers_are_problems(width: str, folder: Path):
    assert f"a.png: expected width and height in pixels, got {width}" in refusal(
        cvat(folder, width=width)
    )


def test_sizes_of_cvat_may_be_written_with_a_point(folder: Path):
    assert mr.load_dataset(cvat(folder, width="100.0"))[0].width == 100


@pytest.mark.parametrize(
    ("file", "text", "encoding"),
    [
        ("labels.txt", "кот\n", "cp1251"),
        ("via.csv", f"{CSV_HEAD}\n{CSV_ROW}\n", "cp1251"),
        ("a.xml", GB2312, "gb2312"),
    ],
    ids=["labels.txt", "csv", "xml"],
)
def test_files_in_other_encodings_are_named_with_a_suggestion(
    file: str, text: str, encoding: str, folder: Path
):
    (folder / file).write_bytes(text.encode(encoding))
    message = refusal(labelme(folder, shape()) if file == "labels.txt" else folder / file)
    assert message.startswith((f"{file}: not UTF-8", f"{file}: unsupported encoding"))
    assert "save it as UTF-8" in message


def test_cvat_without_its_images_is_checked_without_inventing_a_folder(folder: Path):
    (folder / "a.png").unlink()
    assert str(folder / "images") not in str(mr.check_dataset(cvat(folder), progress=False))
