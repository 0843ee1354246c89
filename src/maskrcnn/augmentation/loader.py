"""Batches for training: `for batch, truth in TrainingLoader(training_set, batches, workers=2): ...`

In:  batches as lists of (image index, seed).
Out: (Batch, Truth), in that order.

An example depends on its index and seed alone, so any number of worker processes gives the same
batches.

Workers are forked where the system supports it: annotations are then shared, not copied. Each
worker runs one thread, and together they share the memory budget for decoded images. A worker whose
parent was killed exits within seconds (PyTorch's worker watches its parent).
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader, get_worker_info

from ..structures import Batch, Truth
from .training_set import TrainingSet, collate


class TrainingLoader:
    """Iterates over batches of a training set.

    Args:
        training_set: makes the examples.
        batches: for each batch its (image index, seed) pairs; may be endless.
        workers: processes that make examples; 0 makes them in this process.
        size_divisor: padded sides are multiples of it.
        pin_memory: put batches in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        batches: Iterable[list[tuple[int, int]]],
        workers: int = 0,
        size_divisor: int = 32,
        pin_memory: bool = False,
    ) -> None:
        self.training_set = training_set
        self.batches = batches
        self.workers = workers
        self.size_divisor = size_divisor
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[tuple[Batch, Truth]]:
        can_fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
        start_method = "fork" if can_fork else "spawn"
        loader = DataLoader(
            self.training_set,  # ty: ignore[invalid-argument-type]
            batch_sampler=self.batches,
            num_workers=self.workers,
            collate_fn=partial(collate, size_divisor=self.size_divisor),
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=start_method if self.workers else None,
            # the loader draws a seed for its workers, which must not advance the global generator
            generator=torch.Generator(),
        )

        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside other threads. Workers touch nothing that a thread
            # may lock: they use numpy, Pillow and CPU tensors.
            warnings.filterwarnings(
                "ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning
            )
            batches = iter(loader)
        yield from batches


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, TrainingSet):
        info.dataset.cache_bytes //= info.num_workers
