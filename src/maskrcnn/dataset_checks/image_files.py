"""Every image decoded, and copies found: within a data set, and between training and validation.

In: data sets with folders of images. Out: problems: files that cannot be decoded to the end, copies, near-duplicates, leakage.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import Problem
from ..images.read import ImageError, read_values
from ..images.similarity import LENGTH, groups, image_hash
from .decoded_cache import Seen, blank_hash, recall, remember

_KEPT_EVERY = 500  # images, so that an interrupted check is not lost


@dataclass(frozen=True)
class DecodedImage:
    """An image of a data set, decoded."""

    place: int
    """In the file's list of images."""
    name: str
    path: Path
    seen: Seen


def decode(data: CocoDataset, progress: bool) -> list[DecodedImage]:
    """Decodes every image whose header could be read; those decoded before and unchanged since are recalled."""
    if data.image_folder is None:
        return []
    entries = data.content()["images"]
    at = {id(image): place for place, image in enumerate(data.raw["images"])}
    paths = [data.image_folder / image["file_name"] for image in entries]
    seen = recall(paths)
    for some in _decoded([p for p in dict.fromkeys(paths) if p not in seen], progress):
        seen |= some
        remember(some)
    return [
        DecodedImage(at[id(image)], f"image {image['id']} ({image['file_name']})", path, seen[path])
        for image, path in zip(entries, paths, strict=True)
    ]


def broken(images: Sequence[DecodedImage]) -> list[Problem]:
    """Those whose header is well but whose pixels are not."""
    suggestion = "restore the file, or drop the image"
    return [
        Problem(
            "image that cannot be decoded", p.name, p.seen.error, suggestion, True, image=p.place
        )
        for p in images
        if p.seen.error
    ]


def copies(images: Sequence[DecodedImage]) -> list[Problem]:
    """Files with the same pixels, and near-duplicates, within a data set."""
    images = _once(images)  # a file listed twice is told of before
    suggestion = "keep one; annotate it completely"
    problems = [
        Problem(
            "same image twice",
            p.name,
            f"the same pixels as {first.name}",
            suggestion,
            False,
            image=p.place,
        )
        for first, *others in _equal(images)
        for p in others
    ]
    known = {frozenset((p.path, q.path)) for p, *others in _equal(images) for q in others}
    suggestion = "one is enough to learn from; never put one into training and one into validation"
    for first, *others in _alike(images):
        problems += [
            Problem(
                "near-duplicate images",
                p.name,
                f"looks like {first.name}",
                suggestion,
                False,
                image=p.place,
            )
            for p in others
            if frozenset((first.path, p.path)) not in known
        ]
    return problems


def leaks(images: Sequence[DecodedImage], validation: Sequence[DecodedImage]) -> list[Problem]:
    """Images of the validation that are, or nearly are, images of the training."""
    theirs = {id(p) for p in validation}
    both = [*images, *validation]
    problems, told = [], set()
    for kind, found, is_error, verb in (
        ("training image in validation", _equal(both), True, "has the same pixels as"),
        ("validation image like a training image", _alike(both), False, "looks like"),
    ):
        for group in found:
            ours = [p for p in group if id(p) not in theirs]
            for p in group:
                if id(p) in theirs and ours and id(p) not in told:
                    told.add(id(p))
                    detail = f"{verb} {ours[0].name} of the training data"
                    problems.append(
                        Problem(
                            kind,
                            p.name,
                            detail,
                            "take it out of one of the two: it makes the validation too good",
                            is_error,
                        )
                    )
    return problems


def listed_twice(data: CocoDataset, validation: CocoDataset) -> list[Problem]:
    """Leakage that needs no decoding: one file in both lists."""
    if data.image_folder is None or validation.image_folder is None:
        return []
    ours = {
        (data.image_folder / image["file_name"]).resolve() for image in data.content()["images"]
    }
    suggestion = "take it out of one of the two: it makes the validation too good"
    return [
        Problem(
            "training image in validation",
            f"image {image['id']} ({image['file_name']})",
            "the training data lists the same file",
            suggestion,
            True,
        )
        for image in validation.content()["images"]
        if (validation.image_folder / image["file_name"]).resolve() in ours
    ]


def _decoded(paths: Sequence[Path], progress: bool) -> Iterator[dict[Path, Seen]]:
    """The images in parts, decoded by several threads: Pillow's decoders run side by side."""
    from rich.progress import Progress

    with (
        ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool,
        Progress(transient=True, disable=not progress or len(paths) < 20) as bar,
    ):
        task = bar.add_task("decoding images", total=len(paths))

        def look(path: Path) -> Seen:
            seen = _look(path)
            bar.advance(task)
            return seen

        for start in range(0, len(paths), _KEPT_EVERY):
            part = paths[start : start + _KEPT_EVERY]
            yield dict(zip(part, pool.map(look, part), strict=True))


def _look(path: Path) -> Seen:
    try:
        values = np.ascontiguousarray(read_values(path))
    except ImageError as error:
        return Seen(str(error), b"", blank_hash())
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.data)
    return Seen(None, digest.digest(), image_hash(values))


def _once(images: Sequence[DecodedImage]) -> list[DecodedImage]:
    """Every file once."""
    files: dict[Path, DecodedImage] = {}
    for p in images:
        files.setdefault(p.path.resolve(), p)
    return list(files.values())


def _equal(images: Sequence[DecodedImage]) -> list[list[DecodedImage]]:
    """Groups with the same pixels."""
    found: dict[bytes, list[DecodedImage]] = defaultdict(list)
    for p in images:
        if p.seen.digest:
            found[p.seen.digest].append(p)
    return [group for group in found.values() if len(group) > 1]


def _alike(images: Sequence[DecodedImage]) -> list[list[DecodedImage]]:
    """Groups of images that look alike."""
    hashes = np.array([p.seen.hash for p in images], dtype=np.float32).reshape(-1, LENGTH)
    return [[images[i] for i in group] for group in groups(hashes)]
