"""Errors about images that are not found name the option that gives their folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.active_learning.rank import open_labeled
from maskrcnn.annotations.images_option import VAL_IMAGES, images_given_by
from maskrcnn.cli import run
from maskrcnn.dataset_checks.check_dataset import check_dataset
from maskrcnn.training.plan import plan_training

SOURCE = Path(__file__).parents[1] / "src" / "maskrcnn"


def write(folder: Path, name: str, start: int, count: int = 2) -> Path:
    """Images in a folder of their own, and a COCO file elsewhere; every image is another one."""
    (folder / name).mkdir(parents=True)
    images = []
    annotations = []
    for i in range(start, start + count):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = [8, 8, 30, 30]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }
    path = folder / "labels" / name / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, "photos", 1)


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write(tmp_path, "others", 11)


def planned(data: Path, val: Path, out: Path, **options: Any) -> object:
    return plan_training(data, val=val, out=out / "run", device="cpu", progress=False, **options)


def checked(data: Path, val: Path, out: Path, **options: Any) -> None:
    report = check_dataset(data, val=val, progress=False, **options)
    raise ValueError(report.describe())


def converted(data: Path, val: Path, out: Path, **options: Any) -> object:
    return mr.convert_annotations(data, out / "new", "yolo-seg", val=val, **options)


USES = [planned, checked, converted]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("folder", ["photos", "absent", "photos/1.png"])
def test_a_wrong_folder_of_validation_images_is_answered_with_its_own_option(
    use: Callable[..., object], folder: str, data: Path, val: Path, tmp_path: Path
) -> None:
    options = {"images": tmp_path / "photos", "val_images": tmp_path / folder}
    with pytest.raises(ValueError, match=r"val_images= \(--val-images\)") as error:
        use(data, val, tmp_path, **options)
    assert "(--images)" not in str(error.value)


@pytest.mark.parametrize("use", USES)
def test_a_wrong_folder_of_training_images_is_answered_with_images(
    use: Callable[..., object], data: Path, val: Path, tmp_path: Path
) -> None:
    options = {"images": tmp_path / "absent", "val_images": tmp_path / "others"}
    with pytest.raises(ValueError, match=r"absent: folder not found; images= \(--images\) must"):
        use(data, val, tmp_path, **options)


def test_validation_images_that_no_option_gives_are_missed_before_anything_is_measured(
    data: Path, val: Path, tmp_path: Path
) -> None:
    given = mr.load_dataset(data, tmp_path / "photos")
    with pytest.raises(mr.DataError, match=r"none of its images.*as val_images= \(--val-images\)"):
        planned(given, val, tmp_path)  # ty: ignore[invalid-argument-type]


def test_python_functions_without_such_an_argument_name_load_dataset(
    data: Path, val: Path, tmp_path: Path
) -> None:
    opened = mr.load_dataset(data, tmp_path / "photos")
    config = tiny_config(opened.categories)
    for given in ((data, val), (opened, val)):
        with pytest.raises(mr.DataError, match="pass their folder as images= of load_dataset"):
            mr.train(config, given[0], val=given[1], out=tmp_path / "run", device="cpu")
    with pytest.raises(mr.DataError, match=r"--labeled-images \(images= of load_dataset\)"):
        open_labeled(data, None, None)


def cvat_tracks(folder: Path) -> Path:
    path = folder / "annotations.xml"
    box = '<box frame="0" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    path.write_text(f'<annotations><track id="0" label="a">{box}</track></annotations>')
    return path


def labelme(folder: Path) -> Path:
    path = folder / "1.json"
    shape = {"label": "a", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    path.write_text(json.dumps({"shapes": [shape], "imagePath": "1.png", "imageData": "?"}))
    return path


def qupath(folder: Path) -> Path:
    path = folder / "1.geojson"
    polygon = {"type": "Polygon", "coordinates": [[[1, 1], [9, 1], [9, 9], [1, 1]]]}
    feature = {"type": "Feature", "geometry": polygon, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def via(folder: Path) -> Path:
    path = folder / "via.json"
    shape = {"name": "rect", "x": 1, "y": 1, "width": 8, "height": 8}
    region = {"shape_attributes": shape, "region_attributes": {"name": "a"}}
    path.write_text(json.dumps({"1.png9": {"filename": "1.png", "regions": [region]}}))
    return path


@pytest.mark.parametrize("made", [cvat_tracks, labelme, qupath, via])
def test_readers_of_every_format_name_the_option_of_the_data_that_they_read(
    made: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = made(tmp_path)
    with images_given_by(VAL_IMAGES), pytest.raises(mr.DataError) as error:
        mr.load_dataset(path)
    assert VAL_IMAGES in str(error.value)
    with pytest.raises(mr.DataError, match=r"images= \(--images\)"):
        mr.load_dataset(path)


def test_no_other_module_names_the_option_for_images() -> None:
    """A fixed name would be wrong for the validation data of a command."""
    named = re.compile(r"images= \(--images\)|--images \(images=\)|is images= ")
    files = [path for path in SOURCE.rglob("*.py") if path.name != "images_option.py"]
    assert not [path.name for path in files if named.search(path.read_text(encoding="utf-8"))]


def test_a_folder_without_any_of_the_images_is_the_one_error(
    data: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leaving all images out is no advice."""
    words = ["train", "--data", data, "--images", tmp_path / "photos", "--val", val]
    assert run([*map(str, words), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"none is in {tmp_path / 'photos'}; pass their folder as {VAL_IMAGES}" in message
    assert "--on-error drop" not in message


def test_images_in_place_of_annotations_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        mr.DataError, match=r"it holds 2 images: pass the annotations.*\(--images\)"
    ):
        mr.load_dataset(tmp_path / "photos")
    with pytest.raises(mr.DataError, match="it is an image: pass the file of its annotations"):
        mr.load_dataset(tmp_path / "photos" / "1.png")


def test_a_wrong_folder_of_unlabeled_images_is_refused_before_the_data_are_read(
    tmp_path: Path,
) -> None:
    with pytest.raises(mr.DataError, match="folder not found; unlabeled="):
        plan_training("unread.json", unlabeled=tmp_path / "absent", out=tmp_path / "run")
