"""Random objects written in each format and read again: pixels, keypoints and groups survive,
or the loss is reported.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.contours import fill
from maskrcnn.formats.convert import write_all
from maskrcnn.formats.reading import Annotated

WIDTH, HEIGHT = 21, 17
KEYPOINTS = ["nose", "left_hand", "right_hand"]
FORMATS = ("coco", "yolo-seg", "labelme", "via", "cvat", "voc", "png", "png-each")
WITH_KEYPOINTS = ("coco", "yolo-pose", "labelme", "via", "cvat")
IGNORES = ("coco", "labelme", "via", "cvat", "voc", "png", "png-each")

EXAMPLES = settings(
    deadline=None, max_examples=8, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
seeds = st.integers(0, 2**32 - 1)


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Speckles with holes and parts, fine or coarse, never empty."""
    grain = int(rng.integers(1, 5))
    small = rng.random((HEIGHT, WIDTH)) < rng.uniform(0.05, 0.95)
    mask = np.kron(small, np.ones((grain, grain), bool))[:HEIGHT, :WIDTH]
    mask[rng.integers(HEIGHT), rng.integers(WIDTH)] = True
    return mask


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("a.png", "sub/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (WIDTH, HEIGHT), 77).save(folder / name)
    return folder


def content(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Two images with alternating objects; the second category has no keypoints."""
    images = [
        {"id": 5 + n, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for n, name in enumerate(("a.png", "sub/b.png"))
    ]
    entries = [
        {"id": n, "image_id": 5 + (n - 1) % 2, "category_id": 3, "iscrowd": 0} | a
        for n, a in enumerate(annotations, start=1)
    ]
    categories = [
        {"id": 3, "name": "person", "keypoints": KEYPOINTS, "skeleton": [[1, 2], [1, 3]]},
        {"id": 8, "name": "ball"},
    ]
    return {"images": images, "annotations": entries, "categories": categories}


def written(
    annotations: list[dict[str, Any]], format_name: str, folder: Path, images: Path
) -> tuple[mr.CocoDataset, str]:
    """The annotations that are read back, and the reported losses."""
    before = Annotated(content(annotations), images, "before")
    losses = write_all({"": before}, folder / "out", format_name)
    return mr.load_dataset(folder / "out"), str(losses)


def by_image(data: mr.CocoDataset) -> list[list[Any]]:
    records = sorted(
        (data[i] for i in range(len(data))), key=lambda record: Path(record.file_name).name
    )
    assert [Path(r.file_name).name for r in records] == ["a.png", "b.png"]
    return [list(r.annotations) for r in records]


def pixels(annotation: Any) -> str:
    encoded = annotation.rle or fill(annotation.polygons, (HEIGHT, WIDTH))
    return rle.encode(rle.decode(encoded))["counts"]


@pytest.mark.parametrize("format_name", FORMATS)
@EXAMPLES
@given(seed=seeds)
def test_masks_with_holes_and_parts_keep_every_pixel(format_name: str, seed: int, images: Path):
    rng = np.random.default_rng(seed)
    objects = [(random_mask(rng), int(rng.choice([3, 8]))) for _ in range(rng.integers(1, 6))]
    if format_name in (
        "voc",
        "png",
    ):  # one object per pixel: each keeps the pixels in its own part of the image
        owner = rng.integers(0, 3, (2, HEIGHT, WIDTH))
        owner[:, :3, 0] = range(3)
        for n, (mask, _) in enumerate(objects):
            mask[n // 2, 0] = True
            mask &= owner[n % 2] == n // 2
    with TemporaryDirectory() as folder:
        annotations = [
            {"segmentation": rle.encode(mask), "category_id": category}
            for mask, category in objects
        ]
        data, lost = written(annotations, format_name, Path(folder), images)
        again = by_image(data)
        for n, (mask, category) in enumerate(objects):
            annotation = again[n % 2][n // 2]
            assert pixels(annotation) == rle.encode(mask)["counts"]
            assert data.categories[annotation.label].name == {3: "person", 8: "ball"}[category]
    assert not lost or "limbs" in lost


@pytest.mark.parametrize("format_name", FORMATS)
@EXAMPLES
@given(seed=seeds)
def test_polygons_that_cross_and_overlap_keep_every_pixel(
    format_name: str, seed: int, images: Path
):
    rng = np.random.default_rng(seed)
    parts = [
        rng.uniform(0, 17, 2 * rng.integers(3, 8)).round(rng.integers(0, 3)).tolist()
        for _ in range(rng.integers(1, 4))
    ]
    whole = fill([np.array(p).reshape(-1, 2) for p in parts], (HEIGHT, WIDTH))
    if rle.area(whole) == 0 or any(np.ptp(p[0::2]) == 0 or np.ptp(p[1::2]) == 0 for p in parts):
        return
    with TemporaryDirectory() as folder:
        data, _ = written([{"segmentation": parts}], format_name, Path(folder), images)
        ((annotation,), _) = by_image(data)
    assert pixels(annotation) == whole["counts"]


@pytest.mark.parametrize("format_name", WITH_KEYPOINTS)
@EXAMPLES
@given(seed=seeds)
def test_keypoints_keep_position_visibility_and_object(format_name: str, seed: int, images: Path):
    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(rng.integers(1, 5)):
        points = np.stack(
            [rng.integers(0, WIDTH, 3), rng.integers(0, HEIGHT, 3), rng.integers(0, 3, 3)], axis=1
        ).tolist()
        objects.append(
            (
                points,
                [
                    *rng.uniform(0, 16, 2).round(2).tolist(),
                    *rng.uniform(0.5, 5, 2).round(2).tolist(),
                ],
                bool(rng.integers(2)),
            )
        )
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:6, 4:9], mask[10:12, 2:5] = True, True
    annotations: list[dict[str, Any]] = []
    for points, box, masked in objects:
        values = [v for x, y, s in points for v in ((x, y, s) if s else (0, 0, 0))]
        annotations.append(
            {"keypoints": values, "bbox": box}
            | ({"segmentation": rle.encode(mask)} if masked else {})
        )
    with TemporaryDirectory() as folder:
        data, lost = written(annotations, format_name, Path(folder), images)
        again = by_image(data)
    kept = {c.name: c for c in data.categories}
    for n, (raw, (_, box, masked)) in enumerate(zip(annotations, objects, strict=True)):
        annotation = again[n % 2][n // 2]
        expected = np.array(raw["keypoints"], dtype=float).reshape(-1, 3)
        expected[:, :2] += 0.5 * (expected[:, 2:] > 0)
        points = np.zeros((3, 3)) if annotation.keypoints is None else annotation.keypoints
        names = kept["person"].keypoints
        placed = [
            points[names.index(j)].tolist()
            if annotation.keypoints is not None and j in names
            else [0, 0, 0]
            for j in KEYPOINTS
        ]
        assert np.allclose(placed, expected, atol=2e-6)
        x0, y0, w, h = box
        assert annotation.box == pytest.approx(
            (x0, y0, min(x0 + w, WIDTH), min(y0 + h, HEIGHT)), abs=1e-5
        )
        if masked and format_name != "yolo-pose":
            assert pixels(annotation) == rle.encode(mask)["counts"]
    assert ("masks" in lost) == (format_name == "yolo-pose" and any(m for _, _, m in objects))
    if format_name in ("coco", "cvat"):
        assert kept["person"].skeleton == ((0, 1), (0, 2))
    else:
        assert "limbs of skeletons" in lost


@pytest.mark.parametrize("format_name", ["coco", "labelme", "via", "cvat"])
def test_objects_with_keypoints_alone_get_no_box(format_name: str, images: Path, tmp_path: Path):
    data, _ = written([{"keypoints": [3, 4, 2, 0, 0, 0, 9, 9, 1]}], format_name, tmp_path, images)
    ((annotation,), _) = by_image(data)
    assert annotation.box is None
    assert annotation.polygons is annotation.rle is None
    assert data.categories[annotation.label].name == "person"
    assert sorted(annotation.keypoints.tolist()) == [
        [0, 0, 0],
        [3.5, 4.5, 2],
        [9.5, 9.5, 1],
    ] or format_name in ("labelme", "via")


@pytest.mark.parametrize("format_name", IGNORES)
def test_regions_to_ignore_stay_ignored(format_name: str, images: Path, tmp_path: Path):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:6, 4:9] = True
    data, _ = written(
        [{"segmentation": rle.encode(mask), "iscrowd": 1, "category_id": 8}],
        format_name,
        tmp_path,
        images,
    )
    assert [a.ignore for a in by_image(data)[0]] == [True]


@pytest.mark.parametrize("format_name", ["coco", "labelme", "via", "cvat", "voc", "yolo-seg"])
def test_boxes_alone_stay_boxes(format_name: str, images: Path, tmp_path: Path):
    data, lost = written(
        [{"bbox": [2.25, 3, 7.5, 9], "category_id": 8}], format_name, tmp_path, images
    )
    ((annotation,), _) = by_image(data)
    assert annotation.box == pytest.approx((2.25, 3, 9.75, 12), abs=1e-6)
    assert annotation.polygons is annotation.rle is None
    assert not lost or "limbs" in lost


@pytest.mark.parametrize(
    ("format_name", "annotation", "message"),
    [
        (
            "yolo-seg",
            {"segmentation": [[1, 1, 9, 1, 9, 9]], "keypoints": [3, 4, 2, 0, 0, 0, 9, 9, 1]},
            "keypoints (1): annotation 1 (a.png)",
        ),
        (
            "yolo-seg",
            {"segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 1},
            "regions to ignore, left out (1): annotation 1",
        ),
        ("yolo-seg", {"keypoints": [3, 4, 2, 0, 0, 0, 9, 9, 1]}, "neither mask nor box, left out"),
        (
            "yolo-pose",
            {"keypoints": [3, 4, 2, 0, 0, 0, 9, 9, 1]},
            "the box around their keypoints (1)",
        ),
        ("yolo-pose", {"segmentation": [[1, 1, 9, 1, 9, 9]]}, "masks (1)"),
        ("voc", {"bbox": [1, 1, 5, 5], "keypoints": [3, 4, 2, 0, 0, 0, 9, 9, 1]}, "keypoints (1)"),
        ("png", {"bbox": [1, 1, 5, 5]}, "objects without a mask, left out (1)"),
        (
            "png",
            {"segmentation": [[1, 1, 9, 1, 9, 9]], "bbox": [1, 1, 3, 3]},
            "boxes that differ from the one around the mask (1)",
        ),
        ("labelme", {"bbox": [1, 1, 5, 5]}, "limbs of skeletons (1): person"),
        ("via", {"bbox": [1, 1, 5, 5]}, "limbs of skeletons (1): person"),
    ],
)
def test_losses_are_reported(
    format_name: str, annotation: dict[str, Any], message: str, images: Path, tmp_path: Path
):
    losses = write_all(
        {"": Annotated(content([annotation]), images, "before")}, tmp_path / "out", format_name
    )
    assert message in str(losses)


def test_yolo_writes_a_lone_box_among_masks_as_a_rectangle_and_reports_it(
    images: Path, tmp_path: Path
):
    annotations = [{"segmentation": [[1, 1, 9, 1, 9, 9]]}, {"bbox": [2, 3, 7, 9], "category_id": 8}]
    data, lost = written(annotations, "yolo-seg", tmp_path, images)
    assert "boxes without a mask, written as rectangles (1): annotation 2" in lost
    assert by_image(data)[1][0].polygons[0].tolist() == [[2, 3], [9, 3], [9, 12], [2, 12]]


@pytest.mark.parametrize("format_name", ["voc", "png"])
def test_where_objects_overlap_the_smaller_is_whole_and_the_loss_is_reported(
    format_name: str, images: Path, tmp_path: Path
):
    large, small = np.zeros((2, HEIGHT, WIDTH), bool)
    large[2:12, 2:12], small[3:6, 4:9] = True, True
    annotations = [
        {"segmentation": rle.encode(m)}
        for m in (small, small * False + np.eye(HEIGHT, WIDTH, dtype=bool), large)
    ]
    data, lost = written(annotations, format_name, tmp_path, images)
    assert "pixels covered by other objects (1)" in lost
    first, second = by_image(data)[0]
    assert pixels(first) == rle.encode(small)["counts"]
    assert pixels(second) == rle.encode(large & ~small)["counts"]


@pytest.mark.parametrize("format_name", ["voc", "png"])
@pytest.mark.parametrize("count", [254, 255, 256, 357])
def test_hundreds_of_objects_in_an_image(
    format_name: str, count: int, images: Path, tmp_path: Path
):
    ids = np.zeros(HEIGHT * WIDTH, int)
    ids[:count] = np.arange(1, count + 1)
    annotations = [
        {"segmentation": rle.encode((ids == n).reshape(HEIGHT, WIDTH)), "image_id": 5}
        for n in range(1, count + 1)
    ]
    data, lost = written(annotations, format_name, tmp_path, images)
    objects = by_image(data)[0]
    assert [pixels(a) for a in objects] == [a["segmentation"]["counts"] for a in annotations]
    assert ("16 bits" in lost) == (format_name == "voc" and count > 254)


@pytest.mark.parametrize("format_name", ["labelme", "via", "cvat", "yolo-seg"])
def test_simplified_polygons_are_polygons_with_few_points(format_name: str, tmp_path: Path):
    Image.new("L", (200, 150)).save(tmp_path / "a.png")
    y, x = np.mgrid[:150, :200]
    mask = ((x - 90) / 60) ** 2 + ((y - 70) / 40) ** 2 < 1
    image = {"id": 1, "file_name": "a.png", "height": 150, "width": 200}
    raw = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": rle.encode(mask),
        "score": 0.75,
    }
    annotated = Annotated(
        {"images": [image], "annotations": [raw], "categories": [{"id": 1, "name": "cell"}]},
        tmp_path,
        "before",
    )
    write_all({"": annotated}, tmp_path / "out", format_name, simplify=1.0)
    (annotation,) = mr.load_dataset(tmp_path / "out")[0].annotations
    assert len(annotation.polygons or ()) == 1
    assert len(annotation.polygons[0]) < 40  # ty: ignore[not-subscriptable]
    again = rle.decode(fill(annotation.polygons or (), (150, 200)))
    assert (again & mask).sum() / (again | mask).sum() > 0.97
    files = [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".json", ".xml")]
    assert format_name == "yolo-seg" or any("0.75" in p.read_text() for p in files)
