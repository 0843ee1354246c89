"""Validation data that is split off has no image in common with the training data, not even at another size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.problems import DataError
from maskrcnn.annotations.split import _choose, split_dataset


def write(folder: Path, photos: list[np.ndarray], labels: list[list[int]]) -> CocoDataset:
    """Images with an object for each of their labels."""
    images, annotations = [], []
    for i, (image, some) in enumerate(zip(photos, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{i}.png")
        images.append(
            {"id": i, "file_name": f"{i}.png", "height": image.shape[0], "width": image.shape[1]}
        )
        annotations += [
            {"id": len(annotations) + k, "image_id": i, "category_id": label, "bbox": [2, 2, 9, 9]}
            for k, label in enumerate(some, 1)
        ]
    categories = [{"id": label, "name": f"kind {label}"} for label in (1, 2)]
    return CocoDataset(
        {"images": images, "annotations": annotations, "categories": categories}, folder
    )


def noise(seed: int) -> np.ndarray:
    return np.array(
        Image.fromarray(
            np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        ).resize((48, 48))
    )


def ids(data: CocoDataset) -> set[int]:
    return {data[i].image_id for i in range(len(data))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """20 scenes, the second ten being the first ten at half the size; every fifth shows the rare category."""
    first = [noise(seed) for seed in range(10)]
    halves = [np.array(Image.fromarray(image).resize((24, 24))) for image in first]
    return write(
        tmp_path_factory.mktemp("split"),
        first + halves,
        [[1, 1, 2] if i % 5 == 0 else [1] for i in range(20)],
    )


@pytest.mark.parametrize("seed", range(4))
def test_images_that_look_alike_stay_together(data: CocoDataset, seed: int) -> None:
    train, val = split_dataset(data, 0.2, seed)
    assert ids(train) | ids(val) == set(range(20))
    assert not ids(train) & ids(val)
    assert not {i % 10 for i in ids(train)} & {i % 10 for i in ids(val)}
    assert len(val) == 4


def test_the_seed_determines_the_split(data: CocoDataset) -> None:
    assert ids(split_dataset(data, 0.2, 1)[1]) == ids(split_dataset(data, 0.2, 1)[1])
    assert len({tuple(sorted(ids(split_dataset(data, 0.2, seed)[1]))) for seed in range(6)}) > 1


def test_a_rare_category_is_on_both_sides(data: CocoDataset) -> None:
    for seed in range(4):
        labels = [
            {a.label for i in range(len(part)) for a in part[i].annotations}
            for part in split_dataset(data, 0.5, seed)
        ]
        assert labels == [{0, 1}, {0, 1}]


def test_copies_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got 2, without copies 1\..*--no-val"):
        split_dataset(write(tmp_path, [noise(0), noise(0)], [[1], [1]]))


@pytest.mark.parametrize("count", [2, 20])
def test_images_of_a_fixed_camera_are_split_with_their_copies_together(
    count: int, tmp_path: Path
) -> None:
    """A white part lies elsewhere in each image of a bench; the last image is a copy of the first."""
    bench = np.array(Image.fromarray(noise(0)).resize((240, 240)))
    photos = []
    for n in range(count):
        image = bench.copy()
        image[40 + 8 * n : 60 + 8 * n, 100:120] = 255
        photos.append(image)
    if count > 2:
        photos += [noise(9), photos[0][::2, ::2].copy()]
    data = write(tmp_path, photos, [[1]] * len(photos))
    train, val = split_dataset(data, 0.3)
    assert len(val) == max(1, round(0.3 * len(photos)))
    assert ids(train) | ids(val) == set(range(len(photos)))
    if count > 2:
        assert len(ids(val) & {0, len(photos) - 1}) != 1


def test_a_share_outside_its_range_is_refused(data: CocoDataset) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        split_dataset(data, 1.0)


@given(
    groups=st.lists(
        st.tuples(
            st.integers(1, 4), st.dictionaries(st.integers(0, 3), st.integers(1, 9), max_size=4)
        ),
        min_size=2,
        max_size=30,
    ),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 9),
)
def test_the_split_is_never_empty_never_all_and_about_its_share(
    groups: list, share: float, seed: int
) -> None:
    sizes, objects = [size for size, _ in groups], [Counter(count) for _, count in groups]
    chosen = _choose(sizes, objects, share, np.random.default_rng(seed))
    assert len(set(chosen)) == len(chosen)
    assert 0 < len(chosen) < len(sizes)
    taken = sum(sizes[g] for g in chosen)
    assert taken <= max(sum(sizes) * share + 1.5, min(sizes))
    if max(sizes) == 1:
        assert taken >= sum(sizes) * share - 1.5
