from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn import CocoDataset
from maskrcnn.synthetic.scenes import draw_scene, write_scenes
from maskrcnn.synthetic.shapes import CATEGORIES, KEYPOINTS


@pytest.fixture(scope="module")
def scenes() -> list:
    return [draw_scene((7, i)) for i in range(80)]


def test_the_same_seed_gives_the_same_image_and_another_seed_another_one():
    (first, objects), (again, same), (other, _) = draw_scene(3), draw_scene(3), draw_scene(4)
    np.testing.assert_array_equal(first, again)
    assert objects == same
    assert (first != other).any()


def test_each_scene_has_two_to_five_objects_and_all_categories_occur(scenes):
    assert {len(objects) for _, objects in scenes} == {2, 3, 4, 5}
    assert {a["category_id"] for _, objects in scenes for a in objects} == {
        c.id for c in CATEGORIES
    }
    assert all(image.shape == (160, 160, 3) and image.dtype == np.uint8 for image, _ in scenes)


def test_masks_show_the_visible_part_only_and_boxes_are_tight(scenes):
    for _, objects in scenes:
        masks = np.stack([coco_mask.decode(a["segmentation"]) for a in objects]).astype(int)
        assert (
            masks.sum(0).max() <= 2
        )  # two objects may each own half of a pixel at their common edge
        assert (masks.sum(0) == 2).sum() < 0.03 * masks.sum()
        for mask, a in zip(masks, objects, strict=True):
            x, y, w, h = a["bbox"]
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)
            assert a["area"] == mask.sum() >= 60
            assert 8 <= max(w, h) <= 105


def test_objects_overlap_in_many_scenes(scenes):
    def overlap(a, b):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
        return min(ax + aw, bx + bw) > max(ax, bx) and min(ay + ah, by + bh) > max(ay, by)

    crowded = sum(
        any(overlap(a, b) for i, a in enumerate(objects) for b in objects[:i])
        for _, objects in scenes
    )
    assert crowded > len(scenes) / 3


def test_a_ring_has_a_hole(scenes):
    holes = 0
    for _, objects in scenes:
        for a in objects:
            x, y, w, h = a["bbox"]
            if CATEGORIES[a["category_id"] - 1].name == "ring" and a["area"] > 300:
                holes += not coco_mask.decode(a["segmentation"])[y + h // 2, x + w // 2]
    assert holes >= 10


def test_visible_keypoints_lie_on_the_visible_mask_and_hidden_ones_do_not(scenes):
    counts = {1: 0, 2: 0}
    for _, objects in scenes:
        for a in (a for a in objects if "keypoints" in a):
            mask = coco_mask.decode(a["segmentation"]).astype(bool)
            near = np.pad(mask, 1)
            for x, y, v in np.reshape(a["keypoints"], (-1, 3)):
                column, row = int(x + 0.5), int(y + 0.5)
                counts[int(v)] = counts.get(int(v), 0) + 1
                if v == 2:
                    assert near[row : row + 3, column : column + 3].any()
                elif v == 1:
                    assert not near[row : row + 3, column : column + 3].all()
                else:
                    assert (x, y) == (0, 0)
            assert a["num_keypoints"] == sum(v > 0 for v in a["keypoints"][2::3])
    assert counts[1] > 20 < counts[2]


def test_a_labeled_keypoint_lies_in_the_box_of_its_object(scenes):
    for _, objects in scenes:
        for a in (a for a in objects if "keypoints" in a):
            left, top, wide, high = a["bbox"]
            for x, y, v in np.reshape(a["keypoints"], (-1, 3)):
                if v:
                    assert left - 1 <= x + 0.5 <= left + wide + 1
                    assert top - 1 <= y + 0.5 <= top + high + 1


def test_left_and_right_agree_in_a_figure_and_both_views_occur(scenes):
    """Sides can be learned: left keypoints of the torso agree, and both views are common."""
    left_at_right = []
    for _, objects in scenes:
        for a in (a for a in objects if "keypoints" in a):
            keypoints = np.reshape(a["keypoints"], (-1, 3))
            pairs = [
                (keypoints[KEYPOINTS.index(f"left_{n}")], keypoints[KEYPOINTS.index(f"right_{n}")])
                for n in ("shoulder", "hip")
            ]
            signs = {left[0] > right[0] for left, right in pairs if left[2] and right[2]}
            assert len(signs) <= 1
            left_at_right += signs
    assert 0.3 < np.mean(left_at_right) < 0.7


def test_written_scenes_are_a_valid_dataset(tmp_path):
    path = write_scenes(tmp_path, 3, seed=5)
    written = json.loads(path.read_text())
    data = CocoDataset(path, images=tmp_path / "images")
    assert len(data) == 3
    assert [c.name for c in data.categories] == [c.name for c in CATEGORIES]
    assert data.categories == CATEGORIES or data.categories[3].mirrored == CATEGORIES[3].mirrored
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "images" / written["images"][1]["file_name"])),
        draw_scene((5, 2))[0],
    )
    assert sum(len(data[i].annotations) for i in range(3)) == len(written["annotations"])
    assert len({a["id"] for a in written["annotations"]}) == len(written["annotations"])
