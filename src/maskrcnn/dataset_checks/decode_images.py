"""Decodes every image and finds duplicates, within a data set and across training and validation.

In: data sets with image folders.
Out: problems: truncated files, copies, training images in the validation set; a hint on images that
     look alike without being copies, as those of a fixed camera do.
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
from jaxtyping import Float32

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import Problem
from ..images.read import ImageError, read_values
from ..images.similarity import LENGTH, THUMBNAIL, copies, groups, image_hash, thumbnail
from .decoded_cache import DecodeResult, load_cached, not_decoded, store_results

_CACHED_EVERY = 500  # images, so that an interrupted check does not start over
_COPY_SUGGESTION = "keep one, and annotate it completely"
_LEAK_SUGGESTION = "remove it from one of the two sets: it makes the validation score too high"
_ALL_IMAGES = "images"


@dataclass(frozen=True)
class DecodedImage:
    """An image of a data set and what decoding it showed."""

    index: int
    """Index into the file's list of images."""
    name: str
    """Its name in messages."""
    path: Path
    result: DecodeResult


def decode(data: CocoDataset, progress: bool) -> list[DecodedImage]:
    """Decodes every image with a readable header, except those cached and unchanged since."""
    if data.image_folder is None:
        return []

    entries = data.content()["images"]
    index_of = {id(image): index for index, image in enumerate(data.raw["images"])}
    paths = [data.image_folder / image["file_name"] for image in entries]

    results = load_cached(paths)
    missing = [path for path in dict.fromkeys(paths) if path not in results]
    for part in _decoded(missing, progress):
        results |= part
        store_results(part)

    return [
        DecodedImage(
            index_of[id(image)],
            f"image {image['id']} ({image['file_name']})",
            path,
            results[path],
        )
        for image, path in zip(entries, paths, strict=True)
    ]


def undecodable(images: Sequence[DecodedImage]) -> list[Problem]:
    """Reports images whose header is fine but whose pixels cannot be decoded."""
    return [
        Problem(
            "image that cannot be decoded",
            image.name,
            image.result.error,
            "restore the file, or remove the image",
            True,
            image=image.index,
        )
        for image in images
        if image.result.error
    ]


def find_duplicates(images: Sequence[DecodedImage]) -> list[Problem]:
    """Reports copies within a data set, and hints at images that look alike."""
    images = _once(images)  # opening the data set reports a file that is listed twice
    problems = []
    copied: set[Path] = set()

    for kind, same, verb in (
        ("same image twice", _equal(images), "the same pixels as"),
        ("copy of an image", _copies(images), "the image, in another size or quality, of"),
    ):
        for first, *others in same:
            for image in others:
                if image.path in copied:
                    continue
                copied.add(image.path)
                detail = f"{verb} {first.name}"
                problems.append(
                    Problem(kind, image.name, detail, _COPY_SUGGESTION, True, image=image.index)
                )

    alike = [
        image
        for group in _alike(images)
        if len(kept := [image for image in group if image.path not in copied]) > 1
        for image in kept
    ]
    if alike:
        detail = f"{len(alike)} of {len(images)}, such as {alike[0].name} and {alike[1].name}"
        suggestion = (
            "fine for a fixed camera; keep frames that follow each other on one side of the split"
        )
        problems.append(Problem("images that look alike", _ALL_IMAGES, detail, suggestion, False))
    return problems


def without_copies(images: Sequence[DecodedImage]) -> list[DecodedImage]:
    """The images without further copies of one, and without those that cannot be decoded."""
    copied = {id(image) for _, *others in (*_equal(images), *_copies(images)) for image in others}
    return [image for image in images if not image.result.error and id(image) not in copied]


def find_leaks(images: Sequence[DecodedImage], validation: Sequence[DecodedImage]) -> list[Problem]:
    """Reports validation images that are training images, and hints at those that look alike."""
    in_validation = {id(image) for image in validation}
    both = [*images, *validation]
    problems = []
    reported = set()

    for same, verb in (
        (_equal(both), "has the same pixels as"),
        (_copies(both), "is, in another size or quality,"),
    ):
        for image, training in _across(same, in_validation):
            if id(image) in reported:
                continue
            reported.add(id(image))
            detail = f"{verb} {training.name} of the training data"
            kind = "training image in validation"
            problems.append(Problem(kind, image.name, detail, _LEAK_SUGGESTION, True))

    alike = [pair for pair in _across(_alike(both), in_validation) if id(pair[0]) not in reported]
    if alike:
        image, training = alike[0]
        detail = (
            f"{len(alike)} of {len(validation)}, such as {image.name}, "
            f"like {training.name} of the training data"
        )
        suggestion = (
            "the score is right for this camera and scene; for others, validate on other scenes"
        )
        kind = "validation images like training images"
        problems.append(Problem(kind, _ALL_IMAGES, detail, suggestion, False))
    return problems


def _across(
    groups_: Sequence[Sequence[DecodedImage]], in_validation: set[int]
) -> Iterator[tuple[DecodedImage, DecodedImage]]:
    """Each validation image that shares a group with training images, and the first of these."""
    for group in groups_:
        training = [image for image in group if id(image) not in in_validation]
        for image in group:
            if training and id(image) in in_validation:
                yield image, training[0]


def find_shared_files(data: CocoDataset, validation: CocoDataset) -> list[Problem]:
    """Reports files that both data sets list; needs no decoding."""
    if data.image_folder is None or validation.image_folder is None:
        return []

    training = {
        (data.image_folder / image["file_name"]).resolve() for image in data.content()["images"]
    }
    return [
        Problem(
            "training image in validation",
            f"image {image['id']} ({image['file_name']})",
            "the training data lists the same file",
            _LEAK_SUGGESTION,
            True,
        )
        for image in validation.content()["images"]
        if (validation.image_folder / image["file_name"]).resolve() in training
    ]


def _decoded(paths: Sequence[Path], progress: bool) -> Iterator[dict[Path, DecodeResult]]:
    """Yields the results part by part; several threads decode, as Pillow releases the GIL."""
    from rich.progress import Progress

    with (
        ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool,
        Progress(transient=True, disable=not progress or len(paths) < 20) as bar,
    ):
        task = bar.add_task("decoding images", total=len(paths))

        def decode_and_advance(path: Path) -> DecodeResult:
            result = _decode_file(path)
            bar.advance(task)
            return result

        for start in range(0, len(paths), _CACHED_EVERY):
            part = paths[start : start + _CACHED_EVERY]
            yield dict(zip(part, pool.map(decode_and_advance, part), strict=True))


def _decode_file(path: Path) -> DecodeResult:
    try:
        values = np.ascontiguousarray(read_values(path))
    except ImageError as error:
        return not_decoded(str(error))
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.data)
    return DecodeResult(None, digest.digest(), image_hash(values), thumbnail(values))


def _once(images: Sequence[DecodedImage]) -> list[DecodedImage]:
    """Every file once."""
    files: dict[Path, DecodedImage] = {}
    for image in images:
        files.setdefault(image.path.resolve(), image)
    return list(files.values())


def _equal(images: Sequence[DecodedImage]) -> list[list[DecodedImage]]:
    """Groups of images with equal pixels."""
    by_digest: dict[bytes, list[DecodedImage]] = defaultdict(list)
    for image in images:
        if image.result.digest:
            by_digest[image.result.digest].append(image)
    return [group for group in by_digest.values() if len(group) > 1]


def _alike(images: Sequence[DecodedImage]) -> list[list[DecodedImage]]:
    """Groups of images that look alike."""
    return [[images[i] for i in group] for group in groups(_hashes(images))]


def _copies(images: Sequence[DecodedImage]) -> list[list[DecodedImage]]:
    """Groups of images that are copies, whatever their size and format."""
    rows = np.array([image.result.thumbnail for image in images], dtype=np.uint8)
    found = copies(_hashes(images), rows.reshape(-1, THUMBNAIL**2))
    return [[images[i] for i in group] for group in found]


def _hashes(images: Sequence[DecodedImage]) -> Float32[np.ndarray, "N D"]:
    rows = np.array([image.result.hash for image in images], dtype=np.float32)
    return rows.reshape(-1, LENGTH)
