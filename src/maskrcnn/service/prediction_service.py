"""From received images to a response: `PredictionService`, without HTTP.

In:  the encoded images of a request.
Out: JSON or a PNG. Decoding and writing run in threads, predicting in the model thread.

All limits that requests share are here: images that wait, bytes and pixels held in memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ..images.open_image import ImageError, TooManyPixelsError, UnusualValuesError
from ..images.read import read_header
from ..prediction.predictor import Predictor, PreparedImage
from ..runtime.counted import counted
from ..runtime.error_text import one_line
from .batch_queue import BatchQueue
from .json_log import log
from .memory_budget import MemoryBudget, MemoryShare
from .pixel_budget import PixelBudget
from .prediction_json import ImageResponse, ResponseOptions, describe, prediction_json
from .service_error import LimitJson, ServiceError, limit_of
from .service_metrics import ServiceMetrics
from .service_settings import (
    HELD_BODIES,
    HELD_IMAGES,
    LEAST_RESPONSES,
    RESPONSE_BYTES_PER_PIXEL,
    ServiceSettings,
)
from .upload import BodyReader, ReceivedImage

MOST_THREADS = 4
"""Threads that decode, and as many that write responses."""
MOST_SCANS = 200
"""Scans of a JPEG; a progressive one has about ten, and each is decoded over the whole image."""
_JPEG = b"\xff\xd8"
_SCAN = b"\xff\xda"  # the marker, which occurs in no compressed data
_TRIAL = (64, 64)  # pixels of an image that tries the model
_LONGEST_RETRY = 60  # seconds
_LAST_BATCH = 1.0  # seconds that an abandoned batch gets when the service stops
START_AGAIN = 5.0
"""Seconds after a failed start in which requests do not try it again."""

State = Literal["starting", "ready", "busy too long", "stopping", "failed"]


class PredictionService:
    """Predicts the images of requests.

    Args:
        predictor: a model or an exported file. Requests cannot go below its `min_score` or above
            its `max_pixels`.
        settings: limits and batches.
    """

    def __init__(self, predictor: Predictor, settings: ServiceSettings) -> None:
        settings = replace(settings, max_pixels=min(settings.max_pixels, predictor.max_pixels))
        self.predictor = predictor
        self.settings = settings
        self.metrics = ServiceMetrics(lambda: self.images)
        self.images = 0
        """Images that are received and not yet answered."""

        self._queue = BatchQueue(
            predictor, settings.max_batch, settings.max_wait, self.metrics.count_batch
        )
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._writers = ThreadPoolExecutor(threads, "write")
        self._pixels = PixelBudget(HELD_IMAGES * settings.max_pixels)
        self.bodies = MemoryBudget(
            HELD_BODIES * settings.max_bytes,
            "request bodies",
            limit_of(settings, "max_bytes"),
            self._busy,
        )
        self.responses = MemoryBudget(
            max(HELD_IMAGES * settings.max_pixels * RESPONSE_BYTES_PER_PIXEL, LEAST_RESPONSES),
            "responses",
            limit_of(settings, "max_pixels"),
            self._busy,
        )
        self._receiving: set[asyncio.Timeout] = set()
        self._starting: asyncio.Future[None] | None = None
        self._failed_at: float | None = None  # when the last start failed
        self._is_ready = False
        self._is_stopping = False
        self.has_ended = False
        """Whether the model thread has ended."""

    async def start(self) -> None:
        """Starts the threads and predicts one image, so that the first request is fast.

        A second call waits until the first has ended; if that has failed, it tries again.
        """
        await self._start_once(is_logged=False)

    async def start_for_request(self) -> None:
        """Starts like `start`, where no server does so before the first request.

        Logs why a start fails. The next request tries again, `START_AGAIN` seconds later at the
        earliest; until then the state is "failed".
        """
        if self._is_ready or self._is_stopping or self._seconds_to_retry > 0:
            return
        with suppress(Exception):  # it is in the log
            await self._start_once(is_logged=True)

    async def _start_once(self, is_logged: bool) -> None:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start(is_logged))
        await asyncio.shield(self._starting)

    async def _start(self, is_logged: bool) -> None:
        try:
            self._queue.start()
            await self._try_model()
        except Exception as error:
            if is_logged:
                log("start failed", logging.ERROR, error, reason=one_line(error))
            self._failed_at = time.monotonic()
            self._starting = None
            raise
        self._failed_at = None
        self._is_ready = True

    @property
    def _seconds_to_retry(self) -> float:
        """How long no request tries to start the service again; 0 or less: the next one does."""
        if self._failed_at is None:
            return 0.0
        return self._failed_at + START_AGAIN - time.monotonic()

    def stop_receiving(self) -> None:
        """Refuses requests whose body has not arrived; those that have are answered."""
        self._is_stopping = True
        for timeout in list(self._receiving):
            timeout.reschedule(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """Ends the threads, after the present batch; see `has_ended`."""
        self._is_stopping = True
        for pool in (self._decoders, self._writers):
            pool.shutdown(wait=False, cancel_futures=True)
        self.has_ended = await asyncio.to_thread(self._queue.stop, _LAST_BATCH)

    async def check(self) -> State:
        """Whether requests are answered; tries the model if it failed on the last image."""
        if self.state == "ready" and self._queue.has_failed:
            try:
                async with asyncio.timeout(self.settings.timeout):
                    await self._try_model()
            except Exception as error:
                log("the model fails", logging.ERROR, error)
                return "failed"
        return self.state

    async def _try_model(self) -> None:
        image = self.predictor.prepare(np.zeros((*_TRIAL, 3), np.uint8))
        await asyncio.wrap_future(self._queue.put(image))

    @property
    def state(self) -> State:
        """Whether requests are answered, as far as the last ones were."""
        if self._is_stopping:
            return "stopping"
        if not self._is_ready:
            return "starting" if self._failed_at is None else "failed"
        if not self._queue.is_running:
            return "failed"
        return "busy too long" if self._queue.busy_seconds > self.settings.timeout else "ready"

    @contextmanager
    def receiving(self, timeout: asyncio.Timeout) -> Generator[None]:
        """While the block receives a body, `stop_receiving` ends it."""
        self.check_is_running()
        self._receiving.add(timeout)
        try:
            yield
        finally:
            self._receiving.discard(timeout)

    def check_is_running(self) -> None:
        """Checks that new requests are taken.

        Raises:
            ServiceError: the service stops, has not started, or could not start.
        """
        if self._is_ready and not self._is_stopping:
            return
        state = self.state
        text = f"the server is {state}; send the request again"
        retry = 1
        if state == "failed":
            retry = max(math.ceil(self._seconds_to_retry), 1)
            text = f"the model fails, and the server's log says why; try again in {retry} s"
        headers = {"Retry-After": str(retry), "Connection": "close"}
        raise ServiceError(503, state, text, headers=headers)

    def admit(self, count: int) -> None:
        """Counts images as received and not yet answered; a negative count takes them out.

        Raises:
            ServiceError: too many wait already.
        """
        most = self.settings.max_queue
        if count > 0 and self.images + count > most:
            raise self._busy(
                "queue_full",
                f"{counted(self.images, 'image')} waiting, at most {most} may wait (--max-queue)",
                limit_of(self.settings, "max_queue"),
            )
        self.images += count

    async def predict(
        self, images: Sequence[ReceivedImage], options: ResponseOptions, memory: MemoryShare
    ) -> list[ImageResponse]:
        """The objects in the images of one request.

        Args:
            images: of the request.
            options: what the response contains.
            memory: of the response.

        Raises:
            ServiceError: an image is unreadable or too large, or the response takes too much
                memory.
        """
        lowest = self.predictor.min_score
        notes = []
        if options.min_score < lowest:
            notes = [f"the model reports no objects below a score of {lowest:g}"]
            options = replace(options, min_score=lowest)

        work = (self._one(image, notes, options, memory) for image in images)
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def parse(self, reader: BodyReader) -> list[ReceivedImage]:
        """The images of a received body, parsed in a thread.

        Raises:
            ServiceError: the body is malformed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._decoders, reader.images)

    async def json(self, parts: Sequence[ImageResponse], memory: MemoryShare) -> bytes:
        """The response as JSON text.

        Raises:
            ServiceError: it takes too much memory.
        """
        memory.add(2 * sum(part.num_bytes for part in parts))
        categories = self.predictor.config.categories
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(self._writers, prediction_json, parts, categories)
        memory.set(min(len(text), 3 * sum(part.num_bytes for part in parts)))
        return text

    async def _one(
        self,
        image: ReceivedImage,
        notes: Sequence[str],
        options: ResponseOptions,
        memory: MemoryShare,
    ) -> ImageResponse:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._num_pixels, image)
        await self._pixels.take(pixels)
        work: Future[Any] = self._decoders.submit(self._decode, image)
        try:
            prepared = await asyncio.wrap_future(work)
            work = self._queue.put(prepared)
            instances = await asyncio.wrap_future(work)
            if prepared.frames > 1:
                notes = [*notes, "several frames, the first is used"]
            del prepared
            work = self._writers.submit(describe, instances, image.name, notes, options)
            part = await asyncio.wrap_future(work)
            memory.add(part.num_bytes)
        finally:
            # also of a request that has ended early, whose thread goes on
            work.add_done_callback(partial(self._give_back, loop, pixels))

        self.metrics.images.inc()
        self.metrics.objects.inc(len(part.objects))
        return part

    def _give_back(self, loop: asyncio.AbstractEventLoop, pixels: int, _: object) -> None:
        """Gives pixels back, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: the service has stopped
            loop.call_soon_threadsafe(self._pixels.give, pixels)

    def _num_pixels(self, image: ReceivedImage) -> int:
        """Checks the size that the header states, and the scans of a JPEG."""
        scans = image.data.count(_SCAN) if image.data.startswith(_JPEG) else 0
        if scans > MOST_SCANS:
            raise ServiceError(
                422,
                "unreadable",
                f"{image.name}: expected a JPEG of at most {MOST_SCANS} scans, got {scans:,}; "
                "save it again",
            )
        with _errors_as_responses(self.settings):
            height, width = read_header(image.open(), self.settings.max_pixels).size
            return height * width

    def _decode(self, image: ReceivedImage) -> PreparedImage:
        with _errors_as_responses(self.settings):
            return self.predictor.prepare(image.open())

    def _busy(self, code: str, reason: str, limit: LimitJson) -> ServiceError:
        """The error of a service that has too much to do."""
        seconds = self.metrics.seconds_per_image * max(self.images, 1)
        retry = min(max(math.ceil(seconds), 1), _LONGEST_RETRY)
        return ServiceError(
            503,
            code,
            f"{reason}; send the request again in {retry} s",
            limit=limit,
            headers={"Retry-After": str(retry)},
        )


@contextmanager
def _errors_as_responses(settings: ServiceSettings) -> Generator[None]:
    try:
        yield
    except TooManyPixelsError as error:
        raise ServiceError(
            413,
            "too_many_pixels",
            f"{error.reason} (--max-pixels); send a smaller image",
            limit=limit_of(settings, "max_pixels"),
        ) from None
    except UnusualValuesError as error:
        server = "start the server with --intensity-range LOW HIGH"
        raise ServiceError(422, "unreadable", f"{error}, or {server}") from None
    except ImageError as error:
        raise ServiceError(422, "unreadable", str(error)) from None
