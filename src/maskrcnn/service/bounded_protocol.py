"""uvicorn's HTTP protocol with a deadline for the head of a request, and errors in our form.

uvicorn waits forever for a client that sends its headers slowly, or the rest of a body that was
refused.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .json_log import log
from .prediction_service import PredictionService
from .service_error import ServiceError, limit_of, not_http


class BoundedProtocol(H11Protocol):
    """One connection.

    Args:
        service: its settings have the deadline, its metrics count what is refused here.
        arguments: of uvicorn's protocol.
    """

    def __init__(self, *, service: PredictionService, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._service = service
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes a piece of a request."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        self._refuse(not_http())

    def _wait(self) -> None:
        """Has a deadline exactly while the client owes something that no application awaits."""
        has_part = bool(self.conn.trailing_data[0])
        owes_head = self.conn.their_state is h11.IDLE and (has_part or self.cycle is None)
        owes_refused_body = (
            self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        )
        if not (owes_head or owes_refused_body):
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            seconds = self._service.settings.receive_timeout
            self._deadline = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        settings = self._service.settings
        if self.transport.is_closing():
            return

        if not self.conn.trailing_data[0]:  # nothing was asked
            self.transport.close()
            return
        self._refuse(
            ServiceError(
                408,
                "slow",
                f"the head of the request did not arrive within {settings.receive_timeout:g} s "
                "(--receive-timeout)",
                limit=limit_of(settings, "receive_timeout"),
            )
        )

    def _refuse(self, error: ServiceError) -> None:
        """Answers with an error and closes the connection."""
        request_id = uuid.uuid4().hex[:16]
        log("refused", id=request_id, status=error.status, error=error.code)
        self._service.metrics.count_request("other", error.status, 0.0)

        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body(request_id)).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": request_id,
            }
            start = h11.Response(status_code=error.status, headers=list(headers.items()))
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
