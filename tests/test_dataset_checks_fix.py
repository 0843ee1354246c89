"""`--fix` fixes problems with one correct fix, lists these fixes, and leaves everything else unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_samples import HEIGHT, WIDTH, content, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.annotations import rle
from maskrcnn.annotations.problems import DataError
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.fix_dataset import FixedDataset, fix_dataset

SQUARE = [[20, 20, 40, 20, 40, 30, 20, 30]]
EMPTY = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}

# name: (the problem, the changed fields; None = the annotation is dropped, "as it is" = unchanged)
RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "box beyond the image": (
        {"bbox": [70, 50, 20, 20], "area": 400},
        {"bbox": [70, 50, 10, 10], "area": 100},
    ),
    "box beyond the image, mask elsewhere": (
        {"bbox": [30, 20, 900, 10], "segmentation": SQUARE},
        {"bbox": [20, 20, 20, 10]},
    ),
    "negative box with mask": (
        {"bbox": [40, 20, -20, 10], "segmentation": SQUARE},
        {"bbox": [20, 20, 20, 10]},
    ),
    "negative box": ({"bbox": [40, 20, -20, 10]}, "as it is"),
    "no box but a mask": (
        {"bbox": [1, None, 3, 4], "segmentation": SQUARE},
        {"bbox": [20, 20, 20, 10]},
    ),
    "flat box": ({"bbox": [40, 20, 0, 10]}, None),
    "flat box with keypoints": (
        {"category_id": 9, "bbox": [1, 1, 0, 0], "keypoints": [2, 2, 2, 0, 0, 0, 0, 0, 0]},
        {"bbox": ...},
    ),
    "corners, proven by the mask": (
        {"bbox": [20, 20, 40, 30], "segmentation": SQUARE, "area": 1200},
        {"bbox": [20, 20, 20, 10], "area": 200},
    ),
    "box outside": ({"bbox": [200, 20, 4, 4]}, "as it is"),
    "box outside with mask": (
        {"bbox": [200, 20, 4, 4], "segmentation": SQUARE},
        {"bbox": [20, 20, 20, 10]},
    ),
    "flat list of points": (
        {"bbox": [20, 20, 20, 10], "segmentation": SQUARE[0]},
        {"segmentation": SQUARE},
    ),
    "polygon of two points": (
        {"bbox": [20, 20, 20, 10], "segmentation": [*SQUARE, [1, 1, 5, 5]]},
        {"segmentation": SQUARE},
    ),
    "nothing but a polygon of two points": ({"bbox": None, "segmentation": [[1, 1, 5, 5]]}, None),
    "broken polygon": ({"segmentation": [*SQUARE, [1, 1, 5]]}, "as it is"),
    "empty RLE": ({"segmentation": EMPTY}, {"segmentation": []}),
    "RLE without size": ({"segmentation": {"counts": EMPTY["counts"]}}, {"segmentation": []}),
    "RLE size mismatch": ({"segmentation": {"size": [5, 5], "counts": [20, 5]}}, "as it is"),
    "keypoint outside": (
        {"category_id": 9, "keypoints": [90, 5, 2, 2, 2, 2, 4, 4, 1], "num_keypoints": 3},
        {"keypoints": [0, 0, 0, 2, 2, 2, 4, 4, 1], "num_keypoints": 2},
    ),
    "keypoints miscounted": (
        {"category_id": 9, "keypoints": [3, 5, 2, 2, 2, 2, 0, 0, 0], "num_keypoints": 17},
        {"num_keypoints": 2},
    ),
    "wrong number of keypoints": ({"category_id": 9, "keypoints": [3, 5, 2]}, "as it is"),
    "area of something else": (
        {"bbox": [20, 20, 20, 10], "segmentation": SQUARE, "area": 5000},
        {"area": 200},
    ),
    "area in words": ({"bbox": [20, 20, 20, 10], "area": "large"}, {"area": 200}),
    "unknown category": ({"category_id": 77}, "as it is"),
}


def with_entries(*entries: dict[str, Any]) -> dict[str, Any]:
    data = content()
    for number, entry in enumerate(entries):
        basis = {
            "id": 100 + number,
            "image_id": 71,
            "category_id": 4,
            "bbox": [1, 1, 5, 5],
            "attributes": {"shade": number},
        }
        data["annotations"].append(basis | entry)
    return data


def fixed(data: dict[str, Any]) -> FixedDataset:
    before = repr(data)
    result = fix_dataset(check_dataset(data).data)
    assert repr(data) == before
    return result


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str):
    entry, wanted = RULES[name]
    data = with_entries(entry)
    given_entry = data["annotations"][-1]
    result = fixed(data)
    entry = {a["id"]: a for a in result.content["annotations"]}.get(100)
    assert (
        result.content["annotations"][: len(content()["annotations"])] == content()["annotations"]
    )
    if wanted is None:
        assert entry is None
    elif wanted == "as it is":
        assert entry == given_entry
        assert any("100" in p.where for p in result.remaining)
        assert not result.changes
    else:
        changed = {key: value for key, value in entry.items() if given_entry.get(key) != value}
        removed = {key: ... for key in given_entry if key not in entry}
        assert changed | removed == wanted
    if wanted != "as it is":
        assert any("100" in p.where for p in result.changes)
        assert not any("100" in p.where for p in result.remaining)


def test_unknown_fields_survive():
    data = with_entries({"bbox": [70, 50, 20, 20], "note": "mine"})
    data |= {"info": {"year": 2026}, "licenses": [{"id": 1}], "more": [1, 2]}
    data["images"][0]["camera"] = "A"
    result = fixed(data).content
    assert (result["info"], result["licenses"], result["more"]) == (
        {"year": 2026},
        [{"id": 1}],
        [1, 2],
    )
    assert result["images"] == data["images"]
    assert result["annotations"][-1] == {**data["annotations"][-1], "bbox": [70, 50, 10, 10]}


def test_ids_and_duplicates_are_fixed():
    first = {"bbox": [3, 3, 9, 9]}
    others = [{"id": i, "bbox": [2 + n, 3, 8, 8]} for n, i in enumerate((100, 0, None))]
    result = fixed(with_entries(first, others[0], first, *others[1:]))
    added = result.content["annotations"][len(content()["annotations"]) :]
    assert [(a["id"], a["bbox"][2]) for a in added] == [(100, 9), (101, 8), (102, 8), (103, 8)]
    kinds = {p.kind for p in result.changes}
    assert kinds == {
        "annotation given twice",
        "annotation id used twice",
        "annotation with id 0",
        "annotation without id",
    }
    assert not [p for p in result.remaining if p.kind in kinds]


@pytest.mark.parametrize(
    ("used", "known", "shifted"),
    [
        ((0, 1), (1, 2), True),
        ((0, 2), (1, 2, 3), False),
        ((0, 1), (1, 5), False),
        ((0,), (1,), True),
    ],
)
def test_categories_counted_from_0_are_shifted_only_where_that_is_certain(
    used: tuple[int, ...], known: tuple[int, ...], shifted: bool
):
    data = content() | {"categories": [{"id": n, "name": f"c{n}"} for n in known]}
    data["annotations"] = [
        {"id": 1 + n, "image_id": 70, "category_id": c, "bbox": [1 + n, 1, 9, 9]}
        for n, c in enumerate(used)
    ]
    result = fixed(data)
    assert [a["category_id"] for a in result.content["annotations"]] == [c + shifted for c in used]
    assert bool(result.changes) == shifted


def test_a_file_with_corner_boxes_is_rewritten_as_a_whole():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 40, (30, 2))
    high = np.minimum(low + rng.integers(3, 20, (30, 2)), (WIDTH, HEIGHT))
    data = content()
    data["annotations"] = [
        {"id": n + 1, "image_id": 70, "category_id": 4, "bbox": [*a, *b]}
        for n, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
    ]
    report = check_dataset(data)
    assert "boxes are x0, y0, x1, y1" in {p.kind for p in report.problems if p.is_error}
    result = fixed(data)
    assert [a["bbox"] for a in result.content["annotations"]] == [
        [*a, *(b - a)] for a, b in zip(low, high, strict=True)
    ]
    assert not [p for p in result.remaining if p.is_error]


def test_sizes_come_from_the_file_where_that_is_certain(tmp_path: Path):
    data = content()
    path = write(tmp_path, data)
    data["images"][0] = {"id": 70, "file_name": "0.png"}  # none
    data["images"][1] |= {"width": HEIGHT, "height": WIDTH}  # exchanged: a box of 70 px proves it
    data["images"][2] |= {
        "width": 40,
        "height": 30,
    }  # nothing proves that objects are of the file's size
    data["annotations"].append({"id": 90, "image_id": 71, "category_id": 4, "bbox": [5, 5, 70, 40]})
    data["images"].append(dict(data["images"][1]))
    path.write_text(json.dumps(data))
    report = check_dataset(path, tmp_path, fix=tmp_path / "out" / "fixed.json")
    sizes = [
        (i.get("width"), i.get("height"))
        for i in json.loads((tmp_path / "out" / "fixed.json").read_text())["images"]
    ]
    assert sizes == [(WIDTH, HEIGHT), (WIDTH, HEIGHT), (40, 30)]
    assert [p.kind for p in report.fixed.remaining if p.is_error] == ["image size mismatch"]
    assert {p.kind for p in report.fixed.changes} == {
        "image without size",
        "image size mismatch",
        "image id used twice",
    }


def test_an_image_that_exif_rotates_is_left_unchanged(tmp_path: Path):
    data = content()
    path = write(tmp_path, data)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "1.png", exif=exif)
    result = check_dataset(path, tmp_path, fix=tmp_path / "fixed.json").fixed
    assert result.content == data
    assert [p.kind for p in result.remaining] == ["image size mismatch"]


def test_the_input_is_never_overwritten(tmp_path: Path):
    path = write(tmp_path, with_entries({"bbox": [70, 50, 20, 20]}))
    before = path.read_bytes()
    (tmp_path / "link.json").symlink_to(path)
    for target in (path, tmp_path / "link.json", tmp_path / "." / "train.json"):
        with pytest.raises(DataError, match="never overwrites"):
            check_dataset(path, tmp_path, fix=target)
    assert path.read_bytes() == before


small = st.one_of(
    st.integers(-30, 120),
    st.floats(-30, 120, width=32),
    st.sampled_from([None, "a", float("nan"), True]),
)
boxes = st.one_of(
    st.none(),
    st.lists(small, min_size=3, max_size=5),
    st.lists(st.integers(-10, 100), min_size=4, max_size=4),
)
polygons = st.lists(st.lists(st.one_of(st.integers(0, 80), small), max_size=10), max_size=3)
runs = st.sampled_from(
    [
        EMPTY,
        {"counts": [5]},
        {"size": [1, 1], "counts": [1]},
        rle.encode(np.eye(HEIGHT, WIDTH, dtype=bool)),
    ]
)
entries = st.fixed_dictionaries(
    {
        "bbox": boxes,
        "segmentation": st.one_of(
            st.none(), polygons, runs, st.lists(st.integers(0, 50), max_size=8)
        ),
    },
    optional={
        "id": st.one_of(st.none(), st.integers(0, 8)),
        "category_id": st.sampled_from([9, 4, 0, 77]),
        "keypoints": st.lists(st.integers(-5, 90), max_size=9),
        "num_keypoints": st.integers(0, 4),
        "area": small,
    },
)
FIXABLE = {
    "box reaches beyond the image",
    "polygon without area",
    "empty mask",
    "keypoint outside the image",
    "num_keypoints is wrong",
    "annotation given twice",
    "annotation id used twice",
    "annotation with id 0",
    "annotation without id",
    "box without area, but a mask",
    "object without area",
}


@given(st.lists(entries, max_size=4))
@example(
    [{"bbox": [0, 0, 0], "segmentation": [[0, 0, 0, 0, 0, 0, 0, 1, 1, -2]]}]
)  # a mask that reaches beyond the image
@example(
    [{"bbox": [0, 0, 0], "segmentation": [[0, 0, 0, 0, 0, 0, 0, 0, 1, -1]]}]
)  # one that lies outside
@settings(max_examples=60, deadline=None)
def test_fixable_problems_are_gone_and_a_second_run_changes_nothing(
    drawn: list[dict[str, Any]],
):
    result = fixed(with_entries(*drawn))
    unusable = {p.where for p in result.remaining if p.is_error}
    assert not {p.kind for p in result.remaining if p.where not in unusable} & FIXABLE
    again = fixed(result.content)
    assert not again.changes
    assert repr(again.content) == repr(result.content)  # nan is not equal to itself
