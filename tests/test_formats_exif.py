"""Images that EXIF turns: no reader moves an annotation away from what it marks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations import rle
from maskrcnn.annotations.contours import fill
from maskrcnn.annotations.problems import DataError

Corners = tuple[int, int, int, int]
TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def put_image(folder: Path, size: tuple[int, int], part: Corners, orientation: int) -> None:
    """A black image of (height, width) with a white rectangle, as a camera would store it."""
    x0, y0, x1, y1 = part
    pixels = np.zeros(size, np.uint8)
    pixels[y0:y1, x0:x1] = 255
    upright = Image.fromarray(pixels)
    stored = upright.transpose(TURNED_BACK[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder / "a.png", exif=exif)


def ring(part: Corners) -> list[list[float]]:
    x0, y0, x1, y1 = part
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def label_studio(folder: Path, size: tuple[int, int], part: Corners, **more: Any) -> Path:
    """The rectangle as the tool writes it: percent of the image as a browser shows it."""
    height, width = size
    points = [[100 * x / width, 100 * y / height] for x, y in ring(part)]
    value = {"points": points, "polygonlabels": ["cell"]}
    result = {"original_width": width, "original_height": height, "value": value, **more}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
    return put(folder / "ls.json", [task])


def qupath(folder: Path, size: tuple[int, int], part: Corners) -> Path:
    points = [*ring(part), ring(part)[0]]
    shape = {"type": "Polygon", "coordinates": [points]}
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    return put(folder / "a.geojson", {"type": "FeatureCollection", "features": [feature]})


def labelme(folder: Path, size: tuple[int, int], part: Corners) -> Path:
    shape = {"label": "cell", "points": ring(part), "shape_type": "polygon"}
    head = {"imagePath": "a.png", "imageHeight": size[0], "imageWidth": size[1]}
    return put(folder / "a.json", {"shapes": [shape], **head})


def via(folder: Path, size: tuple[int, int], part: Corners) -> Path:
    xs, ys = zip(*ring(part), strict=True)
    shape = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
    region = {"shape_attributes": shape, "region_attributes": {"label": "cell"}}
    return put(folder / "via.json", {"a": {"filename": "a.png", "size": 1, "regions": [region]}})


def cvat(folder: Path, size: tuple[int, int], part: Corners) -> Path:
    points = ";".join(f"{x},{y}" for x, y in ring(part))
    shape = f'<polygon label="cell" points="{points}"/>'
    image = f'<image id="0" name="a.png" width="{size[1]}" height="{size[0]}">{shape}</image>'
    path = folder / "annotations.xml"
    path.write_text(f"<annotations>{image}</annotations>")
    return path


def put(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@st.composite
def marked(draw: st.DrawFn) -> tuple[tuple[int, int], Corners]:
    """The size of an image, and a rectangle in it."""
    height, width = draw(st.integers(2, 24)), draw(st.integers(2, 24))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return (height, width), (x0, y0, x1, y1)


def mask_and_image(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = mr.load_dataset(path)
    (found,) = data[0].annotations
    assert found.polygons is not None
    polygons = [polygon.round(6) for polygon in found.polygons]
    return rle.decode(fill(polygons, data.size(0))), data.image(0)[:, :, 0] > 0


@pytest.mark.parametrize("write", [label_studio, labelme, via, cvat])
@settings(max_examples=12, deadline=None)
@given(scene=marked(), orientation=st.integers(1, 8))
def test_tools_that_show_images_upright_mark_the_same_pixels(write, scene, orientation):
    size, part = scene
    with tempfile.TemporaryDirectory() as name:
        put_image(Path(name), size, part, orientation)
        mask, pixels = mask_and_image(write(Path(name), size, part))
    assert (mask == pixels).all()


@settings(max_examples=12, deadline=None)
@given(scene=marked(), orientation=st.integers(1, 8))
def test_qupath_marks_the_same_pixels_or_the_image_is_refused(scene, orientation):
    size, part = scene
    with tempfile.TemporaryDirectory() as name:
        put_image(Path(name), size, part, orientation)
        path = qupath(Path(name), size, part)
        if orientation == 1:
            mask, pixels = mask_and_image(path)
            assert (mask == pixels).all()
        else:
            with pytest.raises(DataError, match=r"a\.geojson: a\.png has an EXIF orientation"):
                mr.load_dataset(path)


def test_label_studio_results_of_an_image_that_was_shown_sideways_are_refused(tmp_path: Path):
    put_image(tmp_path, (20, 10), (1, 1, 5, 5), 6)
    path = label_studio(tmp_path, (20, 10), (1, 1, 5, 5), original_width=20, original_height=10)
    with pytest.raises(DataError, match=r"annotated image had 20 x 10 pixels, the file has 10 x"):
        mr.load_dataset(path)


def test_label_studio_results_of_a_larger_copy_are_used_and_noted(tmp_path: Path):
    put_image(tmp_path, (20, 10), (1, 1, 5, 5), 1)
    path = label_studio(tmp_path, (20, 10), (1, 1, 5, 5), original_width=101, original_height=201)
    mask, pixels = mask_and_image(path)
    assert (mask == pixels).all()
    (note,) = (n for n in mr.load_dataset(path).notes if "another size" in n.what)
    assert note.count == 1


@pytest.mark.parametrize("angle", [90, -90, 180, "90"])
def test_label_studio_images_that_were_turned_in_the_tool_are_refused(angle, tmp_path: Path):
    put_image(tmp_path, (20, 10), (1, 1, 5, 5), 1)
    path = label_studio(tmp_path, (20, 10), (1, 1, 5, 5), image_rotation=angle)
    with pytest.raises(DataError, match=r"task 0: image_rotation is '?-?[0-9]"):
        mr.load_dataset(path)
