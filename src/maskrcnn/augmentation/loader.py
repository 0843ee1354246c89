"""Batches for training: `for batch, truth in TrainingLoader(training_set, plan.batches(), workers=2): ..`

In: batches as lists of (image index, seed). Out: (Batch, Truth), in that order. An example depends on its index and seed alone, so any number of
worker processes gives the same batches.

Workers are forked where the system can: annotations are then shared, not copied. They run one thread each and share the memory budget of the decoded
images. A worker whose parent was killed ends by itself within some seconds (PyTorch's worker watches its parent).
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
    """Batches of a training set.

    Args:
        training_set: gives the examples.
        batches: for each batch its (image index, seed) pairs; may be without end.
        workers: processes that make examples; 0 = made in this process.
        size_divisor: padded sides are multiples of it.
        pin_memory: batches in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        batches: Iterable[list[tuple[int, int]]],
        workers: int = 0,
        size_divisor: int = 32,
        pin_memory: bool = False,
    ) -> None:
        self.training_set, self.batches, self.workers, self.size_divisor, self.pin_memory = (
            training_set,
            batches,
            workers,
            size_divisor,
            pin_memory,
        )

    def __iter__(self) -> Iterator[tuple[Batch, Truth]]:
        forked = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
        loader = DataLoader(
            self.training_set,  # ty: ignore[invalid-argument-type]
            batch_sampler=self.batches,
            num_workers=self.workers,
            collate_fn=partial(collate, size_divisor=self.size_divisor),
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            multiprocessing_context=("fork" if forked else "spawn") if self.workers else None,
            generator=torch.Generator(),  # the loader draws a seed for its workers, which must not move the global generator
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside other threads. Workers touch nothing that a thread may hold: they use numpy, Pillow and CPU tensors.
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
