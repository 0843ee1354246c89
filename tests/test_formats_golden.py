"""Hand-written files of each format, as its own tool writes them, and the annotations read from them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.problems import DataError, DataWarning
from maskrcnn.formats.id_maps import read_ids, voc_colors

WIDTH, HEIGHT = 40, 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(tmp_path / "a.jpg")
    return tmp_path


def mask_of(data: mr.CocoDataset, number: int = 0, image: int = 0) -> np.ndarray:
    """The mask of an annotation as pycocotools fills it."""
    from pycocotools import mask

    annotation = data[image].annotations[number]
    if annotation.rle is not None:
        return rle.decode(annotation.rle)
    polygons = [p.reshape(-1).tolist() for p in annotation.polygons or ()]
    return mask.decode(mask.merge(mask.frPyObjects(polygons, HEIGHT, WIDTH))).astype(bool)


def boxed(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def kinds(data: mr.CocoDataset) -> list[str]:
    return [p.kind for p in data.dropped]


def png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# LabelMe


def labelme(folder: Path, shapes: list[dict[str, Any]], **more: Any) -> Path:
    filled = [
        {"label": "cat", "group_id": None, "description": "", "flags": {}, "mask": None} | shape
        for shape in shapes
    ]
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": filled,
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (folder / "a.json").write_text(json.dumps(content | more))
    return folder


def test_labelme_polygon_rectangle_circle_and_mask(folder: Path):
    hole = np.array([[1, 1, 1], [1, 0, 1]], np.uint8)
    data = mr.load_dataset(
        labelme(
            folder,
            [
                {"shape_type": "polygon", "points": [[2, 3], [12, 3], [12, 9], [2, 9]]},
                {
                    "shape_type": "rectangle",
                    "points": [[30.5, 20], [20, 10.25]],
                },  # drawn from the right bottom
                {"shape_type": "circle", "points": [[20, 15], [20, 21]]},
                {
                    "shape_type": "mask",
                    "points": [[4, 5], [6, 6]],
                    "mask": png(hole),
                },  # the second point is the last pixel
            ],
        )
    )
    assert (mask_of(data, 0) == boxed(2, 3, 12, 9)).all()
    assert data[0].annotations[1].box == (20, 10.25, 30.5, 20)
    assert data[0].annotations[1].polygons is None
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask_of(data, 2) != ((x - 20) ** 2 + (y - 15) ** 2 < 36)).sum() <= 12
    expected = boxed(4, 5, 7, 7)
    expected[6, 5] = False
    assert (mask_of(data, 3) == expected).all()


def test_labelme_groups_are_objects_with_parts_and_keypoints(folder: Path):
    shapes = [
        {
            "label": "dog",
            "shape_type": "polygon",
            "points": [[0, 0], [5, 0], [5, 5], [0, 5]],
            "group_id": 7,
        },
        {
            "label": "dog",
            "shape_type": "polygon",
            "points": [[10, 0], [15, 0], [15, 5], [10, 5]],
            "group_id": 7,
        },
        {"label": "nose", "shape_type": "point", "points": [[3.5, 4.5]], "group_id": 7},
        {
            "label": "tail",
            "shape_type": "point",
            "points": [[12.5, 2.5]],
            "group_id": 7,
            "flags": {"occluded": True},
        },
        {"label": "dog", "shape_type": "polygon", "points": [[20, 0], [25, 0], [25, 5], [20, 5]]},
        {
            "label": "tail",
            "shape_type": "point",
            "points": [[30, 20]],
            "group_id": 9,
            "description": "dog",
        },
    ]
    data = mr.load_dataset(labelme(folder, shapes))
    assert [c.name for c in data.categories] == ["dog"]
    assert data.categories[0].keypoints == ("nose", "tail")
    assert (mask_of(data, 0) == boxed(0, 0, 5, 5) | boxed(10, 0, 15, 5)).all()
    first, second, third = data[0].annotations
    assert first.keypoints is not None
    assert first.keypoints.tolist() == [[3.5, 4.5, 2], [12.5, 2.5, 1]]
    assert second.keypoints is None
    assert third.keypoints is not None
    assert third.keypoints.tolist() == [[0, 0, 0], [30, 20, 2]]


def test_labelme_problems_name_what_cannot_be_used_and_where(folder: Path):
    shapes = [
        {"shape_type": "polygon", "points": [[2, 3], [12, 3], [12, 9]]},
        {"shape_type": "linestrip", "points": [[2, 3], [12, 3]]},
        {"shape_type": "point", "label": "nose", "points": [[2, 3]]},
        {"shape_type": "circle", "points": [[2, 3]]},
        {"shape_type": "mask", "points": [[0, 0], [5, 5]], "mask": png(np.ones((2, 2), np.uint8))},
        {"shape_type": "polygon", "points": [[2, 3], [12, 3]]},
    ]
    with pytest.raises(DataError) as caught:
        mr.load_dataset(labelme(folder, shapes))
    for part in (
        "a.json, shapes[1]",
        "linestrip",
        "shapes[2]",
        "group_id",
        "circle: expected 2 points, got 1",
        "(2, 2)",
        "(6, 6)",
    ):
        assert part in str(caught.value)
    with pytest.warns(DataWarning, match="dropped"):
        data = mr.load_dataset(folder, on_error="drop")
    assert [a.polygons is not None for a in data[0].annotations if not a.empty] == [True]
    assert "a.json, shapes[5] (a.jpg)" in {p.where for p in data.warnings}


def test_a_source_without_any_object_is_an_error(folder: Path):
    with pytest.raises(DataError, match="no object is annotated"):
        mr.load_dataset(labelme(folder, []))


def test_labelme_images_without_a_file_are_not_background(folder: Path):
    Image.new("L", (5, 5)).save(folder / "later.png")
    data = mr.load_dataset(
        labelme(folder, [{"shape_type": "rectangle", "points": [[2, 3], [12, 9]]}])
    )
    assert len(data) == 1
    assert "1 image without a JSON" in data.warnings[0].detail


# VIA

VIA_REGIONS = [
    {
        "shape_attributes": {
            "name": "polygon",
            "all_points_x": [2, 12, 12, 2],
            "all_points_y": [3, 3, 9, 9],
        },
        "region_attributes": {"class": "cat"},
    },
    {
        "shape_attributes": {"name": "rect", "x": 20, "y": 10, "width": 5, "height": 6},
        "region_attributes": {"class": "dog"},
    },
    {
        "shape_attributes": {
            "name": "ellipse",
            "cx": 20,
            "cy": 15,
            "rx": 9,
            "ry": 4,
            "theta": 1.5707963,
        },
        "region_attributes": {"class": "dog"},
    },
    {
        "shape_attributes": {"name": "circle", "cx": 20, "cy": 15, "r": 6},
        "region_attributes": {"class": "dog"},
    },
]


def check_via(data: mr.CocoDataset) -> None:
    assert [c.name for c in data.categories] == ["cat", "dog"]
    assert (mask_of(data, 0) == boxed(2, 3, 12, 9)).all()
    assert data[0].annotations[1].box == (20, 10, 25, 16)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask_of(data, 2) != (((x - 20) / 4) ** 2 + ((y - 15) / 9) ** 2 < 1)).sum() <= 12
    assert (mask_of(data, 3) != ((x - 20) ** 2 + (y - 15) ** 2 < 36)).sum() <= 12


def test_via_project_export_and_old_regions_as_an_object(folder: Path):
    entry = {"filename": "a.jpg", "size": 823, "regions": VIA_REGIONS, "file_attributes": {}}
    attributes = {
        "region": {
            "class": {
                "type": "dropdown",
                "description": "",
                "options": {"cat": "", "dog": ""},
                "default_options": {},
            }
        },
        "file": {},
    }
    settings = {
        "ui": {},
        "core": {"buffer_size": 18, "filepath": {}, "default_filepath": "./"},
        "project": {"name": "p"},
    }
    project = {
        "_via_settings": settings,
        "_via_img_metadata": {"a.jpg823": entry},
        "_via_attributes": attributes,
        "_via_image_id_list": ["a.jpg823"],
    }
    for content in (
        project,
        {"a.jpg823": entry},
        {"a.jpg823": entry | {"regions": {str(n): r for n, r in enumerate(VIA_REGIONS)}}},
    ):
        (folder / "via.json").write_text(json.dumps(content))
        check_via(mr.load_dataset(folder / "via.json"))
        check_via(mr.load_dataset(folder))


def test_via_csv(folder: Path):
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    rows = []
    for n, region in enumerate(VIA_REGIONS):
        shape, attributes = (
            '"' + json.dumps(region[k]).replace('"', '""') + '"'
            for k in ("shape_attributes", "region_attributes")
        )
        rows.append(f'a.jpg,823,"{{}}",{len(VIA_REGIONS)},{n},{shape},{attributes}')
    (folder / "via_export.csv").write_text("\n".join([head, *rows]) + "\n")
    check_via(mr.load_dataset(folder / "via_export.csv"))


def test_via_problems_name_what_cannot_be_used(folder: Path):
    regions = [
        *VIA_REGIONS,
        {
            "shape_attributes": {
                "name": "polyline",
                "all_points_x": [2, 12],
                "all_points_y": [3, 3],
            },
            "region_attributes": {"class": "cat"},
        },
        {
            "shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 3, "height": 3},
            "region_attributes": {"class": ""},
        },
        {
            "shape_attributes": {"name": "point", "cx": 1, "cy": 1},
            "region_attributes": {"class": "cat"},
        },
        {
            "shape_attributes": {"name": "rect", "x": 1, "y": 1},
            "region_attributes": {"class": "cat"},
        },
    ]
    (folder / "via.json").write_text(
        json.dumps(
            {
                "a.jpg823": {
                    "filename": "a.jpg",
                    "size": 823,
                    "regions": regions,
                    "file_attributes": {},
                }
            }
        )
    )
    with pytest.raises(DataError) as caught:
        mr.load_dataset(folder)
    for part in ("a.jpg, region 5", '"class"', "region 6", '"keypoint"', "region 7"):
        assert part in str(caught.value)


def test_via_with_several_possible_category_attributes_is_an_error(folder: Path):
    region = {
        "shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 3, "height": 3},
        "region_attributes": {"color": "red", "shape": "round"},
    }
    (folder / "via.json").write_text(
        json.dumps(
            {"a.jpg1": {"filename": "a.jpg", "size": 1, "regions": [region], "file_attributes": {}}}
        )
    )
    with pytest.raises(
        DataError, match=r"color \(red\), shape \(round\); choose one with attribute"
    ):
        mr.load_dataset(folder)


# CVAT

CVAT_META = """<version>1.1</version><meta><task><id>4</id><name>t</name><size>1</size><mode>annotation</mode><labels>
<label><name>car</name><type>any</type><attributes></attributes></label>
<label><name>s1</name><type>skeleton</type><attributes></attributes><svg>&lt;line x1="36" y1="47" x2="86" y2="10" stroke="black" data-type="edge"
 data-node-from="2" stroke-width="0.5" data-node-to="3"&gt;&lt;/line&gt;&lt;line x1="2" y1="2" x2="3" y2="4" data-type="edge" data-node-from="1"
 data-node-to="2"&gt;&lt;/line&gt;&lt;circle r="1.5" cx="2" cy="2" data-type="element node" data-element-id="1" data-node-id="1"
 data-label-name="head"&gt;&lt;/circle&gt;&lt;circle r="1.5" data-node-id="2" data-label-name="left_hand"&gt;&lt;/circle&gt;&lt;circle
 data-node-id="3" data-label-name="right_hand"&gt;&lt;/circle&gt;</svg></label>
<label><name>head</name><type>points</type><parent>s1</parent></label>
<label><name>left_hand</name><type>points</type><parent>s1</parent></label>
<label><name>right_hand</name><type>points</type><parent>s1</parent></label>
</labels></task></meta>"""


def cvat(folder: Path, shapes: str) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "a.jpg").rename(folder / "images" / "a.jpg")
    image = f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    (folder / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{CVAT_META}{image}</annotations>'
    )
    return folder


def test_cvat_polygon_box_mask_ellipse_and_groups(folder: Path):
    shapes = """
    <polygon label="car" source="manual" occluded="0" points="2.00,3.00;12.00,3.00;12.00,9.00;2.00,9.00" z_order="0"></polygon>
    <box label="car" source="manual" occluded="0" xtl="20.00" ytl="10.50" xbr="25.00" ybr="16.00" z_order="0"></box>
    <mask label="car" source="manual" occluded="0" rle="1, 2, 1, 1, 1" left="4" top="5" width="3" height="2" z_order="0"></mask>
    <ellipse label="car" source="manual" occluded="0" cx="20.00" cy="15.00" rx="9.00" ry="4.00" rotation="90.00" z_order="0"></ellipse>
    <polygon label="car" source="manual" occluded="0" points="0,20;5,20;5,25;0,25" z_order="0" group_id="3"></polygon>
    <polygon label="car" source="manual" occluded="0" points="10,20;15,20;15,25;10,25" z_order="0" group_id="3"></polygon>
    <box label="car" source="manual" occluded="0" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90.0" z_order="0"></box>
    """
    data = mr.load_dataset(cvat(folder, shapes))
    assert (mask_of(data, 0) == boxed(2, 3, 12, 9)).all()
    assert data[0].annotations[1].box == (20, 10.5, 25, 16)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5, 5:7], expected[6, 5] = True, True
    assert (mask_of(data, 2) == expected).all()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask_of(data, 3) != (((x - 20) / 4) ** 2 + ((y - 15) / 9) ** 2 < 1)).sum() <= 12
    assert (mask_of(data, 4) == boxed(0, 20, 5, 25) | boxed(10, 20, 15, 25)).all()
    assert (mask_of(data, 5) == boxed(13, 7, 17, 17)).all()
    assert len(data[0].annotations) == 6


def test_cvat_skeletons_with_occluded_and_outside(folder: Path):
    skeleton = """<skeleton label="s1" source="manual" z_order="0"{group}>
      <points label="left_hand" source="manual" occluded="1" outside="0" points="8.50,4.50"></points>
      <points label="head" source="manual" occluded="0" outside="0" points="5.00,6.00"></points>
      <points label="right_hand" source="manual" occluded="0" outside="1" points="9.00,9.00"></points></skeleton>"""
    box = '<box label="car" xtl="1" ytl="1" xbr="11" ybr="12" occluded="0" z_order="0" group_id="2"></box>'
    data = mr.load_dataset(
        cvat(folder, skeleton.format(group="") + box + skeleton.format(group=' group_id="2"'))
    )
    expected = [[5, 6, 2], [8.5, 4.5, 1], [0, 0, 0]]
    car, alone = data[0].annotations
    assert alone.keypoints is not None
    assert alone.keypoints.tolist() == expected
    skeletal = next(c for c in data.categories if c.name == "s1")
    assert skeletal.keypoints == ("head", "left_hand", "right_hand")
    assert skeletal.skeleton == ((1, 2), (0, 1))
    assert skeletal.flip == (0, 2, 1)
    assert car.box == (1, 1, 11, 12)
    assert car.keypoints is not None


def test_cvat_skeletons_grouped_with_shapes_of_another_label_make_one_category(folder: Path):
    shapes = """<box label="car" xtl="1" ytl="1" xbr="11" ybr="12" occluded="0" z_order="0" group_id="2"></box>
      <skeleton label="s1" source="manual" z_order="0" group_id="2">
      <points label="left_hand" source="manual" occluded="1" outside="0" points="8.50,4.50"></points></skeleton>"""
    data = mr.load_dataset(cvat(folder, shapes))
    (category,) = data.categories
    assert (category.name, category.keypoints, category.skeleton) == (
        "car",
        ("head", "left_hand", "right_hand"),
        ((1, 2), (0, 1)),
    )
    (car,) = data[0].annotations
    assert car.keypoints is not None
    assert car.keypoints.tolist() == [[0, 0, 0], [8.5, 4.5, 1], [0, 0, 0]]


def test_cvat_problems_name_what_cannot_be_used(folder: Path):
    shapes = """<polyline label="car" points="1,1;5,5" occluded="0" z_order="0"></polyline>
    <mask label="car" rle="3, x" left="0" top="0" width="2" height="2"></mask>
    <mask label="car" rle="3, 9" left="0" top="0" width="2" height="2"></mask>
    <points label="car" points="1,1;5,5" occluded="0"></points><tag label="good"></tag>
    <polygon label="car" points="2,3;12,3;12,9"></polygon>"""
    with pytest.raises(DataError) as caught:
        mr.load_dataset(cvat(folder, shapes))
    for part in (
        "a.jpg, polyline 0",
        "a.jpg, mask 1",
        "sum to at most 2 x 2, got 12",
        "points 3",
        "skeleton",
    ):
        assert part in str(caught.value)
    with pytest.warns(DataWarning):
        data = mr.load_dataset(folder, on_error="drop")
    assert len(data[0].annotations) == 1
    assert "tag of a whole image" in {p.kind for p in data.warnings}


# Pascal VOC


def voc(folder: Path, objects: str) -> Path:
    for name in (
        "Annotations",
        "JPEGImages",
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "SegmentationObject",
        "SegmentationClass",
    ):
        (folder / name).mkdir(parents=True)
    (folder / "a.jpg").rename(folder / "JPEGImages" / "2007_000001.jpg")
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    head = f"<folder>VOC2012</folder><filename>2007_000001.jpg</filename><source><database>d</database></source>{size}<segmented>1</segmented>"
    (folder / "Annotations" / "2007_000001.xml").write_text(
        f"<annotation>{head}{objects}</annotation>"
    )
    (folder / "ImageSets" / "Main" / "cat_train.txt").write_text("2007_000001  1\n")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("2007_000001\n")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n")
    return folder


def palette_png(path: Path, ids: np.ndarray) -> None:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(voc_colors().reshape(-1).tolist())
    image.save(path)


def test_voc_boxes_count_from_one_and_masks_from_the_palette(folder: Path):
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    cat = f"<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>{box.format(3, 4, 12, 9)}</object>"
    dog = f"<object><name>dog</name><difficult>1</difficult>{box.format(1, 1, WIDTH, HEIGHT)}</object>"
    root = voc(folder, cat + dog)
    ids = np.zeros((HEIGHT, WIDTH), int)
    ids[3:9, 2:12] = 255
    ids[4:8, 3:11] = 1
    palette_png(root / "SegmentationObject" / "2007_000001.png", ids)
    data = mr.load_dataset(root)
    assert [c.name for c in data.categories] == ["cat", "dog"]
    assert data[0].annotations[0].box == (2, 3, 12, 9)
    assert (mask_of(data, 0) == boxed(3, 4, 11, 8)).all()  # without the void border
    assert data[0].annotations[1].box == (0, 0, WIDTH, HEIGHT)
    assert data[0].annotations[1].ignore
    assert data.name.endswith(":val")  # the only list in Segmentation


def test_voc_masks_without_objects_take_the_class_of_their_color(folder: Path):
    root = voc(folder, "")
    ids, classes = np.zeros((2, HEIGHT, WIDTH), int)
    ids[2:5, 2:9], classes[2:5, 2:9] = 1, 8
    ids[20:25, 20:29], classes[20:25, 20:29] = 2, 12
    palette_png(root / "SegmentationObject" / "2007_000001.png", ids)
    palette_png(root / "SegmentationClass" / "2007_000001.png", classes)
    data = mr.load_dataset(root)
    assert [data.categories[a.label].name for a in data[0].annotations] == ["cat", "dog"]
    colors = voc_colors()[ids]  # the same map, drawn in colors
    Image.fromarray(colors).save(root / "SegmentationObject" / "2007_000001.png")
    again = mr.load_dataset(root)
    assert (mask_of(again, 1) == boxed(20, 20, 29, 25)).all()


def test_voc_palette_is_the_published_one():
    assert voc_colors()[[0, 1, 2, 3, 8, 15, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]),
        *([64, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]),
    ]


# YOLO


def yolo(folder: Path, lines: str, yaml: str) -> Path:
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    (folder / "a.jpg").rename(folder / "images" / "train" / "a.jpg")
    (folder / "labels" / "train" / "a.txt").write_text(lines)
    (folder / "data.yaml").write_text(yaml)
    return folder


def test_yolo_segments_and_boxes(folder: Path):
    lines = "1 0.05 0.1 0.3 0.1 0.3 0.3 0.05 0.3\n0 0.5 0.5 0.25 0.2\n\n"
    root = yolo(
        folder,
        lines,
        "path: ../datasets/elsewhere # dataset root dir\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n",
    )
    for data in (
        mr.load_dataset(root / "data.yaml"),
        mr.load_dataset(root),
        mr.load_dataset(f"{root}:train"),
    ):
        assert [c.name for c in data.categories] == ["cat", "dog"]
        assert (mask_of(data, 0) == boxed(2, 3, 12, 9)).all()
        assert data.categories[data[0].annotations[0].label].name == "dog"
        assert data[0].annotations[1].box == pytest.approx((15, 12, 25, 18))


def test_yolo_pose_with_names_from_the_order_of_coco(folder: Path):
    keypoints = " ".join(
        f"{x / WIDTH} {10 / HEIGHT} {v}" for x, v in zip(range(17), [0, 1, 2] * 6, strict=False)
    )
    flip = "[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]"
    data = mr.load_dataset(
        yolo(
            folder,
            f"0 0.5 0.5 0.9 0.9 {keypoints}",
            f"train: images/train\nkpt_shape: [17, 3]\nflip_idx: {flip}\nnames: [person]\n",
        )
    )
    assert data.categories[0].keypoints[5] == "left_shoulder"
    points = data[0].annotations[0].keypoints
    assert points is not None
    assert points[1].tolist() == pytest.approx([1.5, 10.5, 1])
    assert points[3].tolist() == [0, 0, 0]


def test_yolo_pose_with_two_numbers_per_keypoint(folder: Path):
    yaml = "train: images/train\nnc: 1\nnames: ['bee']\nkpt_shape: [2, 2]\nflip_idx: [1, 0]\n"
    data = mr.load_dataset(yolo(folder, "0 0.5 0.5 0.9 0.9 0.25 0.5 0 0", yaml))
    points = data[0].annotations[0].keypoints
    assert points is not None
    assert points.tolist() == [[10.5, 15.5, 2], [0, 0, 0]]
    assert data.categories[0].flip == (1, 0)


def test_yolo_problems_name_file_line_and_suggestion(folder: Path):
    lines = "0 0.1 0.1 0.3 0.1 0.3 0.3\n5 0.5 0.5 0.2 0.2\n0 10 10 30 30 40 50\n0 0.5 0.5 0.2\ncat 0.5 0.5 0.2 0.2\n"
    root = yolo(folder, lines, "train: images/train\nnames: [cat]\n")
    with pytest.raises(DataError) as caught:
        mr.load_dataset(root)
    for part in (
        "a.txt, line 2",
        "class 5",
        "a.txt, line 3",
        "0..1",
        "divide",
        "a.txt, line 4",
        "3 numbers",
        "a.txt, line 5",
    ):
        assert part in str(caught.value)


def test_yolo_roboflow_paths_and_images_without_labels(folder: Path):
    for name in ("train/images", "train/labels", "valid/images"):
        (folder / name).mkdir(parents=True)
    (folder / "a.jpg").rename(folder / "train" / "images" / "a.jpg")
    Image.new("L", (8, 8)).save(folder / "train" / "images" / "b.png")
    (folder / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n"
    )
    data = mr.load_dataset(folder)
    assert [len(data[i].annotations) for i in range(len(data))] == [1, 0]


# PNG masks


@pytest.mark.parametrize("coding", ["8", "16", "rgb", "palette"])
def test_png_maps_of_ids(folder: Path, coding: str):
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "a.jpg").rename(folder / "images" / "a.jpg")
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[2:9, 3:8], ids[2:5, 20:30] = 3, 700 if coding in ("16", "rgb") else 9
    ids[4, 5] = 0
    path = folder / "masks" / "a_mask.png"
    if coding == "palette":
        palette_png(path, ids)
    elif coding == "rgb":
        Image.fromarray(np.stack([ids & 255, ids >> 8, ids * 0], axis=2).astype(np.uint8)).save(
            path
        )
    else:
        Image.fromarray(ids.astype(np.uint8) if coding == "8" else ids).save(path)
    data = mr.load_dataset(folder)
    expected = boxed(3, 2, 8, 9)
    expected[4, 5] = False
    assert (mask_of(data, 0) == expected).all()
    assert (mask_of(data, 1) == boxed(20, 2, 30, 5)).all()
    assert [c.name for c in data.categories] == ["object"]
    elsewhere = mr.load_dataset(folder / "masks", images=folder / "images")
    assert len(elsewhere[0].annotations) == 2


def test_each_color_is_an_object(tmp_path: Path):
    colors = np.zeros((2, 4, 3), np.uint8)
    colors[0, :3] = [(128, 0, 0), (0, 1, 0), (0, 0, 1)]
    Image.fromarray(colors).save(tmp_path / "a.png")
    assert read_ids(tmp_path / "a.png").tolist() == [[128, 256, 65536, 0], [0, 0, 0, 0]]


def test_png_folders_of_the_data_science_bowl(folder: Path):
    base = folder / "0a7d30b252359a10fd298b638b90cb9ada3acced4e0c0e5a3692013f432ee4e9"
    (base / "images").mkdir(parents=True)
    (base / "masks").mkdir()
    (folder / "a.jpg").rename(base / "images" / f"{base.name}.jpg")
    for n, mask in enumerate([boxed(2, 3, 12, 9), boxed(5, 5, 30, 20)]):  # they overlap
        Image.fromarray(mask.astype(np.uint8) * 255).save(base / "masks" / f"{n}.png")
    data = mr.load_dataset(folder)
    assert (mask_of(data, 0) == boxed(2, 3, 12, 9)).all()
    assert (mask_of(data, 1) == boxed(5, 5, 30, 20)).all()


def test_png_masks_of_another_size_are_named(folder: Path):
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "a.jpg").rename(folder / "images" / "a.jpg")
    Image.fromarray(np.ones((5, 6), np.uint8)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks/a.png: expected 40 x 30 like its image, got 6 x 5"):
        mr.load_dataset(folder)
