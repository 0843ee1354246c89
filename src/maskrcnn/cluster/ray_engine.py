"""The parts of a source, made by Ray's workers: `ray_results(rows, setup, part_size)`.

In:  a source and what a worker needs.
Out: what each part's worker reports, as the parts end, in any order; the listing comes last.

One task lists the source and streams its parts to a pool of actors of Ray Data. It waits when the
actors are busy, and the driver sees counts alone. Ray itself keeps 8 kB in the driver for each task
that has ended, so that large sources have tasks of several parts. An actor that dies is started
again, and its task with it. Since a part's file appears whole and is not made twice, that is safe.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from typing import Any

from ..model.maskrcnn import MaskRCNN
from ..ops.device import usable_device
from ..runtime.counted import counted
from ..runtime.keep_memory import keep_memory
from .file_stores import cluster_package
from .image_rows import Listing, Part, cut_parts
from .part_worker import PartDone, PartWorker, WorkerSetup
from .row_sources import RowSource

_ITEM = "item"
"""The column of Ray's rows: pickled parts, what was done for them, a `Listing`, or an exception."""
_LISTING_CPUS = 0.01
"""The listing task waits most of the time, and must find room beside the actors."""
_TASKS_OF_A_SIZE = 512
_MOST_PARTS = 16  # of a task: at most 65,536 images, some minutes of a GPU
_OWN_STORE = 200 << 20  # bytes of the object store of a Ray that starts here


def ray_results(
    rows: RowSource,
    setup: WorkerSetup,
    part_size: int | None,
    *,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float | None = None,
) -> Iterator[PartDone | Listing]:
    """Makes all parts with Ray.

    Args:
        rows: the source.
        setup: for the workers.
        part_size: see `cut_parts`.
        workers: number of actors; None: as many as fit now.
        cpus: of each.
        gpus: of each; None: 1 if the cluster has any and the setup names no device.

    Raises:
        ValueError: the cluster has not enough CPUs or GPUs for one worker.
        Exception: what a worker, or the listing, has raised.
    """
    ray = cluster_package("ray")
    # Ray Data reads the variable when it is imported; what goes wrong here is raised here
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    cluster_package("ray.data")
    with _connected(ray):
        resources = ray.cluster_resources()
        if gpus is None:
            gpus = 1 if resources.get("GPU", 0) >= 1 and setup.device in (None, "cuda") else 0
        fitting = _fitting(resources, cpus, gpus)
        wanted = fitting if workers is None else workers
        if wanted > fitting:
            print(
                f"Ray has room for {fitting} of {counted(wanted, 'worker')}; the others wait",
                file=sys.stderr,
            )
        if setup.device is None:
            setup = replace(setup, device=None if gpus else "cpu")

        dataset = _parts(ray, rows, part_size).map_batches(
            RayWorker,
            fn_constructor_args=(ray.put(setup),),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=wanted),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        listing = Listing()
        for row in dataset.iter_rows():
            item = pickle.loads(row[_ITEM])  # made by our own workers
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Listing):
                listing = item
            else:
                yield from item
        yield listing


class RayWorker:
    """A `PartWorker` as an actor of Ray Data.

    Args:
        setup: see `PartWorker`; in Ray's object store, so that it is sent to each machine once.
    """

    def __init__(self, setup: Any) -> None:
        keep_memory()
        if not isinstance(setup, WorkerSetup):
            setup = cluster_package("ray").get(setup)
        if setup.device is None and isinstance(setup.model, MaskRCNN):
            setup = replace(setup, device=str(usable_device(None)))
        self._worker = PartWorker(setup)

    def __call__(self, batch: Any) -> Any:
        """Makes the parts in an Arrow table of one row; a listing or an error passes through.

        An error of a part is returned, since Ray would wrap it and lose its type.
        """
        item = pickle.loads(batch[_ITEM][0].as_py())  # made by our own listing task
        if not isinstance(item, tuple):
            return batch
        try:
            return _packed(tuple(self._worker(part) for part in item))
        except Exception as error:
            return _packed(_portable(error))


def _parts(ray: Any, rows: RowSource, part_size: int | None) -> Any:
    """A Ray data set with one row per task, and the listing as its last row."""
    block = cluster_package("ray.data.block")

    def listed() -> Iterator[Any]:
        listing = Listing()
        try:
            for parts in bundles(cut_parts(rows.rows(), part_size, listing)):
                yield _packed(parts)
            listing.notes = rows.notes()
            yield _packed(listing)
        except Exception as error:
            yield _packed(_portable(error))

    class PartSource(ray.data.Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            metadata = block.BlockMetadata(
                num_rows=None, size_bytes=None, input_files=None, exec_stats=None
            )
            return [ray.data.ReadTask(listed, metadata)]

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # of memory that the libraries take, not the task
    context.target_max_block_size = 1  # each row is a block, and so goes to any free actor
    context.target_min_block_size = 1
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(PartSource(), override_num_blocks=1, num_cpus=_LISTING_CPUS)


def _fitting(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit."""
    room = resources.get("CPU", 0) / cpus
    if gpus:
        room = min(room, resources.get("GPU", 0) / gpus)
    if room < 1:
        raise ValueError(
            f"worker_cpus, worker_gpus: expected at most the {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs of Ray, got {cpus:g} and {gpus:g}"
        )
    return int(room)


def bundles(parts: Iterable[Part]) -> Iterator[tuple[Part, ...]]:
    """The parts of each task: one at first, and twice as many after every 512 tasks, up to 16."""
    parts = iter(parts)
    for task in count():
        bundle = tuple(islice(parts, parts_of_task(task)))
        if not bundle:
            return
        yield bundle


def parts_of_task(task: int) -> int:
    """How many parts the task of a number has, unless the source ends."""
    return min(1 << min(task // _TASKS_OF_A_SIZE, 30), _MOST_PARTS)


def _packed(item: tuple[Part | PartDone, ...] | Listing | Exception) -> Any:
    """A table of one row with an item."""
    return cluster_package("pyarrow").table({_ITEM: [pickle.dumps(item)]})


def _portable(error: Exception) -> Exception:
    """The error, or its text as a RuntimeError if it cannot be sent."""
    error.__cause__ = None
    try:
        pickle.loads(pickle.dumps(error))  # our own, a moment ago
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def _connected(ray: Any) -> Generator[None]:
    """Connects to the Ray of RAY_ADDRESS, or starts one on this machine until the block ends."""
    if ray.is_initialized():
        yield
        return

    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent from here
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=_OWN_STORE,
            logging_level=logging.ERROR,
        )
        cpus = ray.cluster_resources().get("CPU", 0)
        print(
            f"Started Ray on this machine ({cpus:g} CPUs); set RAY_ADDRESS to use a cluster",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        ray.shutdown()
