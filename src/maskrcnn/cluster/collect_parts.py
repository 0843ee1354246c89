"""Joins the parts of a job: checks that each is there once, and writes what other tools read.

In:  a folder of parts, also in subfolders, as shards on machines without a common disk leave them.
Out: counts; results.json in COCO's format; annotations; overlays. One part is in memory at a time.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..annotations.problems import DataError
from ..formats.format_name import FormatName, yolo_format
from ..images.open_image import ImageError
from ..prediction.annotation_drafts import AnnotationDrafts
from ..prediction.image_input import read_input
from ..prediction.predict_files import RESULTS
from ..runtime.counted import counted
from ..runtime.progress import track
from .counted_images import CountedImages, first_of
from .dataset_summary import DatasetSummary
from .external_sort import sorted_texts
from .file_states import CurrentStates
from .file_stores import OutputFolder, StoreError
from .image_reader import read_rows
from .image_rows import ImageRow, Listing, part_name
from .job_settings import NAME, JobSettings, read_settings
from .part_files import (
    PartInfo,
    StoredImage,
    coco_results,
    read_info,
    read_keys,
    read_part,
    read_states,
)
from .shards import Shard, ShardRecord, read_records
from .stored_instances import stored_instances

OVERLAYS = "overlays"
_PART = re.compile(r"(?:.*/)?part-(\d{8})[^/]*\.parquet$")
_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
_SHOWN = 5


@dataclass
class _Job:
    """A job whose parts are all there, each once."""

    folder: OutputFolder
    settings: JobSettings
    names: list[str]
    """The files of the parts, in order."""
    infos: list[PartInfo]
    notes: list[str]


def collect_parts(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    results: bool = True,
    annotations: FormatName | Literal["yolo"] | None = None,
    simplify: float = 0.5,
    overlays: bool = False,
    enlarge: bool = False,
    changes: bool = True,
    progress: bool = True,
) -> DatasetSummary:
    """Checks the parts that `predict_dataset` has made, and joins them.

    Args:
        folder: what `predict_dataset` wrote to, or a folder of several of these, or its URL.
        out: where to write; by default `folder`.
        results: write OUT/results.json, COCO results as `predict_files` writes them.
        annotations: also write annotations of this format to OUT/FORMAT; the images must be files
            on this machine. "yolo" is yolo-pose for categories with keypoints, else yolo-seg.
        simplify: tolerance in pixels of their polygons. Larger values give fewer points; 0 = exact.
        overlays: also draw the objects of each image, to OUT/overlays.
        enlarge: enlarge overlays of images below 640 px (see `draw_instances`).
        changes: compare size and time of the images with those that they had when they were
            predicted. A store is asked once for a thousand objects.
        progress: show progress bars.

    Returns:
        Counts over all parts; in `notes`, images that the source lists twice or that have changed,
        and left-over files.

    Raises:
        DataError: a shard or a part is missing, damaged, there twice, or of another job.
        FileExistsError: OUT/FORMAT exists already.
        ValueError: annotations are requested for images that are no local files.
        StoreError: a store fails.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> scenes = write_scenes("scenes", count=2, size=64)
        >>> try:
        ...     for shard in ("1/2", "2/2"):
        ...         summary = mr.predict_dataset(
        ...             "nuclei", "scenes/images", "out", shard=shard, progress=False
        ...         )
        ...     images = mr.collect_parts("out", progress=False).images
        ... except ImportError:  # pyarrow is not installed
        ...     images = 2
        >>> images
        2
    """
    source = OutputFolder(folder)
    target = OutputFolder(folder if out is None else out)
    if not source.exists():
        raise FileNotFoundError(f"{folder}: folder not found")
    job = _checked_job(source)
    drafts = None
    if annotations:
        has_keypoints = any(category.keypoints for category in job.settings.categories)
        drafts = _drafts(yolo_format(annotations, has_keypoints), target, simplify)

    summary = DatasetSummary(str(target), notes=job.notes)
    for info in job.infos:
        summary.add_info(info)
    if twice := _listed_twice(job):
        summary.notes.append(twice)
    if changes:
        summary.notes += _changes(job, progress)
    if results:
        with target.replacing(RESULTS) as partial:
            _write_results(partial, _images(job, "writing results.json", progress))
    if drafts:
        summary.notes += _write_annotations(drafts, job, progress)
    if overlays:
        _draw(job, target, enlarge, progress)
    if unfinished := source.remove_abandoned(_folders_of(job)):
        summary.notes.append(
            f"left files that a process may still be writing: {len(unfinished):,} "
            f"({first_of(unfinished)})"
        )
    return summary


def _checked_job(folder: OutputFolder) -> _Job:
    """Reads the footers of all parts, and checks that they are one whole job.

    Raises:
        DataError: they are not; the message names what to run again.
    """
    settings = _one_settings(folder)
    names, infos = _found_parts(folder, settings)
    complete = _complete_listings(read_records(folder), folder, settings, names)

    problem = ""
    for count, listing in complete:
        found = Listing()
        for index in sorted(infos):
            if index < listing.parts:
                info = infos[index]
                found.add(index, info.images + info.errors, info.digest)
        if found.is_of(listing):
            extra = [names[index] for index in names if index >= listing.parts]
            notes = list(listing.notes)
            if extra:
                notes.append(
                    f"left out parts that the source no longer has: {len(extra):,} "
                    f"({first_of(extra)}); delete them"
                )
            order = range(listing.parts)
            return _Job(
                folder, settings, [names[n] for n in order], [infos[n] for n in order], notes
            )
        problem = _problem_of_parts(names, listing, count)
    raise DataError(f"{folder}: {problem}")


def _one_settings(folder: OutputFolder) -> JobSettings:
    found: dict[str, JobSettings] = {}
    for name in folder.names(NAME, deep=True):
        if name.rpartition("/")[2] == NAME and (settings := read_settings(folder, name)):
            found[name] = settings
    if not found:
        raise DataError(
            f"{folder}: no {NAME}; expected the folder that maskrcnn predict --shard, --ray or "
            "mr.predict_dataset wrote to"
        )

    names = list(found)
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise DataError(
                f"{folder}: {names[0]} and {name} are of jobs with different settings; "
                "collect each job alone"
            )
    return found[names[0]]


def _found_parts(
    folder: OutputFolder, settings: JobSettings
) -> tuple[dict[int, str], dict[int, PartInfo]]:
    """The files of parts and their footers, by number."""
    names: dict[int, str] = {}
    infos: dict[int, PartInfo] = {}
    damaged: list[str] = []
    foreign: list[str] = []
    twice: list[str] = []
    for name in folder.names(".parquet", deep=True):
        if not _PART.match(name):
            continue
        info = read_info(folder, name)
        if info is None:
            damaged.append(name)
        elif info.settings != settings.digest:
            foreign.append(name)
        elif info.index in names:
            twice.append(f"{names[info.index]} and {name}")
        else:
            names[info.index] = name
            infos[info.index] = info

    problems = []
    if damaged:
        problems.append(
            f"damaged parts: {first_of(damaged)}; delete them and run their shards again"
        )
    if foreign:
        problems.append(f"parts of a job with other settings: {first_of(foreign)}; move them away")
    if twice:
        problems.append(f"parts that are there twice: {first_of(twice)}; delete one of each")
    if problems:
        raise DataError(f"{folder}: {'. '.join(problems)}")
    return dict(sorted(names.items())), infos


def _complete_listings(
    records: Sequence[ShardRecord],
    folder: OutputFolder,
    settings: JobSettings,
    names: dict[int, str],
) -> list[tuple[int, Listing]]:
    """The listings of all numbers of shards of which each has ended.

    Raises:
        DataError: there is none.
    """
    by_count: dict[int, dict[int, ShardRecord]] = {}
    for record in records:
        if record.settings == settings.digest:
            by_count.setdefault(record.shard.count, {})[record.shard.number] = record
    if not by_count:
        raise DataError(
            f"{folder}: no shard has ended ({counted(len(names), 'part')} there); "
            "run the same maskrcnn predict command again, which goes on"
        )

    complete: list[tuple[int, Listing]] = []
    problems: list[str] = []
    for count, found in by_count.items():
        if missing := [number for number in range(1, count + 1) if number not in found]:
            shards = [str(Shard(number, count)) for number in missing[:_SHOWN]]
            more = ", ..." if len(missing) > _SHOWN else ""
            problems.append(
                f"missing {len(missing):,} of {counted(count, 'shard')}; "
                f"run {_shards(missing)} {', '.join(shards)}{more}"
            )
            continue
        listings = [found[number].listing for number in sorted(found)]
        if all(listing.is_of(listings[0]) for listing in listings):
            complete.append((count, listings[0]))
            continue
        counts = ", ".join(
            f"{r.shard}: {counted(r.listing.images, 'image')}" for r in found.values()
        )
        problems.append(
            f"the source has changed between the shards ({counts}); run all shards again"
        )
    if not complete:
        raise DataError(f"{folder}: {'; or '.join(problems)}")
    return complete


def _shards(numbers: Sequence[int]) -> str:
    return "shard" if len(numbers) == 1 else "shards"


def _problem_of_parts(names: dict[int, str], listing: Listing, count: int) -> str:
    """Why the files of parts are not those that the shards have made."""
    missing = [index for index in range(listing.parts) if index not in names]
    if not missing:
        return (
            "the parts are not of the images that the shards have listed; "
            "run the same maskrcnn predict command again"
        )
    files = [part_name(index) for index in missing]
    shards = sorted({Shard(1, count).of(index).number for index in missing})
    again = ", ".join(str(Shard(number, count)) for number in shards[:_SHOWN])
    more = ", ..." if len(shards) > _SHOWN else ""
    return (
        f"missing {len(missing):,} of {counted(listing.parts, 'part')}: {first_of(files)}; "
        f"run {_shards(shards)} {again}{more} again"
    )


def _listed_twice(job: _Job) -> str:
    """A sentence about images that the source has more than once; "" without any."""
    keys = (key for name in job.names for key in read_keys(job.folder, name))
    before: str | None = None
    shown: list[str] = []
    count = 0
    for key in sorted_texts(keys):
        if key == before:
            count += 1
            if len(shown) < _SHOWN and key not in shown:
                shown.append(key)
        before = key
    return f"images that the source lists twice: {count:,} ({first_of(shown)})" if count else ""


def _changes(job: _Job, progress: bool) -> list[str]:
    """Sentences about images whose files are no longer those that were predicted."""
    current = CurrentStates()
    changed = CountedImages()
    gone = CountedImages()
    unknown = CountedImages()
    for name in track(job.names, "comparing files", show=None if progress else False):
        for row, before in read_states(job.folder, name):
            if before is None:
                if row["error"] is None:
                    unknown.add(row["key"])
                continue
            now = current.of(row["location"])
            if now is None:
                gone.add(row["key"])
            elif now.differs_from(before):
                changed.add(row["key"])

    notes = []
    if changed.count:
        notes.append(
            f"images whose files have changed since they were predicted: {changed}; "
            "predict them again with --retry-changed"
        )
    if gone.count:
        notes.append(f"images whose files are not found here: {gone}")
    if unknown.count:
        notes.append(f"images whose size and time were not known: {unknown}")
    return notes


def _folders_of(job: _Job) -> list[str]:
    """The folders that the job has written files to, besides overlays."""
    parts = {posixpath.dirname(name) for name in job.names}
    return sorted(parts | {posixpath.dirname(folder) for folder in parts} | {OVERLAYS})


def _images(job: _Job, description: str, progress: bool) -> Iterator[StoredImage]:
    names = track(job.names, description, show=None if progress else False)
    for name in names:
        yield from read_part(job.folder, name)


def _write_results(path: Path, images: Iterator[StoredImage]) -> None:
    """Writes a JSON list, one entry a line, as `predict_files` does."""
    is_empty = True
    with path.open("w", encoding="utf-8") as file:
        for row in images:
            for result in coco_results(row):
                file.write(("[\n" if is_empty else ",\n") + json.dumps(result))
                is_empty = False
        file.write("[]\n" if is_empty else "\n]\n")


def _drafts(annotations: str, target: OutputFolder, simplify: float) -> AnnotationDrafts:
    if target.path is None:
        raise ValueError(
            f"{target}: annotations are written to a local folder; name one with out= (--out)"
        )
    target.path.mkdir(parents=True, exist_ok=True)
    return AnnotationDrafts(annotations, target.path, simplify)


def _write_annotations(drafts: AnnotationDrafts, job: _Job, progress: bool) -> list[str]:
    """Writes annotations of all images that were predicted; returns what the format cannot hold."""
    for row in _images(job, "reading results", progress):
        if row["error"] is not None:
            continue
        location = row["location"]
        if location is None or row["row_group"] is not None or "://" in location:
            raise ValueError(
                f"{row['file_name']}: annotations need image files, got "
                f"{'bytes in a table' if row['row_group'] is not None else location}; "
                "save the images to a folder and predict them there"
            )
        instances = stored_instances(row, job.settings.categories, job.settings.coco_offset)
        drafts.add(Path(location), instances, coco_results(row))
    lost = drafts.write(progress=progress)
    return [f"{drafts.format} cannot represent: {line}" for line in lost.splitlines()]


def _draw(job: _Job, target: OutputFolder, enlarge: bool, progress: bool) -> None:
    """Draws the objects of all images that were predicted."""
    drawn: set[str] = set()
    for name in track(job.names, "drawing overlays", show=None if progress else False):
        rows = [row for row in read_part(job.folder, name) if row["error"] is None]
        located = [
            (
                number,
                ImageRow(
                    key=row["key"],
                    file_name=row["file_name"],
                    location=row["location"],
                    group=row["row_group"],
                    offset=row["row"] or 0,
                ),
            )
            for number, row in enumerate(rows)
        ]

        for number, image_row, fetched in read_rows(located, job.settings.image_column):
            if isinstance(fetched, ImageError | StoreError):
                raise type(fetched)(f"{image_row.key}: no longer readable: {fetched}")
            size = (rows[number]["height"] or 0) * (rows[number]["width"] or 0)
            pixels, _ = read_input(fetched, job.settings.intensity_range, size)
            instances = stored_instances(
                rows[number], job.settings.categories, job.settings.coco_offset, pixels
            )

            path = overlay_name(image_row.file_name)
            if path in drawn:
                path = f"{rows[number]['image_id']}-{path.replace('/', '-')}"
            drawn.add(path)
            with target.replacing(f"{OVERLAYS}/{path}") as partial:
                image_format = "JPEG" if path.lower().endswith(_JPEG) else "PNG"
                overlay = instances.plot(enlarge=enlarge)
                overlay.save(partial, image_format, quality=90, compress_level=3)


def overlay_name(file_name: str) -> str:
    """The path of an overlay below its folder, also for names from a stranger's list.

    JPEG stays JPEG; to the names of all others than PNG, ".png" is added.
    """
    plain = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:", "", file_name.replace("\\", "/"))
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")] or ["image"]
    name = "/".join(part.replace("\0", "_")[-200:] for part in parts)
    return name if name.lower().endswith((*_JPEG, ".png")) else f"{name}.png"
