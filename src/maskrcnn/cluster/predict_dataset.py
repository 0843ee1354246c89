"""Prediction for any number of images, by one process, by shards of a job, or by Ray.

In:  a model and a source.
Out: OUT/parts/, one parquet row per image; OUT/settings.json; OUT/shard-1-of-1.json at the end.

The parts and their content do not depend on who makes them. What is finished is not made again, so
that a job that was killed goes on by the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..formats.format_name import FormatName
from ..images.open_image import pixel_limit
from ..model.maskrcnn import MaskRCNN
from ..prediction.model_engine import Dtype
from ..prediction.predict_files import MIN_SCORE
from .collect_parts import collect_parts
from .dataset_job import DatasetJob, loaded, location_of
from .dataset_summary import DatasetSummary
from .file_stores import cluster_package
from .part_worker import WorkerSetup
from .shards import Shard


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
        >>> scenes = write_scenes("scenes", count=2, size=64)
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
    job = DatasetJob.begin(
        WorkerSetup(
            out=location_of(out),
            settings="",
            model=loaded(model),
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
        ),
        source,
        out,
        part_size=part_size,
        images=images,
        id_column=id_column,
        is_elsewhere=ray,
    )

    if ray:
        finished = job.by_ray(workers, worker_cpus, worker_gpus)
    else:
        finished = job.by_this_process(part)
    summary = job.followed(finished, part, progress)
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
