"""COCO files as people and their tools write them: read with the right values, or refused with a reason that fits."""

from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset, DataError, DataWarning
from maskrcnn.annotations.image_names import ImageFinder
from maskrcnn.annotations.json_file import MOST_NESTED, parse_json
from maskrcnn.annotations.shown_values import shown

WIDTH, HEIGHT = 100, 80
TINY = {
    "input.min_size": 64,
    "input.max_size": 96,
    "trunk.stem_channels": 8,
    "trunk.res2_channels": 8,
    "neck.channels": 8,
    "rpn.convs": (8,),
    "box.fcs": (16,),
    "box.max_detections": 5,
    "mask.convs": (8,),
    "mask.upsample": (8,),
}
SQUARE = [[10, 10, 40, 10, 40, 30, 10, 30]]
IMAGE = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20]}


def _content(*changes: dict, image: dict | None = None) -> dict:
    """One image, and one object for each of the changes."""
    objects = [OBJECT | {"id": n} | change for n, change in enumerate(changes or [{}], start=1)]
    return {
        "images": [IMAGE | (image or {})],
        "annotations": objects,
        "categories": [{"id": 1, "name": "cell"}],
    }


def _notes(data: CocoDataset) -> dict[str, int]:
    return {note.what: note.count for note in data.notes}


def _write(folder: Path, content: dict, *images: str) -> Path:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name, format="PNG")
    (folder / "ann.json").write_text(json.dumps(content))
    return folder / "ann.json"


# Values


@pytest.mark.parametrize(
    ("written", "is_crowd"),
    [
        *(("0", False), ("1", True), ("false", False), ("True", True), ("", False), ("1.0", True)),
        *((0, False), (1, True), (False, False), (True, True), (0.0, False), (1.0, True)),
        (None, False),
    ],
)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_crowd_is_what_the_file_says_however_it_is_written(key, written, is_crowd):
    data = CocoDataset(_content({}, {"segmentation": SQUARE, key: written}))
    first, second = data[0].annotations
    assert (first.ignore, second.ignore) == (False, is_crowd)
    assert data.truth()["annotations"][1]["iscrowd"] == int(is_crowd)
    assert data.raw["annotations"][1][key] in (0, 1, None)
    assert (f"{key} written as text" in _notes(data)) == isinstance(written, str)


@pytest.mark.parametrize("written", ["maybe", 2, -1, "2", [0], float("nan")])
def test_an_unknown_word_for_a_crowd_is_a_problem_of_that_annotation(written):
    with pytest.raises(DataError, match=r"iscrowd is not 0 or 1 \(1\).*\n.*annotation 2: iscrowd"):
        CocoDataset(_content({}, {"iscrowd": written}))


def test_numbers_as_text_are_numbers_with_one_counted_note():
    skeleton = {"id": "1", "name": "cell", "keypoints": ["top"]}
    content = _content(
        {
            "id": "7",
            "image_id": "1",
            "category_id": "1",
            "bbox": [10, 12, "40.5", "30.25"],
            "area": "400",
            "segmentation": [["10", 12, "50.5", 12, 50.5, "42.25", "1e1", 42.25]],
            "keypoints": ["12", "13.0", "2"],
            "num_keypoints": "1",
        },
        image={"id": "1", "width": "100", "height": 80.0},
    )
    data = CocoDataset(content | {"categories": [skeleton]})
    (annotation,) = data[0].annotations
    assert annotation.box == (10, 12, 50.5, 42.25)
    assert annotation.area == 400
    assert annotation.mask_area == 40.5 * 30.25
    assert annotation.keypoints.tolist() == [[12.5, 13.5, 2]]
    assert data.size(0) == (80, 100)
    assert [note.what for note in data.notes] == ["numbers written as text"]
    assert data.notes[0].count == 11
    assert not [w for w in data.warnings if w.kind == "num_keypoints is wrong"]


def test_text_that_is_no_number_is_not_noted_as_one():
    with pytest.warns(DataWarning, match=r"write the id of the image.*\n.*image_id is 'a\.png'"):
        data = CocoDataset(_content({"image_id": "a.png"}, {}), on_error="drop")
    assert "numbers written as text" not in _notes(data)


def test_text_that_is_no_number_is_still_a_problem():
    for box in (["10", "12", "wide", 3], ["1_0", 1, 2, 3], ["1,5", 1, 2, 3], ["nan", 1, 2, 3]):
        with pytest.raises(DataError, match="box is not four numbers"):
            CocoDataset(_content({"bbox": box}))


def test_rle_counts_and_sizes_as_text_are_numbers():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:9, 3:7] = True
    counts = [str(run) for run in rle.counts(rle.encode(mask))]
    written = {"size": [str(HEIGHT), str(WIDTH)], "counts": counts}
    data = CocoDataset(_content({"bbox": None, "segmentation": written}))
    assert (rle.decode(data[0].annotations[0].rle) == mask).all()
    assert _notes(data)["numbers written as text"] == 1


def _columns(first: int, last: int) -> dict:
    """The RLE of whole columns."""
    before, inside = first * HEIGHT, (last - first) * HEIGHT
    return {"size": [HEIGHT, WIDTH], "counts": [before, inside, WIDTH * HEIGHT - before - inside]}


@pytest.mark.parametrize(
    ("parts", "area"),
    [
        ([_columns(10, 20)], 800),
        ([_columns(10, 20), _columns(15, 30)], 1600),
        ([_columns(10, 20), [50, 10, 60, 10, 60, 30, 50, 30]], 1000),
        ([[50, 10, 60, 10, 60, 30, 50, 30], rle.encode(np.ones((HEIGHT, WIDTH), bool))], 8000),
        ([_columns(10, 20) | {"counts": ["800", "800", "6400"]}], 800),
    ],
)
def test_a_list_of_rles_is_their_union_and_counted(parts, area):
    data = CocoDataset(_content({"bbox": None, "segmentation": parts}))
    assert data[0].annotations[0].mask_area == area
    assert data.truth()["annotations"][0]["area"] == area
    assert _notes(data)["masks that are a list of RLEs"] == 1


def test_an_rle_of_another_size_in_a_list_is_an_rle_of_another_size():
    parts = [{"size": [8, 8], "counts": [10, 10, 44]}]
    with pytest.raises(DataError, match=r"RLE size mismatch.*\n.*size is \[8, 8\]"):
        CocoDataset(_content({"segmentation": parts}))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([_columns(1, 2), _columns(1, 2) | {"size": [8, 8]}], r"part 1 has the size \[8, 8\]"),
        ([_columns(1, 2), _columns(1, 2) | {"counts": [5]}], "part 1: RLE runs sum to 5"),
        ([_columns(1, 2), [1, 2, 3]], r"part 1: expected an RLE object or a polygon"),
        ([[1, 1, 9, 1, 9, 9], {"points": [1, 2]}], r"part 1: expected size as"),
        ([_columns(1, 2), {"size": [HEIGHT, WIDTH]}], "part 1: has no 'counts'"),
        ([_columns(1, 2), None], "part 1: expected"),
        ([_columns(1, 2), [1e9, 1, 9, 1, 9, 9]], "part 1: expected"),
        ([_columns(1, 2) | {"size": [10**9, 10**9]}], "part 0: RLE of 1000000000 x 1000000000"),
    ],
)
def test_a_broken_part_of_a_mask_is_named_and_never_dropped(parts, reason):
    with pytest.raises(DataError, match=rf"broken part of a mask.*\n.*annotation 1.*{reason}"):
        CocoDataset(_content({"segmentation": parts}))


@pytest.mark.parametrize("area", [float("nan"), float("inf"), -3, "much", [4], True])
def test_an_area_that_is_none_is_computed_anew_and_reported_so(area):
    data = CocoDataset(_content({"segmentation": SQUARE, "area": area}))
    assert data.truth()["annotations"][0]["area"] == 600
    assert [(w.kind, w.suggestion.split(" from")[0]) for w in data.warnings] == [
        ("area is wrong", "it is computed anew")
    ]


def test_text_ids_on_both_sides_are_numbered_in_the_order_of_the_file_and_kept():
    content = _content({"id": "f3c0-9b", "image_id": "b7"}, {"id": "x", "image_id": "a1"})
    content["images"] = [IMAGE | {"id": "b7"}, IMAGE | {"id": "a1", "file_name": "b.png"}]
    data = CocoDataset(content)
    assert [data[i].image_id for i in range(2)] == [1, 2]
    assert [len(data[i].annotations) for i in range(2)] == [1, 1]
    assert [i["original_id"] for i in data.truth()["images"]] == ["b7", "a1"]
    assert data.raw["annotations"][0] == content["annotations"][0] | {
        "id": 1,
        "image_id": 1,
        "original_id": "f3c0-9b",
    }
    assert _notes(data) == {"images whose id is text": 2, "annotations whose id is text": 2}


def test_category_ids_may_be_text_and_numbers_at_once_or_start_at_zero():
    content = _content({"category_id": "cat"}, {"category_id": 0}, {"category_id": "0"})
    content["categories"] = [{"id": 0, "name": "dog"}, {"id": "cat", "name": "cat"}]
    data = CocoDataset(content)
    assert [a.label for a in data[0].annotations] == [1, 0, 0]
    assert [(c.id, c.name) for c in data.categories] == [(0, "dog"), (1, "cat")]


def test_numbers_with_leading_zeros_stay_two_ids():
    content = _content({"image_id": "01"})
    content["images"] = [IMAGE | {"id": "1"}, IMAGE | {"id": "01", "file_name": "b.png"}]
    data = CocoDataset(content)
    assert [len(data[i].annotations) for i in range(2)] == [0, 1]


def test_ids_that_are_missing_unknown_or_used_twice_are_named():
    content = _content({"id": "a"}, {"id": "a"}, {"id": None}, {"image_id": "zz"})
    content["images"] += [IMAGE | {"file_name": "b.png"}]
    content["annotations"][3]["id"] = 10**30
    with pytest.raises(DataError) as error:
        CocoDataset(content)
    text = str(error.value)
    assert "image id used twice (1)" in text
    assert "annotation a (a.png): also that of annotations[0]" in text
    assert "annotation without id (2)" in text


# Rotated boxes


def test_a_box_with_cvats_rotation_is_the_turned_rectangle():
    turned = {"bbox": [10, 35, 60, 6], "area": 360, "segmentation": []}
    data = CocoDataset(_content(turned | {"attributes": {"occluded": False, "rotation": 45.0}}))
    (annotation,) = data[0].annotations
    assert annotation.box == pytest.approx((16.67, 14.67, 63.33, 61.33), abs=0.01)
    assert annotation.mask_area == pytest.approx(360)
    # clockwise on the screen: the upper right corner of the box moves to the lower right
    assert annotation.polygons[0][1] == pytest.approx((63.33, 57.09), abs=0.01)
    assert _notes(data) == {"boxes with attributes.rotation": 1}
    assert CocoDataset(data.content()).notes == ()  # turned once, and never again


def test_detectron2s_five_numbers_turn_the_other_way():
    data = CocoDataset(_content({"bbox": [40, 38, 60, 6, -45]}, {"bbox": [40, 38, 20, 6, 0]}))
    first, second = data[0].annotations
    assert first.polygons[0][1] == pytest.approx((63.33, 57.09), abs=0.01)
    assert second.box == (30, 35, 50, 41)
    assert _notes(data) == {"boxes of five numbers": 2}
    masked = CocoDataset(_content({"bbox": [40, 38, 60, 6, -45], "segmentation": SQUARE}))
    assert masked[0].annotations[0].mask_area == 600
    assert "boxes of five numbers" in _notes(masked)
    # radians, or a score: not decided
    with pytest.raises(DataError, match="box is not four numbers"):
        CocoDataset(_content({"bbox": [40, 38, 60, 6, 0.7]}))


def test_other_angles_are_counted_and_named():
    data = CocoDataset(
        _content(
            {"rotation": 30},
            {"attributes": {"angle": 30}},
            {"segmentation": SQUARE, "attributes": {"rotation": 30}},
            {"attributes": {"rotation": 180}},
        )
    )
    assert [a.box for a in data[0].annotations] == [(10, 10, 40, 30)] * 4
    notes = {note.what: note for note in data.notes}
    assert notes["boxes with rotation"].handled.startswith("used without turning them")
    assert notes["boxes with attributes.angle"].count == 1
    assert notes["masks with attributes.rotation"].count == 1


# Names of images


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\a.png", "images/a.png"),
        ("..\\..\\upload\\a.png", "a.png"),
        ("../upload/a.png", "a.png"),
        ("C:\\data\\images\\a.png", "images/a.png"),
        ("/home/me/project/a.png", "a.png"),
        ("./images/a.png", "images/a.png"),
        ("a%20b.png", "a b.png"),
        ("https://server.org/bucket/a%20b.png?token=1", "a b.png"),
        ("/data/local-files/?d=upload/a.png", "upload/a.png"),
        ("a.PNG", "a.png"),
        ("Images/A.png", "images/a.png"),
        (unicodedata.normalize("NFC", "ü.png"), unicodedata.normalize("NFD", "ü.png")),
        (unicodedata.normalize("NFD", "ü.png"), unicodedata.normalize("NFC", "ü.png")),
    ],
)
def test_images_are_found_however_their_names_are_written(name, file, tmp_path):
    path = _write(tmp_path, _content(image={"file_name": name}), file)
    for data in (CocoDataset(path), mr.load_dataset(path), CocoDataset(path, tmp_path)):
        assert data.image(0).shape == (HEIGHT, WIDTH, 3)
        assert data[0].path.samefile(tmp_path / file)
    if not (tmp_path / name).is_file():
        assert _notes(data) == {"image names written differently": 1}


def test_the_exact_name_comes_first_and_more_equal_parts_before_fewer(tmp_path):
    _write(tmp_path, {}, "a.png", "A.png", "x/a.png")
    finder = ImageFinder(tmp_path)
    assert finder.find("A.png") == ["A.png"]
    assert finder.find("old/x/a.png") == ["x/a.png"]
    assert finder.find("b.png") == []
    assert finder.find("") == []
    assert finder.find("a" * 5000) == []
    assert finder.find("a\0.png") == []
    if not (tmp_path / "A.PNG").is_file():  # a file system that distinguishes case
        assert sorted(finder.find("a.PNG")) == ["A.png", "a.png"]


def test_an_ambiguous_name_is_an_error_that_names_both(tmp_path):
    content = _content(image={"file_name": "C:\\train\\a.png"})
    content["images"].append(IMAGE | {"id": 2, "file_name": "C:\\val\\a.png"})
    path = _write(tmp_path, content, "a.png")
    with pytest.raises(DataError) as error:
        CocoDataset(path, tmp_path)
    text = str(error.value)
    assert "ambiguous image name (2)" in text
    assert r"a.png is the only file for C:\train\a.png and C:\val\a.png" in text
    assert "unreadable image" not in text


def test_lvis_names_are_the_end_of_coco_url(tmp_path):
    content = _content(image={"coco_url": "http://images.cocodataset.org/train2017/01.png"})
    del content["images"][0]["file_name"]
    assert CocoDataset(content)[0].file_name == "train2017/01.png"
    for folder, file in (("one", "train2017/01.png"), ("two", "01.png")):
        path = _write(tmp_path / folder, content, file)
        data = CocoDataset(path, tmp_path / folder)
        assert data[0].file_name == file
        assert mr.load_dataset(path).image(0).shape == (HEIGHT, WIDTH, 3)
        assert "images without file_name" in _notes(data)


# Files


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_files_of_every_kind_are_read(encoding, tmp_path):
    content = _content()
    content["categories"][0]["name"] = "Zelle ü 細胞"
    data = json.dumps(content, ensure_ascii=False).encode(encoding)
    (tmp_path / "a.json").write_bytes(data)
    for opened in (CocoDataset(tmp_path / "a.json"), mr.load_dataset(tmp_path / "a.json")):
        assert opened.categories[0].name == "Zelle ü 細胞"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,\n "b": [1, 2,]}', "line 2, column 1[123]: .*comma before ]; remove the comma"),
        ('{\n// note\n"a": 1}', "line 2, column 1: .*a comment.*; remove the comment"),
        ('{"a": 1', "line 1, column 8: .*ends too early; was it copied"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1: .*second value"),
        ("{'a': None}", "line 1, column 2: .*is Python, not JSON"),
        ('{"file": "C:\\data"}', "line 1, column 13: .*single backslash"),
        ('{"a": 1e}', "line 1, column 8"),
        ('{"a": "x\ny"}', "line break or tab"),
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ("<html></html>", "XML or HTML"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b'{"a": "\xfc"}', "line 1, column 8: .*byte 0xfc is not utf-8; save the file as UTF-8"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"PK\x03\x04", "ZIP"),
        ('{"a": ' + "7" * 5000 + "}", "not valid JSON: .*digits"),
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested more than 100 deep"),
        (codecs.BOM_UTF16_LE + ("[" * 200).encode("utf-16-le"), "nested more than 100 deep"),
    ],
)
def test_broken_json_is_one_sentence_with_file_line_and_column(text, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (CocoDataset, mr.load_dataset):
        with pytest.raises(DataError, match=rf"(?s)^a.json.*{reason}") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_brackets_in_strings_are_no_nesting():
    text = json.dumps(["[" * 500, '\\"[' * 500, "]" * 500, {"a": [1]}])
    assert parse_json(text.encode(), "a.json")[3] == {"a": [1]}
    nested = "[" * MOST_NESTED + "]" * MOST_NESTED
    assert parse_json(nested.encode(), "a.json")


RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.9}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_content() | {"annotations": 5}, r'"annotations": expected a list, got 5; write "annot'),
        (
            _content() | {"images": {}},
            r'"images": expected a list, got {}; write "images": \[{"id"',
        ),
        (_content() | {"categories": "cell"}, r'"categories": expected a list, got \'cell\''),
        (
            _content() | {"categories": [], "annotations": []},
            r'"categories" is empty, and so is "annotations"; list the categories .* write',
        ),
        (
            _content() | {"categories": []},
            r'"categories" is empty, but annotations .*_id 1; write',
        ),
        ([RESULT], r"got a list of 1 result .* maskrcnn evaluate a.json --data"),
        ({"annotations": [OBJECT]}, r"no list images and no list categories; its keys are annotat"),
        ({"images": [IMAGE], "annotations": [OBJECT]}, r'Add "categories": \[{"id": 1, "name"'),
        (
            {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]},
            "It holds captions; use the file of the instances",
        ),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 1, "segments_info": []}]},
            "It is COCO panoptic",
        ),
    ],
)
def test_files_that_lack_a_list_say_which_and_what_to_do(content, reason, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content))
    for read in (CocoDataset, mr.load_dataset):
        with pytest.raises(DataError, match=f"^a.json: .*{reason}"):
            read(tmp_path / "a.json")


def test_entries_of_any_type_are_problems_not_tracebacks():
    wrong = [
        None,
        5,
        "x",
        [],
        {},
        True,
        float("inf"),
        [float("inf")],
        10**400,
        [[[[]]]],
        {"a": {"b": [1]}},
    ]
    for value in wrong:
        for key in (*OBJECT, "segmentation", "keypoints", "area", "iscrowd", "where", "attributes"):
            for content in (_content({key: value}), _content()):
                content["annotations"].append(value)
                with pytest.raises(DataError):
                    CocoDataset(content)
        for key in (*IMAGE, "labeled_categories", "coco_url"):
            content = _content(image={key: value})
            content["images"].append(value)
            with pytest.raises(DataError):
                CocoDataset(content)
        for key in ("id", "name", "keypoints", "skeleton", "flip", "flip_pairs", "sigmas"):
            content = _content()
            content["categories"].append({"id": 2, "name": "b", "keypoints": ["p"], key: value})
            content["categories"].append(value)
            with pytest.raises(DataError):
                CocoDataset(content)


# Bounds


@pytest.mark.parametrize(
    "counts",
    [
        [10**18],
        [2**62, 2**62, 2**62, 2**62],
        [-5, 8005],
        "0" * 50,
        "?" * 40,
        [10**30],
        [0.5, 7999.5],
        [[4000, 4000]],
        [None],
        "o" * 100_000,
        ["a"],
        5,
    ],
)
def test_rle_of_any_counts_is_refused_without_taking_memory(counts):
    written = {"size": [HEIGHT, WIDTH], "counts": counts}
    with pytest.raises(DataError, match="broken RLE"):
        CocoDataset(_content({"bbox": None, "segmentation": written}))


def test_huge_images_and_masks_are_refused_with_the_bound():
    huge = {"width": 10**9, "height": 10**9}
    with pytest.raises(DataError, match=r"image too large.*at most 2,147,483,648 pixels"):
        CocoDataset(_content(image=huge))
    for read in (rle.decode, rle.area, rle.bbox, rle.decode_crop):
        with pytest.raises(ValueError, match="expected at most 2,147,483,648"):
            read({"size": [10**9, 10**9], "counts": [0, 10**18]})


def test_polygons_of_very_many_points_are_read_and_their_search_is_bounded():
    angle = np.linspace(0, 2 * np.pi, 300_000, endpoint=False)
    circle = np.stack([50 + 30 * np.cos(angle), 40 + 30 * np.sin(angle)], axis=1)
    comb = np.stack([np.tile([10.0, 90.0], 5000), np.linspace(10, 70, 10_000)], axis=1)
    masks = [[points.reshape(-1).tolist()] for points in (circle, comb)]
    data = CocoDataset(_content(*({"bbox": None, "segmentation": mask} for mask in masks)))
    assert data[0].annotations[0].mask_area == pytest.approx(np.pi * 900, rel=1e-4)
    assert [(w.kind, w.where) for w in data.warnings] == [
        ("polygon not searched for crossings", "annotation 2 (a.png)")
    ]


def test_numbers_beyond_all_images_are_refused():
    for box in ([1e300, 1, 1e300, 1], [1e999, 1, 2, 3], [10**400, 1, 2, 3]):
        with pytest.raises(DataError, match="box is not four numbers"):
            CocoDataset(_content({"bbox": box}))
    with pytest.raises(DataError, match="broken polygon"):
        CocoDataset(_content({"segmentation": [[1e300, 1, 5, 1, 5, 9]]}))


def test_values_in_messages_are_short_whatever_they_are():
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    for value in (deep, [0.5] * 10**6, "x" * 10**6, 10**5000, {"a": deep}, np.float64(7)):
        assert len(shown(value)) <= 80
    assert shown([1, "a", {"b": None}]) == "[1, 'a', {'b': None}]"


# What is not used


def test_everything_that_is_not_used_is_counted_and_named():
    content = _content(
        {"segmentation": SQUARE, "score": 0.5, "attributes": {"color": "red", "occluded": False}},
        {
            "bbox": None,
            "segmentation": SQUARE,
            "caption": "a cell",
            "attributes": {"color": "blue"},
        },
        {"segmentation": []},
        {"segmentation": SQUARE, "iscrowd": 1},
    )
    content["videos"] = [{"id": 1}]
    data = CocoDataset(content)
    notes = {note.what: note for note in data.notes}
    unused = notes["annotations with fields that are not used"]
    assert unused.count == 2
    assert unused.handled == "attributes.color (2), score (1), caption (1)"
    assert _notes(data) == {
        "annotations with fields that are not used": 2,
        'entries of the list "videos"': 1,
        "regions to ignore (crowds)": 1,
        "objects without a mask": 1,
        "objects without a box": 1,
    }
    text = data.describe_notes()
    assert text.startswith("annotations: 5 notes\n")
    report = str(mr.check_dataset(content, progress=False))
    assert "objects without a mask (1): excluded from the mask AP" in report


def test_images_and_categories_that_no_annotation_refers_to_are_counted():
    content = _content()
    content["images"] += [IMAGE | {"id": n, "file_name": f"{n}.png"} for n in (2, 3)]
    content["categories"].append({"id": 7, "name": "nucleus"})
    data = CocoDataset(content)
    assert [str(note) for note in data.notes] == [
        "images without objects (2): used as such, such as 2.png; 3.png",
        "categories without objects (1): kept, not learned, such as nucleus",
    ]
    assert CocoDataset(content | {"annotations": []}).notes[0].count == 3


def test_a_file_without_images_is_reported_at_opening():
    empty = _content() | {"images": [], "annotations": []}
    (warning,) = CocoDataset(empty).warnings
    assert (warning.kind, warning.detail) == ("no image", 'the list "images" is empty')


def test_every_value_that_is_read_differently_is_noted_as_rewritten(tmp_path):
    content = _content({"iscrowd": False, "bbox": ["10", 10, 30, 20]})
    path = _write(tmp_path, content, "A.PNG")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    for data in (CocoDataset(path), mr.load_dataset(path)):
        rewritten = {note.what: note.examples for note in data.notes if note.is_rewritten}
        assert rewritten == {
            "byte order marks": ("ann.json",),
            "numbers written as text": ("bbox ['10', 10, 30, 20] of annotation 1",),
            "iscrowd written as true or false": ("annotation 1",),
            "image names written differently": ("a.png as A.PNG",),
        }
    report = mr.check_dataset(path, fix=tmp_path / "fixed.json", progress=False)
    text = report.describe().partition("fixed.json")[2]
    for what in rewritten:
        assert what in text


def test_a_clean_file_has_no_notes_and_no_warnings():
    data = CocoDataset(_content({"segmentation": SQUARE, "area": 600, "iscrowd": 0}))
    assert (data.notes, data.warnings) == ((), ())


def test_objects_that_are_all_crowds_are_reported_at_opening_by_check_and_train(tmp_path):
    content = _content({"iscrowd": "1"}, {"ignore": 1, "bbox": [20, 20, 9, 9]})
    path = _write(tmp_path, content, "a.png")
    data = CocoDataset(path)
    (warning,) = data.warnings
    assert (warning.kind, warning.detail) == (
        "no object to learn",
        "2 annotations, usable: 2, all as regions to ignore",
    )
    assert "no object to learn" in str(mr.check_dataset(path, progress=False))
    with pytest.raises(ValueError, match=r"training cannot start: ann.json: no object to learn"):
        mr.train(mr.maskrcnn_r18_small(data.categories), data, out=tmp_path / "run")
    assert CocoDataset(_content() | {"annotations": []}).warnings == ()


def test_keypoint_messages_show_plain_numbers_and_count_what_is_wrong():
    category = {"id": 1, "name": "cell", "keypoints": ["a", "b"]}

    def message(values: list, **more: object) -> str:
        content = _content({"keypoints": values, **more}) | {"categories": [category]}
        with pytest.raises(DataError) as error:
            CocoDataset(content)
        return str(error.value)

    assert "values 3, 7" in message([1, 1, 7, 2, 2, 3])
    assert "2 of 6 values, such as nan" in message([float("nan"), 1, 2, float("nan"), 2, 2])
    assert "5 values for the 2 keypoints" in message([1, 1, 2, 2, 2])
    with pytest.raises(DataError, match="keypoints without names"):
        CocoDataset(_content({"keypoints": [1, 1, 2]}))
    data = CocoDataset(_content({"num_keypoints": 5}) | {"categories": [category]})
    assert _notes(data) == {"num_keypoints without keypoints": 1}


# Two sources


def test_two_splits_are_matched_by_name_whatever_their_ids(tmp_path):
    first = _content({"category_id": 1}, {"category_id": 2})
    first["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
    second = _content({"category_id": 1}, {"category_id": 5})
    second["categories"] = [{"id": 1, "name": "dust"}, {"id": 5, "name": "cell"}]
    train, val = CocoDataset(first), CocoDataset(second)
    matched = val.with_categories(train.categories)
    assert [c.name for c in matched.categories] == ["cell", "dust"]
    assert [a.label for a in matched[0].annotations] == [1, 0]
    assert [a.label for a in val[0].annotations] == [0, 1]
    second["images"][0]["file_name"] = "b.png"
    merged = mr.merge_datasets([train, CocoDataset(second)])
    assert [[a.label for a in record.annotations] for record in merged] == [[0, 1], [1, 0]]


def test_names_that_are_missing_equal_or_nearly_equal_are_not_passed_over():
    unnamed = _content() | {"categories": [{"id": 1}]}
    data = CocoDataset(unnamed)
    assert data.categories[0].name == "1"
    assert _notes(data) == {"categories without a name": 1}
    twice = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}]
    with pytest.raises(DataError, match='category name "cell" is used 2 times'):
        CocoDataset(_content() | {"categories": twice})
    upper = _content({"category_id": 2})
    upper["categories"] = [{"id": 2, "name": "Cell"}, {"id": 3, "name": "dust"}]
    wanted = (mr.Category("cell", 1), mr.Category("dust", 2))
    with pytest.raises(DataError, match='expected the category "cell", got "Cell"; give both'):
        CocoDataset(upper, categories=wanted)
    upper["images"][0]["file_name"] = "b.png"
    merged = mr.merge_datasets([CocoDataset(_content()), CocoDataset(upper)])
    assert "category names that are nearly equal" in _notes(merged)


def test_verbs_take_a_file_or_a_data_set_alike(tmp_path):
    content = _content({"segmentation": SQUARE})
    content["categories"].append({"id": 2, "name": "dust"})
    path = _write(tmp_path, content, "a.png")
    data = mr.load_dataset(path)
    model = mr.override_config(mr.maskrcnn_r18_small(data.categories[::-1]), TINY)
    config = mr.TrainConfig(steps=1, batch_size=1, tensorboard=False, workers=0)
    run = mr.train(
        model, path, val=data, config=config, out=tmp_path / "run", progress=False, device="cpu"
    )
    assert [c.name for c in run.model.config.categories] == ["dust", "cell"]
    for source in (data, str(path)):
        assert mr.check_dataset(source, progress=False).data[0].file_name == "a.png"
        assert [r.file_name for r in mr.rank_images(run.model, source)] == ["a.png"]
        out = tmp_path / f"{type(source).__name__}.json"
        mr.convert_annotations(source, out, "coco")
        assert len(mr.load_dataset(out)) == 1
    assert mr.evaluate(run.model, path).num_objects == 1
    with pytest.raises(TypeError, match=r"expected annotated images as a file, .* got int"):
        mr.train(model, 5, out=tmp_path / "other")
