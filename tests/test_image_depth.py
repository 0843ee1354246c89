"""Every depth, layout and number of frames gives its right values, or one plain sentence."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from image_samples import RED, png16, scaled, stack_of, tiff
from PIL import Image

import maskrcnn as mr
from maskrcnn.formats.id_maps import read_ids
from maskrcnn.images.image_files import ImageWarning
from maskrcnn.images.open_image import ImageError
from maskrcnn.images.read import image_size, read_first_frame, read_header, read_image, read_values


def test_16_bit_color_png_obeys_the_intensity_range(twelve_bits):
    alpha = np.full((13, 17, 1), 65535, np.uint16)
    for values in (twelve_bits, np.dstack([twelve_bits, alpha])):
        pixels = read_image(png16(values), (0, 4095))
        assert (pixels == scaled(twelve_bits)).all()
        assert pixels.mean() == pytest.approx(127.5, abs=5)
    gray = twelve_bits[:, :, 0]
    with_alpha = np.dstack([gray, alpha])
    for values in (gray, with_alpha):
        assert (read_image(png16(values), (0, 4095))[:, :, 1] == scaled(gray)).all()


def test_the_cases_of_16_bit_color_have_the_mean_of_gray(shared):
    folder = shared / "cases" / "color16"
    if not folder.is_dir():
        pytest.skip("no cases")
    for name in ("chunky12.tif", "rgb12in16.png", "g12in16.png"):
        assert read_header(folder / name).deep
        assert read_image(folder / name, (0, 4095)).mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_16_bit_color_ppm_is_scaled_so_that_its_white_is_white(largest, twelve_bits):
    data = b"P6\n# made here\n17 13\n%d\n" % largest + twelve_bits.astype(">u2").tobytes()
    range = None if largest == 4095 else (0, 4095)
    assert abs(read_image(data, range).astype(int) - scaled(twelve_bits)).max() <= 1


def test_16_bit_color_jpeg_2000_is_refused_instead_of_losing_bits(tmp_path):
    stored = io.BytesIO()
    Image.new("RGB", (20, 20), RED).save(stored, "JPEG2000")
    data = bytearray(stored.getvalue())
    at = data.index(b"\xff\x4f\xff\x51") + 42
    data[at : at + 9 : 3] = b"\x0f\x0f\x0f"
    with pytest.raises(ImageError, match=r"JPEG2000 with more than 8 bits.*save it as PNG or TIFF"):
        read_image(bytes(data))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_planar_and_chunky_tiff_have_the_same_pixels(planar, compression, order, twelve_bits):
    for dtype in (np.uint16, np.int16, np.float32, np.uint8):
        values = twelve_bits.astype(dtype)
        for predictor in (1, 2) if dtype != np.float32 and compression == 8 else (1,):
            data = tiff([values], planar, compression, order, predictor)
            pixels = read_image(data, (0, 4095))
            assert (pixels == (values if dtype == np.uint8 else scaled(values))).all()


def test_deep_color_is_upright(twelve_bits, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff([twelve_bits], tags={274: (3, [6])}))
    assert (read_values(tmp_path / "a.tif") == np.rot90(twelve_bits, -1)).all()
    assert image_size(tmp_path / "a.tif") == (17, 13)


def test_gray_tiff_of_every_depth_keeps_its_values(twelve_bits, tmp_path):
    gray = twelve_bits[:, :, 0]
    for dtype in (np.uint16, np.int16, np.uint32, np.float16, np.float64):
        for order in "<>":
            (tmp_path / "a.tif").write_bytes(tiff([gray.astype(dtype)], compression=8, order=order))
            assert np.array_equal(read_values(tmp_path / "a.tif"), gray.astype(dtype))
    white_is_zero = tiff([65535 - gray], tags={262: (3, [0])})
    assert (read_image(white_is_zero, (0, 4095))[:, :, 0] == scaled(gray)).all()


def test_a_tiff_of_five_channels_is_an_error_that_counts_them(twelve_bits):
    values = np.dstack([twelve_bits, twelve_bits])[:, :, :5]
    with pytest.raises(ImageError, match="expected 1 or 3 channels, got a TIFF with 5"):
        read_image(tiff([values], tags={262: (3, [1])}))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.int16, np.int8, np.uint64])
def test_integers_with_8_bit_values_are_those_values_and_others_an_error(dtype):
    values = np.arange(120, dtype=np.uint8).reshape(4, 10, 3)
    assert (read_image(values.astype(dtype)) == values).all()
    if np.iinfo(dtype).max > 300:
        with pytest.raises(ImageError, match=r"0\.\.255, got 0 to 300; scale the values"):
            read_image(np.array([[0, 300]], dtype))
        assert read_image(np.array([[0, 300]], dtype), (0, 300))[0, :, 0].tolist() == [0, 255]


def test_16_bit_files_of_a_12_bit_camera_are_almost_black_with_a_warning(tmp_path):
    values = np.array([[300, 3200]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for source in (values, tmp_path / "a.tif"):
        with pytest.warns(ImageWarning, match=r"at most 4,095 .*--intensity-range 0 4095"):
            assert read_image(source).max() == 12
        assert read_image(source, (0, 4095)).max() == 199
    assert read_image(np.array([[0, 9000]], np.uint16)).max() == 35  # a dark image of 16 bits


def test_uint16_is_never_taken_for_8_bits_nor_silently_black():
    assert read_image(np.array([[0, 65535]], np.uint16))[0, :, 0].tolist() == [0, 255]
    assert read_image(np.zeros((2, 2), np.uint16)).max() == 0
    with pytest.raises(
        ImageError, match=r"0 to 255 would be almost black; .*astype\(numpy.uint8\)"
    ):
        read_image(np.array([[0, 255]], np.uint16))
    assert read_image(np.array([[0, 255]], np.uint16), (0, 255))[0, 1, 0] == 255


def test_channels_first_and_batches_are_errors_that_say_what_to_pass():
    with pytest.raises(ImageError, match=r"array.transpose\(1, 2, 0\)"):
        read_image(np.zeros((3, 8, 9), np.uint8))
    with pytest.raises(ImageError, match=r"pass list\(array\)"):
        read_image(np.zeros((2, 8, 9, 3), np.uint8))


def test_label_maps_in_tiff_keep_their_ids(twelve_bits, tmp_path):
    ids = twelve_bits[:, :, 0]
    (tmp_path / "a.tif").write_bytes(tiff([ids], compression=8, order=">"))
    assert (read_ids(tmp_path / "a.tif") == ids).all()
    (tmp_path / "b.tif").write_bytes(tiff([(twelve_bits % 256).astype(np.uint8)], planar=True))
    r, g, b = np.moveaxis(twelve_bits.astype(np.int64) % 256, 2, 0)
    assert (read_ids(tmp_path / "b.tif") == r + 256 * g + 65536 * b).all()


OME = '<OME xmlns="x"><Pixels DimensionOrder="{}" SizeC="3" SizeZ="2" SizeT="1"/></OME>'


@pytest.mark.parametrize(
    ("description", "pages"),
    [
        ("ImageJ=1.11a\nimages=3\nchannels=3\nmode=grayscale\n", (0, 1, 2)),
        (OME.format("XYCZT"), (0, 1, 2)),
        (OME.format("XYZCT"), (0, 2, 4)),
        ('{"shape": [3, 13, 17], "axes": "CYX"}', (0, 1, 2)),
    ],
)
def test_pages_that_the_file_calls_channels_are_red_green_and_blue(description, pages):
    stack = np.random.default_rng(1).integers(0, 65536, (6, 13, 17), dtype=np.uint16)
    data = tiff(list(stack), tags={270: (2, description.encode())})
    pixels, frames = read_first_frame(data, (0, 65535))
    assert frames == 1
    for channel, page in enumerate(pages):
        assert abs(pixels[:, :, channel] - stack[page] / 257).max() <= 0.51


def test_other_frames_are_counted_and_the_first_is_used(tmp_path):
    assert read_first_frame(tiff(stack_of(3)))[1] == 3
    two_channels = tiff(stack_of(2), tags={270: (2, b"ImageJ=1\nimages=2\nchannels=2\n")})
    assert read_first_frame(two_channels)[1] == 2
    pyramid = bytearray(tiff([*stack_of(2)], tags={254: (4, [0])}))
    at = pyramid.rindex(struct.pack("<HHI", 254, 4, 1))
    pyramid[at + 8] = 1  # a smaller copy
    assert read_first_frame(bytes(pyramid))[1] == 1
    frames = [Image.new("RGB", (9, 8), (50 * n, 0, 0)) for n in range(3)]
    for suffix, expected in (("gif", 2), ("webp", 3), ("png", 3), ("mpo", 1)):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert read_header(path).frames == expected, suffix


def test_a_dataset_reports_images_with_several_frames(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(stack_of(3)))
    content = {
        "images": [{"id": 1, "file_name": "a.tif", "height": 8, "width": 9}],
        "annotations": [],
        "categories": [{"id": 1, "name": "stone"}],
    }
    (problem,) = mr.CocoDataset(content, tmp_path).warnings
    assert (problem.kind, problem.detail) == ("image with several frames", "3 frames")


def test_the_preview_in_a_camera_raw_file_is_refused():
    raw = tiff(stack_of(1), tags={254: (4, [1]), 330: (4, [8])})
    with pytest.raises(ImageError, match="camera raw data with a preview; develop it"):
        read_image(raw)
