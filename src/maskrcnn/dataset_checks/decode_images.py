"""Decodes every image and finds duplicates, within a data set and across training and validation.

In: data sets with image folders.
Out: problems: truncated files, duplicates, near-duplicates, training images in the validation set.
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
from .decoded_cache import DecodeResult, blank_hash, load_cached, store_results

_CACHED_EVERY = 500  # images, so that an interrupted check does not start over
_LEAK_SUGGESTION = "remove it from one of the two sets: it makes the validation score too high"


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
    """Reports files with equal pixels, and near-duplicates, within a data set."""
    images = _once(images)  # opening the data set reports a file that is listed twice
    problems = []
    equal: set[frozenset[Path]] = set()

    for first, *others in _equal(images):
        for image in others:
            equal.add(frozenset((first.path, image.path)))
            problems.append(
                Problem(
                    "same image twice",
                    image.name,
                    f"the same pixels as {first.name}",
                    "keep one, and annotate it completely",
                    False,
                    image=image.index,
                )
            )

    for first, *others in _alike(images):
        problems += [
            Problem(
                "near-duplicate images",
                image.name,
                f"looks like {first.name}",
                "one is enough; never split them between training and validation",
                False,
                image=image.index,
            )
            for image in others
            if frozenset((first.path, image.path)) not in equal
        ]
    return problems


def find_leaks(images: Sequence[DecodedImage], validation: Sequence[DecodedImage]) -> list[Problem]:
    """Reports validation images that equal, or look like, training images."""
    in_validation = {id(image) for image in validation}
    both = [*images, *validation]
    problems = []
    reported = set()

    for kind, same, is_error, verb in (
        ("training image in validation", _equal(both), True, "has the same pixels as"),
        ("validation image like a training image", _alike(both), False, "looks like"),
    ):
        for group in same:
            training = [image for image in group if id(image) not in in_validation]
            for image in group:
                if id(image) not in in_validation or not training or id(image) in reported:
                    continue
                reported.add(id(image))
                detail = f"{verb} {training[0].name} of the training data"
                problems.append(Problem(kind, image.name, detail, _LEAK_SUGGESTION, is_error))
    return problems


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
        return DecodeResult(str(error), b"", blank_hash())
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.data)
    return DecodeResult(None, digest.digest(), image_hash(values))


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
    hashes = np.array([image.result.hash for image in images], dtype=np.float32)
    return [[images[i] for i in group] for group in groups(hashes.reshape(-1, LENGTH))]
