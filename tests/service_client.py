"""A service in this process, without sockets, and requests to it."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.prediction.predictor import PreparedImage
from maskrcnn.service.service_settings import ServiceSettings

POISON = (47, 61)
"""(height, width) of images on which a `RecordingPredictor` fails."""


class RecordingPredictor(mr.Predictor):
    """A tiny random model that records its batches; it can be slow, and fails on images of one size."""

    def __init__(self, seconds: float = 0.0, **settings: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(mr.MaskRCNN.from_config(tiny_config(2)).eval(), **settings)
        self.batches: list[int] = []
        self.seconds = seconds

    def predict_prepared(self, images: Sequence[PreparedImage]) -> list[mr.Instances]:
        self.batches.append(len(images))
        time.sleep(self.seconds)
        if any(image.size == POISON for image in images):
            raise RuntimeError("poisoned")
        return super().predict_prepared(images)


class ServiceClient:
    """Sends requests to a service that runs in an event loop of its own."""

    def __init__(self, predictor: mr.Predictor, **settings: Any) -> None:
        for package in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
            pytest.importorskip(package, reason="needs the extra serve")
        httpx = pytest.importorskip("httpx")
        from maskrcnn.service.app import create_app

        self.app = create_app(predictor, ServiceSettings(**settings), name="tiny")
        self.service = self.app.service
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self.run(self.service.start())

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    def get(self, path: str, **options: Any) -> Any:
        return self.run(self.client.get(path, **options))

    def post(self, path: str = "/predict", **options: Any) -> Any:
        return self.run(self.client.post(path, **options))

    def together(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """Responses to requests that are sent at the same time."""

        async def work() -> list[Any]:
            sent = ({"url": "/predict", **request} for request in requests)
            return list(await asyncio.gather(*(self.client.post(**one) for one in sent)))

        return self.run(work())

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self.service.stop())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


def png(size: tuple[int, int] = (48, 64), seed: int = 0, **options: Any) -> bytes:
    """A random image of a (height, width) as a PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def form(*images: bytes) -> dict[str, Any]:
    """Images as the form of a request."""
    return {"files": [("files", (f"{n}.png", data)) for n, data in enumerate(images)]}
