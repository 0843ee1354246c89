"""Every picture decoded, and copies found: within a data set, and between training and validation.

In: data sets with folders of pictures. Out: problems: files that cannot be decoded to the end, copies, near-duplicates, leakage.
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

from ..data.check import Problem
from ..data.coco import CocoDataset
from ..data.similar import LENGTH, groups, picture_hash
from ..images import ImageError, read_values
from .memory import Seen, blank_hash, recall, remember

_KEPT_EVERY = 500  # pictures, so that an interrupted check is not lost


@dataclass(frozen=True)
class Picture:
    """A picture of a data set, decoded."""

    place: int
    """In the file's list of images."""
    name: str
    path: Path
    seen: Seen


def decode(data: CocoDataset, progress: bool) -> list[Picture]:
    """Decodes every picture whose header could be read; those decoded before and unchanged since are recalled."""
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
        Picture(at[id(image)], f"image {image['id']} ({image['file_name']})", path, seen[path]) for image, path in zip(entries, paths, strict=True)
    ]


def broken(pictures: Sequence[Picture]) -> list[Problem]:
    """Those whose header is well but whose pixels are not."""
    cure = "restore the file, or drop the picture"
    return [Problem("picture that cannot be decoded", p.name, p.seen.error, cure, True, image=p.place) for p in pictures if p.seen.error]


def copies(pictures: Sequence[Picture]) -> list[Problem]:
    """Files with the same pixels, and near-duplicates, within a data set."""
    pictures = _once(pictures)  # a file listed twice is told of before
    cure = "keep one; annotate it completely"
    problems = [
        Problem("same picture twice", p.name, f"the same pixels as {first.name}", cure, False, image=p.place)
        for first, *others in _equal(pictures)
        for p in others
    ]
    known = {frozenset((p.path, q.path)) for p, *others in _equal(pictures) for q in others}
    cure = "one is enough to learn from; never put one into training and one into validation"
    for first, *others in _alike(pictures):
        problems += [
            Problem("near-duplicate pictures", p.name, f"looks like {first.name}", cure, False, image=p.place)
            for p in others
            if frozenset((first.path, p.path)) not in known
        ]
    return problems


def leaks(pictures: Sequence[Picture], validation: Sequence[Picture]) -> list[Problem]:
    """Pictures of the validation that are, or nearly are, pictures of the training."""
    theirs = {id(p) for p in validation}
    both = [*pictures, *validation]
    problems, told = [], set()
    for kind, found, harmful, verb in (
        ("training picture in validation", _equal(both), True, "has the same pixels as"),
        ("validation picture like a training picture", _alike(both), False, "looks like"),
    ):
        for group in found:
            ours = [p for p in group if id(p) not in theirs]
            for p in group:
                if id(p) in theirs and ours and id(p) not in told:
                    told.add(id(p))
                    detail = f"{verb} {ours[0].name} of the training data"
                    problems.append(Problem(kind, p.name, detail, "take it out of one of the two: it makes the validation too good", harmful))
    return problems


def listed_twice(data: CocoDataset, validation: CocoDataset) -> list[Problem]:
    """Leakage that needs no decoding: one file in both lists."""
    if data.image_folder is None or validation.image_folder is None:
        return []
    ours = {(data.image_folder / image["file_name"]).resolve() for image in data.content()["images"]}
    cure = "take it out of one of the two: it makes the validation too good"
    return [
        Problem("training picture in validation", f"image {image['id']} ({image['file_name']})", "the training data lists the same file", cure, True)
        for image in validation.content()["images"]
        if (validation.image_folder / image["file_name"]).resolve() in ours
    ]


def _decoded(paths: Sequence[Path], progress: bool) -> Iterator[dict[Path, Seen]]:
    """The pictures in parts, decoded by several threads: Pillow's decoders run side by side."""
    from rich.progress import Progress

    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool, Progress(transient=True, disable=not progress or len(paths) < 20) as bar:
        task = bar.add_task("decoding pictures", total=len(paths))

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
    return Seen(None, digest.digest(), picture_hash(values))


def _once(pictures: Sequence[Picture]) -> list[Picture]:
    """Every file once."""
    files: dict[Path, Picture] = {}
    for p in pictures:
        files.setdefault(p.path.resolve(), p)
    return list(files.values())


def _equal(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Groups with the same pixels."""
    found: dict[bytes, list[Picture]] = defaultdict(list)
    for p in pictures:
        if p.seen.digest:
            found[p.seen.digest].append(p)
    return [group for group in found.values() if len(group) > 1]


def _alike(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Groups of pictures that look alike."""
    hashes = np.array([p.seen.hash for p in pictures], dtype=np.float32).reshape(-1, LENGTH)
    return [[pictures[i] for i in group] for group in groups(hashes)]
