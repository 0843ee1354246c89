"""Further inputs of the kinds that people report: none is accepted silently and wrongly, none ends in a traceback."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError

Files = dict[str, Any]
"""Name -> content: text, bytes, JSON content, or the (width, height) of an image to draw."""

IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20]}
SHAPE = {"label": "cell", "points": [[10, 10], [40, 10], [40, 30]], "shape_type": "polygon"}
RING = [[1, 1], [9, 1], [9, 9], [1, 1]]
BNDBOX = "<bndbox><xmin>4</xmin><ymin>10</ymin><xmax>10</xmax><ymax>30</ymax></bndbox>"
LINE = "0 .5 .5 .2 .2\n"
POLYGON = '<polygon label="cell" points="10,10;40,10;40,30"/>'
A = (100, 80)


def coco(*objects: Any, image: Any = None, **more: Any) -> Files:
    content = {
        "images": [IMAGE | (image or {})],
        "annotations": [OBJECT | {"id": n} | raw for n, raw in enumerate(objects, start=1)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    return {"a.png": A, "x.json": content | more}


def labelme(*shapes: Any, **more: Any) -> Files:
    return {"a.png": A, "a.json": {"shapes": shapes, "imagePath": "a.png", **more}}


def via(shape: Any, label: Any = "cell") -> Files:
    region = {"shape_attributes": shape, "region_attributes": {"label": label}}
    return {"a.png": A, "v.json": {"a": {"filename": "a.png", "size": 1, "regions": [region]}}}


def voc(*objects: str, **more: Any) -> Files:
    found = "".join(f"<object>{text}</object>" for text in objects)
    return {
        "a.png": A,
        "a.xml": f"<annotation><filename>a.png</filename>{found}</annotation>",
    } | more


def cvat(shapes: str) -> Files:
    image = f'<image id="0" name="a.png" width="100" height="80">{shapes}</image>'
    return {"a.png": A, "annotations.xml": f"<annotations>{image}</annotations>"}


def qupath(*features: Any) -> Files:
    found = [{"type": "Feature", "properties": {}, **feature} for feature in features]
    return {"a.png": A, "a.geojson": {"type": "FeatureCollection", "features": found}}


def label_studio(*results: Any, **data: str) -> Files:
    size = {"original_width": 100, "original_height": 80}
    task = {
        "data": data or {"image": "a.png"},
        "annotations": [{"result": [size | r for r in results]}],
    }
    return {"a.png": A, "b.png": A, "x.json": [task]}


def rectangle(**more: Any) -> dict[str, Any]:
    value = {"x": 50, "y": 50, "width": 10, "height": 10, "rectanglelabels": ["cell"], **more}
    return {"value": value}


def yolo(labels: str | bytes, yaml: str = "names: [cell]", **more: Any) -> Files:
    return {
        "images/a.png": A,
        "labels/a.txt": labels,
        "data.yaml": f"train: images\n{yaml}\n",
    } | more


def square(x: int = 1) -> dict[str, Any]:
    return {"geometry": {"type": "Polygon", "coordinates": [[[x + px, py] for px, py in RING]]}}


REFUSED: dict[str, tuple[Files, str]] = {
    "labelme: circle of 3 points": (
        labelme(SHAPE | {"shape_type": "circle", "points": RING[:3]}),
        "a.json, shapes[0]: circle: expected 2 points, got 3",
    ),
    "labelme: imagePath null": (labelme(SHAPE, imagePath=None), 'expected "imagePath" as text'),
    "labelme: label is a list": (labelme(SHAPE | {"label": ["cell"]}), "a.json, shapes[0]"),
    "labelme: points as text without end": (labelme(SHAPE | {"points": "9" * 99}), "shapes[0]"),
    "via: circle of negative radius": (
        via({"name": "circle", "cx": 5, "cy": 5, "r": -4}),
        "a.png, region 0: circle: expected radii >= 0, got -4",
    ),
    "via: more x than y": (
        via({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}),
        "got 3 x and 2 y",
    ),
    "via: two checked boxes": (
        via({"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5}, {"cell": True, "dog": True}),
        "region without category",
    ),
    "voc: corners exchanged": (
        voc("<name>cell</name>" + BNDBOX.replace(">4<", ">40<")),
        "bbox width is -29",
    ),
    "voc: object without name": (voc(BNDBOX), "a.xml, object 1: has no <name>"),
    "voc: two boxes": (voc("<name>cell</name>" + BNDBOX * 2), "expected one <bndbox>, got 2"),
    "voc: decimal comma": (
        voc("<name>cell</name>" + BNDBOX.replace(">4<", ">4,5<")),
        "<xmin>: expected a number of pixels, got '4,5'",
    ),
    "voc: nothing drawn": (voc("<name>cell</name>"), "a.xml, object 1 (a.png): has no usable bbox"),
    "cvat: cuboid": (cvat('<cuboid label="cell"/>' + POLYGON), "a.png, cuboid 0: a cuboid"),
    "cvat: polyline": (cvat('<polyline label="cell" points="1,1;9,9"/>' + POLYGON), "a polyline"),
    "cvat: point of one number": (
        cvat('<polygon label="cell" points="10,10;40;40,30"/>'),
        "polygon: expected points as x,y;x,y;..., got '10,10;40;40,30'",
    ),
    "cvat: runs that are no numbers": (
        cvat('<mask label="cell" rle="a,b" left="0" top="0" width="5" height="5"/>'),
        "mask: expected rle as whole numbers 2, 5, ..., got 'a,b'",
    ),
    "cvat: ellipse of negative radius": (
        cvat('<ellipse label="cell" cx="20" cy="20" rx="-5" ry="5"/>'),
        "ellipse: expected radii >= 0, got -5 and 5",
    ),
    "coco: box as an object": (coco({"bbox": {"x": 1, "y": 1}}), "bbox is {'x': 1, 'y': 1}"),
    "coco: image_id is the name": (coco({"image_id": "a.png"}), "image_id is 'a.png'"),
    "coco: width 0": (coco({}, image={"width": 0}), "images[0]: width 0, height 80"),
    "coco: JSON lines": (
        {"a.png": A, "x.json": json.dumps(coco({})["x.json"]) * 2},
        "a second value follows the first",
    ),
    "coco: one key twice": (
        {"x.json": json.dumps(coco({})["x.json"])[:-1] + ', "annotations": []}'},
        'the key "annotations" occurs twice in one object',
    ),
    "coco: results in an object": ({"x.json": {"results": [OBJECT]}}, "its keys are results"),
    "qupath: only lines": (
        qupath({"geometry": {"type": "LineString", "coordinates": RING}}),
        "geometries of the type 'LineString' (1): not used",
    ),
    "qupath: only another plane": (
        qupath({"geometry": square()["geometry"] | {"plane": {"c": -1, "z": 3, "t": 0}}}),
        "objects in other planes (z or t) than the first (1): not used",
    ),
    "label studio: negative size": (label_studio(rectangle(width=-10)), "bbox width is -10"),
    "label studio: only predictions": (
        {"a.png": A, "x.json": [{"data": {"image": "a.png"}, "annotations": []}]},
        "tasks without an annotation (1)",
    ),
    "label studio: labels missing": (
        label_studio({"type": "rectangle", "value": {"x": 1, "y": 1, "width": 5, "height": 5}}),
        "results of type 'rectangle' (1): not used",
    ),
    "label studio: two images, no target": (
        label_studio(rectangle(), image="a.png", other="b.png"),
        "data has the images image, other, to_name fits not one",
    ),
    "label studio: results for two images": (
        label_studio(
            rectangle() | {"to_name": "left"},
            rectangle() | {"to_name": "right"},
            left="a.png",
            right="b.png",
        ),
        "task with several images",
    ),
    "yolo: commas": (yolo("0,0.5,0.5,0.2,0.2\n"), "a.txt, line 1: 0,0.5,0.5,0.2,0.2"),
    "yolo: decimal commas": (yolo("0 0,5 0,5 0,2 0,2\n"), "a.txt, line 1"),
    "yolo: pixels": (yolo("0 50 40 20 20\n"), "expected values in 0..1, got 20 to 50"),
    "yolo: class -1": (yolo("-1 .5 .5 .2 .2\n"), "class -1, but names in data.yaml has 1 entry"),
    "yolo: class by name": (yolo("cell .5 .5 .2 .2\n"), "the class is a whole number"),
    "yolo: box without area": (yolo("0 .5 .5 0 .2\n"), "bbox width is 0"),
    "yolo: UTF-16": (yolo(LINE.encode("utf-16")), "a.txt: not UTF-8"),
    "yolo: a class number twice": (
        yolo(LINE, "names: {0: cat, 0: dog}"),
        "data.yaml: the key 0 occurs twice in the mapping that starts in line 2",
    ),
    "yolo: train is a mapping": (
        {"images/a.png": A, "data.yaml": "train: {a: images}\nnames: [cell]\n"},
        "no folder or file",
    ),
    "png: values with fractions": (
        {"images/a.png": A, "masks/a.npy": np.full((80, 100), 0.5)},
        "expected whole-number ids",
    ),
    "png: mask of another size": (
        {"images/a.png": A, "masks/a.png": (50, 40)},
        "expected 100 x 80 like its image, got 50 x 40",
    ),
    "a folder with nothing": ({"notes.md": "none"}, "no annotations of a known format"),
    "a web page": ({"x.xml": "<html><body/></html>"}, "no annotations of a known format"),
}

TOLD: dict[str, tuple[Files, str]] = {
    "labelme: polygon of 2 points": (
        labelme(SHAPE | {"points": [[1, 1], [5, 5]]}),
        "1 annotation, usable: 0\n",
    ),
    "labelme: two files of one image": (
        labelme(SHAPE) | {"b.json": labelme(SHAPE)["a.json"]},
        "image listed twice (1)",
    ),
    "voc: image without XML": (
        voc("<name>cell</name>" + BNDBOX) | {"b.png": A},
        "1 image without XML file, such as b.png",
    ),
    "voc: list with an image without XML": (
        {
            "JPEGImages/a.png": A,
            "JPEGImages/b.png": A,
            "Annotations/a.xml": voc("<name>cell</name>" + BNDBOX)["a.xml"],
            "ImageSets/Main/train.txt": "a\nb\n",
        },
        "images of a list that have no XML file (1): used as examples without objects, such as b",
    ),
    "voc: named keypoints": (
        voc(f"<name>cell</name>{BNDBOX}<keypoints><keypoint><name>a</name></keypoint></keypoints>"),
        "<keypoints> (1): not used",
    ),
    "cvat: attribute": (
        cvat(POLYGON.replace("/>", '><attribute name="color">red</attribute></polygon>')),
        'attribute "color" (1): not used, such as a.png, polygon 0',
    ),
    "cvat: mask beyond the border": (
        cvat('<mask label="cell" rle="0,25" left="98" top="78" width="5" height="5"/>'),
        "mask reaches beyond the image (1): the mask is clipped",
    ),
    "cvat: image twice": (
        {
            "a.png": A,
            "annotations.xml": cvat(POLYGON)["annotations.xml"].replace(
                "</image>",
                f'</image><image id="1" name="a.png" width="100" height="80">{POLYGON}</image>',
            ),
        },
        "image listed twice (1)",
    ),
    "coco: a part without points": (
        coco({"segmentation": [[10, 10, 40, 10, 40, 30], []]}),
        "0 points: []",
    ),
    "coco: name of another machine": (
        coco({}, image={"file_name": "/somewhere/else/a.png"}),
        "/somewhere/else/a.png as a.png",
    ),
    "coco: keypoint outside its box": (
        coco(
            {"keypoints": [1.5, 2.5, 2.0]},
            categories=[{"id": 1, "name": "cell", "keypoints": ["tip"]}],
        ),
        "keypoint outside its box (1)",
    ),
    "qupath: geometry null": (qupath({"geometry": None}, square()), "type None (1): not used"),
    "qupath: one object in another plane": (
        qupath({"geometry": square()["geometry"] | {"plane": {"t": 2}}}, square(20)),
        "objects in other planes (z or t) than the first (1)",
    ),
    "qupath: image without GeoJSON": (
        qupath(square()) | {"b.png": A},
        "1 image without GeoJSON file, such as b.png",
    ),
    "label studio: relation": (
        label_studio(rectangle(), {"type": "relation", "from_id": "a"}),
        "results of type 'relation' (1)",
    ),
    "yolo: no names, but a count": (yolo(LINE, "nc: 1"), "classes without names (1)"),
    "yolo: a number without a name": (
        yolo("2 .5 .5 .2 .2\n", "names: {0: cat, 2: dog}"),
        "categories without objects (2): kept, not learned, such as cat; 1",
    ),
}


ODD: list[Any] = [
    *(None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "x", "-5", "1e999"),
    *("\x00", [], {}, [[]], {"a": 1}, [None], ["x"], [[1]], "../../a.png", "\u00e9" * 50),
]
WORDS = ("", "x", "-5", "nan", "inf", "1e999", "9" * 30, "\u00e9", "None", "{}", "[]", "\x01", "'")
WHOLE: dict[str, Files] = {
    "coco": coco(
        {"segmentation": [[10, 10, 40, 10, 40, 30]], "iscrowd": 0, "keypoints": [15, 15, 2]},
        {"segmentation": [{"size": [80, 100], "counts": [0, 100, 7900]}, [1, 1, 9, 1, 9, 9]]},
        categories=[{"id": 1, "name": "cell", "keypoints": ["tip"], "flip": [0], "sigmas": [0.1]}],
    ),
    "labelme": labelme(
        SHAPE | {"group_id": 1, "flags": {"ignore": False}},
        {"label": "tip", "points": [[5, 5]], "shape_type": "point", "group_id": 1},
        imageHeight=80,
        imageWidth=100,
    ),
    "via": via({"name": "ellipse", "cx": 5, "cy": 5, "rx": 3, "ry": 2, "theta": 0.1}),
    "label studio": label_studio(
        rectangle(rotation=10),
        {"id": "p", "value": {"points": RING[:3], "polygonlabels": ["cell"]}},
        {"parentID": "p", "value": {"x": 5, "y": 5, "keypointlabels": ["tip"]}},
        {"value": {"format": "rle", "rle": [0, 0, 125, 0], "brushlabels": ["cell"]}},
    ),
    "qupath": qupath(square(), square(20) | {"properties": {"classification": {"name": "t"}}}),
    "voc": voc("<name>cell</name><difficult>0</difficult>" + BNDBOX),
    "cvat": cvat(POLYGON + '<mask label="cell" rle="2,5" left="1" top="1" width="5" height="5"/>'),
    "tracks": {
        "images/frame_000000.png": A,
        "annotations.xml": '<annotations><track id="0" label="cell" group_id="1">'
        '<box frame="0" outside="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9"/>'
        '<box frame="2" outside="0" keyframe="0" xtl="1" ytl="1" xbr="9" ybr="9"/></track></annotations>',
    },
    "yolo": yolo(LINE + "1 .1 .1 .4 .1 .4 .4 .1 .4\n", "names: [cell, dog]\nnc: 2\npath: ."),
    "poses": yolo(
        "0 .5 .5 .2 .2 .5 .5 2\n",
        "names: {0: cell}\nkpt_shape: [1, 3]\nflip_idx: [0]\nkpt_names: {0: [tip]}",
    ),
}


def mutated(content: Any, random: Random) -> Any:
    """Content in which one value is odd or missing, or one word of text."""
    if isinstance(content, str):
        word = random.choice(list(re.finditer(r"[\w.\-]+", content)))
        return content[: word.start()] + random.choice(WORDS) + content[word.end() :]
    content = copy.deepcopy(content)
    parts = [content]
    for part in parts:  # grows
        inner = part.values() if isinstance(part, dict) else part
        parts += [value for value in inner if isinstance(value, dict | list) and value]
    part = random.choice(parts)
    key = random.choice(list(part) if isinstance(part, dict) else range(len(part)))
    if random.random() < 0.15:
        del part[key]
    else:
        part[key] = random.choice(ODD)
    return content


@pytest.mark.parametrize("name", WHOLE)
def test_one_odd_value_anywhere_is_read_or_refused_never_a_traceback(name: str, tmp_path: Path):
    random = Random(name)
    files = WHOLE[name]
    changed = [file for file, content in files.items() if not isinstance(content, tuple)]
    for number in range(25):
        file = random.choice(changed)
        path = put(tmp_path / str(number), files | {file: mutated(files[file], random)})
        try:
            data = mr.load_dataset(path)
        except DataError:
            continue
        data.truth()
        data.describe_notes()


def put(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("L", content).save(path)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
    single = [name for name in files if Path(name).name in ("x.json", "v.json", "x.xml")]
    return folder / single[0] if single else folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_place(name: str, tmp_path: Path):
    files, text = REFUSED[name]
    with pytest.raises(DataError) as caught:
        mr.load_dataset(put(tmp_path, files))
    assert text in str(caught.value)


@pytest.mark.parametrize("name", TOLD)
def test_what_is_left_out_or_read_otherwise_is_named(name: str, tmp_path: Path):
    files, text = TOLD[name]
    data = mr.load_dataset(put(tmp_path, files))
    assert text in f"{data.describe_warnings()}\n{data.describe_notes()}\n"


def test_results_for_one_of_two_images_belong_to_that_image(tmp_path: Path):
    files = label_studio(rectangle() | {"to_name": "right"}, left="a.png", right="b.png")
    (record,) = mr.load_dataset(put(tmp_path, files))
    assert (record.file_name, len(record.annotations)) == ("b.png", 1)


@pytest.mark.parametrize(("text", "score"), [("0.75", 0.75), ("0", None), ("high", None)])
def test_scores_of_cvat_are_read_back(text: str, score: float | None, tmp_path: Path):
    attribute = f'><attribute name="score">{text}</attribute></polygon>'
    data = mr.load_dataset(put(tmp_path, cvat(POLYGON.replace("/>", attribute))))
    assert data.raw["annotations"][0].get("score") == score
    assert ('attribute "score"' in data.describe_notes()) == (text == "high")
