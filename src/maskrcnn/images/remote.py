"""Images from the web: http and https, with a limit of size and of time.

In:  a URL.
Out: the bytes of the file.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .open_image import MAX_BYTES, ImageError

SECONDS = 60.0
"""Time for one download, with all redirects."""
_STALL = 15.0  # seconds without data
_SCHEMES = ("http", "https")
_CLOUDS = ("s3", "s3a", "gs", "az", "abfs", "abfss", "wasbs", "hdfs")
# A scheme of one letter is a Windows drive.
_URL = re.compile(r"([a-z][a-z0-9+.-]+(?=://)|data(?=:)|https?(?=:/))", re.IGNORECASE)
_SHOWN = 80  # characters of a URL in a message
_CHUNK = 1 << 16


def is_url(text: str | Path) -> bool:
    """Whether text is an http or https URL. A `Path` never is."""
    return isinstance(text, str) and text[:8].lower().startswith(("http://", "https://"))


def refuse_other_schemes(source: str | Path) -> None:
    """Checks that an image is not named by a URL that is neither http nor https.

    A file of that name is no URL.

    Raises:
        ImageError: it is; the message names what can be read.
    """
    text = str(source)
    match = _URL.match(text)
    if match is None or is_url(source) or os.path.lexists(text):
        return

    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    scheme = match[1].lower()
    if scheme in _SCHEMES:
        raise ImageError(
            f"{shown}: expected a URL as text, such as https://host/a.png; "
            "a Path changes its slashes"
        )
    advice = "download it first"
    if scheme == "file":
        advice = f"pass {unquote(urlsplit(text).path)}"
    elif scheme == "data":
        advice = "decode it and pass the bytes"
    elif scheme in _CLOUDS:
        advice = "download it first, or pass its https address"
    raise ImageError(
        f"{shown}: expected a file name or a URL with http or https, got a URL with {scheme}; "
        f"{advice}"
    )


def url_name(url: str) -> str:
    """The last part of a URL's path, as a file name.

    Raises:
        ImageError: it is not a URL.
    """
    try:
        urlsplit(url)
    except ValueError as error:
        raise ImageError(f"{url}: not a URL: {error}") from None
    name = unquote(urlsplit(url).path).replace("\\", "/").rstrip("/").rpartition("/")[2]
    plain = "".join(letter for letter in name if letter.isprintable())
    return plain[-100:].lstrip(".") or "image"


def download(url: str, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """Downloads a file into memory.

    Only http and https are used, also after a redirect.

    Args:
        url: of the file.
        max_bytes: largest size.
        seconds: longest time.

    Raises:
        ImageError: the server cannot be reached or returns an error, the file is too large, or the
            time is over.
    """
    end = time.monotonic() + seconds
    sockets: list[socket.socket] = []

    try:
        request = urllib.request.Request(url, headers={"User-Agent": "maskrcnn"})
        with (
            _stopped_after(seconds, sockets),
            _opener(sockets).open(request, timeout=min(_STALL, seconds)) as response,
        ):
            return _read(response, max_bytes, end)

    except ImageError as error:
        raise ImageError(f"{url}: {error}") from None
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{url}: the server returned {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason: Any = error.reason if isinstance(error, urllib.error.URLError) else error
        if time.monotonic() >= end:
            reason = f"not complete after {seconds:g} seconds"
        elif isinstance(reason, TimeoutError):
            reason = f"no data for {min(_STALL, seconds):g} seconds"
        raise ImageError(f"{url}: download failed: {reason}") from None


def _read(response: Any, max_bytes: int, end: float) -> bytes:
    expected = response.headers.get("Content-Length", "")
    if expected.isdecimal() and int(expected) > max_bytes:
        raise ImageError(f"{_megabytes(int(expected))} are more than {_megabytes(max_bytes)}")

    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise ImageError(f"the file has more than {_megabytes(max_bytes)}")
    if time.monotonic() >= end:
        raise TimeoutError
    if expected.isdecimal() and len(data) < int(expected):
        raise OSError(f"the connection was closed after {len(data)} of {expected} bytes")
    return bytes(data)


def _megabytes(count: int) -> str:
    return f"{count / (1 << 20):.3g} MB"


@contextmanager
def _stopped_after(seconds: float, sockets: list[socket.socket]) -> Generator[None]:
    """Shuts the sockets down when the time is over, which ends a read that waits for them.

    A time limit per read does not stop a server that sends a byte now and then.
    """

    def stop() -> None:
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _opener(sockets: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Opens http and https URLs only; adds each connection's socket to `sockets`."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class SecureConnection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Web(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(Connection, req)

    class SecureWeb(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(SecureConnection, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        Web(),
        SecureWeb(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() not in _SCHEMES:
            raise ImageError(f"redirected to {newurl}; only http and https are followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
