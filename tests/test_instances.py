from __future__ import annotations

import io
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.annotations.contours import fill
from maskrcnn.config import Category
from maskrcnn.instances import Instances, Masks

CATEGORIES = (
    Category("stone", 7),
    Category("fly", 3, keypoints=("head", "tail"), skeleton=((0, 1),)),
)
SIZE = (40, 60)


def make_instances(count: int = 4, seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([low, low + 3 + torch.rand(count, 2, generator=generator) * 15], dim=1)
    keypoints = torch.rand(count, 2, 3, generator=generator) * torch.tensor([60, 40, 1])
    return Instances(
        size=SIZE,
        boxes=boxes,
        scores=torch.linspace(0.9, 0.3, count),
        labels=torch.arange(count) % 2,
        categories=CATEGORIES,
        mask_grids=torch.rand(count, 7, 7, generator=generator),
        keypoints=keypoints,
        keypoint_logits=keypoints.sum(dim=-1),
        image_id=5,
        file_name="a/b.png",
    )


def test_dense_masks_rle_and_areas_agree() -> None:
    masks = make_instances().masks
    dense = masks.dense()
    assert dense.shape == (4, *SIZE)
    assert dense.dtype == torch.bool
    assert dense.any()
    assert masks.area().tolist() == dense.sum(dim=(1, 2)).tolist()
    for rle, mask in zip(masks.rle(), dense.numpy(), strict=True):
        want = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(SIZE), "counts": want["counts"].decode()}


def test_coco_results_have_every_field_in_cocos_convention() -> None:
    instances = make_instances()
    results = instances.to_coco()
    for n, entry in enumerate(results):
        x0, y0, x1, y1 = instances.boxes[n].tolist()
        assert entry["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3)
        assert (entry["image_id"], entry["file_name"], entry["category_id"]) == (
            5,
            "a/b.png",
            [7, 3][n % 2],
        )
        assert entry["score"] == pytest.approx(float(instances.scores[n]))
        assert coco_mask.area(entry["segmentation"]) == instances.masks.area()[n]
        if n % 2:
            assert instances.keypoints is not None
            want = instances.keypoints[n] - torch.tensor([0.5, 0.5, 0])
            assert entry["keypoints"] == pytest.approx(want.flatten().tolist(), abs=1e-3)
        else:
            assert "keypoints" not in entry
    assert instances.to_coco(image_id=9)[0]["image_id"] == 9


def test_coco_results_of_an_array_have_the_id_1() -> None:
    results = replace(make_instances(), image_id=None).to_coco()
    assert {result["image_id"] for result in results} == {1}
    assert replace(make_instances(), image_id=0).to_coco()[0]["image_id"] == 0


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [3]),
        (slice(1, None), [1, 2, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (np.array([2, 0]), [2, 0]),
        ([], []),
        (torch.tensor(2), [2]),
        (torch.zeros(4, dtype=torch.bool), []),
        ([True, False, True, False], [0, 2]),
        (np.array([3, -4], dtype=np.int16), [3, 0]),
        (np.int64(-1), [3]),
    ],
)
def test_indexing_takes_the_same_rows_of_everything(index: object, rows: list[int]) -> None:
    instances = make_instances()
    part = instances[index]  # ty: ignore[invalid-argument-type]
    assert len(part) == len(rows)
    for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits"):
        assert torch.equal(getattr(part, name), getattr(instances, name)[rows])
    assert part.masks.dense().shape == (len(rows), *SIZE)


def test_an_index_beyond_the_objects_is_an_error_and_iteration_ends() -> None:
    with pytest.raises(IndexError, match="index 4 is out of range for 4 objects"):
        make_instances()[4]
    assert [len(one) for one in make_instances()] == [1, 1, 1, 1]


def test_names_and_text_list_the_objects() -> None:
    assert make_instances(3).names.tolist() == ["stone", "fly", "stone"]
    assert repr(make_instances(3)) == "Instances(a/b.png, 40x60: 2 stone, 1 fly)"
    assert "no objects" in repr(make_instances(0))


def test_a_missing_mask_head_or_image_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="no mask head"):
        _ = replace(make_instances(), mask_grids=None).masks
    with pytest.raises(ValueError, match="carry no image"):
        make_instances().save(tmp_path / "a.png")


def test_supervision_gets_everything_or_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'maskrcnn\[supervision\]'"):
        make_instances().to_supervision()
    monkeypatch.setitem(
        sys.modules, "supervision", SimpleNamespace(Detections=lambda **fields: fields)
    )
    fields = make_instances().to_supervision()
    assert fields["xyxy"].shape == (4, 4)
    assert fields["mask"].shape == (4, *SIZE)
    assert fields["mask"].dtype == bool
    assert fields["data"]["class_name"].tolist() == ["stone", "fly", "stone", "fly"]


def test_a_saved_overlay_of_a_file_reads_the_file_again(tmp_path) -> None:
    Image.new("RGB", (60, 40), (10, 20, 30)).save(tmp_path / "image.png")
    instances = replace(make_instances(), source=tmp_path / "image.png")
    assert instances.image.shape == (40, 60, 3)
    instances.save(tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (60, 40)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("fly", 'got the text "fly"; to select a category, use filter'),
        (True, "got the single value True; compare an array"),
        (np.bool_(False), "got the single value False; compare an array"),
        (torch.tensor(True), "compare an array"),
        (1.0, "compare an array"),
        (None, "got a NoneType"),
        ([0.9, 0.1], r"got float64 values of shape \[2\]"),
        (torch.tensor([0.2]), "got float32 values"),
        (["fly"], "got texts; to select categories, use filter"),
        ((0, 1), "got a tuple of 2; to select several objects, use a list"),
        ([True, 2], "got a list of both"),
        ([[0], [1, 2]], "got a list"),
        (np.zeros((4, 1), bool), r"got bool values of shape \[4, 1\]"),
        ({0: True}, "got a dict"),
        ({0}, "got a set"),
    ],
)
def test_an_index_that_means_something_else_is_refused(index: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_instances()[index]


def test_a_mask_of_another_length_and_integers_out_of_range_are_refused() -> None:
    with pytest.raises(IndexError, match="expected a mask of 4 booleans, one per object, got 3"):
        make_instances()[[True, False, True]]
    with pytest.raises(IndexError, match="object index -5 is out of range for 4 objects"):
        make_instances()[np.array([0, -5])]


def test_names_compare_by_element_and_select() -> None:
    instances = make_instances(7)
    assert (instances.names == "fly").tolist() == [False, True] * 3 + [False]
    assert instances[instances.names == "fly"].labels.tolist() == [1, 1, 1]
    assert len(instances[instances.names != "fly"]) == 4
    assert make_instances(0).names.shape == (0,)
    assert (make_instances(0).names == "fly").shape == (0,)


def test_filter_selects_by_name_and_score() -> None:
    instances = make_instances(5)  # scores 0.9, 0.75, 0.6, 0.45, 0.3
    assert instances.filter("fly").labels.tolist() == [1, 1]
    assert len(instances.filter(["fly", "stone"])) == len(instances.filter()) == 5
    assert instances.filter(min_score=0.6).scores.tolist() == pytest.approx([0.9, 0.75, 0.6])
    assert len(instances.filter("stone", min_score=0.7)) == 1
    assert len(instances.filter([])) == 0
    with pytest.raises(ValueError, match='unknown category "ston"; did you mean stone'):
        instances.filter("ston")
    with pytest.raises(ValueError, match='unknown category "person"; the model has stone, fly'):
        instances.filter(["fly", "person"])
    for score in (50, -0.1, float("nan")):
        with pytest.raises(ValueError, match="min_score: expected 0 to 1"):
            instances.filter(min_score=score)


def ring() -> Instances:
    """An object with a hole, and one of two parts."""
    grids = torch.ones(2, 9, 9)
    grids[0, 3:6, 3:6] = 0
    grids[1, :, 4] = 0
    boxes = torch.tensor([[2.0, 3, 29, 30], [31, 3, 58, 30]])
    return replace(make_instances(2), boxes=boxes, mask_grids=grids)


def test_polygons_fill_to_the_mask_again() -> None:
    for instances in (make_instances(), ring()):
        for polygons, rle in zip(instances.polygons(), instances.masks.rle(), strict=True):
            together = np.zeros(SIZE, bool)
            for polygon in polygons:
                together ^= coco_mask.decode(as_bytes(fill([polygon], SIZE))).astype(bool)
            assert np.array_equal(together, coco_mask.decode(as_bytes(rle)).astype(bool))


def as_bytes(rle: Any) -> Any:
    return {"size": rle["size"], "counts": rle["counts"].encode()}


def test_polygons_have_holes_and_parts_or_leave_the_holes_out() -> None:
    assert [len(polygons) for polygons in ring().polygons()] == [2, 2]
    assert [len(polygons) for polygons in ring().polygons(holes=False)] == [1, 2]
    assert len(ring().polygons(simplify=2.0)[0][0]) < 20
    with pytest.raises(ValueError, match="simplify: expected 0 or more pixels, got -1"):
        ring().polygons(simplify=-1)


def test_the_label_image_has_the_number_of_the_first_object() -> None:
    instances = make_instances()
    dense = instances.masks.dense().numpy()
    want = np.zeros(SIZE, np.int32)
    for n in reversed(range(4)):
        want[dense[n]] = n + 1
    labels = instances.label_image()
    assert labels.dtype == np.int32
    assert np.array_equal(labels, want)
    assert not make_instances(0).label_image().any()


def with_image(count: int = 4) -> Instances:
    image = np.random.default_rng(0).integers(1, 255, (*SIZE, 3), dtype=np.uint8)
    return replace(make_instances(count), source=image)


def test_crops_are_the_pixels_of_the_box() -> None:
    instances = with_image()
    for crop, box in zip(instances.crops(), instances.boxes.tolist(), strict=True):
        x0, y0 = (int(np.floor(v)) for v in box[:2])
        x1, y1 = (int(np.ceil(v)) for v in box[2:])
        assert np.array_equal(crop, instances.image[y0:y1, x0:x1])
    crops = instances.crops()
    crops[0][:] = 0
    assert instances.image.min() > 0  # the image is not changed


def test_crops_have_a_margin_inside_the_image_and_a_background() -> None:
    instances = replace(with_image(1), boxes=torch.tensor([[0.4, 5.0, 9.6, 12.5]]))
    (crop,) = instances.crops(margin=3)
    assert np.array_equal(crop, instances.image[2:16, 0:13])

    (masked,) = instances.crops(margin=3, background=(0, 0, 0))
    inside = instances.masks.dense()[0].numpy()[2:16, 0:13]
    assert np.array_equal(masked, crop * inside[..., None])
    with pytest.raises(ValueError, match="margin: expected 0 or more"):
        instances.crops(-1)
    assert np.array_equal(instances.crops(3, "black")[0], masked)
    with pytest.raises(ValueError, match='unknown color "blakc"; did you mean black'):
        instances.crops(background="blakc")


@pytest.mark.parametrize("rule", ["border", "grid", "torchvision"])
def test_backgrounds_fit_masks_that_reach_beyond_their_box(rule: Any) -> None:
    instances = replace(with_image(), paste=rule)
    dense = instances.masks.dense().numpy()
    boxes = instances.boxes.tolist()
    for crop, mask, box in zip(instances.crops(background=(0, 0, 0)), dense, boxes, strict=True):
        x0, y0 = (int(np.floor(v)) for v in box[:2])
        inside = mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
        assert np.array_equal(crop.any(axis=2), inside)


def test_a_table_has_a_row_per_object_or_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'maskrcnn\[pandas\]'"):
        make_instances().to_pandas()

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda table: table))
    table = make_instances().to_pandas()
    assert list(table) == [
        *("image_id", "file_name", "category", "category_id", "score", "x0", "y0", "x1", "y1"),
        *("area", "head_x", "head_y", "head_score", "tail_x", "tail_y", "tail_score"),
    ]
    assert {len(column) for column in table.values()} == {4}
    assert table["category_id"] == [7, 3, 7, 3]
    assert np.isnan(table["tail_x"]).tolist() == [True, False, True, False]
    keypoints = make_instances().keypoints
    assert keypoints is not None
    assert table["tail_score"][3] == keypoints[3, 1, 2]
    assert "area" not in replace(make_instances(), mask_grids=None).to_pandas()


def test_a_table_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    table = make_instances().to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.groupby("category").score.count().to_dict() == {"fly": 2, "stone": 2}
    assert len(make_instances(0).to_pandas()) == 0


def test_a_notebook_shows_the_overlay_in_its_size_and_text_without_an_image() -> None:
    png = with_image()._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as overlay:
        assert overlay.size == (60, 40)
    assert make_instances()._repr_png_() is None


def test_a_notebook_shows_text_where_the_file_is_gone(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no overlay: .*gone\.png"):
        assert replace(make_instances(), source=tmp_path / "gone.png")._repr_png_() is None


def test_a_large_overlay_is_shrunk_for_a_notebook() -> None:
    large = replace(make_instances(), size=(20, 4000), source=np.zeros((20, 4000, 3), np.uint8))
    png = large._repr_png_()
    assert png is not None
    with Image.open(io.BytesIO(png)) as overlay:
        assert max(overlay.size) == 1600


def test_plot_draws_with_ones_own_colors() -> None:
    drawn = with_image().plot(colors="blue", names=False, masks=False, keypoints=False)
    x0, y0 = (round(v) for v in make_instances().boxes[3, :2].tolist())
    assert drawn.getpixel((x0, y0)) == (0, 0, 255)


def test_instances_pickled_by_an_earlier_version_load() -> None:
    file = Path(__file__).parent / "fixtures" / "instances_of_one_module.pickle"
    old = pickle.loads(file.read_bytes())
    instances, masks = old["instances"], old["masks"]
    assert isinstance(instances, Instances)
    assert isinstance(masks, Masks)
    assert torch.equal(instances.masks.dense(), masks.dense())
    assert torch.equal(instances.boxes, make_instances(2).boxes)
    assert instances.names.tolist() == ["stone", "fly"]
    assert instances.plot().size == (60, 40)
