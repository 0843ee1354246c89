from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.config import Category
from maskrcnn.instances import Instances

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
    masks = make_instances().masks()
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
        assert coco_mask.area(entry["segmentation"]) == instances.masks().area()[n]
        if n % 2:
            assert instances.keypoints is not None
            want = instances.keypoints[n] - torch.tensor([0.5, 0.5, 0])
            assert entry["keypoints"] == pytest.approx(want.flatten().tolist(), abs=1e-3)
        else:
            assert "keypoints" not in entry
    assert instances.to_coco(image_id=9)[0]["image_id"] == 9


def test_coco_results_without_an_image_id_are_an_error() -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="to_coco"):
        replace(make_instances(), image_id=None).to_coco()


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
    ],
)
def test_indexing_takes_the_same_rows_of_everything(index: object, rows: list[int]) -> None:
    instances = make_instances()
    part = instances[index]  # ty: ignore[invalid-argument-type]
    assert len(part) == len(rows)
    for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits"):
        assert torch.equal(getattr(part, name), getattr(instances, name)[rows])
    assert part.masks().dense().shape == (len(rows), *SIZE)


def test_an_index_beyond_the_objects_is_an_error_and_iteration_ends() -> None:
    with pytest.raises(IndexError, match="index 4 is out of range for 4 objects"):
        make_instances()[4]
    assert [len(one) for one in make_instances()] == [1, 1, 1, 1]


def test_names_and_text_list_the_objects() -> None:
    assert make_instances(3).names == ["stone", "fly", "stone"]
    assert repr(make_instances(3)) == "Instances(a/b.png, 40x60: 2 stone, 1 fly)"
    assert "no objects" in repr(make_instances(0))


def test_a_missing_mask_head_or_image_is_an_error(tmp_path) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="no mask head"):
        replace(make_instances(), mask_grids=None).masks()
    with pytest.raises(ValueError, match="carry no image"):
        make_instances().save(tmp_path / "a.png")


def test_supervision_gets_everything_or_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install maskrcnn\[supervision\]"):
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
    from dataclasses import replace

    Image.new("RGB", (60, 40), (10, 20, 30)).save(tmp_path / "image.png")
    instances = replace(make_instances(), source=tmp_path / "image.png")
    assert instances.image.shape == (40, 60, 3)
    instances.save(tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert min(overlay.size) >= 400
