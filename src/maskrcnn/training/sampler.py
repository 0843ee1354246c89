"""Which pictures a step sees: a pure function of the step, so that a resumed run continues with exactly the pictures that were next.

In: the number of pictures, their aspect ratios, the batch size, a seed. Out: for any step the list of (picture index, seed of its augmentation).

All epochs form one endless stream, each a new permutation of all pictures, and batch i of a process is a slice of the stream. So every picture is
seen exactly once an epoch whatever the batch size, nothing is dropped or repeated to fill a batch, and a batch may begin in one epoch and end in the
next. Within an epoch wide and tall pictures go into batches of their own, which saves padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np


class BatchPlan:
    """The batches of one process.

    Args:
        num_examples: pictures in the data set.
        batch_size: pictures per process in one forward pass.
        aspect_ratios: height / width or its inverse for each picture; those above 1 are kept apart from the others. None: all are alike.
        rank: this process; the processes share a global batch of `world * batch_size` pictures in contiguous slices, so that two processes see
            together what one with the double batch sees.
        shuffle: False keeps the order of the data set.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        aspect_ratios: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        if num_examples < 1 or batch_size < 1:
            raise ValueError(f"a batch plan needs pictures and a batch size, got {num_examples} pictures and batch_size {batch_size}")
        self.num_examples, self.batch_size, self.seed, self.rank, self.world, self.shuffle = num_examples, batch_size, seed, rank, world, shuffle
        self.global_batch = batch_size * world
        self._long = np.zeros(num_examples, bool) if aspect_ratios is None else np.asarray(aspect_ratios) > 1
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(picture index, seed) of the `step`-th forward pass, from 0."""
        first = step * self.global_batch + self.rank * self.batch_size
        return [self._example(position) for position in range(first, first + self.batch_size)]

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """The batches from `start` on, without end where `stop` is None."""
        step = start
        while stop is None or step < stop:
            yield self.batch(step)
            step += 1

    def _example(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_examples)
        index = int(self._order(epoch)[place])
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)[0]
        return index, int(seed >> np.uint64(2))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """All pictures once: what completes the batch that the last epoch began, then batches of one shape, then the mixed rest."""
        if not self.shuffle:
            return np.arange(self.num_examples)
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.num_examples)
        head = min(-epoch * self.num_examples % self.global_batch, self.num_examples)
        tail = order[head:]
        runs, rest = [], [order[:0]]
        for group in (tail[self._long[tail]], tail[~self._long[tail]]):
            whole = len(group) // self.global_batch * self.global_batch
            runs += list(group[:whole].reshape(-1, self.global_batch))
            rest.append(group[whole:])
        shuffled = [runs[i] for i in random.permutation(len(runs))]
        return np.concatenate([order[:head], *shuffled, *rest])
