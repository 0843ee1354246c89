"""Images in the image folder that an annotation file does not list are counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataWarning


def _draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24)).save(folder / name)


def _coco(*names: str) -> str:
    images = [
        {"id": n, "file_name": name, "width": 32, "height": 24} for n, name in enumerate(names, 1)
    ]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "cell"}]}
    return json.dumps(content)


def _via(*names: str) -> str:
    shape = {"name": "rect", "x": 2, "y": 2, "width": 9, "height": 9}
    region = {"shape_attributes": shape, "region_attributes": {"class": "cell"}}
    entries = {n: {"filename": n, "size": -1, "regions": [region]} for n in names}
    return json.dumps({"_via_img_metadata": entries})


def _via_csv(*names: str) -> str:
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    shape = '"{""name"":""rect"",""x"":2,""y"":2,""width"":9,""height"":9}"'
    lines = [f'{n},9,"{{}}",1,0,{shape},"{{""class"":""cell""}}"' for n in names]
    return "\n".join([head, *lines])


def _cvat(*names: str) -> str:
    box = '<box label="cell" occluded="0" xtl="2" ytl="2" xbr="9" ybr="9"/>'
    images = [
        f'<image id="{k}" name="{n.replace("&", "&amp;")}" width="32" height="24">{box}</image>'
        for k, n in enumerate(names)
    ]
    return f"<annotations>{''.join(images)}</annotations>"


def _label_studio(*names: str) -> str:
    value = {"x": 5, "y": 5, "width": 30, "height": 30, "rectanglelabels": ["cell"]}
    result = {"type": "rectanglelabels", "from_name": "l", "to_name": "image", "value": value}
    result |= {"original_width": 32, "original_height": 24}
    tasks = [
        {
            "id": k,
            "data": {"image": f"/data/upload/1/0123abcd-{n}"},
            "annotations": [{"result": [result]}],
        }
        for k, n in enumerate(names)
    ]
    return json.dumps(tasks)


KINDS = {"json": _coco, "via.json": _via, "csv": _via_csv, "xml": _cvat, "ls.json": _label_studio}


def _unlisted(data: mr.CocoDataset) -> tuple[int, tuple[str, ...]]:
    notes = [n for n in data.notes if "do not list" in n.what]
    return (notes[0].count, notes[0].examples) if notes else (0, ())


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_a_file_does_not_list_are_counted_and_named(kind: str, tmp_path: Path) -> None:
    _draw(tmp_path / "images", "a.png", "b & c.png", "sub/extra é.png", ".hidden.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    file = tmp_path / f"train.{kind}"
    file.write_text(KINDS[kind]("a.png"), encoding="utf-8")
    data = mr.load_dataset(file, tmp_path / "images")
    assert _unlisted(data) == (2, ("b & c.png", "sub/extra é.png"))
    assert any("2): not part of this data set, such as b & c.png" in r for r in data.remarks())

    # another split of the same folder lists one of them
    (tmp_path / f"val.{kind}").write_text(KINDS[kind]("b & c.png"), encoding="utf-8")
    assert _unlisted(mr.load_dataset(file, tmp_path / "images")) == (1, ("sub/extra é.png",))


def test_a_coco_file_opened_directly_counts_them_too(tmp_path: Path) -> None:
    _draw(tmp_path, "a.png", "b.png", "runs/overlay.png")
    (tmp_path / "train.json").write_text(_coco("a.png"))
    assert _unlisted(mr.CocoDataset(tmp_path / "train.json")) == (1, ("b.png",))


def test_predictions_are_no_other_split_and_names_in_any_spelling_are_listed(
    tmp_path: Path,
) -> None:
    _draw(tmp_path / "images", "cam 1/A.PNG", "cam2/b.png", "cam3/c.png", "out of reach/x/y/z.png")
    (tmp_path / "train.json").write_text(_coco("cam%201\\a.png", "/home/me/cam2/b.png"))
    (tmp_path / "results.json").write_text('[{"file_name": "cam3/c.png", "score": 0.5}]')
    data = mr.load_dataset(tmp_path / "train.json")
    assert _unlisted(data) == (1, ("cam3/c.png",))


def test_images_in_other_folders_than_the_listed_ones_are_none_of_the_data(tmp_path: Path) -> None:
    """The annotation file lies above: its folder holds overlays and other data sets, too."""
    _draw(tmp_path, "images/a.png", "images/b.png", "predictions/a.png", "other/c.png", "logo.png")
    (tmp_path / "train.json").write_text(_coco("images/a.png"))
    assert _unlisted(mr.load_dataset(tmp_path / "train.json")) == (1, ("images/b.png",))


def test_splits_in_folders_of_their_own_and_subsets_of_one_file_list_each_others_images(
    tmp_path: Path,
) -> None:
    _draw(tmp_path / "images", "a.png", "b.png")
    for split, name in (("train", "a.png"), ("val", "b.png")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "labels.json").write_text(_coco(name))
    data = mr.load_dataset(tmp_path / "train" / "labels.json", tmp_path / "images")
    assert _unlisted(data) == (0, ())

    both = (
        _cvat("a.png", "b.png")
        .replace('id="0"', 'subset="train"')
        .replace('id="1"', 'subset="val"')
    )
    (tmp_path / "annotations.xml").write_text(both)
    assert _unlisted(mr.load_dataset(f"{tmp_path / 'annotations.xml'}:train")) == (0, ())


def test_links_in_circles_and_names_too_long_do_not_end_the_loading(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    _draw(folder, "a.png", "b.png")
    for link in (folder / "loop.jpg", tmp_path / "loop"):
        link.symlink_to(link.name)
    long = f"{'x' * 400}/c.png"
    (folder / "train.json").write_text(_coco("a.png", long))
    with pytest.warns(DataWarning, match="File name too long"):
        data = mr.load_dataset(folder / "train.json", folder, on_error="drop")
    assert _unlisted(data) == (1, ("b.png",))


def test_a_data_set_without_its_images_has_no_such_note(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(_coco("a.png", "../../elsewhere/b.png"))
    assert _unlisted(mr.load_dataset(tmp_path / "train.json")) == (0, ())
