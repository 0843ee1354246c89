"""YOLO folders as people have them: what does not belong to an image or to a label is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError, DataWarning

LINE = "0 0.5 0.5 0.2 0.2\n"


def yolo(folder: Path, *labels: str, yaml: str = "train: images\nnames: [cell]\n") -> Path:
    """A data set with the images 0.png, 1.png, ..., one for each text of labels."""
    for part in ("images", "labels"):
        (folder / part).mkdir(exist_ok=True, parents=True)
    for number, text in enumerate(labels):
        Image.new("L", (20, 10)).save(folder / f"images/{number}.png")
        (folder / f"labels/{number}.txt").write_text(text)
    (folder / "data.yaml").write_text(yaml)
    return folder


def told(path: str | Path) -> str:
    """The warnings and notes of a data set."""
    data = mr.load_dataset(path)
    return f"{data.describe_warnings()}\n{data.describe_notes()}"


def refusal(path: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        mr.load_dataset(path)
    return str(caught.value)


@pytest.mark.parametrize("yaml", ["train: images\nnames: [cell]\n", None])
def test_images_of_unreadable_endings_only_are_an_error_that_names_them(yaml, tmp_path: Path):
    folder = yolo(tmp_path, yaml=yaml or "names: [cell]")
    (folder / "labels/a.txt").write_text(LINE)
    for name in ("a.heic", "b.HEIC", "c.dng"):
        (folder / "images" / name).write_bytes(b"x")
    message = refusal(folder)
    assert "no images in this folder; left out 3 files" in message
    assert "2 .heic (a.heic, b.HEIC), 1 .dng (c.dng); save them as JPEG" in message


def test_a_split_without_images_is_an_error_alone_and_left_out_beside_others(tmp_path: Path):
    folder = yolo(tmp_path, LINE, yaml="train: images\ntest: none.txt\nnames: [cell]\n")
    (folder / "none.txt").touch()
    assert "none.txt: lists no images" in refusal(f"{folder}:test")
    with pytest.warns(DataWarning, match=r'lists no images\nThe split "test" was left out'):
        mr.convert_annotations(folder, tmp_path / "out", "coco")


def test_unreadable_endings_in_subfolders_are_named_too(tmp_path: Path):
    folder = yolo(tmp_path, LINE)
    (folder / "images/phone").mkdir()
    (folder / "images/phone/a.heic").write_bytes(b"x")
    assert "left out 1 file not read as images: 1 .heic (a.heic)" in told(folder)


def test_empty_text_files_are_counted_as_images_without_objects(tmp_path: Path):
    text = told(yolo(tmp_path, LINE, "", " \n\n"))
    assert "images without objects (2): used as such, such as images/1.png; images/2.png" in text


def test_a_path_that_does_not_exist_is_named_beside_the_one_that_is_used(tmp_path: Path):
    yaml = "path: ../datasets/coco128\ntrain: images\nnames: [cell]\n"
    text = told(yolo(tmp_path, LINE, yaml=yaml))
    assert "path is ../datasets/coco128" in text
    assert f"{tmp_path.resolve()}, the folder of data.yaml, is used instead" in text
    for fine in (".", str(tmp_path)):
        assert "is used instead" not in told(
            yolo(tmp_path, LINE, yaml=yaml.replace("../datasets/coco128", fine))
        )


def test_entries_that_mean_another_folder_are_noted(tmp_path: Path):
    text = told(yolo(tmp_path, LINE, yaml="train: ../images\nnames: [cell]\n"))
    assert "entries of data.yaml that are other paths (1)" in text
    assert "../images" in text


def test_text_files_without_an_image_are_counted_and_named(tmp_path: Path):
    folder = yolo(tmp_path, LINE)
    for name in ("8.txt", "9.txt", "classes.txt", "README.roboflow.txt"):
        (folder / "labels" / name).write_text(LINE)
    text = told(folder)
    assert "text files without an image (1)" in text
    assert "2, such as 8.txt, 9.txt" in text


def test_label_files_of_images_that_a_list_leaves_out_are_no_question(tmp_path: Path):
    folder = yolo(tmp_path, LINE, LINE, yaml="train: part.txt\nnames: [cell]\n")
    (folder / "part.txt").write_text("images/0.png\n")
    assert "without an image" not in told(folder)


def test_images_that_share_a_text_file_are_named(tmp_path: Path):
    folder = yolo(tmp_path, LINE)
    Image.new("L", (20, 10)).save(folder / "images/0.jpg")
    assert "0.txt: 2 images have this name with different endings" in told(folder)
