"""Batches for training: `for batch, truth in TrainingLoader(training_set, batches, workers=2): ...`

In:  batches as lists of (image index, seed).
Out: (Batch, Truth), in that order.

An example depends on its index and seed alone, so any number of worker processes gives the same
batches. An image that cannot be read is an error or, with `note_unreadable`, replaced by another
image of the set, which its seed draws.

Workers are forked where the system supports it: annotations are then shared, not copied. Each
worker runs one thread, and together they share the memory budget for decoded images. A worker whose
parent was killed exits within seconds (PyTorch's worker watches its parent).
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from ..images.read import ImageError
from ..runtime.interruption import ignore_stop_signals
from ..structures import Batch, Truth
from .training_set import Example, TrainingSet, UnreadableExampleError, collate

MOST_STAND_INS = 8  # images in a row that are tried for one that cannot be read
_STREAM = 2  # of the seed that draws them; other streams draw the view and strong augmentation


class TrainingLoader:
    """Iterates over batches of a training set.

    Args:
        training_set: makes the examples.
        batches: for each batch its (image index, seed) pairs; may be endless.
        workers: processes that make examples; 0 makes them in this process.
        size_divisor: padded sides are multiples of it.
        pin_memory: put batches in page-locked memory, for a GPU.
        note_unreadable: called with the id of each image that cannot be read and the reason;
            another image then takes its place. None = the first such image is an error.

    Raises:
        ImageError: an image cannot be read, or with `note_unreadable`, nine in a row.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> images = mr.TrainingSet(data, model, mr.AugmentConfig())
        >>> plan = mr.BatchPlan(len(images), batch_size=2)
        >>> for batch, truth in mr.TrainingLoader(images, plan.batches(stop=2)):
        ...     print(batch.images.shape[0], truth.boxes.shape[0])
        2 2
        2 2
    """

    def __init__(
        self,
        training_set: TrainingSet,
        batches: Iterable[list[tuple[int, int]]],
        workers: int = 0,
        size_divisor: int = 32,
        pin_memory: bool = False,
        note_unreadable: Callable[[int, str], None] | None = None,
    ) -> None:
        self.training_set = training_set
        self.batches = batches
        self.workers = workers
        self.size_divisor = size_divisor
        self.pin_memory = pin_memory
        self.note_unreadable = note_unreadable

    def __iter__(self) -> Iterator[tuple[Batch, Truth]]:
        can_fork = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
        start_method = "fork" if can_fork else "spawn"
        examples = _Examples(self.training_set, has_stand_ins=self.note_unreadable is not None)
        loader = DataLoader(
            examples,  # ty: ignore[invalid-argument-type]
            batch_sampler=self.batches,
            num_workers=self.workers,
            collate_fn=_Collate(self.size_divisor),
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
        for batch, unreadable in batches:
            if self.note_unreadable is not None:
                for image_id, reason in unreadable:
                    self.note_unreadable(image_id, reason)
            if batch is None:
                tried = f" ({len(unreadable)} images in a row)" if len(unreadable) > 1 else ""
                raise ImageError(f"{unreadable[0][1]}{tried}")
            yield batch


_Unreadable = list[tuple[int, str]]
"""Id and reason of images that cannot be read. They travel from the workers as values: torch
changes the class of exceptions, and adds the worker's traceback to the message."""


class _Examples:
    """A training set as torch's loader reads it: examples, and what could not be read for them."""

    def __init__(self, training_set: TrainingSet, has_stand_ins: bool) -> None:
        self.training_set = training_set
        self.tries = 1 + MOST_STAND_INS * has_stand_ins

    def __len__(self) -> int:
        return len(self.training_set)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> tuple[Example | None, _Unreadable]:
        index, seed = index_and_seed
        unreadable: _Unreadable = []
        stand_ins = np.random.default_rng((seed, _STREAM))
        for _ in range(self.tries):
            try:
                return self.training_set.example(index, seed), unreadable
            except UnreadableExampleError as error:
                unreadable.append((error.image_id, str(error)))
                index = int(stand_ins.integers(len(self)))
        return None, unreadable


class _Collate:
    """A batch, None if an example of it is missing, and what could not be read."""

    def __init__(self, size_divisor: int) -> None:
        self.size_divisor = size_divisor

    def __call__(
        self, items: Sequence[tuple[Example | None, _Unreadable]]
    ) -> tuple[tuple[Batch, Truth] | None, _Unreadable]:
        unreadable = [failure for _, of_example in items for failure in of_example]
        examples = [example for example, _ in items if example is not None]
        if len(examples) < len(items):
            return None, unreadable
        return collate(examples, self.size_divisor), unreadable


def _start_worker(worker: int) -> None:
    ignore_stop_signals()
    torch.set_num_threads(1)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _Examples):
        info.dataset.training_set.cache_bytes //= info.num_workers
