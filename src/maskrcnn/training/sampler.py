"""The images of each step: a pure function of the step, so that a resumed run continues with the
next images.

In: the number of images, their aspect ratios, the batch size, a seed. Out: for any step the list of
(image index, seed of its augmentation).

The epochs form one endless stream, each a new permutation of all images. Batch i of a process is a
slice of the stream. So an epoch holds every image exactly once whatever the batch size, no image is
dropped or repeated to fill a batch, and a batch may span two epochs. Within an epoch, wide and tall
images go into separate batches, which saves padding.

Images with rare categories may be repeated (`repeat_factors`). A factor of 2.3 means 2 times in
some epochs and 3 times in others, each time with another augmentation. All epochs have the same
length, so that the images of a step do not depend on earlier steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from ..config import TrainConfig

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset


def training_plan(
    data: CocoDataset, config: TrainConfig, rank: int = 0, world: int = 1
) -> BatchPlan:
    """The batches of one of the `world` processes of a training run."""
    sizes = [data.size(i) for i in range(len(data))]
    repeats = None
    if config.repeat_threshold:
        labels = [data.labels(i) for i in range(len(data))]
        repeats = repeat_factors(labels, config.repeat_threshold)
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
    """How often an epoch repeats each image: at least once, more often if it shows a rare category.

    The factor is the square root of `threshold` / (share of images with the image's rarest
    category).

    Args:
        labels: for each image the categories of its objects.
        threshold: share of all images; categories in fewer images are rare.

    Source: Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", v2,
    appendix B.2.
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
        aspect_ratios: height / width (or its inverse) of each image. Images above 1 and the others
            go into separate batches. None = no separation.
        seed: of the permutations and the augmentations.
        rank: this process. The processes share a global batch of `world * batch_size` images in
            contiguous slices, so that two processes together train on the same images as one with
            twice the batch size.
        world: number of processes.
        shuffle: False keeps the order of the data set.
        repeats: how often an epoch repeats each image, at least once; None = all once.

    Raises:
        ValueError: no images, or a batch size below 1.

    Example:
        >>> import maskrcnn as mr
        >>> plan = mr.BatchPlan(4, batch_size=2)
        >>> epoch = [index for batch in plan.batches(stop=2) for index, seed in batch]
        >>> sorted(epoch)
        [0, 1, 2, 3]
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
                "expected at least one image and a batch_size of at least 1, "
                f"got {num_examples} images and batch_size={batch_size}"
            )
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.shuffle = shuffle
        self.global_batch = batch_size * world

        self._long = np.zeros(num_examples, bool)
        if aspect_ratios is not None:
            self._long = np.asarray(aspect_ratios) > 1

        self.epoch_length = num_examples
        self._repeats = None
        if repeats is not None:
            self.epoch_length = math.ceil(repeats.sum() - 1e-9)
            self._repeats = repeats * (self.epoch_length / repeats.sum())
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = lru_cache(maxsize=4)(self._epoch_order)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(image index, seed) of the `step`-th forward pass, from 0."""
        first = step * self.global_batch + self.rank * self.batch_size
        return [self._example(position) for position in range(first, first + self.batch_size)]

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[tuple[int, int]]]:
        """The batches from `start` on; endless if `stop` is None."""
        step = start
        while stop is None or step < stop:
            yield self.batch(step)
            step += 1

    def _example(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.epoch_length)
        index, repetition = (int(v) for v in self._order(epoch)[offset])
        entropy = [self.seed, epoch, index]
        if repetition:
            entropy.append(repetition)
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return index, int(seed >> np.uint64(2))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """[epoch_length, 2]: (image index, its earlier repetitions in this epoch), in the order of
        the epoch.

        First the images that complete the batch which the last epoch began, then batches of one
        orientation, then the mixed rest.
        """
        random = np.random.default_rng((self.seed, epoch))
        images = self._repeated(random)
        if not self.shuffle:
            return images

        order = random.permutation(len(images))
        head = min(-epoch * self.epoch_length % self.global_batch, len(order))
        tail = order[head:]
        long = self._long[images[:, 0]]
        runs = []
        rest = [order[:0]]
        for group in (tail[long[tail]], tail[~long[tail]]):
            whole = len(group) // self.global_batch * self.global_batch
            runs += list(group[:whole].reshape(-1, self.global_batch))
            rest.append(group[whole:])
        shuffled = [runs[i] for i in random.permutation(len(runs))]
        return images[np.concatenate([order[:head], *shuffled, *rest])]

    def _repeated(self, random: np.random.Generator) -> np.ndarray:
        """[epoch_length, 2] as `_epoch_order`, in the order of the data set.

        Systematic sampling rounds each factor up or down. The factors lie end to end on a line, in
        random order; an image is repeated for each mark of a unit ruler, placed at random, that
        falls on its part. So the mean is the factor, and the sum is always the same.
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
