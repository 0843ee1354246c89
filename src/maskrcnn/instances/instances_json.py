"""Instances as JSON text, and back without a loss: `write_json(fields)`, `read_json_fields(...)`.

In:  the fields of an `Instances`, by name, without the image.
Out: one JSON object. Numbers are float32 written in full. The mask grids are the base64 text of
     their float32 bytes, little endian, as they are too many to be read by eye.

Text that somebody else made is checked: sizes, shapes, ranges and names, so that it neither runs
code nor claims an image larger than the limit for images.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..annotations.coco_types import Json, JsonObject
from ..annotations.json_file import MIB, parse_json, read_bounded
from ..annotations.problems import DataError
from ..annotations.shown_values import shown
from ..config import Category
from ..images.open_image import RAISE_THE_LIMIT, pixel_limit
from ..ops.paste_masks import PasteRule
from ..runtime.counted import counted
from ..settings import from_dict

MOST_BYTES = 128 * MIB  # 30,000 objects with masks of 28 x 28 cells; parsing takes up to 22 times
VERSION = 1
_FORMAT = "maskrcnn.Instances"
_NUMBERS = ("boxes", "scores", "labels", "keypoints", "keypoint_logits")
_PLAIN = ("size", "image_id", "file_name", "intensity_range", "paste", "mask_threshold")
_KEYS = ("format", "version", *_PLAIN, "coco_offset", "categories", *_NUMBERS, "mask_grids")


def write_json(fields: Mapping[str, Any]) -> str:
    """Returns the JSON text of the fields of an `Instances`.

    Args:
        fields: by name; `source` is left out.
    """
    content: dict[str, Any] = {"format": _FORMAT, "version": VERSION}
    content |= {name: fields[name] for name in (*_PLAIN, "coco_offset")}
    content["categories"] = [asdict(category) for category in fields["categories"]]
    content |= {name: _numbers(fields[name]) for name in _NUMBERS}

    grids = fields["mask_grids"]
    if grids is not None:
        data = grids.float().cpu().numpy().astype("<f4").tobytes()
        grids = {"shape": list(grids.shape), "float32": base64.b64encode(data).decode("ascii")}
    return json.dumps(content | {"mask_grids": grids}, default=np.generic.item)


def read_json_fields(source: str | bytes | Path, max_pixels: int | None = None) -> dict[str, Any]:
    """Returns the fields of an `Instances`, without `source`.

    Args:
        source: the JSON text, or the file that holds it.
        max_pixels: largest image that is accepted; see `read_image`.

    Raises:
        DataError: the text is not JSON of instances, or a value is out of range; the message names
            the value.
    """
    content, name = _parsed(source)
    try:
        _check_keys(content)
        return _fields(content, pixel_limit(max_pixels))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{name}: {error}") from None


def _numbers(values: Tensor | None) -> Any:
    return None if values is None else values.cpu().tolist()


def _parsed(source: str | bytes | Path) -> tuple[Json, str]:
    """The content of the text, and its name in messages."""
    if isinstance(source, Path):
        return parse_json(read_bounded(source, MOST_BYTES, "instances"), source.name), source.name
    if not isinstance(source, str | bytes):
        raise TypeError(f"expected JSON text or a Path, got a {type(source).__name__}")

    data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(data) > MOST_BYTES:
        raise DataError(
            f"instances: {len(data) / MIB:,.0f} MiB of JSON, expected at most "
            f"{MOST_BYTES / MIB:,.0f} MiB"
        )
    if isinstance(source, str) and source.lower().endswith(".json"):
        raise DataError(
            f"instances: expected JSON text, got {shown(source)}; to read a file, pass a Path"
        )
    return parse_json(data, "instances"), "instances"


def _check_keys(content: Json) -> None:
    """Raises an error unless the content is an object with exactly the known keys."""
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else ""
        got = f"an object with the keys {shown(keys)}" if keys else shown(content)
        raise ValueError(
            f'expected the output of Instances.to_json, with "format": "{_FORMAT}", got {got}'
        )

    if content.get("version") != VERSION:
        raise ValueError(
            f"version: expected {VERSION}, got {shown(content.get('version'))}; "
            "a newer version of maskrcnn wrote it"
        )
    if unknown := sorted(content.keys() - set(_KEYS)):
        raise ValueError(f"unexpected keys: {shown(', '.join(unknown))}")
    if missing := [key for key in _KEYS if key not in content]:
        raise ValueError(f"missing keys: {', '.join(missing)}")


def _fields(content: JsonObject, limit: int) -> dict[str, Any]:
    """The checked fields."""
    categories = _categories(content["categories"])
    boxes = _floats(content, "boxes", (None, 4))
    count = len(boxes)
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError("boxes: expected x0 <= x1 and y0 <= y1")

    fields = {
        "size": _size(content["size"], limit),
        "boxes": boxes,
        "scores": _in_unit(_floats(content, "scores", (count,)), "scores"),
        "labels": _labels(content["labels"], count, len(categories)),
        "categories": categories,
        "mask_grids": _grids(content["mask_grids"], count),
        "keypoints": None,
        "keypoint_logits": None,
        "paste": _choice(content["paste"]),
        "mask_threshold": _number(content, "mask_threshold", 0, 1),
        "coco_offset": _number(content, "coco_offset", -math.inf, math.inf),
        "image_id": _optional(content, "image_id", int),
        "file_name": _optional(content, "file_name", str),
        "intensity_range": _range(content["intensity_range"]),
    }

    # keypoints of all categories have one shape
    num_keypoints = max((len(category.keypoints) for category in categories), default=0)
    if content["keypoints"] is not None:
        keypoints = _floats(content, "keypoints", (count, None, 3))
        if count and keypoints.shape[1] < num_keypoints:
            raise ValueError(
                f"keypoints: expected at least {num_keypoints} per object, got {keypoints.shape[1]}"
            )
        fields["keypoints"] = keypoints if count else torch.zeros(0, num_keypoints, 3)
    if content["keypoint_logits"] is not None:
        width = None if fields["keypoints"] is None else fields["keypoints"].shape[1]
        logits = _floats(content, "keypoint_logits", (count, width))
        fields["keypoint_logits"] = logits if count else torch.zeros(0, num_keypoints)
    return fields


def _floats(content: JsonObject, name: str, shape: Sequence[int | None]) -> Tensor:
    """Nested lists of finite numbers as float32; None in the shape is any length."""
    wanted = " x ".join("any" if side is None else str(side) for side in shape)
    try:
        values = np.asarray(content[name])
    except ValueError:
        raise ValueError(
            f"{name}: expected {wanted} numbers, got lists of unequal length"
        ) from None

    if values.shape == (0,) and shape[0] in (0, None):
        values = np.zeros([0 if side is None else side for side in (0, *shape[1:])])
    fits = values.ndim == len(shape) and all(
        side in (None, length) for side, length in zip(shape, values.shape, strict=True)
    )
    if not fits or values.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected {wanted} numbers, got {shown(content[name])}")
    with np.errstate(over="ignore"):
        numbers = torch.from_numpy(values.astype(np.float32))
    if not numbers.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers of float32")
    return numbers


def _in_unit(values: Tensor, name: str) -> Tensor:
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"{name}: expected numbers from 0 to 1")
    return values


def _labels(values: Json, count: int, num_categories: int) -> Tensor:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(
            f"labels: expected a list of {counted(count, 'whole number')}, got {shown(values)}"
        )
    for value in values:
        if type(value) is not int or not 0 <= value < num_categories:
            raise ValueError(
                f"labels: expected whole numbers from 0 to {num_categories - 1}, got {shown(value)}"
            )
    return torch.tensor(values, dtype=torch.int64)


def _grids(value: Json, count: int) -> Tensor | None:
    """The mask grids; their bytes must agree with their shape."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.keys() != {"shape", "float32"}:
        raise ValueError(f'mask_grids: expected "shape" and "float32", got {shown(value)}')
    shape = value["shape"]
    sides: list[Any] = shape if isinstance(shape, list) and len(shape) == 3 else [None] * 3
    if any(type(side) is not int or side < 0 for side in sides) or sides[0] != count:
        raise ValueError(f"mask_grids: expected the shape [{count}, S, S], got {shown(shape)}")

    try:
        data = base64.b64decode(value["float32"], validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"mask_grids: not base64 text: {error}") from None
    if sides[1] != sides[2] or len(data) != 4 * math.prod(sides):
        raise ValueError(
            f"mask_grids: expected {4 * math.prod(sides)} bytes of float32 for a square shape, "
            f"got {len(data)} for {sides}"
        )
    grids = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(sides))
    if not grids.isfinite().all():
        raise ValueError("mask_grids: expected finite numbers")
    return _in_unit(grids, "mask_grids")


def _categories(entries: Json) -> tuple[Category, ...]:
    if not isinstance(entries, list):
        raise ValueError(f"categories: expected a list, got {shown(entries)}")
    categories = []
    for n, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not {"name", "id"} <= entry.keys():
            raise ValueError(
                f'categories[{n}]: expected an object with "name" and "id", got {shown(entry)}'
            )
        categories.append(from_dict(Category, entry, f"categories[{n}]."))
    return tuple(categories)


def _size(value: Json, limit: int) -> tuple[int, int]:
    sides: list[Any] = value if isinstance(value, list) and len(value) == 2 else [None]
    if any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"size: expected [height, width] in pixels, got {shown(value)}")
    height, width = sides
    if height * width > limit:
        raise ValueError(
            f"size: {shown(value)} is more than the limit of {limit:,} pixels; {RAISE_THE_LIMIT}"
        )
    return height, width


def _choice(value: Json) -> PasteRule:
    if value not in get_args(PasteRule):
        raise ValueError(f"paste: expected {', '.join(get_args(PasteRule))}, got {shown(value)}")
    return value


def _number(content: JsonObject, name: str, low: float, high: float) -> float:
    value = content[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        bounds = f" from {low} to {high}" if math.isfinite(low) else ""
        raise ValueError(f"{name}: expected a finite number{bounds}, got {shown(value)}")
    return float(value)


def _optional(content: JsonObject, name: str, kind: type) -> Any:
    value = content[name]
    if value is not None and type(value) is not kind:
        raise ValueError(f"{name}: expected null or {kind.__name__}, got {shown(value)}")
    return value


def _range(value: Json) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"intensity_range: expected null or [low, high], got {shown(value)}")
    ends = {f"intensity_range[{n}]": end for n, end in enumerate(value)}
    low, high = (_number(ends, name, -math.inf, math.inf) for name in ends)
    if low >= high:
        raise ValueError(f"intensity_range: expected low < high, got {shown(value)}")
    return low, high
