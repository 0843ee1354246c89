"""A small file that claims to be huge is refused in one sentence, without the memory that it claims."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.problems import DataError

MIB = 2**20
IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20]}
NPY = b"\x93NUMPY\x01\x00v\x00"


def coco(mask: Any, **of_image: int) -> str:
    images = [IMAGE | of_image]
    objects = [OBJECT | {"segmentation": mask}]
    categories = [{"id": 1, "name": "cell"}]
    return json.dumps({"images": images, "annotations": objects, "categories": categories})


def cvat_mask(width: int, height: int) -> str:
    mask = f'rle="0, {width * height}" left="0" top="0" width="{width}" height="{height}"'
    image = f'<image id="0" name="a.png" width="{width}" height="{height}">'
    return f'<annotations>{image}<mask label="cell" {mask}/></image></annotations>'


def label_studio(width: int, height: int) -> str:
    value = {"format": "rle", "rle": [255] * 1000, "brushlabels": ["cell"]}
    result = {"original_width": width, "original_height": height, "value": value}
    task = {"data": {"image": "absent.png"}, "annotations": [{"result": [result]}]}
    return json.dumps([task])


def array_of(folder: Path, shape: tuple[int, ...]) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "a.png").rename(folder / "images/a.png")
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    (folder / "masks/a.npy").write_bytes(NPY + head.ljust(117) + b"\n")
    return folder


def label_map(folder: Path, side: int) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "a.png").rename(folder / "images/a.png")
    Image.new("1", (8, 8)).save(folder / "masks/a.png")
    data = bytearray((folder / "masks/a.png").read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2  # the size in the header alone
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (folder / "masks/a.png").write_bytes(data)
    return folder


NAMES = "abcdefghijk"
PAIRS = list(pairwise(NAMES))
ALIASES = "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in PAIRS)
ENTITIES = "".join(f'<!ENTITY {b} "{f"&{a};" * 99}">' for a, b in PAIRS)
HUGE = {"size": [10**9, 10**9], "counts": [0, 10**18]}
EDGE = {"size": [2**16, 2**15], "counts": [0, 2**31]}
FAR = [0, 0, 30000, 0, 30000, 60000]
FILES: dict[str, tuple[str, str]] = {
    "RLE of an image beyond the bound": ("a.json", coco(HUGE, width=10**9, height=10**9)),
    "RLE of another, huge size": ("a.json", coco(HUGE)),
    "RLE at the bound": ("a.json", coco(EDGE, width=2**15, height=2**16)),
    "RLE at the bound and a polygon": ("a.json", coco([EDGE, FAR], width=2**15, height=2**16)),
    "one run too long for any number": ("a.json", coco({"size": [80, 100], "counts": [10**30]})),
    "an RLE of text without end": ("a.json", coco({"size": [80, 100], "counts": "o" * 10**5})),
    "brackets": ("a.json", "[" * 10**6),
    "an XML mask beyond every bound": ("annotations.xml", cvat_mask(9_999_999, 9_999_999)),
    "an XML mask beyond the bound of masks": ("annotations.xml", cvat_mask(40_000, 40_000)),
    "elements inside each other": ("a.xml", "<a>" * 10**5),
    "entities": ("a.xml", f'<!DOCTYPE a [<!ENTITY a "xx">{ENTITIES}]><annotation>&k;</annotation>'),
    "a brush": ("a.json", label_studio(60_000, 60_000)),
    "aliases": ("data.yaml", f"a: &a [x, x]\n{ALIASES}names: *k\ntrain: images\n"),
    "classes": ("data.yaml", "nc: 1000000000\ntrain: .\n"),
    "keypoints": ("data.yaml", "names: [a]\nkpt_shape: [1000000000, 3]\ntrain: .\n"),
}
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "an array": lambda folder: array_of(folder, (10**6, 10**6)),
    "a label map": lambda folder: label_map(folder, 60_000),
}


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_refusing_takes_no_memory(name: str, tmp_path: Path):
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    if name in FOLDERS:
        path = FOLDERS[name](tmp_path)
    else:
        file, text = FILES[name]
        path = tmp_path / file
        path.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            mr.load_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * MIB


def test_a_line_of_labels_beyond_the_bound_is_not_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskrcnn.formats.yolo._LONGEST_LINE", 100)
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n0 " + "0.5 " * 100)
    (tmp_path / "data.yaml").write_text("names: [cell]\ntrain: .\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2: expected at most 100 characters, got 40"):
        mr.load_dataset(tmp_path)
