"""One queue in front of the model, which forms batches of images of one padded shape.

In:  prepared images, from any thread.
Out: a future of each image's `Instances`. One thread runs the model.

A batch starts when it is full, or when its oldest image has waited `max_wait` seconds. Images that
arrive while the model computes have waited already, so that waiting costs time only at low load.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..instances import Instances
from ..prediction.predictor import Predictor, PreparedImage


@dataclass(eq=False)
class _Waiting:
    """An image that waits for its batch."""

    image: PreparedImage
    padded_shape: tuple[int, ...]
    arrived: float
    future: Future[Instances] = field(default_factory=Future)


class BatchQueue:
    """Predicts images in batches, in one thread.

    Args:
        predictor: predicts a batch.
        max_batch: most images per batch.
        max_wait: most seconds that an image waits for others while the model is idle.
        on_batch: called in the model thread with the size of each batch and its seconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        max_batch: int,
        max_wait: float,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._predictor = predictor
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._started: float | None = None
        self.has_failed = False
        """Whether the model failed on the last image."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the model thread, unless it runs."""
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Predicts what waits, then ends the thread.

        Args:
            timeout: seconds to wait for the thread.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def put(self, image: PreparedImage) -> Future[Instances]:
        """Adds an image. Cancelling its future removes it at once, unless its batch has started."""
        shape = self._predictor.padded_shape(image)
        waiting = _Waiting(image, shape, time.monotonic())
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
        waiting.future.add_done_callback(self._remove_cancelled)
        return waiting.future

    def _remove_cancelled(self, future: Future[Instances]) -> None:
        """Frees an image that nobody waits for, also while the model is busy."""
        if future.cancelled():
            with self._changed:
                self._waiting = [w for w in self._waiting if w.future is not future]

    @property
    def is_running(self) -> bool:
        """Whether the model thread takes images."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def busy_seconds(self) -> float:
        """For how long the present batch has been computed; 0 between batches."""
        started = self._started
        return 0.0 if started is None else time.monotonic() - started

    def __len__(self) -> int:
        return len(self._waiting)

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            batch = [w for w in group if w.future.set_running_or_notify_cancel()]
            if batch:
                self._started = time.monotonic()
                self._predict(batch)
                self._on_batch(len(batch), self.busy_seconds)
                self._started = None
            del group, batch  # their images, before the wait for the next

    def _next_group(self) -> list[_Waiting] | None:
        """Waits for the next batch and takes it out of the queue; None when the queue has ended."""
        with self._changed:
            while True:
                group, seconds = self._ready_group()
                if group:
                    self._waiting = [w for w in self._waiting if w not in group]
                    return group
                if self._is_stopping:
                    return None
                self._changed.wait(seconds)

    def _ready_group(self) -> tuple[list[_Waiting], float | None]:
        """A batch that can start now, else nothing and the seconds until there is one."""
        if not self._waiting:
            return [], None

        # the oldest image first, so that a stream of one shape does not hold up the others
        oldest = self._waiting[0]
        seconds = oldest.arrived + self._max_wait - time.monotonic()
        if seconds <= 0 or self._is_stopping:
            return self._group_of(oldest.padded_shape), None
        for shape in {w.padded_shape for w in self._waiting}:
            group = self._group_of(shape)
            if len(group) == self._max_batch:
                return group, None
        return [], seconds

    def _group_of(self, shape: tuple[int, ...]) -> list[_Waiting]:
        return [w for w in self._waiting if w.padded_shape == shape][: self._max_batch]

    def _predict(self, batch: Sequence[_Waiting]) -> None:
        """Answers a batch; if it fails, one image at a time, so that one does not fail others."""
        try:
            results = self._predictor.predict_prepared([w.image for w in batch])
        except Exception as error:
            if len(batch) == 1:
                self.has_failed = True
                batch[0].future.set_exception(error)
                return
            for waiting in batch:
                self._predict([waiting])
            return
        self.has_failed = False
        for waiting, instances in zip(batch, results, strict=True):
            waiting.future.set_result(instances)
