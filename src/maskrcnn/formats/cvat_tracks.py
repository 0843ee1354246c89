"""CVAT's tracks ("CVAT for video 1.1") as shapes of images: `frames_of_tracks(root, ...)`.

A track is one object in a row of frames: <track label="car"><box frame="0" outside="0" .../>. CVAT
writes a shape for every frame; `keyframe` tells drawn ones from interpolated ones, and `outside`
marks frames in which the object is not to be seen. Where another program left out frames between
two boxes, the boxes in between are interpolated, as CVAT does.

The XML names no images. A frame is the image that ends in its number, as in frame_000012.png, the
name that CVAT gives; or the <image> of that id, where the file has such elements.

Source: docs.cvat.ai, "XML annotation format", interpolation.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

from ..annotations.images_option import images_option
from ..annotations.problems import DataError
from ..images.image_files import images_in
from ..runtime.counted import counted
from .reading import DatasetBuilder

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_EXPORT = 'export the task as "CVAT for images 1.1", which names the images'


def frames_of_tracks(
    root: Element, images: list[Element], folders: Sequence[Path], builder: DatasetBuilder
) -> list[Element]:
    """The images of a file, with the shapes of its tracks among their own.

    Args:
        root: of the file.
        images: its <image> elements that are read.
        folders: where images may be, the likeliest first.
        builder: gets the folder in which frames were found by number, and what is noteworthy.

    Raises:
        DataError: the frames cannot be assigned to images.
    """
    tracks = root.findall("track")
    if not tracks:
        return images
    tasks = {track.get("task_id", "") for track in tracks}
    if len(tasks) > 1:
        raise DataError(
            f"{builder.name}: {counted(len(tracks), 'track')} of {len(tasks)} tasks, whose frames "
            "have the same numbers; export each task by itself"
        )

    reader = _TrackReader(root, tracks, builder)
    if images:
        images = [_copy(image) for image in images]
        frames = {_whole(image.get("id")): image for image in images}
    else:
        folder, files = _numbered_files(folders)
        if not files:
            searched = ", ".join(dict.fromkeys(str(f) for f in folders if f.is_dir())) or "none"
            raise DataError(
                f"{builder.name}: {counted(len(tracks), 'track')} with "
                f"{counted(reader.num_shapes, 'shape')}, but no image is named by its frame, "
                "as in frame_000012.png; searched the folders "
                f"{searched}; pass {images_option()}, or {_EXPORT}"
            )
        builder.folder = folder
        frames = reader.images_of(files)
        images = list(frames.values())
    reader.add_shapes({n: image for n, image in frames.items() if n is not None})
    return images


class _TrackReader:
    """Reads the tracks of one file."""

    def __init__(self, root: Element, tracks: Sequence[Element], builder: DatasetBuilder) -> None:
        self.tracks = tracks
        self.builder = builder
        self.num_shapes = sum(len(track) for track in tracks)

        # Which frames the task has: start, stop and step are those of the video.
        match = re.search(r"step=(\d{1,9})", root.findtext("meta//frame_filter") or "")
        self.step = max(int(match[1]), 1) if match else 1
        last = max((_whole(shape.get("frame")) or 0 for t in tracks for shape in t), default=0)
        start = _whole(root.findtext("meta//start_frame"))
        stop = _whole(root.findtext("meta//stop_frame"))
        self.start = 0 if start is None else start
        self.stop = last if stop is None else stop
        sides = [root.findtext(f"meta//original_size/{side}") for side in ("width", "height")]
        names = ("width", "height")
        self.size = {n: side for n, side in zip(names, sides, strict=True) if side}

    def images_of(self, files: Mapping[int, Path]) -> dict[int, Element]:
        """An <image> for each frame of the task that has a file.

        Programs that count files from 1 give the first frame the number 1, and the last one a
        number that no frame has.
        """
        counts_from_1 = self.start not in files and self.stop + 1 in files and self.step == 1
        frames = {number - counts_from_1: path for number, path in files.items()}
        return {
            frame: Element("image", {"id": str(frame), "name": path.name, **self.size})
            for frame, path in sorted(frames.items())
            if self.start <= frame <= self.stop and (frame - self.start) % self.step == 0
        }

    def add_shapes(self, images: Mapping[int, Element]) -> None:
        """Adds the shapes of all tracks to the images of their frames."""
        notes = self.builder.notes
        absent: set[int] = set()
        for index, track in enumerate(self.tracks):
            where = f"track {track.get('id', index)}"
            for shape in self._shapes(track, where, sorted(images)):
                frame = _whole(shape.get("frame"))
                if frame is None:
                    detail = f"frame is {shape.get('frame')!r:.40}"
                    self.builder.problem("broken shape", where, detail, "export the task again")
                elif frame not in images:
                    absent.add(frame)
                elif shape.get("outside") != "1":
                    if shape.get("keyframe") == "0":
                        what = "shapes that CVAT interpolated between keyframes"
                        notes.add(what, "read as they are", f"{where}, frame {frame}")
                    images[frame].append(_of_image(shape, track, index))

        first = min(images, default=None)
        example = "" if first is None else f"frame {first} as {images[first].get('name')}"
        notes.add("tracks", "each frame is an image", example, len(self.tracks))
        if absent:
            self.builder.problem(
                "frames without an image",
                self.builder.name,
                f"{len(absent):,}, such as {min(absent)}; frames with one: {len(images):,}",
                "their shapes are left out; add the images, named by frame",
                False,
            )

    def _shapes(self, track: Element, where: str, frames: Sequence[int]) -> list[Element]:
        """The shapes of a track, and those between two boxes that are not next to each other."""
        shapes = sorted(track, key=lambda shape: _whole(shape.get("frame")) or 0)
        between: list[Element] = []
        for first, second in pairwise(shapes):
            gap = self._gap(first, second, frames)
            if not gap:
                continue
            if _is_plain_box(first) and _is_plain_box(second):
                what = "boxes that are missing between two frames"
                example = f"{where}, frame {gap[0]}"
                self.builder.notes.add(what, "interpolated", example, len(gap))
                between += [_interpolated(first, second, frame) for frame in gap]
            else:
                detail = (
                    f"no {first.tag} in {counted(len(gap), 'frame')} from {gap[0]} to {gap[-1]}"
                )
                suggestion = "export the task again; CVAT writes every frame"
                self.builder.problem("track with a gap", where, detail, suggestion)

        if shapes and self._gap(shapes[-1], None, frames):
            what = "tracks that end before the last frame"
            handled = "the object is taken to be gone after that"
            example = f"{where}, frame {shapes[-1].get('frame')}"
            self.builder.notes.add(what, handled, example)
        return shapes + between

    def _gap(self, first: Element, second: Element | None, frames: Sequence[int]) -> Sequence[int]:
        """The frames with an image after one shape and before the next, in which it is there."""
        start = _whole(first.get("frame"))
        stop = self.stop + 1 if second is None else _whole(second.get("frame"))
        if start is None or stop is None or first.get("outside") == "1":
            return []
        return frames[bisect.bisect_right(frames, start) : bisect.bisect_left(frames, stop)]


def _numbered_files(folders: Sequence[Path]) -> tuple[Path | None, dict[int, Path]]:
    """The first folder with images whose names end in numbers, and these images by number.

    Raises:
        DataError: two images have one number, or the numbers have different lengths, so that
            their order is not certain.
    """
    for folder in folders:
        paths = images_in(folder, deep=False) if folder.is_dir() else []
        matches = [(path, match[0]) for path in paths if (match := re.search(r"\d+$", path.stem))]
        files: dict[int, Path] = {}
        for path, digits in matches:
            other = files.setdefault(int(digits[-18:]), path)
            if other != path:
                raise DataError(
                    f"{folder}: {other.name} and {path.name} have the same number, which would be "
                    f"that of a frame; {_EXPORT}"
                )

        if len({len(digits) for _, digits in matches}) > 1:
            raise DataError(
                f"{folder}: the numbers of {matches[0][0].name} and {matches[-1][0].name} have "
                f"different lengths, so that the order of the frames is not certain; {_EXPORT}"
            )

        if files:
            return folder, files
    return None, {}


def _of_image(shape: Element, track: Element, index: int) -> Element:
    """A shape of a track as a shape of an image."""
    copy = _copy(shape)
    copy.set("label", track.get("label", ""))
    copy.set("track", track.get("id", str(index)))
    if group := track.get("group_id"):
        copy.set("group_id", group)
    return copy


def _copy(element: Element) -> Element:
    """The same element, to which more can be added."""
    copy = Element(element.tag, dict(element.attrib))
    copy.extend(list(element))
    return copy


def _interpolated(first: Element, second: Element, frame: int) -> Element:
    """The box of a frame between two others."""
    start = int(first.get("frame", ""))
    share = (frame - start) / (int(second.get("frame", "")) - start)
    box = Element("box", {**first.attrib, "frame": str(frame), "keyframe": "1"})
    for side in _SIDES:
        start_value, end_value = (float(shape.get(side, "")) for shape in (first, second))
        box.set(side, repr(start_value + share * (end_value - start_value)))
    return box


def _is_plain_box(shape: Element) -> bool:
    """Whether a shape is a box with four numbers that is not rotated."""
    try:
        values = [float(shape.get(side, "")) for side in _SIDES]
        angle = float(shape.get("rotation") or 0)
    except ValueError:
        return False
    return shape.tag == "box" and angle == 0 and all(map(math.isfinite, values))


def _whole(text: str | None) -> int | None:
    """The whole number that a text is; None for any other text."""
    is_number = text is not None and text.isascii() and text.isdigit() and len(text) < 16
    return int(text) if text is not None and is_number else None
