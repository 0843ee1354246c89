"""Label Studio: the JSON export, a list of tasks with annotations and their results. Read only.

rectanglelabels -> box, or mask if it is rotated; polygonlabels, ellipselabels, brushlabels -> mask;
keypointlabels -> a keypoint of the object that it names as its parent. Coordinates are percent of
the upright image; a rectangle rotates about its upper left corner, in degrees.

A brush is RGBA in Label Studio's own bit-packed runs (`decode_brush`). Images are looked for by
name beside the file: the name without the folders of the server and the prefix of an upload.

Source: labelstud.io/guide/export; github.com/HumanSignal/label-studio-converter, brush.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from ..annotations import rle as coco_rle
from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.coco_types import Json, JsonObject
from ..annotations.contours import ellipse
from ..annotations.shown_values import shown
from ..images.image_files import image_suffixes, images_in
from ..images.read import ImageError, image_size
from .annotation_source import AnnotationSource
from .bounded_files import part_of
from .format import Format
from .id_maps import MOST_MASK
from .reading import Annotated, AnnotatedObject, DatasetBuilder, image_folder, tracked

_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels")
_BROKEN = (ValueError, TypeError, KeyError, OverflowError, IndexError)
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix of an uploaded file


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or the only JSON file of the folder, is an export of Label Studio."""
    path = source.path
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        return len(files) == 1 and _is_export(AnnotationSource(files[0]).json)
    return _is_export(source.json)


def splits(source: AnnotationSource) -> list[str]:
    """None: an export is not divided."""
    return []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads all tasks that have an annotation; of several annotations the last one is used."""
    if source.path.is_dir():
        source = AnnotationSource(next(iter(sorted(source.path.glob("*.json")))))
    tasks: list[Json] = source.json
    folder = source.folder
    candidates = [folder, folder / "images", folder.parent / "images", folder.parent]
    images_of = [_image_names(task) for task in tasks]
    every_name = [n for of_task in images_of for names in of_task.values() for n in names]
    builder = DatasetBuilder(source.name, image_folder(images, candidates, every_name))
    searched = builder.folder
    existing = {} if searched is None or not searched.is_dir() else _by_name(searched)

    for index, task in enumerate(tracked(tasks, "reading Label Studio tasks")):
        where = f"{source.name}, task {part_id(task, index)}"
        annotations = _annotations(task)
        if not annotations:
            builder.unused("tasks without an annotation", where)
            continue
        if len(annotations) > 1:
            builder.unused("further annotations of a task", where, len(annotations) - 1)
        if not images_of[index]:
            detail = "data has no image"
            builder.problem("task without image", where, detail, "export image tasks")
            continue

        results = annotations[-1].get("result")
        if not isinstance(results, list):
            detail = f"expected result as a list, got {results!r:.40}"
            builder.problem("broken task", where, detail, "export it again")
            continue
        names = _annotated_image(images_of[index], results)
        if not names:
            detail = f"data has the images {', '.join(images_of[index])}, to_name fits not one"
            suggestion = "export tasks of one image each"
            builder.problem("task with several images", where, detail, suggestion)
            continue
        name = next((existing[n] for n in names if n in existing), names[-1])
        image_id = builder.image(name, _size(results, builder.folder, name), where)
        if image_id is not None and _is_annotated_image(builder, image_id, results, where):
            _read_results(builder, image_id, results, where)
    return builder.build()


def part_id(task: Json, index: int) -> str:
    """The task's own id, else its index."""
    return str(task.get("id", index)) if isinstance(task, dict) else str(index)


def _is_export(content: Json) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("data"), dict)
            and isinstance(task.get("annotations", task.get("completions")), list)
            for task in content
        )
    )


def _annotations(task: JsonObject) -> list[JsonObject]:
    """The annotations of a task that were not cancelled."""
    given = task.get("annotations", task.get("completions"))
    return [a for a in given or () if isinstance(a, dict) and not a.get("was_cancelled")]


def _image_names(task: JsonObject) -> dict[str, list[str]]:
    """For each image of a task what it may be called: path below a folder, name, without prefix."""
    found: dict[str, list[str]] = {}
    for key, value in part_of(task, "data").items():
        if not isinstance(value, str):
            continue
        url = urlsplit(value.replace("\\", "/"))
        path = unquote((parse_qs(url.query).get("d") or [url.path])[0]).replace("\\", "/")
        name = path.rpartition("/")[2]
        if Path(name).suffix.lower() in image_suffixes():
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            tails = ["/".join(parts[start:]) for start in range(len(parts))]
            found[key] = list(dict.fromkeys([*tails, _UPLOAD.sub("", name)]))
    return found


def _annotated_image(images: dict[str, list[str]], results: Sequence[Json]) -> list[str]:
    """The names of the image that the results are for; empty if that is not certain.

    Of several images of a task it is the one whose key all results have as their `to_name`.
    """
    if len(images) == 1:
        return next(iter(images.values()))
    targets = {str(r["to_name"]) for r in results if isinstance(r, dict) and "to_name" in r}
    return images.get(targets.pop(), []) if len(targets) == 1 else []


def _by_name(folder: Path) -> dict[str, str]:
    """Path below a folder, and bare name if it is unique -> path of each image."""
    paths = [path.relative_to(folder).as_posix() for path in images_in(folder)]
    bare = [path.rpartition("/")[2] for path in paths]
    by_bare = {name: path for name, path in zip(bare, paths, strict=True) if bare.count(name) == 1}
    return by_bare | {path: path for path in paths}


def _size(results: Sequence[Json], folder: Path | None, name: str) -> tuple[int, int] | None:
    """(height, width) of the upright image: that of the file, else that of the results."""
    try:
        return image_size((folder or Path()) / name)
    except ImageError:
        return _given_size(results)


def _given_size(results: Sequence[Json]) -> tuple[int, int] | None:
    """(height, width) that the results give for the image that was shown."""
    for result in results:
        height = result.get("original_height") if isinstance(result, dict) else None
        width = result.get("original_width") if isinstance(result, dict) else None
        if type(height) is int and type(width) is int and min(height, width) > 0:
            return height, width
    return None


def _is_annotated_image(
    builder: DatasetBuilder, image_id: int, results: Sequence[Json], where: str
) -> bool:
    """Whether the file shows what was annotated; adds a problem if not.

    Percentages fit any copy of another size, but not an image of another shape, nor one that was
    turned in the tool.
    """
    turned = next((r for r in results if isinstance(r, dict) and r.get("image_rotation")), None)
    if turned is not None:
        builder.problem(
            "image turned in Label Studio",
            where,
            f"image_rotation is {shown(turned['image_rotation'], 20)}",
            "turn the image back there and export again, or annotate a file that is turned",
        )
        return False

    height, width = builder.size(image_id)
    given = _given_size(results)
    if given is None or given == (height, width):
        return True
    detail = (
        f"the annotated image had {given[1]} x {given[0]} pixels, the file has {width} x {height}"
    )
    if abs(given[1] * height - given[0] * width) <= max(width, height, *given):
        handled = "percentages are used; a brush needs the same size"
        builder.notes.add("images of another size than the annotated ones", handled, where)
        return True
    suggestion = "use the image that was annotated; was an EXIF rotation ignored?"
    builder.problem("image size mismatch", where, detail, suggestion)
    return False


def _read_results(
    builder: DatasetBuilder, image_id: int, results: Sequence[Json], where: str
) -> None:
    """Adds the objects of one image."""
    objects: dict[str, AnnotatedObject] = {}
    points: list[tuple[str, JsonObject, JsonObject, str]] = []
    for index, result in enumerate(results):
        location = f"{where}, result {index}"
        value = part_of(result, "value")
        kind = next((key for key in _LABELS if value.get(key)), "")
        if not kind:
            name = result.get("type") if isinstance(result, dict) else type(result).__name__
            builder.unused(f"results of type {name!r:.40}", location)
            continue
        try:
            labels = [value[kind]] if isinstance(value[kind], str) else value[kind]
            label = str(labels[0])
            if len(labels) > 1:
                builder.unused("further labels of an object", location, len(labels) - 1)
            if kind == "keypointlabels":
                points.append((label, result, value, location))
                continue
            instance = AnnotatedObject(label, location)
            _read_shape(instance, kind, result, value, builder.size(image_id))
            objects[str(result.get("id", index))] = instance
        except _BROKEN as error:
            detail = f"{kind}: {error or type(error).__name__}"
            builder.problem("broken result", location, detail, "draw it again")

    # Keypoints come last: the object that they belong to may follow them in the file.
    for label, result, value, location in points:
        parent = objects.get(str(result.get("parentID") or ""))
        if parent is None:
            detail = f'keypoint "{label}" names no object as its parent'
            suggestion = "it is left out; drag it onto its object in the list of regions"
            builder.problem("keypoint without object", location, detail, suggestion, False)
            continue
        try:
            height, width = builder.size(image_id)
            x = float(value["x"]) / 100 * width - KEYPOINT_OFFSET
            y = float(value["y"]) / 100 * height - KEYPOINT_OFFSET
            parent.keypoints[label] = (x, y, 2)
        except _BROKEN as error:
            builder.problem("broken result", location, f"keypoint: {error}", "draw it again")
    for instance in objects.values():
        builder.add(image_id, instance)


def _read_shape(
    instance: AnnotatedObject,
    kind: str,
    result: JsonObject,
    value: JsonObject,
    size: tuple[int, int],
) -> None:
    """Adds a shape to an object.

    Raises:
        ValueError: the shape is broken.
    """
    scale = np.array([size[1], size[0]]) / 100
    if isinstance(score := result.get("score"), int | float):
        instance.score = score

    if kind == "polygonlabels":
        points = np.array(value["points"], dtype=float)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise ValueError("expected 3 or more points [x, y] in percent")
        instance.polygons.append(points * scale)
    elif kind == "brushlabels":
        instance.rles.append(_read_brush(result, value, size))
    else:
        x, y = (np.array([value["x"], value["y"]], dtype=float) * scale).tolist()
        names = ("width", "height") if kind == "rectanglelabels" else ("radiusX", "radiusY")
        w, h = (np.array([value[name] for name in names], dtype=float) * scale).tolist()
        angle = math.radians(float(value.get("rotation") or 0))
        if kind == "ellipselabels":
            instance.polygons.append(ellipse((x, y), (w, h), angle))
        elif angle % (2 * math.pi):
            along = np.array([math.cos(angle), math.sin(angle)])
            down = np.array([-math.sin(angle), math.cos(angle)])
            corners = [0 * along, w * along, w * along + h * down, h * down]
            instance.polygons.append(np.array(corners) + np.array([x, y]))
        else:
            instance.boxes.append((x, y, x + w, y + h))


def _read_brush(result: JsonObject, value: JsonObject, size: tuple[int, int]) -> coco_rle.RLE:
    """The RLE of a brush, in which a pixel is inside where its alpha is not 0."""
    if value.get("format") != "rle":
        raise ValueError(f"expected the format rle, got {value.get('format')!r:.20}")
    given = (result.get("original_height"), result.get("original_width"))
    if given != size:
        raise ValueError(f"expected original_height and original_width {size}, got {given}")
    pixels = decode_brush(value["rle"], size[0] * size[1] * 4)
    return coco_rle.encode(pixels.reshape(*size, 4)[:, :, 3] > 0)


def decode_brush(rle: Sequence[int], expected: int) -> UInt8[np.ndarray, " values"]:
    """Decodes Label Studio's runs.

    The bytes are one string of bits, from the highest of each byte on: 32 for the number of values,
    5 for the bits of a value less 1, 4 x 4 for the bits of a run's length less 1, of which each run
    picks one by 2 bits. A run begins with a bit: 1 = one value repeated, 0 = as many values.

    Args:
        rle: bytes, as numbers.
        expected: the number of values: 4 for each pixel.

    Raises:
        ValueError: another number of values, or the bytes end before they are complete.
    """
    if expected > 4 * MOST_MASK:
        raise ValueError(f"more than {MOST_MASK:,} pixels")
    packed = np.array(rle, dtype=np.int64)
    if packed.ndim != 1 or len(packed) > expected + 64 or ((packed < 0) | (packed > 255)).any():
        raise ValueError("expected rle as a list of bytes, not longer than its pixels")
    data = packed.astype(np.uint8).tobytes()
    position = 0

    def number(count: int) -> int:
        nonlocal position
        first = position >> 3
        end = position + count
        if end > 8 * len(data):
            raise ValueError("rle ends before it is complete")
        chunk = int.from_bytes(data[first : (end + 7) >> 3], "big")
        position = end
        return (chunk >> (-end % 8)) & ((1 << count) - 1)

    total = number(32)
    if total != expected:
        raise ValueError(f"expected rle of {expected:,} values, got {total:,}")
    word = number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    values = np.zeros(expected, np.uint8)
    filled = 0
    while filled < expected:
        is_repeated = number(1)
        count = number(lengths[number(2)]) + 1
        if filled + count > expected:
            raise ValueError("rle has more values than its head says")
        if is_repeated:
            values[filled : filled + count] = number(word) & 255
        else:
            values[filled : filled + count] = [number(word) & 255 for _ in range(count)]
        filled += count
    return values


LABEL_STUDIO = Format(
    name="label-studio",
    description="Label Studio: the JSON export, a list of tasks with data and annotations",
    recognize=recognize,
    splits=splits,
    read=read,
    lists_images=True,
)
