"""What every request passes: host, origin and key are checked, and the response is logged.

In:  an ASGI application.
Out: an ASGI application, which also adds headers to every response, works behind a path prefix, and
     answers a crash with 500 and the id under which the log explains it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from .json_log import log
from .prediction_service import PredictionService
from .service_error import MOST_HEAD, ServiceError, not_http
from .service_settings import LOCAL_HOSTS

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/info", "/docs", "/openapi.json")
"""Paths, beside the page, that need no API key."""
_KEYED = ("/predict", "/metrics")
_KNOWN = ("/", *OPEN, *_KEYED)
_PIECE = 1 << 20  # bytes of a response that are sent at once, and wait in memory for the client
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",  # a newer version of the package comes with a newer page
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class Gate:
    """Checks requests before an application sees them, and completes its responses.

    Args:
        app: the application.
        service: its settings name hosts, origins, key and path prefix; its metrics count requests.
    """

    def __init__(self, app: Any, service: PredictionService) -> None:
        self.app: Application = app
        self.service = service
        self.settings = service.settings
        self._has_lifespan = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            self._has_lifespan = self._has_lifespan or scope["type"] == "lifespan"
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["log"] = {}
        state["body"] = self.service.bodies.share()
        state["response"] = self.service.responses.share()
        path = self._normalize(scope)

        response = _Response(send, request_id, self.settings.timeout)
        start = time.monotonic()
        try:
            if path == "":  # relative links of the page need the final slash
                await response.redirect(f"{scope['root_path']}/")
            else:
                # a server sees the size of a head only while it waits for the rest of it
                if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEAD:
                    raise not_http()
                self._check(path, scope["method"], headers)
                if not self._has_lifespan:  # as where it is mounted in another application
                    await self.service.start_for_request()
                await self.app(scope, receive, response.send)
        except ServiceError as error:
            await response.error(error)
        except asyncio.CancelledError:  # the server stops, and the request took too long
            await response.error(
                ServiceError(503, "stopping", "the server is stopping; send the request again")
            )
            raise
        except Exception as error:
            if response.is_abandoned:  # Starlette reports that a response had begun
                state["log"]["error"] = "closed"
            else:
                log("crash", logging.ERROR, error, id=request_id)
                await response.error(crash())
        finally:
            state["response"].set(0)
            self._log(scope, path, response, time.monotonic() - start)

    def _normalize(self, scope: Scope) -> str:
        """Gives the path its prefix, if the proxy removed it; returns the path without it.

        An application in which this one is mounted sets the prefix.
        """
        path: str = scope["path"]
        prefix: str = scope.get("root_path", "")
        if not prefix or not path.startswith(prefix):
            prefix = self.settings.root_path
        scope["root_path"] = prefix
        if prefix and (path == prefix or path.startswith(f"{prefix}/")):
            return path.removeprefix(prefix)
        scope["path"] = prefix + path
        return path

    def _check(self, path: str, method: str, headers: dict[bytes, str]) -> None:
        """Checks host, origin and key of a request.

        Raises:
            ServiceError: the request is refused.
        """
        settings = self.settings
        if path != "/health" and not _is_allowed(headers.get(b"host", ""), settings.allowed_hosts):
            host = headers.get(b"host", "")[:100]
            raise ServiceError(
                400,
                "host",
                f"Host {host!r}: this name is not allowed; "
                "start the server with --allowed-hosts NAME",
            )

        # a browser says so where a page of another site sends the request
        origin = headers.get(b"origin", "")
        is_foreign = headers.get(b"sec-fetch-site") in ("cross-site", "same-site")
        if is_foreign and method == "POST" and origin not in settings.allow_origins:
            raise ServiceError(
                403,
                "origin",
                f"Origin {origin[:100]!r}: pages of other sites may not send requests; "
                "start the server with --allow-origins ORIGIN",
            )

        if settings.api_key is not None and path in _KEYED and method != "OPTIONS":
            scheme, _, token = headers.get(b"authorization", "").partition(" ")
            key = headers.get(b"x-api-key", token if scheme.lower() == "bearer" else "")
            if not hmac.compare_digest(key.encode("latin-1"), settings.api_key.encode()):
                raise ServiceError(
                    401,
                    "api_key",
                    f"{'wrong' if key else 'missing'} API key; send it as X-API-Key: KEY "
                    "or Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _log(self, scope: Scope, path: str, response: _Response, seconds: float) -> None:
        known = path if path in _KNOWN else "other"
        self.service.metrics.count_request(known, response.status, seconds)
        is_probe = path in ("/health", "/metrics") and response.status == 200
        log(
            "request",
            logging.DEBUG if is_probe else logging.INFO,
            id=response.request_id,
            client=scope["client"][0] if scope.get("client") else None,
            method=scope["method"],
            path=known if known != "other" else path[:100],
            status=response.status,
            seconds=round(seconds, 4),
            **scope["state"]["log"],
        )


def crash() -> ServiceError:
    """The response to a request that failed by a fault of the server."""
    return ServiceError(
        500, "crash", "the server failed on this request; its log has the reason under this id"
    )


class _Response:
    """Sends a response with the headers of all responses.

    Args:
        send: of ASGI.
        request_id: of the request.
        timeout: most seconds in which the client must take a piece of the response.
    """

    def __init__(self, send: Send, request_id: str, timeout: float) -> None:
        self._send = send
        self._timeout = timeout
        self.request_id = request_id
        self.status = 499
        """Of HTTP; 499: the client closed the connection first."""
        self.is_abandoned = False
        """Whether the client did not take the response."""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends a message of ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            added = {**_HEADERS, "x-request-id": self.request_id}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.encode(), value.encode("latin-1"))
                    for name, value in added.items()
                    if name.encode() not in present
                ),
            ]

        try:
            for piece in _pieces(message):
                async with asyncio.timeout(self._timeout):
                    await self._send(piece)
        except TimeoutError:
            self.is_abandoned = True
            raise ServiceError(499, "closed", "the client does not take the response") from None

    async def redirect(self, path: str) -> None:
        """Sends the client to another path."""
        await self._whole(307, b"", {"location": path})

    async def error(self, error: ServiceError) -> None:
        """Sends an error, unless a response has begun."""
        if self.status != 499:
            return
        body = json.dumps(error.body(self.request_id)).encode()
        await self._whole(error.status, body, {"content-type": "application/json", **error.headers})

    async def _whole(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        headers = {**headers, "content-length": str(len(body))}
        pairs = [(n.lower().encode(), v.encode("latin-1")) for n, v in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def _pieces(message: MutableMapping[str, Any]) -> Iterator[MutableMapping[str, Any]]:
    """A message of ASGI, cut where its body is long: what is sent at once stays in memory."""
    body = message.get("body", b"")
    if len(body) <= _PIECE:
        yield message
        return
    for start in range(0, len(body), _PIECE):
        end = start + _PIECE
        has_more = end < len(body) or message.get("more_body", False)
        yield {**message, "body": body[start:end], "more_body": has_more}


def _is_allowed(host: str, allowed: Sequence[str]) -> bool:
    """Whether a Host header names this service.

    Names of other sites that resolve to this machine are refused, for a page of such a site could
    read the responses. An IP address cannot be such a name.
    """
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        patterns = (*LOCAL_HOSTS, *allowed)
        return any(fnmatchcase(name, pattern.lower()) for pattern in patterns)
