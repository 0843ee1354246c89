"""Every kind of image becomes uint8 RGB, upright; errors name the file that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskrcnn.images.read import ImageError, image_size, read_image


@pytest.fixture
def colors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode, colors, tmp_path):
    image = Image.fromarray(colors).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    got = read_image(image)
    assert got.shape == (6, 9, 3)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert (got == expected).all()
    if mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        image.save(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png") == expected).all()
    if mode == "CMYK":
        image.save(tmp_path / "a.tif")
        assert (read_image(str(tmp_path / "a.tif")) == expected).all()


def test_alpha_is_dropped_and_composited_on_nothing(colors, tmp_path):
    rgba = np.dstack([colors, np.zeros((6, 9), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == colors).all()
    assert (read_image(rgba) == colors).all()


def test_a_palette_with_transparent_entries_keeps_its_colors(colors, tmp_path):
    image = Image.fromarray(colors).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes(range(16)))
    assert (read_image(tmp_path / "a.png") == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(orientation, colors, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colors).save(tmp_path / "a.png", exif=exif)
    turn = [
        lambda a: a,
        np.fliplr,
        lambda a: a[::-1, ::-1],
        np.flipud,
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
    ]
    turn += [lambda a: a[::-1, ::-1].transpose(1, 0, 2), np.rot90]
    expected = turn[orientation - 1](colors)
    assert (read_image(tmp_path / "a.png") == expected).all()
    assert image_size(tmp_path / "a.png") == expected.shape[:2]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_the_range(suffix, tmp_path):
    values = np.array([[0, 257, 1000], [4095, 20000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    whole = read_image(tmp_path / f"a.{suffix}")
    assert (whole[:, :, 0] == np.round(values / 257)).all()
    ranged = read_image(tmp_path / f"a.{suffix}", (0, 4095))
    assert ranged[:, :, 2].tolist() == [[0, 16, 62], [255, 255, 255]]
    assert (read_image(values, (0, 4095)) == ranged).all()


def test_floating_point_is_scaled_by_the_range(tmp_path):
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert read_image(values)[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(values * 1000 - 500).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", (-500, 500))[0, :, 1].tolist() == [0, 128, 255]
    with pytest.raises(
        ImageError,
        match=r"a.tif: expected float32 values in 0..1, got -500 to 500; scale the values",
    ):
        read_image(tmp_path / "a.tif")


def test_gray_arrays_and_booleans_have_three_equal_channels():
    assert read_image(np.array([[3, 9]], np.uint8)).tolist() == [[[3] * 3, [9] * 3]]
    assert read_image(np.array([[[True], [False]]])).tolist() == [[[255] * 3, [0] * 3]]


def test_unreadable_images_name_the_file_and_the_reason(colors, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    Image.fromarray(np.tile(colors, (40, 40, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    for name, reason in (
        ("text.png", "it is text"),
        ("empty.jpg", "empty"),
        ("cut.jpg", "truncated"),
        ("none.png", "file not found"),
    ):
        with pytest.raises(ImageError, match=rf"{name}.*{reason}"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"shape \[2, 3, 7\]"):
        read_image(np.zeros((2, 3, 7), np.uint8))
    with pytest.raises(ImageError, match="cannot read an image from list"):
        read_image([[1]])  # ty: ignore[invalid-argument-type]
