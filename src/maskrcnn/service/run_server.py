"""Runs the service until a signal: `serve(predictor, listener, settings)`.

In:  a predictor, an address and settings.
Out: log lines; the function returns when the server has stopped.

SIGTERM and SIGINT end the server: it takes no new requests, answers those that have arrived, and
stops within `grace` seconds.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from ..prediction.predictor import Predictor
from .app import create_app
from .bounded_protocol import BoundedProtocol
from .json_log import log
from .prediction_service import PredictionService
from .service_error import MOST_HEAD
from .service_settings import ServiceSettings

_IDLE = 15  # seconds for which a connection without requests stays open


def bind(host: str, port: int) -> socket.socket:
    """Reserves the address, before the model is loaded.

    Args:
        host: name or IP address of this machine.
        port: 0 to 65535; 0 = any free one.

    Raises:
        ValueError: the port is out of its range.
        OSError: the port is in use or not permitted, or the host is not of this machine.
    """
    if not 0 <= port <= 65535:  # the system would take the number modulo 65536
        raise ValueError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except socket.gaierror as error:
        raise OSError(f"--host {host}: {(error.strerror or 'unknown').lower()}") from None

    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _address_error(error, host, port) from None
    return listener


def address_of(listener: socket.socket, root_path: str = "") -> str:
    """The URL of the page."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}{root_path}/"


def serve(
    predictor: Predictor,
    listener: socket.socket,
    settings: ServiceSettings,
    *,
    name: str = "maskrcnn",
    on_ready: Callable[[str], None] = lambda address: None,
) -> bool:
    """Runs the service until SIGTERM or SIGINT.

    Args:
        predictor: a model or an exported file.
        listener: from `bind`.
        settings: of the service.
        name: of the model.
        on_ready: called with the address when requests are answered.

    Returns:
        Whether the model has ended. False: it computes still, in a thread that cannot be stopped.

    Raises:
        ValueError: the model fails on its first image.
        OSError: the port is in use.
    """
    app = create_app(predictor, settings, name=name)
    config = uvicorn.Config(
        app,
        http=partial(BoundedProtocol, service=app.service),  # ty: ignore[invalid-argument-type]
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=settings.grace,  # ty: ignore[invalid-argument-type]
    )
    address = address_of(listener, settings.root_path)
    host, port = listener.getsockname()[:2]
    server = _Server(config, app.service, lambda: on_ready(address))
    try:
        server.run([listener])
    except SystemExit:  # uvicorn has logged why
        raise ValueError(f"{name} fails on its first image; the log above has the reason") from None
    except OSError as error:
        raise _address_error(error, host, port) from None

    log("stopped", requests=server.server_state.total_requests)
    return app.service.has_ended


class _Server(uvicorn.Server):
    """uvicorn's server, which ends without an error after a signal."""

    def __init__(
        self, config: uvicorn.Config, service: PredictionService, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log("ready")
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log("stopping", images=self._service.images)
        self._service.stop_receiving()
        await super().shutdown(sockets)
        if self._service.images:
            log("cut off", logging.WARNING, images=self._service.images)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Unlike uvicorn's, does not raise the signal again after the server has stopped."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _address_error(error: OSError, host: str, port: int) -> OSError:
    """The error of an address as a sentence."""
    reasons = {
        errno.EADDRINUSE: f"port {port} of {host} is in use; choose another with --port",
        errno.EACCES: f"port {port} needs the rights of an administrator; choose one above 1023",
        errno.EADDRNOTAVAIL: f"--host {host}: this machine does not have this address",
    }
    return OSError(reasons.get(error.errno or 0, f"--host {host} --port {port}: {error}"))
