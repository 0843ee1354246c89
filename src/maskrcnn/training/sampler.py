"""Which images a step sees: a pure function of the step, so that a resumed run continues with exactly the images that were next.

In: the number of images, their aspect ratios, the batch size, a seed. Out: for any step the list of (image index, seed of its augmentation).

All epochs form one endless stream, each a new permutation of all images, and batch i of a process is a slice of the stream. So every image is
seen exactly once an epoch whatever the batch size, nothing is dropped or repeated to fill a batch, and a batch may begin in one epoch and end in the
next. Within an epoch wide and tall images go into batches of their own, which saves padding.

Images with rare categories may be repeated (`repeat_factors`). A factor of 2.3 is 2 times in some epochs and 3 times in others, each time with
another augmentation. All epochs stay equally long, so that a step's images are still found without going through the steps before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from ..config import TrainConfig

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset


def training_plan(
    data: CocoDataset, config: TrainConfig, rank: int = 0, world: int = 1
) -> BatchPlan:
    """The batches of one of the `world` processes of a training."""
    sizes = [data.size(i) for i in range(len(data))]
    repeats = (
        repeat_factors([data.labels(i) for i in range(len(data))], config.repeat_threshold)
        if config.repeat_threshold
        else None
    )
    return BatchPlan(
        len(data),
        config.batch_size,
        [height / width for height, width in sizes],
        config.seed,
        rank,
        world,
        repeats=repeats,
    )


def repeat_factors(
    labels: Sequence[Collection[int]], threshold: float
) -> Float64[np.ndarray, " images"]:
    """How often each image is to be seen in an epoch, at least once: the square root of `threshold` / frequency of its rarest category.

    Args:
        labels: for each image the categories of its objects.
        threshold: share of all images; a category that is in fewer is rare.

    Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", v2, appendix B.2.
    """
    count = Counter(label for of_image in labels for label in set(of_image))
    factor = {label: max(1.0, math.sqrt(threshold * len(labels) / n)) for label, n in count.items()}
    return np.array(
        [max((factor[label] for label in of_image), default=1.0) for of_image in labels]
    )


class BatchPlan:
    """The batches of one process.

    Args:
        num_examples: images in the data set.
        batch_size: images per process in one forward pass.
        aspect_ratios: height / width or its inverse for each image; those above 1 are kept apart from the others. None: all are alike.
        rank: this process; the processes share a global batch of `world * batch_size` images in contiguous slices, so that two processes see
            together what one with the double batch sees.
        shuffle: False keeps the order of the data set.
        repeats: how often each image is seen in an epoch, at least once; None: all once.
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
        repeats: Float64[np.ndarray, " images"] | None = None,
    ) -> None:
        if num_examples < 1 or batch_size < 1:
            raise ValueError(
                f"a batch plan needs images and a batch size, got {num_examples} images and batch_size {batch_size}"
            )
        self.num_examples, self.batch_size, self.seed, self.rank, self.world, self.shuffle = (
            num_examples,
            batch_size,
            seed,
            rank,
            world,
            shuffle,
        )
        self.global_batch = batch_size * world
        self._long = (
            np.zeros(num_examples, bool) if aspect_ratios is None else np.asarray(aspect_ratios) > 1
        )
        self.epoch_length = num_examples if repeats is None else math.ceil(repeats.sum() - 1e-9)
        self._repeats = None if repeats is None else repeats * (self.epoch_length / repeats.sum())
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(image index, seed) of the `step`-th forward pass, from 0."""
        first = step * self.global_batch + self.rank * self.batch_size
        return [self._example(position) for position in range(first, first + self.batch_size)]

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """The batches from `start` on, without end where `stop` is None."""
        step = start
        while stop is None or step < stop:
            yield self.batch(step)
            step += 1

    def _example(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.epoch_length)
        index, again = (int(v) for v in self._order(epoch)[place])
        seed = np.random.SeedSequence(
            (self.seed, epoch, index, *([again] if again else []))
        ).generate_state(1, np.uint64)[0]
        return index, int(seed >> np.uint64(2))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """[length, 2], all images and how often each was seen before: what completes the batch that the last epoch began, then batches of one
        shape, then the mixed rest."""
        random = np.random.default_rng((self.seed, epoch))
        images = self._seen(random)
        if not self.shuffle:
            return images
        order = random.permutation(len(images))
        head = min(-epoch * self.epoch_length % self.global_batch, len(order))
        tail, long = order[head:], self._long[images[:, 0]]
        runs, rest = [], [order[:0]]
        for group in (tail[long[tail]], tail[~long[tail]]):
            whole = len(group) // self.global_batch * self.global_batch
            runs += list(group[:whole].reshape(-1, self.global_batch))
            rest.append(group[whole:])
        shuffled = [runs[i] for i in random.permutation(len(runs))]
        return images[np.concatenate([order[:head], *shuffled, *rest])]

    def _seen(self, random: np.random.Generator) -> np.ndarray:
        """[length, 2], in the order of the data set: each image as often as it is seen in an epoch, and how often before.

        Each factor is rounded up or down by systematic sampling: the factors stand one after the other on a line, in a random order, and an image is
        seen for each mark of a unit ruler, laid down at random, that falls on its part. So the mean is the factor and the sum is always the same.
        """
        if self._repeats is None:
            times = np.ones(self.num_examples, np.int64)
        else:
            line = random.permutation(self.num_examples)
            ends = np.floor(np.cumsum(self._repeats[line])[:-1] + random.random()).astype(np.int64)
            times = np.empty_like(line)
            times[line] = np.diff(ends, prepend=0, append=self.epoch_length)
        index = np.repeat(np.arange(self.num_examples), times)
        return np.stack(
            [index, np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)], axis=1
        )
