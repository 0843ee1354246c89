"""Copies of an image are recognized after changes; different images, however dark, plain or alike, are not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn.images.read import ImageError
from maskrcnn.images.similarity import DISTANCE, LENGTH, copies, groups, hashes, thumbnail


def photograph(seed: int, size: tuple[int, int] = (120, 160)) -> Image.Image:
    """Smooth random colors, with details."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
    )


def micrograph(seed: int, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    """A few faint spots on noisy black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    image = rng.normal(3, 1, size)
    for cy, cx in rng.uniform(0, size[0], (5, 2)):
        image += 20 * ((x - cx) ** 2 + (y - cy) ** 2 < 36)
    return np.clip(image, 0, 255).astype(np.uint8)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {
    "jpeg": lambda image: as_jpeg(image, 20),
    "smaller": lambda image: image.resize((70, 50), Image.Resampling.BILINEAR),
    "larger": lambda image: image.resize((400, 300), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda v: min(255, int(v * 1.2 + 10))),
    "gray": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_recognized_among_others(change: str):
    images = [photograph(i) for i in range(12)]
    arrays = [np.asarray(p) for p in (*images, CHANGES[change](images[4]))]
    assert groups(hashes(arrays)) == [[4, 12]]


def test_files_hash_as_their_pixels_do_also_where_a_jpeg_is_decoded_small(tmp_path: Path):
    image = photograph(3, (600, 800))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg", quality=90)
    image.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=90)
    features = hashes(
        [tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "turned.jpg", np.asarray(image)]
    )
    assert (features @ features[0]).min() > 0.98


def test_dark_images_are_not_copies_of_one_another():
    images = [micrograph(i) for i in range(60)]
    assert groups(hashes([*images, images[7] // 2])) == [[7, 60]]


def test_blank_images_resemble_nothing():
    hot = np.full((128, 128), 10, np.uint8)
    hot[50, 60] = 12  # a hot pixel of the camera, in every image
    features = hashes(
        [
            np.zeros((20, 20), np.uint8),
            np.full((20, 20, 3), 255, np.uint8),
            np.zeros((20, 20), np.uint8),
            hot,
            hot,
        ]
    )
    assert features.shape == (5, LENGTH)
    assert groups(features) == []


def test_sixteen_bit_images_are_compared_by_their_own_range():
    image = np.asarray(photograph(5).convert("L")).astype(np.uint16)
    assert groups(
        hashes(
            [
                image,
                image * 200 + 1000,
                image.astype(np.float32) / 255,
                (image // 1).astype(np.uint8),
            ]
        )
    ) == [[0, 1, 2, 3]]


def test_groups_are_the_connected_parts_of_a_slow_search():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (40, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    near = features @ features.T >= 1 - DISTANCE
    left, wanted = set(range(40)), []
    while left:
        part, edge = set(), {min(left)}
        while edge:
            part |= edge
            edge = {j for i in edge for j in range(40) if near[i, j]} - part
        left -= part
        wanted += [sorted(part)] if len(part) > 1 else []
    assert any(len(part) > 2 for part in wanted)
    assert groups(features) == wanted


def test_no_images_give_no_groups():
    assert groups(hashes([])) == []
    assert copies(hashes([]), np.zeros((0, 2304), np.uint8)) == []


def test_a_broken_file_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        hashes([tmp_path / "broken.png"])


def test_among_the_nuclei_only_two_slices_of_one_egg_look_alike(shared: Path):
    folder = shared / "data" / "nuclei"
    names = sorted(
        i["file_name"]
        for part in ("train", "val")
        for i in json.loads((folder / "annotations" / f"{part}.json").read_text())["images"]
    )
    similar = groups(hashes([folder / "images" / n for n in names if n[0] in "23cd"]))
    alike = [
        [names_of[:8] for names_of in [[n for n in names if n[0] in "23cd"][i] for i in group]]
        for group in similar
    ]
    assert alike == [["20b20ab0", "cb4df20a"]]


# A fixed camera: copies are told from images that only look alike.


def bench(cells: list[tuple[int, int]], light: int = 0) -> np.ndarray:
    """A bench with boards and screws, 240 x 320, and parts of 16 x 16 pixels that lie on it."""
    scene = np.asarray(photograph(11, (240, 320))).astype(int)
    for n, (x, y) in enumerate(cells):
        scene[y : y + 16, x : x + 16] = (230, 60 + 30 * n, 40)
    return np.clip(scene + light, 0, 255).astype(np.uint8)


SAME = {
    "equal": lambda image: image,
    "quality 60": lambda image: as_jpeg(image, 60),
    "quality 30": lambda image: as_jpeg(image, 30),
    "half": lambda image: image.resize((160, 120), Image.Resampling.BICUBIC),
    "half, odd": lambda image: image.resize((161, 119), Image.Resampling.BILINEAR),
    "half, quality 60": lambda image: as_jpeg(image.resize((160, 120)), 60),
    "larger": lambda image: image.resize((500, 375), Image.Resampling.LANCZOS),
    "gray": lambda image: image.convert("L"),
}
OTHER = {
    "one part moved": bench([(40, 60), (210, 130)]),
    "one part more": bench([(40, 60), (200, 100), (260, 200)]),
    "another part": bench([(120, 150)]),
    "no part": bench([]),
}


def copies_among(images: list[np.ndarray]) -> list[list[int]]:
    return copies(hashes(images), np.stack([thumbnail(image) for image in images]))


@pytest.mark.parametrize("change", SAME)
def test_the_same_content_in_another_form_is_a_copy(change: str):
    image = bench([(40, 60), (200, 100)])
    changed = np.asarray(SAME[change](Image.fromarray(image)))
    assert copies_among([image, *OTHER.values(), changed]) == [[0, len(OTHER) + 1]]


def test_images_of_one_bench_look_alike_and_are_not_copies():
    images = [bench([(40, 60), (200, 100)]), *OTHER.values()]
    assert groups(hashes(images)) == [[0, 1, 2, 3, 4]]
    assert copies_among(images) == []


def test_images_whose_light_changes_slowly_are_not_one_chain_of_copies():
    images = [bench([(40, 60)], light) for light in range(-20, 21, 5)]
    assert all(len(group) <= 2 for group in copies_among(images))


def test_faint_images_of_the_same_kind_are_not_copies():
    images = [micrograph(i) // 4 for i in range(30)]
    assert copies_among([*images, images[3]]) == [[3, 30]]


def test_the_thumbnail_of_a_file_is_that_of_its_pixels(tmp_path: Path):
    image = photograph(3, (600, 800))
    image.save(tmp_path / "a.jpg", quality=90)
    difference = thumbnail(tmp_path / "a.jpg").astype(int) - thumbnail(np.asarray(image))
    assert np.abs(difference).max() <= 2
