"""The service in a thread, and Debian's Chromium, for the tests of the browser page."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str:
    """The path of a Chromium; without one the test is skipped."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(
            f"no browser: none of {', '.join(_NAMES)} is installed (apt-get install chromium)"
        )
    return path


@contextmanager
def running(app: object) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    listener = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


def pixels(size: tuple[int, int]) -> np.ndarray:
    """A gradient [H, W, 3]."""
    height, width = size
    x, y = np.meshgrid(np.linspace(70, 190, width), np.linspace(0, 60, height))
    return np.stack([x, 0.7 * x + y, 210 - 0.6 * x], axis=2).astype(np.uint8)


def image_file(name: str, size: tuple[int, int]) -> dict[str, object]:
    """An image as playwright chooses files."""
    file = io.BytesIO()
    Image.fromarray(pixels(size)).save(file, name.rsplit(".", 1)[-1].replace("jpg", "jpeg"))
    return {"name": name, "mimeType": "", "buffer": file.getvalue()}
