"""Instances as JSON: a round trip loses nothing, and text from elsewhere is checked."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_instances import make_instances

import maskrcnn as mr
from maskrcnn.instances import Instances


def assert_equal(one: Instances, other: Instances) -> None:
    for part in fields(Instances):
        a, b = getattr(one, part.name), getattr(other, part.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, part.name
            assert torch.equal(a, b), part.name
        else:
            assert a == b, part.name
            assert type(a) is type(b), part.name


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_round_trip_loses_nothing(count: int) -> None:
    categories = (
        mr.Category("two", 9),
        mr.Category("fly \u00e9\udcff", -3, ("head", "tail"), ((0, 1),), (1, 0), (0.1, 0.2)),
    )
    instances = replace(
        make_instances(count),
        categories=categories,
        intensity_range=(0.0, 4095.0),
        mask_threshold=0.3,
        paste="grid",
    )
    assert_equal(Instances.from_json(instances.to_json()), instances)
    assert_equal(Instances.from_json(instances.to_json().encode()), instances)


def test_a_round_trip_keeps_absent_heads_absent() -> None:
    plain = replace(
        make_instances(),
        mask_grids=None,
        keypoints=None,
        keypoint_logits=None,
        image_id=None,
        file_name=None,
    )
    assert_equal(Instances.from_json(plain.to_json()), plain)


def test_a_file_is_read_and_the_image_is_attached(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(make_instances().to_json())
    image = np.zeros((40, 60, 3), np.uint8)
    assert Instances.from_json(path, image).plot().size == (60, 40)
    assert Instances.from_json(path, "cells.png").source == Path("cells.png")
    with pytest.raises(ValueError, match="expected the instances' image of 40x60 pixels"):
        Instances.from_json(path, np.zeros((60, 40, 3), np.uint8)).crops()
    Image.new("RGB", (30, 20)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"other\.png: expected .* 40x60 pixels .*, got 20x30"):
        Instances.from_json(path, tmp_path / "other.png").crops()
    with pytest.raises(mr.DataError, match="to read a file, pass a Path"):
        Instances.from_json("a.json")
    with pytest.raises(mr.DataError, match="not found"):
        Instances.from_json(tmp_path / "none.json")


def grids(shape: Any, values: np.ndarray) -> dict[str, Any]:
    text = base64.b64encode(values.astype("<f4").tobytes()).decode()
    return {"shape": shape, "float32": text}


WRONG = {
    "format": ["maskrcnn.Other", 'with "format"'],
    "version": [2, "version: expected 1, got 2; a newer version"],
    "size": [[40], r"size: expected \[height, width\]"],
    "size ": [[40, True], r"size: expected \[height, width\]"],
    "size  ": [[10**6, 10**6], "more than the limit of 500,000,000 pixels"],
    "boxes": [[[1, 2, 3]] * 4, "boxes: expected any x 4 numbers"],
    "boxes ": [[[1, 2, 3, 4], [1]], "lists of unequal length"],
    "boxes  ": [[[5, 2, 3, 4]] * 4, "expected x0 <= x1"],
    "boxes   ": [[[1, 2, 3, "4"]] * 4, "boxes: expected any x 4 numbers"],
    "boxes    ": [[[1, 2, 3, 1e300]] * 4, "boxes: expected finite numbers"],
    "boxes     ": [[[1, 2, 3, 10**400]] * 4, "boxes: expected any x 4 numbers"],
    "boxes      ": [None, "boxes: expected any x 4 numbers"],
    "scores": [[0.5] * 3, "scores: expected 4 numbers"],
    "scores ": [[0.5, 0.5, 0.5, 2], "scores: expected numbers from 0 to 1"],
    "scores  ": [[0.5, 0.5, 0.5, None], "scores: expected 4 numbers"],
    "labels": [[0, 0, 0, 2], "labels: expected whole numbers from 0 to 1, got 2"],
    "labels ": [[0, 0, 0, True], "labels: expected whole numbers"],
    "labels  ": [[0, 0, 0, -1], "labels: expected whole numbers"],
    "labels   ": [[0.0] * 4, "labels: expected whole numbers"],
    "labels    ": [3, "labels: expected a list of 4"],
    "categories": [{}, "categories: expected a list"],
    "categories ": [[{"id": 1}], r"categories\[0\]: expected an object with .name. and .id."],
    "categories  ": [[{"name": "a", "id": "1"}], r"categories\[0\]\.id: expected int"],
    "categories   ": [[{"name": "a", "id": 1, "nmae": 1}], "unknown setting"],
    "keypoints": [[[[1, 2, 0.5]]] * 4, "keypoints: expected at least 2 per object, got 1"],
    "keypoints ": [[[[1, 2]] * 2] * 4, "keypoints: expected 4 x any x 3 numbers"],
    "keypoint_logits": [[[1, 2, 3]] * 4, "keypoint_logits: expected 4 x 2 numbers"],
    "mask_grids": [[1], "mask_grids: expected .shape. and .float32."],
    "mask_grids ": [grids([3, 7, 7], np.zeros(147)), r"expected the shape \[4, S, S\]"],
    "mask_grids  ": [grids([4, 7, 7], np.zeros(9)), "expected 784 bytes of float32"],
    "mask_grids   ": [grids([4, 7, 7], np.full(196, 1.5)), "mask_grids: expected numbers from 0"],
    "mask_grids    ": [grids([4, 7, 7], np.full(196, np.nan)), "mask_grids: expected finite"],
    "mask_grids     ": [{"shape": [4, 7, 7], "float32": "?"}, "mask_grids: not base64"],
    "mask_grids      ": [{"shape": [4, 7, 7], "float32": 3}, "mask_grids: not base64"],
    "mask_grids       ": [grids([4, 2, 8], np.zeros(64)), "square shape"],
    "paste": ["glue", "paste: expected border, grid, torchvision, got 'glue'"],
    "paste ": [[], "paste: expected"],
    "mask_threshold": [2, "mask_threshold: expected a finite number from 0 to 1"],
    "coco_offset": [None, "coco_offset: expected a finite number, got None"],
    "image_id": ["1", "image_id: expected null or int"],
    "file_name": [1, "file_name: expected null or str"],
    "intensity_range": [[1, 0], "intensity_range: expected low < high"],
    "intensity_range ": [[1], "intensity_range: expected null or"],
    "intensity_range  ": [[0, "1"], r"intensity_range\[1\]: expected a finite number"],
    "scorse": [1, "unexpected keys: 'scorse'"],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_named(key: str) -> None:
    value, message = WRONG[key]
    content = json.loads(make_instances().to_json()) | {key.strip(): value}
    with pytest.raises(mr.DataError, match=message) as caught:
        Instances.from_json(json.dumps(content))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"a": 1}', "{", "[" * 1000, "\x00"])
def test_text_that_is_something_else_is_refused(text: str) -> None:
    with pytest.raises(mr.DataError, match="instances"):
        Instances.from_json(text)


def test_a_missing_key_is_named() -> None:
    content = json.loads(make_instances().to_json())
    del content["labels"]
    with pytest.raises(mr.DataError, match="missing keys: labels"):
        Instances.from_json(json.dumps(content))


def test_a_larger_image_is_accepted_on_request() -> None:
    text = replace(make_instances(), size=(40_000, 40_000)).to_json()
    with pytest.raises(mr.DataError, match="limit"):
        Instances.from_json(text)
    assert Instances.from_json(text, max_pixels=2 * 10**9).size == (40_000, 40_000)


def test_more_than_the_bound_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.instances.instances_json.MOST_BYTES", 1000)
    text = make_instances().to_json()
    (tmp_path / "a.json").write_text(text)
    for source in (text, text.encode(), tmp_path / "a.json"):
        with pytest.raises(mr.DataError, match="MiB"):
            Instances.from_json(source)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected JSON text or a Path, got a dict"):
        Instances.from_json({})  # ty: ignore[invalid-argument-type]
