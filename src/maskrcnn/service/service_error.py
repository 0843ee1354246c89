"""An error response: `ServiceError(413, "too_large", "...")`.

Its body is {"error": {"code", "message", "limit"?, "id"}}, where "limit" names a limit that was
exceeded, its value, and the flag that changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from .service_settings import ServiceSettings, flag_of

MOST_HEAD = 64 << 10
"""Largest head of a request, in bytes."""


class LimitJson(TypedDict):
    """The limit that a request exceeded."""

    name: str
    value: float
    flag: str


class ErrorJson(TypedDict):
    """What went wrong."""

    code: str
    message: str
    limit: NotRequired[LimitJson]
    id: str


class ServiceError(Exception):
    """A request is answered with an error.

    Args:
        status: of HTTP, 4xx or 5xx.
        code: one word for programs.
        message: a sentence for people.
        limit: the limit that was exceeded.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        limit: LimitJson | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.limit = limit
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, ErrorJson]:
        """The body of the response."""
        error: ErrorJson = {"code": self.code, "message": self.message, "id": request_id}
        if self.limit is not None:
            error["limit"] = self.limit
        return {"error": error}


def limit_of(settings: ServiceSettings, name: str) -> LimitJson:
    """The limit that a setting states."""
    return {"name": name, "value": getattr(settings, name), "flag": flag_of(name)}


def not_http() -> ServiceError:
    """The error of a request that is not HTTP, or whose head is too large."""
    text = f"expected a request of HTTP/1.1 with a head of at most {MOST_HEAD >> 10} KiB"
    return ServiceError(400, "http", text)
