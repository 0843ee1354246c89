"""`--fix` never corrects against a reference that is itself wrong, and makes nothing worse."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.annotations import rle
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.problems import DataWarning, Problem
from maskrcnn.cli import run
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.dataset_checks.check_report import CheckReport
from maskrcnn.dataset_checks.fix_dataset import FixedDataset, fix_dataset

ANNOTATED = (80, 100)
EXIF_ORIENTATION = 0x0112
Objects = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


def polygon(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    return {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}


def box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    return {"bbox": [x, y, width, height]}


def mask_of(height: int, width: int) -> dict[str, Any]:
    return {"segmentation": rle.encode(np.eye(height, width, dtype=bool))}


def content(objects: Objects, size: tuple[int | None, int | None] = ANNOTATED) -> dict[str, Any]:
    entries = [
        {"id": n + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **o}
        for n, o in enumerate(objects)
    ]
    image = {"id": 1, "file_name": "a.png", "width": size[1], "height": size[0]}
    return {
        "images": [{key: value for key, value in image.items() if value is not None}],
        "annotations": entries,
        "categories": [{"id": 1, "name": "p", "keypoints": ["a", "b"]}],
    }


def fix_file(folder: Path, data: dict[str, Any]) -> CheckReport:
    (folder / "in.json").write_text(json.dumps(data))
    return check_dataset(folder / "in.json", folder, fix=folder / "fixed.json", progress=False)


def write_image(folder: Path, height: int, width: int, orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.new("RGB", (width, height)).save(folder / "a.png", exif=exif)


def test_annotations_of_the_upright_image_set_its_size_and_nothing_else_is_touched(shared: Path):
    folder = shared / "cases" / "fix_damages_exif_sizes"
    if not folder.is_dir():
        pytest.skip("no such case")
    given_content = json.loads((folder / "exif.json").read_text())
    fixed = check_dataset(folder / "exif.json", folder, progress=False)
    result = fix_dataset(fixed.data)
    wanted = copy.deepcopy(given_content)
    wanted["images"][0] |= {"width": 80, "height": 100}
    assert result.content == wanted
    assert [p.kind for p in result.changes] == ["image size mismatch"]
    assert result.remaining == []


# name: (annotated size, stored size of the file, EXIF orientation, objects, right size or None)
LOW = box(10, 60, 40, 38)
SIZES: dict[str, tuple[Any, tuple[int, int], int, Objects, tuple[int, int] | None]] = {
    "EXIF, objects fit the upright image": (ANNOTATED, (80, 100), 6, [LOW], (100, 80)),
    "EXIF, a polygon proves it": (ANNOTATED, (80, 100), 8, [polygon(5, 70, 30, 99)], (100, 80)),
    "EXIF, a keypoint proves it": (
        ANNOTATED,
        (80, 100),
        6,
        [{"keypoints": [20, 70, 2, 30, 95, 1]}],
        (100, 80),
    ),
    "EXIF, an unlabeled keypoint proves nothing": (
        ANNOTATED,
        (80, 100),
        6,
        [{"keypoints": [20, 70, 2, 30, 95, 0]}],
        None,
    ),
    "EXIF, an RLE proves it": (ANNOTATED, (80, 100), 6, [mask_of(100, 80)], (100, 80)),
    "EXIF, objects fit the stored image": (ANNOTATED, (80, 100), 6, [box(60, 10, 38, 40)], None),
    "EXIF, objects fit both": (ANNOTATED, (80, 100), 6, [box(10, 10, 30, 30)], None),
    "EXIF, a box drawn a little over the edge": (
        ANNOTATED,
        (80, 100),
        6,
        [box(5, 52, 9, 31)],
        None,
    ),
    "EXIF, objects contradict each other": (
        ANNOTATED,
        (80, 100),
        6,
        [LOW, box(60, 10, 38, 40)],
        None,
    ),
    "EXIF, corners that reach beyond if read as sides": (
        ANNOTATED,
        (80, 100),
        6,
        [box(10, 40, 50, 58)],
        None,
    ),
    "sides exchanged, no EXIF": (ANNOTATED, (100, 80), 1, [LOW], (100, 80)),
    "a copy of half the size, objects fit the original": (ANNOTATED, (40, 50), 1, [LOW], None),
    "a copy of twice the size, an object over the edge": (
        ANNOTATED,
        (160, 200),
        1,
        [box(70, 10, 50, 30)],
        None,
    ),
    "annotated at twice the size, an object outside": (
        ANNOTATED,
        (160, 200),
        1,
        [box(120, 90, 30, 30)],
        (160, 200),
    ),
    "RLEs of the old size": (ANNOTATED, (160, 200), 1, [mask_of(80, 100)], None),
    "RLEs of both sizes": (
        ANNOTATED,
        (160, 200),
        1,
        [mask_of(80, 100), mask_of(160, 200)],
        None,
    ),
    "no objects": (ANNOTATED, (100, 80), 1, [], None),
    "no size": ((None, None), (80, 100), 1, [box(60, 10, 38, 40)], (80, 100)),
    "no size, objects beyond the file": (
        (None, None),
        (80, 100),
        1,
        [LOW, box(9, 9, 150, 9)],
        None,
    ),
    "no size, an RLE of another": ((None, None), (80, 100), 1, [mask_of(100, 80)], None),
    "one side, which is another": ((80, None), (100, 80), 1, [LOW], None),
    "one side, which agrees": ((None, 80), (100, 80), 1, [LOW], (100, 80)),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_corrected_only_where_the_objects_prove_it(name: str, tmp_path: Path):
    size, stored, orientation, objects, right = SIZES[name]
    write_image(tmp_path, *stored, orientation)
    data = content(objects, size)
    fixed = fix_file(tmp_path, data).fixed
    assert fixed is not None
    wanted = copy.deepcopy(data)
    if right is not None:
        wanted["images"][0] |= {"height": right[0], "width": right[1]}
    assert fixed.content == wanted
    assert len(fixed.changes) == (right is not None)
    assert any(p.image == 0 and p.is_error for p in fixed.remaining) == (right is None)


BEYOND = {"bbox": [60, 10, 90, 40], "keypoints": [150, 20, 2, 70, 20, 2], "num_keypoints": 2}


@pytest.mark.parametrize("state", ["missing", "broken", "another size", "id used twice"])
def test_nothing_is_fixed_against_an_image_that_is_wrong(state: str, tmp_path: Path):
    write_image(tmp_path, *((33, 44) if state == "another size" else ANNOTATED))
    data = content([BEYOND])
    data["images"].append({"id": 2, "file_name": "b.png", "width": 100, "height": 80})
    Image.new("RGB", (100, 80)).save(tmp_path / "b.png")
    if state == "missing":
        (tmp_path / "a.png").unlink()
    if state == "broken":
        (tmp_path / "a.png").write_bytes(b"no image")
    if state == "id used twice":
        data["images"][1] |= {"id": 1, "width": 200, "height": 160}
        Image.new("RGB", (200, 160)).save(tmp_path / "b.png")
    fixed = fix_file(tmp_path, data).fixed
    assert fixed is not None
    assert fixed.content == data
    assert fixed.changes == []
    assert any(p.is_error for p in fixed.remaining)


def test_boxes_are_not_read_as_corners_because_of_sizes_that_are_wrong(tmp_path: Path):
    write_image(tmp_path, 120, 120)
    objects = [box(n, n, 80, 80) for n in range(1, 31)]  # in an entry of 85 x 85 they look it
    data = content(objects, (85, 85))
    report = fix_file(tmp_path, data)
    assert "boxes are x0, y0, x1, y1" not in {p.kind for p in report.problems}
    assert report.fixed is not None
    assert report.fixed.content == data


TRIANGLE = [10, 10, 40, 10, 40, 30]
SQUARE_RLE = rle.encode(np.pad(np.ones((20, 20), bool), ((10, 50), (10, 70))))
POINTS = [[10, 10], [40, 10], [40, 30]]
FORMATS: dict[str, tuple[Any, Any]] = {
    "an RLE without size in a list": ([{"counts": SQUARE_RLE["counts"]}], SQUARE_RLE),
    "points as pairs": (POINTS, [TRIANGLE]),
    "polygons of pairs": ([POINTS, POINTS], [TRIANGLE, TRIANGLE]),
    "a polygon of pairs beside a flat one": ([POINTS, TRIANGLE], [TRIANGLE, TRIANGLE]),
    "points as objects": ([[{"x": x, "y": y} for x, y in POINTS]], [TRIANGLE]),
    "a flat list": (TRIANGLE, [TRIANGLE]),
    "an RLE as JSON text": (json.dumps(SQUARE_RLE), SQUARE_RLE),
    "polygons as JSON text": (json.dumps([TRIANGLE]), [TRIANGLE]),
    "points as JSON text": (json.dumps(POINTS), [TRIANGLE]),
    "the counts of an RLE": (SQUARE_RLE["counts"], SQUARE_RLE),
    "any other text": ("a mask", None),
    "text that nests without end": ("[" * 100_000, None),
    "RLEs of two sizes": ([SQUARE_RLE, {"size": [4, 4], "counts": [8, 8]}], None),
    "pairs outside the image": ([[500, 500], [540, 500], [540, 530]], None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_masks_in_other_notations_are_rewritten_or_reported(name: str):
    mask, wanted = FORMATS[name]
    data = content([{"segmentation": mask}])
    report = check_dataset(data, progress=False)
    assert {p.annotation for p in report.errors} == {0}
    fixed = fix_dataset(report.data)
    after = fixed.content["annotations"][0]["segmentation"]
    assert after == (mask if wanted is None else wanted)
    assert bool(fixed.changes) == (wanted is not None)
    assert bool(fixed.remaining) == (wanted is None)


@pytest.mark.parametrize("area", [float("nan"), "large", -3])
def test_an_area_that_is_none_is_replaced_or_removed(area: Any):
    objects = [
        box(10, 10, 20, 10) | {"area": area},
        {"keypoints": [9, 9, 2, 0, 0, 0], "area": area},
    ]
    fixed = fix_dataset(check_dataset(content(objects), progress=False).data)
    assert [a.get("area") for a in fixed.content["annotations"]] == [200, None]
    assert len(fixed.changes) == 2
    assert fixed.remaining == []


def test_a_keypoint_stays_in_the_box_that_is_fixed():
    mask = polygon(20, 20, 40, 30)
    keypoints = {"keypoints": [60, 40, 2, 0, 0, 0]}
    fixed = fix_dataset(check_dataset(content([box(20, 20, 0, 9) | mask | keypoints])).data)
    assert "bbox" not in fixed.content["annotations"][0]
    assert fixed.remaining == []


def test_the_data_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path, 100, 80)
    opened: list[str] = []
    init = CocoDataset.__init__

    def counted(self: CocoDataset, *args: Any, **options: Any) -> None:
        opened.append("data")
        init(self, *args, **options)

    monkeypatch.setattr(CocoDataset, "__init__", counted)
    objects = [LOW | {"id": 0}, box(-5, 10, 20, 10), LOW | {"id": 0}]
    report = fix_file(tmp_path, content(objects))
    assert report.fixed is not None
    assert {p.kind for p in report.fixed.changes} >= {
        "image size mismatch",
        "annotation given twice",
        "annotation with id 0",
    }
    assert opened == ["data"]


def test_no_val_and_val_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["check", str(tmp_path), "--val", "b.json", "--no-val"]) == 2
    assert "--val and --no-val cannot be combined" in capsys.readouterr().err


# Properties. Objects are drawn around the edges of the sizes in play.
number = st.sampled_from([-9, 0, 5, 20, 40, 60, 79, 80, 84, 95, 100, 104, 150])
length = st.sampled_from([-5, 0, 1, 10, 20, 40, 60, 80, 95])
points = st.lists(st.tuples(number, number).map(list), min_size=2, max_size=5)
masks = st.one_of(
    st.none(),
    points,
    points.map(lambda pairs: [[v for pair in pairs for v in pair]]),
    points.map(lambda pairs: [v for pair in pairs for v in pair]),
    st.sampled_from([mask_of(80, 100), mask_of(100, 80), mask_of(40, 50)]).map(
        lambda entry: entry["segmentation"]
    ),
    st.sampled_from([[SQUARE_RLE], json.dumps(POINTS), {"counts": [8000]}, [POINTS], "text"]),
)
drawn_objects = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "bbox": st.tuples(number, number, length, length).map(list),
            "segmentation": masks,
            "keypoints": st.tuples(
                number, number, st.integers(0, 2), number, number, st.integers(0, 3)
            ).map(list),
            "num_keypoints": st.integers(0, 3),
            "area": st.sampled_from([0, 100, 5000, -1, float("nan"), "400"]),
            "id": st.sampled_from([0, 1, 7, None]),
        },
    ),
    max_size=4,
)
drawn_sizes = st.sampled_from([ANNOTATED, (100, 80), (40, 50), (None, None), (80, None)])
FILES = {"same": (80, 100, 1), "turned": (80, 100, 6), "twice": (160, 200, 1), "none": None}


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FILES}
    for name, file in FILES.items():
        if file is not None:
            write_image(folders[name], *file)
    return folders


def opened(data: dict[str, Any], folder: Path) -> CocoDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return CocoDataset(data, folder, on_error="drop")


def kinds(data: CocoDataset, is_error: bool) -> dict[Any, set[str]]:
    """The kinds of problems of each annotation, by its mark, and of the image."""
    found: dict[Any, set[str]] = {}
    for p in (*data.dropped, *data.warnings):
        if p.is_error == is_error:
            raw = None if p.annotation is None else data.raw["annotations"][p.annotation]
            found.setdefault(raw and raw["mark"], set()).add(p.kind)
    return found


@given(drawn_objects, drawn_sizes, st.sampled_from(sorted(FILES)))
@settings(max_examples=150, deadline=None)
def test_whatever_is_drawn_fixing_makes_nothing_worse(
    image_folders: dict[str, Path], objects: Objects, size: Any, file: str
):
    data = content([{**o, "mark": n} for n, o in enumerate(objects)], size)
    folder = image_folders[file]
    before = opened(copy.deepcopy(data), folder)
    fixed: FixedDataset = fix_dataset(before)
    after = opened(copy.deepcopy(fixed.content), folder)

    # No new error, and no new warning on what could be checked before. Without an
    # id, or a size of the image, nothing could. Boxes that are equal within the image are found to be so.
    old_errors = kinds(before, True)
    old_warnings = kinds(before, False)
    if "image without size" not in old_errors.get(None, set()):
        for mark, found in kinds(after, True).items():
            unread = "annotation without id" in old_errors.get(mark, set())
            assert unread or found <= old_errors.get(mark, set())
        for mark, found in kinds(after, False).items():
            new = found - old_warnings.get(mark, set()) - {"same box used twice"}
            assert mark in old_errors or not new

    # no annotation that was right has moved: without a problem it is as it was
    kept = {a["mark"]: a for a in fixed.content["annotations"]}
    wrong = old_errors.keys() | old_warnings.keys()
    for raw in before.raw["annotations"]:
        if raw["mark"] not in wrong and None not in old_errors:
            assert repr(kept.get(raw["mark"])) == repr(raw)

    # every change is in the report, and what it names has changed
    assert bool(fixed.changes) == (repr(fixed.content) != repr(dict(before.raw)))
    for raw in before.raw["annotations"]:
        entry = kept.get(raw["mark"])
        if repr(entry) != repr(raw):
            names = {f"annotation {raw.get('id')}"} | (
                {f"annotation {entry['id']}"} if entry else set()
            )
            assert any(p.where.split(" (")[0] in names for p in fixed.changes)

    # a second time changes nothing, and check finds the problems that remain
    assert fix_dataset(after).changes == []
    found = [
        p for p in (*after.dropped, *after.warnings) if (p.annotation, p.image) != (None, None)
    ]
    assert sorted(map(place, fixed.remaining)) == sorted(map(place, found))


@given(drawn_objects, drawn_sizes, st.sampled_from(sorted(FILES)), st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_validation_data_are_fixed_as_they_would_be_alone(
    image_folders: dict[str, Path], objects: Objects, size: Any, file: str, category: int
):
    """In the categories of the training data, of which the second may lack objects' own."""
    data = content([{**o, "category_id": category} for o in objects], size)
    data["categories"].append({"id": 2, "name": "only in validation"})
    alone = fix_dataset(opened(copy.deepcopy(data), image_folders[file]))
    report = check_dataset(
        content([LOW]),
        val=data,
        val_images=image_folders[file],
        decode_images=False,
        fix=image_folders[file].parent / "fixed.json",
    )
    assert report.validation is not None
    fixed = report.validation.fixed
    assert fixed is not None
    assert repr(fixed.content) == repr(alone.content)
    assert fixed.changes == alone.changes
    again = check_dataset(
        content([LOW]),
        val=fixed.content,
        val_images=image_folders[file],
        decode_images=False,
        fix=image_folders[file].parent / "fixed.json",
    )
    assert again.validation is not None
    assert again.validation.fixed is not None
    assert again.validation.fixed.changes == []
    written = json.loads((image_folders[file].parent / "fixed_val.json").read_text())
    assert repr(written) == repr(json.loads(json.dumps(fixed.content)))


def place(problem: Problem) -> tuple[str, str]:
    return problem.kind, f"{problem.annotation} {problem.image}"
