"""Prediction for any number of images, by one process, by shards of a job, or by Ray.

In:  a model and a source.
Out: OUT/parts/, one parquet row per image; OUT/settings.json; OUT/shard-1-of-1.json at the end.

The parts and their content do not depend on who makes them. What is finished is not made again, so
that a job that was killed goes on by the same call.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..formats.format_name import FormatName
from ..images.open_image import pixel_limit
from ..model.maskrcnn import MaskRCNN
from ..ops.device import usable_device
from ..prediction.graph_engine import is_graph_file
from ..prediction.model_engine import Dtype
from ..prediction.predict_files import MIN_SCORE
from ..prediction.predictor import Predictor
from ..runtime.atomic_files import stating_what_is_safe
from ..runtime.counted import counted
from ..runtime.progress import progress as progress_bar
from .collect_parts import collect_parts
from .dataset_summary import DatasetSummary
from .file_stores import OutputFolder, cluster_package
from .image_rows import Listing, cut_parts
from .job_settings import NAME as SETTINGS
from .job_settings import JobSettings, model_digest
from .part_worker import PartDone, PartWorker, WorkerSetup
from .row_sources import RowSource, open_source
from .shards import Shard, ShardRecord

_SHOWN = 3  # inputs in a message


def predict_dataset(
    model: MaskRCNN | str | Path,
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    shard: str | None = None,
    ray: bool = False,
    workers: int | None = None,
    worker_cpus: float = 1,
    worker_gpus: float | None = None,
    batch_size: int = 1,
    device: str | None = None,
    dtype: Dtype | None = None,
    exact: bool = False,
    tta: str | None = None,
    min_score: float = MIN_SCORE,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
    images: str | Path | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    part_size: int | None = None,
    retry_errors: bool = False,
    retry_changed: bool = False,
    results: bool = False,
    annotations: FormatName | Literal["yolo"] | None = None,
    simplify: float = 0.5,
    overlays: bool = False,
    progress: bool = True,
) -> DatasetSummary:
    """Detects the objects in any number of images, and writes them as parquet files.

    Without `shard` and `ray`, this process does everything. The results do not depend on how the
    work is divided. A call that was stopped, also by a kill, goes on when it is made again.

    Args:
        model: a model, what `load` reads, or an exported file, which every machine must have.
        source: a folder; a text file (.txt) with a path or URL per line; a COCO file (.json) with
            or without annotations; a parquet table with the bytes or paths of images. Each may be
            a URL of an object store, such as "s3://bucket/photos". Or files, patterns and http(s)
            URLs.
        out: the folder to write to, or a URL of an object store.
        shard: "3/8": do only the third of eight shares of the work. `collect_parts` joins them.
        ray: let Ray's workers do it: those of the cluster that RAY_ADDRESS names, else of a Ray
            that starts on this machine.
        workers: with `ray`, the number of processes; by default as many as fit.
        worker_cpus: with `ray`, CPUs of each.
        worker_gpus: with `ray`, GPUs of each; 0.5 for two on one GPU. By default 1 if there are
            any.
        batch_size: up to this many images of equal padded shape share one forward pass. With 1,
            results are the same to the last bit for any division of the work; larger batches
            round differently.
        device: see `Predictor`; by default a GPU if the process has one.
        dtype: see `Predictor`.
        exact: see `Predictor`.
        tta: see `Predictor`.
        min_score: drop detections with a lower score, 0 to 1.
        intensity_range: see `Predictor`.
        max_pixels: see `Predictor`.
        images: folder of the images of a list or COCO file; by default that of the file.
        image_column: of a table: the column with bytes or paths; by default recognized.
        id_column: of a table: the column with stable ids; by default recognized, else the path,
            else the number of the row.
        part_size: images per file. None: 32, growing to 4,096 for large sources.
        retry_errors: try images again that an earlier run could not read.
        retry_changed: predict images again whose files have another size or time than when an
            earlier run predicted them.
        results: at the end, also write OUT/results.json, as `predict_files` does. Like the next
            two, not with `shard`: see `collect_parts`.
        annotations: at the end, also write annotations of this format to OUT/FORMAT.
        simplify: tolerance in pixels of their polygons; see `collect_parts`.
        overlays: at the end, also draw the objects of each image, to OUT/overlays.
        progress: show how many images are done.

    Returns:
        Counts; images that cannot be predicted are rows with an error, and are counted.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source has no images, `out` has results of other settings, or a setting is
            wrong.
        ImportError: pyarrow, Ray or the package of a store is not installed.
        WriteError: the disk is full or fails; finished parts stay.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> scenes = write_scenes("scenes", count=2)
        >>> try:
        ...     summary = mr.predict_dataset("nuclei", "scenes/images", "out", progress=False)
        ...     images = summary.images
        ... except ImportError:  # pyarrow is not installed
        ...     images = 2
        >>> images
        2
    """
    cluster_package("pyarrow.parquet")
    part = Shard.parse(shard) if shard else Shard()
    _check_settings(shard, ray, part_size, batch_size, workers, worker_cpus, worker_gpus)
    if shard and (results or annotations or overlays):
        raise ValueError(
            "results, annotations (--format), overlays: expected none with a shard; write them "
            f"when all shards are done: maskrcnn collect {out}"
        )
    folder = OutputFolder(out)
    location = str(out) if folder.path is None else os.path.abspath(out)
    rows = open_source(
        source, out=location, images=images, image_column=image_column, id_column=id_column
    )

    setup = WorkerSetup(
        out=location,
        settings="",
        model=_loaded(model),
        device=device,
        dtype=dtype,
        exact=exact,
        tta=tta,
        min_score=min_score,
        intensity_range=intensity_range,
        max_pixels=pixel_limit(max_pixels),
        batch_size=batch_size,
        image_column=image_column,
        retry_errors=retry_errors,
        retry_changed=retry_changed,
    )
    if not ray and device is None and isinstance(setup.model, MaskRCNN):
        setup = replace(setup, device=str(usable_device(None)))
    predictor = setup.predictor() if not ray else replace(setup, device="cpu").predictor()
    settings = _settings_of(setup, _described(source, images), predictor, part_size, id_column)
    setup = replace(setup, settings=settings.digest)
    is_new = settings.write(folder)
    folder.remove(part.name)

    if ray:
        from .ray_engine import ray_results

        finished = ray_results(
            rows, setup, part_size, workers=workers, cpus=worker_cpus, gpus=worker_gpus
        )
    else:
        finished = _own_results(rows, setup, part_size, part, PartWorker(setup, predictor))
    start = time.perf_counter()
    summary = DatasetSummary(str(out))
    listing = _followed(finished, summary, progress)
    if not listing.images:
        if is_new:
            folder.remove(SETTINGS)
        raise ValueError("; ".join([f"{_described(source)}: no images", *listing.notes]))

    ShardRecord(part, settings.digest, listing).write(folder)
    summary.notes = listing.notes
    summary.seconds = time.perf_counter() - start
    if results or annotations or overlays:
        collect_parts(
            out,
            results=results,
            annotations=annotations,
            simplify=simplify,
            overlays=overlays,
            changes=False,
            progress=progress,
        )
    return summary


def _settings_of(
    setup: WorkerSetup,
    source: str,
    predictor: Predictor,
    part_size: int | None,
    id_column: str | None,
) -> JobSettings:
    """What the results depend on."""
    keypoint = predictor.config.keypoint
    return JobSettings(
        model=model_digest(setup.model),
        source=source,
        min_score=setup.min_score,
        dtype=setup.dtype or "float32",
        exact=setup.exact,
        tta=setup.tta,
        intensity_range=predictor.intensity_range,
        max_pixels=setup.max_pixels,
        part_size=part_size,
        image_column=setup.image_column,
        id_column=id_column,
        coco_offset=keypoint.coco_offset if keypoint else 0.5,
        categories=predictor.config.categories,
    )


def _followed(
    finished: Iterator[PartDone | Listing], summary: DatasetSummary, progress: bool
) -> Listing:
    """Counts the parts as they end; returns the listing."""
    listing = Listing()
    with (
        stating_what_is_safe(lambda: _what_is_safe(summary)),
        progress_bar("Predicting", None, show=progress) as advance,
    ):
        for done in finished:
            if isinstance(done, Listing):
                listing = done
            else:
                summary.add(done)
                advance(done.info.images + done.info.errors)
    return listing


def _own_results(
    rows: RowSource, setup: WorkerSetup, part_size: int | None, shard: Shard, worker: PartWorker
) -> Iterator[PartDone | Listing]:
    """Makes the parts of a shard in this process; the listing of the whole source comes last."""
    listing = Listing()
    for part in cut_parts(rows.rows(), part_size, listing):
        if shard.has(part.index):
            yield worker(part)
    listing.notes = rows.notes()
    yield listing


def _loaded(model: MaskRCNN | str | Path) -> MaskRCNN | Path:
    if isinstance(model, MaskRCNN):
        return model
    if is_graph_file(model):
        return Path(os.path.abspath(model))
    from ..weights.load import load

    return load(model)


def _described(source: str | Path | Sequence[str | Path], images: str | Path | None = None) -> str:
    """The source as it is compared with that of an earlier run: absolute, so that it is one."""
    given = [source] if isinstance(source, str | Path) else list(source)
    if images is not None:
        given.append(images)
    texts = [str(one) if "://" in str(one) else os.path.abspath(one) for one in given]
    text = "\n".join(texts).encode("utf-8", "backslashreplace")
    if len(texts) > _SHOWN:
        digest = hashlib.blake2b(text, digest_size=8).hexdigest()
        return f"{texts[0]} and {len(texts) - 1:,} more ({digest})"
    return text.decode().replace("\n", ", ")


def _what_is_safe(summary: DatasetSummary) -> str:
    return (
        f"Safe in {summary.out}: {counted(summary.parts, 'part')} with "
        f"{counted(summary.images, 'image')}; "
        "the same command goes on"
    )


def _check_settings(
    shard: str | None,
    ray: bool,
    part_size: int | None,
    batch_size: int,
    workers: int | None,
    worker_cpus: float,
    worker_gpus: float | None,
) -> None:
    if shard and ray:
        raise ValueError("ray: expected no shard, since Ray divides the work; give one of them")
    for name, value in (("part_size", part_size), ("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not ray and (workers is not None or worker_gpus is not None or worker_cpus != 1):
        raise ValueError("workers, worker_cpus, worker_gpus: expected only with ray=True (--ray)")
    if worker_cpus <= 0 or (worker_gpus is not None and worker_gpus < 0):
        raise ValueError(
            f"worker_cpus, worker_gpus: expected more than 0 CPUs and 0 or more GPUs, "
            f"got {worker_cpus:g} and {worker_gpus or 0:g}"
        )
