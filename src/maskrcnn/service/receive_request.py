"""The time of a request: it must arrive, and be answered, within limits.

In:  a request of Starlette.
Out: its images; and the result of work for it, which ends early if the client is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from .memory_budget import MemoryShare
from .prediction_service import PredictionService
from .service_error import ServiceError, limit_of
from .service_settings import ServiceSettings
from .upload import BodyReader, ReceivedImage, check_bytes

T = TypeVar("T")


@asynccontextmanager
async def received(
    request: Request, service: PredictionService
) -> AsyncGenerator[list[ReceivedImage]]:
    """Yields the images of a request; while the block runs, they count as waiting.

    Raises:
        ServiceError: the request is too slow, too large, malformed, or one too many.
    """
    memory: MemoryShare = request.state.body
    admitted = 0
    try:
        service.check_is_running()
        reader = _reader(request, service.settings)
        async with _arrival(service):
            async for chunk in request.stream():
                memory.add(len(chunk) * reader.copies)
                reader.add(chunk)
        request.state.log["bytes"] = reader.num_bytes

        images = await service.parse(reader)
        memory.set(sum(len(image.data) for image in images))
        service.admit(len(images))
        admitted = len(images)
        yield images
    except ClientDisconnect:
        raise _gone() from None
    finally:
        memory.set(0)
        service.admit(-admitted)


async def in_time(request: Request, work: Coroutine[None, None, T], settings: ServiceSettings) -> T:
    """The result of work for a request whose body has arrived.

    Raises:
        ServiceError: it takes too long, or the client is gone; the work is then cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))

    try:
        await asyncio.wait(
            {task, gone}, timeout=settings.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise _gone()
        raise ServiceError(
            504,
            "timeout",
            f"the response took more than {settings.timeout:g} s (--timeout); "
            "send fewer or smaller images",
            limit=limit_of(settings, "timeout"),
        )
    finally:
        task.cancel()
        gone.cancel()


@asynccontextmanager
async def _arrival(service: PredictionService) -> AsyncGenerator[None]:
    """Ends the block when the body takes too long, or when the service stops."""
    settings = service.settings
    try:
        async with asyncio.timeout(settings.receive_timeout) as timeout:
            with service.receiving(timeout):
                yield
    except TimeoutError:
        service.check_is_running()
        raise ServiceError(
            408,
            "slow",
            f"the request did not arrive within {settings.receive_timeout:g} s (--receive-timeout)",
            limit=limit_of(settings, "receive_timeout"),
            headers={"Connection": "close"},
        ) from None


def _reader(request: Request, settings: ServiceSettings) -> BodyReader:
    """What reads the body, if its headers promise one within the limits."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ServiceError(
            415, "content_encoding", f"Content-Encoding: expected none, got {encoding[:40]}"
        )
    length = request.headers.get("content-length", "0")
    check_bytes(int(length) if length.isdecimal() else 0, settings)
    return BodyReader(request.headers.get("content-type", ""), settings)


async def _disconnect(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _gone() -> ServiceError:
    return ServiceError(499, "closed", "the client closed the connection")
