"""Files as other tools write them: read with the right values, and what is not used is counted and named."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle as coco_rle
from maskrcnn.annotations.problems import DataError
from maskrcnn.formats.label_studio import decode_brush
from maskrcnn.formats.load_dataset import validation_split


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    return tmp_path


def objects(path: str | Path, **more: Any) -> tuple[mr.Annotation, ...]:
    """The objects of the first image."""
    return mr.load_dataset(path, **more)[0].annotations


def corners(annotation: mr.Annotation) -> list[list[float]]:
    assert annotation.polygons is not None
    return annotation.polygons[0].round(2).tolist()


def noted(path: str | Path, **more: Any) -> str:
    """The warnings and notes of a data set."""
    data = mr.load_dataset(path, **more)
    return f"{data.describe_warnings()}\n{data.describe_notes()}"


def refusal(path: str | Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        mr.load_dataset(path, **more)
    return str(caught.value)


PART = [[10, 10], [40, 10], [40, 30], [10, 30]]

# Pascal VOC

BOX = "<bndbox><xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
TRIANGLE = "<x1>10</x1><y1>10</y1><x2>40</x2><y2>10</y2><x3>40</x3><y3>30</y3>"


def voc(folder: Path, *inside: str, size: str = "<width>100</width><height>80</height>") -> Path:
    found = "".join(f"<object><name>cell</name>{text}</object>" for text in inside)
    (folder / "a.xml").write_text(
        f"<annotation><filename>a.png</filename><size>{size}</size>{found}</annotation>"
    )
    return folder


def test_voc_polygons_are_read_unshifted_beside_their_shifted_box(folder: Path):
    (found,) = objects(voc(folder, f"<polygon>{TRIANGLE}</polygon>{BOX}"))
    assert corners(found) == [[10, 10], [40, 10], [40, 30]]
    assert found.mask_area == 300
    assert found.box == (9, 9, 40, 30)


@pytest.mark.parametrize("tag", ["pt", "point"])
def test_voc_polygons_may_list_points(tag: str, folder: Path):
    points = "".join(
        f"<{tag}><x>{x}</x><y>{y}</y></{tag}>" for x, y in ((10, 10), (40, 10), (40, 30))
    )
    (found,) = objects(voc(folder, f"<polygon><username>me</username>{points}</polygon>"))
    assert corners(found) == [[10, 10], [40, 10], [40, 30]]


def test_voc_polygons_are_one_object_in_several_parts(folder: Path):
    other = "".join(
        f"<{a}{k}>{v}</{a}{k}>"
        for k, xy in enumerate(((60, 60), (70, 60), (70, 70), (60, 70)), 1)
        for a, v in zip("xy", xy, strict=True)
    )
    (found,) = objects(
        voc(folder, f"<polygon>{TRIANGLE}</polygon><polygon>{other}</polygon><polygon/>")
    )
    assert found.mask_area == 400


def test_voc_points_follow_their_numbers_not_their_order(folder: Path):
    shuffled = "<y3>30</y3><x3>40</x3><x2>40</x2><y2>10</y2><x1>10</x1><y1>10</y1>"
    (found,) = objects(voc(folder, f"<polygon>{shuffled}</polygon>"))
    assert corners(found) == [[10, 10], [40, 10], [40, 30]]


def test_voc_rotated_boxes_are_rotated_rectangles(folder: Path):
    box = f"<cx>40</cx><cy>38</cy><w>36</w><h>10</h><angle>{np.pi / 4}</angle>"
    (found,) = objects(voc(folder, f"<type>robndbox</type><robndbox>{box}</robndbox>"))
    assert found.mask_area == pytest.approx(360)
    assert corners(found) == [[30.81, 21.74], [56.26, 47.19], [49.19, 54.26], [23.74, 28.81]]


def test_voc_boxes_by_four_corners_are_polygons(folder: Path):
    assert objects(voc(folder, f"<bndbox>{TRIANGLE}</bndbox>"))[0].mask_area == 300


def test_voc_fields_that_are_not_used_are_counted_and_named(folder: Path):
    fields = "<truncated>1</truncated><occluded>0</occluded><keypoints><x1>1</x1></keypoints>"
    text = noted(voc(folder, BOX + fields, BOX + fields, f"{BOX}<deleted>1</deleted>"))
    for part in ("<truncated> (2)", "<keypoints> (2)", "objects marked as deleted (1)"):
        assert f"{part}: not used, such as a.xml, object" in text
    assert "occluded" not in text


def test_voc_parts_are_counted_by_name(folder: Path):
    part = f"<part><name>head</name>{BOX}</part>"
    text = noted(voc(folder, BOX + part + part.replace("head", "hand"), BOX + part))
    assert 'part "head" (2): not used, such as a.xml, object 1; a.xml, object 2' in text
    assert 'part "hand" (1): not used' in text


def test_kinds_that_are_not_used_are_named_up_to_a_bound(folder: Path):
    fields = "".join(f"<field{k}>1</field{k}>" for k in range(200))
    notes = mr.load_dataset(voc(folder, BOX + fields)).notes
    assert len(notes) < 70
    assert sum(note.count for note in notes) == 200
    assert notes[-1].what == "other kinds"


@pytest.mark.parametrize(
    ("inside", "part"),
    [
        ("<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>9</y2></polygon>", "3 or more points"),
        ("<polygon><x1>1</x1><y1>2</y1><x2>9</x2><x3>1</x3></polygon>", "both coordinates"),
        ("<polygon><x1>1</x1><y1>b</y1></polygon>", "<y1>: expected a number of pixels, got 'b'"),
        ("<robndbox><cx>1</cx><cy>2</cy></robndbox>", "robndbox: expected cx, cy, w, h"),
    ],
)
def test_voc_shapes_that_are_broken_are_named(inside: str, part: str, folder: Path):
    message = refusal(voc(folder, inside))
    assert "a.xml, object 1" in message
    assert part in message


def test_voc_size_that_is_no_number_is_named(folder: Path):
    message = refusal(voc(folder, BOX, size="<width>wide</width><height>80</height>"))
    assert "a.xml: expected width and height in pixels, got wide and 80" in message


# VIA

SQUARE = {"name": "polygon", "all_points_x": [10, 40, 40, 10], "all_points_y": [10, 10, 30, 30]}


def via(folder: Path, *attributes: dict[str, Any], name: str = "via_region_data.json") -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("L", (100, 80)).save(folder / "b.png")
    regions = [{"shape_attributes": SQUARE, "region_attributes": given} for given in attributes]
    content = {"b.png1": {"filename": "b.png", "size": 1, "regions": regions}}
    (folder / name).write_text(json.dumps(content))
    return folder


def names(path: str | Path, **more: Any) -> list[str]:
    return [category.name for category in mr.load_dataset(path, **more).categories]


def test_via_folders_of_matterport_are_splits(tmp_path: Path):
    for split in ("train", "val"):
        via(tmp_path / split, {"name": "part"})
    assert objects(tmp_path)[0].mask_area == 600
    assert validation_split(tmp_path) == f"{tmp_path}:val"
    assert names(f"{tmp_path}:val") == ["part"]
    mr.convert_annotations(tmp_path, tmp_path / "out", "coco")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.json", "val.json"]


def test_via_attributes_with_equal_values_are_no_question(folder: Path):
    data = via(folder, {"art": "part", "kind": "part"}, {"art": "whole", "kind": "whole"})
    assert names(data) == ["part", "whole"]
    assert not noted(data).count("not used")


def test_via_asks_which_attribute_is_the_category_and_takes_it(folder: Path):
    data = via(folder, {"art": "cat", "mood": "glad"}, {"art": "dog", "mood": "glad"})
    message = refusal(data)
    assert str(data) in message
    assert "art (cat, dog), mood (glad)" in message
    assert 'attribute="art" (--attribute art)' in message
    assert names(data, attribute="art") == ["cat", "dog"]
    assert names(data, attribute="Mood") == ["glad"]
    assert 'attribute "mood" (2)' in noted(data, attribute="art")


def test_an_attribute_that_no_region_has_is_an_error_that_lists_them(folder: Path):
    data = via(folder, {"art": "cat"})
    assert 'no region has the attribute "kind"; the attributes are art' in refusal(
        data, attribute="kind"
    )


def test_an_attribute_for_a_format_without_them_is_an_error(folder: Path):
    assert 'attribute="art" chooses among the attributes of VIA' in refusal(
        voc(folder, BOX), attribute="art"
    )


def test_via_regions_without_attributes_beside_a_split_that_has_them_are_errors(tmp_path: Path):
    via(tmp_path / "train", {"name": "part"})
    via(tmp_path / "val", {})
    message = refusal(f"{tmp_path}:val")
    assert 'b.png, region 0: its attribute "name" is None' in message


def test_via_polylines_are_named(folder: Path):
    data = via(folder, {"name": "part"})
    text = (data / "via_region_data.json").read_text().replace('"polygon"', '"polyline"')
    (data / "via_region_data.json").write_text(text)
    assert objects(data)[0].mask_area == 600
    assert "line read as polygon (1): its last point is joined to its first" in noted(data)


@pytest.mark.parametrize("regions", [5, "text"])
def test_via_regions_of_another_type_are_named(regions: Any, folder: Path):
    (folder / "via.json").write_text(json.dumps({"a": {"filename": "a.png", "regions": regions}}))
    message = refusal(folder / "via.json")
    assert f'via.json, image "a": expected regions as a list, got {regions!r}' in message


# LabelMe


def labelme(folder: Path, *shapes: dict[str, Any], **more: Any) -> Path:
    content = {
        "shapes": [{"label": "cell", "points": PART, "group_id": None, **s} for s in shapes],
        "imagePath": "a.png",
        "imageHeight": 80,
        "imageWidth": 100,
        **more,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def in_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_labelme_images_are_taken_from_the_file_where_they_are_missing(tmp_path: Path):
    data = labelme(tmp_path, {}, imageData=in_base64(Image.new("L", (100, 80), 7)))
    dataset = mr.load_dataset(data)
    assert dataset[0].file_name == "a.png"
    assert (dataset.image(0) == 7).all()
    assert "image taken from imageData (1): it is written to" in dataset.describe_warnings()


def test_labelme_images_beside_the_files_are_used_rather_than_imagedata(folder: Path):
    data = labelme(folder, {}, imageData=in_base64(Image.new("L", (100, 80), 7)))
    other = json.loads((data / "a.json").read_text())
    (data / "b.json").write_text(json.dumps({**other, "imagePath": "b.png"}))
    dataset = mr.load_dataset(data)
    assert dataset[0].file_name == "a.png"
    assert [int(dataset.image(i).max()) for i in (0, 1)] == [0, 7]


@pytest.mark.parametrize("text", ["%", "aGVsbG8=", in_base64(Image.new("L", (9, 9)))[:30]])
def test_labelme_imagedata_that_is_no_image_is_named(text: str, tmp_path: Path):
    message = refusal(labelme(tmp_path, {}, imageData=text))
    assert "a.json: imageData" in message
    assert "images= (--images)" in message


def test_labelme_oriented_rectangles_are_polygons(folder: Path):
    turned = {
        "shape_type": "oriented_rectangle",
        "points": [[30, 10], [50, 30], [30, 50], [10, 30]],
    }
    plain, rotated = objects(labelme(folder, {"shape_type": "oriented_rectangle"}, turned))
    assert plain.mask_area == 600
    assert rotated.mask_area == 800


@pytest.mark.parametrize(("first", "left"), [(10, 10), (10.4, 10), (10.5, 11), (10.6, 11)])
def test_labelme_masks_start_at_the_rounded_corner(first: float, left: int, folder: Path):
    points = [[first, first], [first + 30, first + 20]]
    mask = in_base64(Image.new("L", (31, 21), 1))
    (found,) = objects(labelme(folder, {"shape_type": "mask", "points": points, "mask": mask}))
    assert found.rle is not None
    assert coco_rle.bbox(found.rle) == (left, left, left + 31, left + 21)
    assert coco_rle.area(found.rle) == 651


def test_labelme_masks_of_another_size_are_not_decoded(folder: Path):
    mask = in_base64(Image.new("L", (9000, 9000)))
    shape = {"shape_type": "mask", "points": [[1, 1], [5, 5]], "mask": mask}
    assert "expected height, width (5, 5) from its points, got (9000, 9000)" in refusal(
        labelme(folder, shape)
    )


def test_labelme_groups_that_unite_several_masks_are_named(folder: Path):
    other = [[60, 60], [70, 60], [70, 70], [60, 70]]
    data = labelme(folder, {"group_id": 3}, {"group_id": 3, "points": other})
    assert objects(data)[0].mask_area == 700
    assert 'a.json, shapes[0]: 2 shapes "cell" share group_id 3' in noted(data)


def test_labelme_flags_without_a_meaning_are_counted(folder: Path):
    data = labelme(
        folder,
        {"flags": {"torn": True, "blurred": False}, "difficult": True},
        {"flags": {"torn": True}, "attributes": {"pose": "left"}},
        flags={"night": True},
    )
    text = noted(data)
    for part in (
        'flag "torn" (2)',
        "difficult (1)",
        'attribute "pose" (1)',
        'image flag "night" (1)',
    ):
        assert part in text
    assert "blurred" not in text


@pytest.mark.parametrize("kind", ["line", "linestrip", "points", "ellipse", 7])
def test_labelme_shapes_without_area_are_named(kind: Any, folder: Path):
    assert f"a.json, shapes[0]: shape_type is {kind!r}" in refusal(
        labelme(folder, {"shape_type": kind})
    )


@pytest.mark.parametrize("group", [[1], {"a": 1}])
@pytest.mark.parametrize("kind", ["point", "polygon"])
def test_labelme_groups_that_are_no_number_are_named(kind: str, group: Any, folder: Path):
    shape = {"shape_type": kind, "group_id": group}
    assert "a.json, shapes[0]: expected group_id as a number or null" in refusal(
        labelme(folder, shape)
    )


@pytest.mark.parametrize("size", ["100", 100.0])
def test_labelme_sizes_may_be_text(size: Any, folder: Path):
    assert objects(labelme(folder, {}, imageWidth=size))


@pytest.mark.parametrize("size", ["wide", 99.5, [1], -100, 1e12])
def test_labelme_sizes_that_are_no_sizes_are_named(size: Any, folder: Path):
    message = refusal(labelme(folder, {}, imageWidth=size))
    assert "a.json: expected" in message


# YOLO

POLYGON = "0 0.1 0.125 0.4 0.125 0.4 0.375 0.1 0.375"


def yolo(
    folder: Path, *lines: str, yaml: str = "nc: 1\nnames: [cell]", above: bool = False
) -> Path:
    split = folder / "valid"
    for name in ("images", "labels"):
        (split / name).mkdir(parents=True)
    Image.new("L", (100, 80)).save(split / "images" / "a.png")
    (split / "labels" / "a.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\n{yaml}\n")
    return split if above else folder


def test_one_split_of_a_yolo_set_takes_the_names_above_it(tmp_path: Path):
    data = yolo(tmp_path, POLYGON, above=True)
    assert names(data) == ["cell"]
    assert objects(data)[0].mask_area == 600


def test_a_pose_split_alone_takes_the_keypoints_above_it(tmp_path: Path):
    data = yolo(
        tmp_path,
        "0 0.5 0.5 0.2 0.2 0.5 0.5 2",
        yaml="names: [cell]\nkpt_shape: [1, 3]\nkpt_names: {0: [tip]}",
        above=True,
    )
    assert objects(data)[0].keypoints is not None


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("1.7 0.5 0.5 0.2 0.2", "the class is a whole number"),
        ("inf 0.5 0.5 0.2 0.2", "the class is a whole number"),
        ("nan 0.5 0.5 0.2 0.2", "the class is a whole number"),
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers after the class"),
        ("0 0.5 0.5 0.2 0.2 0.9 1", "for a box with confidence and track id"),
        ("0 0.5 0.5 0.2 0.2 0.9 17", "for a box with confidence and track id"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.1 0.9", "7 numbers after the class"),
    ],
)
def test_yolo_lines_that_could_mean_something_else_are_errors(line: str, part: str, tmp_path: Path):
    message = refusal(f"{yolo(tmp_path, POLYGON, line)}:val")
    assert "a.txt, line 2" in message
    assert part in message


def test_yolo_triangles_stay_triangles(tmp_path: Path):
    (found,) = objects(f"{yolo(tmp_path, '0 0.1 0.1 0.2 0.1 0.2 0.5')}:val")
    assert found.mask_area == pytest.approx(0.5 * 10 * 32)


def test_yolo_triangles_that_are_written_are_never_taken_for_boxes(folder: Path):
    triangle = {"points": [[50, 40], [20, 20], [90, 80]]}
    mr.convert_annotations(labelme(folder, triangle), folder / "out", "yolo-seg")
    (found,) = objects(folder / "out")
    assert found.mask_area == pytest.approx(200)


def test_yolo_names_that_disagree_are_named(tmp_path: Path):
    text = noted(f"{yolo(tmp_path, POLYGON, yaml='nc: 3' + chr(10) + 'names: [a, b, a, c]')}:val")
    assert 'classes 0, 2 are all named "a"' in text
    assert "nc is 3, names has 4 entries" in text


@pytest.mark.parametrize(
    ("yaml", "part"),
    [
        ("nc: 1000000000", "expected 1 to 100,000 classes, got 1000000000"),
        ("nc: many", "got 'many'"),
        ("names: {999999999: cat}", "got 1000000000"),
        ("names: [a]\nkpt_shape: [x, 3]", "expected kpt_shape as"),
        ("names: [a]\nkpt_shape: [900000000, 3]", "expected kpt_shape as"),
        ("names: [a]\nkpt_shape: [2, 3]\nflip_idx: [a, 1]", "flip_idx must name each"),
        ("names: [a]\nkpt_shape: [2, 3]\nkpt_names: tip", "expected kpt_names as"),
        ("names: &a [x, x]\nmore: [*a, *a]", "alias *a repeats a list"),
        ("names: [a]\nsince: 2001-99-99", "not valid YAML"),
        (f"names: {'[' * 5000}", "nested too deeply"),
    ],
)
def test_yolo_settings_that_are_broken_are_named(yaml: str, part: str, tmp_path: Path):
    message = refusal(f"{yolo(tmp_path, POLYGON, yaml=yaml) / 'data.yaml'}:val")
    assert "data.yaml" in message
    assert part in message


# Label Studio


def pack(values: list[int]) -> list[int]:
    """Label Studio's bytes of some values, as single runs, made without the decoder."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n:04b}" for n in (2, 3, 4, 15))
    start = 0
    while start < len(values):
        end = start
        while end < len(values) and values[end] == values[start] and end - start < 65536:
            end += 1
        bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def label_studio(
    folder: Path, *results: dict[str, Any], image: str = "/data/upload/1/0f1a2b3c-a.png"
) -> Path:
    results = tuple({"original_width": 100, "original_height": 80, **r} for r in results)
    task = {"id": 7, "data": {"image": image}, "annotations": [{"result": list(results)}]}
    (folder / "export.json").write_text(json.dumps([task]))
    return folder


def rectangle(**value: Any) -> dict[str, Any]:
    box = {"x": 10, "y": 12.5, "width": 30, "height": 25, "rotation": 0}
    return {"id": "r", "value": {**box, "rectanglelabels": ["cell"], **value}}


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/0f1a2b3c-a.png",
        "/data/local-files/?d=set%5Ca.png",
        "s3://bucket/x/a.png",
        "a.png",
    ],
)
def test_label_studio_rectangles_are_percent_of_the_image(image: str, folder: Path):
    (found,) = objects(label_studio(folder, rectangle(), image=image))
    assert found.box == (10, 10, 40, 30)
    assert found.polygons is None


def test_label_studio_rectangles_rotate_about_their_corner(folder: Path):
    (found,) = objects(label_studio(folder, rectangle(rotation=90)))
    assert corners(found) == [[10, 10], [10, 40], [-10, 40], [-10, 10]]


def test_label_studio_polygons_ellipses_and_keypoints_are_read(folder: Path):
    points = [[10, 12.5], [40, 12.5], [40, 37.5]]
    polygon = {"id": "p", "value": {"points": points, "polygonlabels": ["cell"]}}
    tip = {"parentID": "p", "value": {"x": 20, "y": 25, "keypointlabels": ["tip"]}}
    disk = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 12.5, "ellipselabels": ["disk"]}
    cell, round_one = objects(label_studio(folder, tip, polygon, {"value": disk}))
    assert cell.mask_area == 300
    assert cell.keypoints is not None
    assert cell.keypoints.tolist() == [[20, 20, 2]]
    assert round_one.mask_area == pytest.approx(np.pi * 100, rel=0.02)


def test_label_studio_brushes_are_the_pixels_with_alpha(folder: Path):
    mask = np.zeros((80, 100, 4), np.uint8)
    mask[20:30, 40:60] = 255
    value = {"format": "rle", "rle": pack(mask.reshape(-1).tolist()), "brushlabels": ["cell"]}
    (found,) = objects(label_studio(folder, {"value": value}))
    assert found.rle is not None
    assert (coco_rle.decode(found.rle) == (mask[:, :, 3] > 0)).all()


def test_label_studio_runs_of_single_values_are_decoded():
    # 3 values, words of 8 bits, runs of up to 8: one run of three different values
    bits = f"{3:032b}{7:05b}" + f"{2:04b}" * 4 + f"0{0:02b}{2:03b}{5:08b}{255:08b}{0:08b}"
    packed = [int(bits[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(bits), 8)]
    assert decode_brush(packed, 3).tolist() == [5, 255, 0]


@pytest.mark.parametrize("rle", [[], [0, 0, 125], [255] * 20, "text", [300], pack([1] * 8)])
def test_label_studio_brushes_that_are_broken_are_named(rle: Any, folder: Path):
    value = {"format": "rle", "rle": rle, "brushlabels": ["cell"]}
    assert "export.json, task 7, result 0: brushlabels" in refusal(
        label_studio(folder, {"value": value})
    )


def test_label_studio_results_without_a_shape_are_counted(folder: Path):
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    alone = {"value": {"x": 20, "y": 25, "keypointlabels": ["tip"]}}
    text = noted(label_studio(folder, rectangle(), choice, alone))
    assert "results of type 'choices' (1)" in text
    assert 'keypoint "tip" names no object as its parent' in text


# QuPath


def qupath(folder: Path, *features: dict[str, Any], name: str = "a.geojson") -> Path:
    found = [{"type": "Feature", "properties": {}, **feature} for feature in features]
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": found}))
    return folder


def ring(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


@pytest.mark.parametrize("name", ["a.geojson", "a.png.geojson"])
def test_qupath_polygons_holes_and_parts_are_read(name: str, folder: Path):
    tumor = {"classification": {"name": "Tumor", "color": [200, 0, 0]}, "objectType": "annotation"}
    holed = {"type": "Polygon", "coordinates": [ring(10, 10, 40, 30), ring(15, 15, 20, 20)]}
    parts = {
        "type": "MultiPolygon",
        "coordinates": [[ring(50, 50, 60, 60)], [ring(70, 50, 80, 60)]],
    }
    plain = {"type": "Polygon", "coordinates": [ring(1, 1, 5, 5)]}
    data = qupath(
        folder,
        {"geometry": holed, "properties": tumor},
        {"geometry": parts, "properties": tumor},
        {"geometry": plain},
        {"geometry": {"type": "Point", "coordinates": [1, 2]}},
        name=name,
    )
    assert names(data) == ["Tumor", "object"]
    assert sorted(found.mask_area or 0 for found in objects(data)) == [16, 200, 575]
    assert "geometries of the type 'Point' (1)" in noted(data)


@pytest.mark.parametrize(
    "coordinates", [5, [], [[]], [[[1, 2]]], [[["a", 1]] * 4], [[[1e12, 0]] * 4]]
)
def test_qupath_features_that_are_broken_are_named(coordinates: Any, folder: Path):
    data = qupath(folder, {"geometry": {"type": "Polygon", "coordinates": coordinates}})
    assert "a.geojson, feature 0: Polygon" in refusal(data)


def test_qupath_files_without_their_image_are_named(folder: Path):
    polygon = {"geometry": {"type": "Polygon", "coordinates": [ring(1, 1, 5, 5)]}}
    assert "b.geojson: no image b.*" in refusal(qupath(folder, polygon, name="b.geojson"))


# Label maps: Cellpose, arrays, floating point

IDS = np.zeros((80, 100), np.uint16)
IDS[10:20, 10:30] = 1
IDS[40:50, 50:60] = 300


@pytest.mark.parametrize(
    ("image", "mask"),
    [("a.png", "a_masks.png"), ("a.png", "a_cp_masks.tif"), ("a_img.png", "a_masks.tif")],
)
def test_cellpose_pairs_are_read(image: str, mask: str, tmp_path: Path):
    Image.new("L", (100, 80)).save(tmp_path / image)
    Image.fromarray(IDS).save(tmp_path / mask)
    dataset = mr.load_dataset(tmp_path)
    assert len(dataset) == 1
    assert [found.mask_area for found in dataset[0].annotations] == [200, 100]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a_masks.npy", "a.npy"])
def test_label_maps_may_be_arrays(name: str, dtype: Any, folder: Path):
    np.save(folder / name, IDS.astype(dtype))
    assert [found.mask_area for found in objects(folder)] == [200, 100]


def test_label_maps_may_be_floats_that_are_whole(folder: Path):
    Image.fromarray(IDS.astype(np.float32)).save(folder / "a_masks.tif")
    assert [found.mask_area for found in objects(folder)] == [200, 100]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (IDS * 0.5, "expected whole-number ids, got floating-point values with fractions"),
        (np.where(IDS, np.nan, 0), "expected whole-number ids"),
        (IDS.astype(np.int32) - 1, "expected ids of 0 (background) and more, got -1"),
        (np.zeros((3, 80, 100)), "expected numbers [height, width]"),
        (np.zeros((80, 90), int), "expected 100 x 80 like its image, got 90 x 80"),
        (np.array([{}]), "cannot be read as an array"),
    ],
    ids=["fractions", "nan", "negative", "stack", "size", "pickle"],
)
def test_arrays_that_are_no_label_maps_are_named(values: np.ndarray, part: str, folder: Path):
    np.save(folder / "a_masks.npy", values, allow_pickle=True)
    message = refusal(folder)
    assert "a_masks.npy" in message
    assert part in message


def test_pickles_of_cellpose_are_refused_with_a_way_out(folder: Path):
    np.save(folder / "a_seg.npy", np.array([{}]), allow_pickle=True)
    assert "a_seg.npy: is not read, because it is a pickle" in refusal(folder)


# Files that are broken or hostile

BOMB = '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.xml", f"{BOMB}<annotation>&b;</annotation>", "has a DOCTYPE"),
        ("a.xml", '<!DOCTYPE a SYSTEM "file:///etc/hosts"><annotation/>', "has a DOCTYPE"),
        ("a.xml", "<annotation>" * 5000, "more than 200 elements inside each other"),
        ("a.json", "[" * 100_000, "nested more than 100 deep"),
        ("a.json", '{"images": ' + "9" * 5000 + "}", "not valid JSON"),
        ("a.json", "", "the file is empty"),
        (
            "a.json",
            '{"images": [], "categories": [], "annotations": 5}',
            '"annotations": expected a list, got 5',
        ),
        ("a.json", '{"images": []}', 'it looks like COCO, but has no "annotations"'),
        ("a.json", '{"shapes": 7, "imagePath": "a.png"}', '"shapes" as a list, got 7'),
        ("a.json", '{"features": {}}', '"features" as a list, got {}'),
        (
            "a.json",
            '[{"image_id": 1, "category_id": 1, "score": 1}]',
            "To measure them, use evaluate",
        ),
        ("a.json", "17", "expected an object, got 17"),
        ("a.zip", "", "a.zip is an archive; unpack it first"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_files_that_are_broken_or_hostile_are_refused(
    name: str, content: str, part: str, tmp_path: Path
):
    (tmp_path / name).write_text(content)
    message = refusal(tmp_path / name)
    assert name in message
    assert part in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"Images": [], "Anotations": []}, 'looks like COCO, but has "Images" instead of "images"'),
        ({"anotations": []}, 'but has "anotations" instead of "annotations"; its keys are anotat'),
        ({"shape": []}, 'it looks like LabelMe, but has "shape" instead of "shapes"'),
        ({"config": 1, "layers": []}, "its keys are config, layers, which no known format has"),
        ({}, "its keys are none"),
        ([], "a list of 0 entries, the first is None"),
        ([[1, 2]], "a list of 1 entry, the first is [1, 2]"),
        ([{"name": "a", "box": []}], "not Label Studio tasks; the first has the keys name, box"),
        ({"image": {}, "annotations": []}, "it looks like SA-1B"),
        ({"objects": [], "size": {"height": 1}}, "it looks like Supervisely, which is not read"),
        ({"info": {}, "items": [], "categories": {}}, "it looks like Datumaro"),
        ({"asset": {}, "regions": []}, "it looks like VoTT, which is not read; export Pascal VOC"),
        ([{"image": "a.png", "annotations": []}], "it looks like CreateML"),
        ([{"image": "a", "annotation_id": 1, "annotator": 1}], "JSON-MIN, which is not read; exp"),
    ],
)
def test_json_of_no_known_format_says_what_it_looks_like(content: Any, reason: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    message = refusal(tmp_path / "a.json")
    assert message.startswith(f"{tmp_path / 'a.json'}: no known format: ")
    assert reason in message
    assert "\n" not in message


def test_a_folder_of_json_of_no_known_format_says_what_the_first_looks_like(tmp_path: Path):
    (tmp_path / "sa_1.json").write_text(json.dumps({"image": {}, "annotations": []}))
    assert "known format; sa_1.json: it looks like SA-1B" in refusal(tmp_path)


def test_a_folder_with_an_archive_says_to_unpack_it(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    (tmp_path / "export.zip").rename(tmp_path / "export")
    assert "export is an archive; unpack it first" in refusal(tmp_path / "export")


def test_files_above_the_bound_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskrcnn.annotations.json_file.MOST_BYTES", 10)
    message = refusal(via(folder, {"name": "part"}) / "via_region_data.json")
    assert "JSON files of at most 0 MiB are read" in message


def test_links_that_point_to_themselves_end(folder: Path):
    data = voc(folder, BOX)
    (data / "loop").symlink_to(data)
    (data / "b.json").symlink_to(data / "b.json")
    assert len(mr.load_dataset(data)) == 1


@pytest.mark.parametrize("value", ["1e12", "1e999", "NaN", "-Infinity"])
@pytest.mark.parametrize("kind", ["polygon", "circle", "rectangle"])
def test_coordinates_beyond_any_image_are_errors(kind: str, value: str, folder: Path):
    points = [[1, 1], [5, 5]] if kind != "polygon" else [[1, 1], [5, 5], [1, 5]]
    text = json.dumps({"shape_type": kind, "points": points, "label": "cell"}).replace("5", value)
    shape = f'{{"shapes": [{text}], "imagePath": "a.png"}}'
    (folder / "a.json").write_text(shape)
    assert "a.json, shapes[0]" in refusal(folder)


def test_polygons_of_more_points_than_the_bound_are_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskrcnn.formats.reading.MOST_POINTS", 3)
    assert "expected at most 3 points, got 4" in refusal(labelme(folder, {}))


@pytest.mark.parametrize(
    ("rle", "width"), [("0, 999999999999", 5), ("0, -4", 5), ("0, 1", 999999999)]
)
def test_cvat_masks_larger_than_their_image_are_not_expanded(rle: str, width: int, folder: Path):
    mask = f'<mask label="cell" rle="{rle}" left="1" top="1" width="{width}" height="5"/>'
    image = f'<image id="0" name="a.png" width="100" height="80">{mask}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    assert "a.png, mask 0: mask: expected" in refusal(folder / "annotations.xml")
