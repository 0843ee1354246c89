"""Bounds the bytes that requests hold at once: `MemoryBudget`, and the share of one request.

A request that would hold too many bytes ends with an error, where one with too many pixels waits: a
slow client may hold the others for long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .service_error import LimitJson, ServiceError


@dataclass
class MemoryBudget:
    """Bytes that all requests may hold for one purpose. Use it from one event loop."""

    total: int
    """Bytes that may be held at once."""
    what: str
    """What holds them, for messages: "request bodies"."""
    limit: LimitJson
    """The setting that the total follows from."""
    busy: Callable[[str, str, LimitJson], ServiceError]
    """Makes the error of a busy service, from code, reason and limit."""
    held: int = 0
    """Bytes that are held now."""

    def share(self) -> MemoryShare:
        """The share of a new request."""
        return MemoryShare(self)


class MemoryShare:
    """The bytes that one request holds of a budget.

    Args:
        budget: of all requests.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._count = 0

    def add(self, count: int) -> None:
        """Holds more bytes.

        Raises:
            ServiceError: all requests, or this one, would hold too many.
        """
        budget = self._budget
        if self._count + count > budget.total:
            raise ServiceError(
                413,
                "memory",
                f"{budget.what}: this request needs more than {budget.total:,} bytes of memory "
                f"(bounded by {budget.limit['flag']}); send fewer images, or ask for less",
                limit=budget.limit,
            )

        if budget.held + count > budget.total:
            reason = (
                f"{budget.what} hold {budget.held:,} of {budget.total:,} bytes of memory "
                f"(bounded by {budget.limit['flag']})"
            )
            raise budget.busy("memory", reason, budget.limit)
        self._count += count
        budget.held += count

    def set(self, count: int) -> None:
        """Holds `count` bytes from now on, no more than before."""
        assert count <= self._count
        self._budget.held += count - self._count
        self._count = count
