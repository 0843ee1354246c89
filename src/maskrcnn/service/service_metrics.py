"""What the service counts, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LATEST = 0.2  # weight of the latest forward pass
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters of one service, in a registry of its own.

    Args:
        queue_length: returns the number of images that are received and not yet answered.
    """

    def __init__(self, queue_length: Callable[[], float]) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            PlatformCollector,
            ProcessCollector,
        )

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._registry = registry

        self.requests = Counter(
            "maskrcnn_requests",
            "Requests by path and HTTP status.",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "maskrcnn_request_seconds",
            "Seconds from the head of a request to its response.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("maskrcnn_images", "Predicted images.", registry=registry)
        self.objects = Counter("maskrcnn_objects", "Objects in responses.", registry=registry)
        self.batch_size = Histogram(
            "maskrcnn_batch_size", "Images per forward pass.", buckets=_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "maskrcnn_batch_seconds",
            "Seconds per forward pass.",
            buckets=_SECONDS,
            registry=registry,
        )
        waiting = Gauge(
            "maskrcnn_queue_images",
            "Images that are received and not yet answered.",
            registry=registry,
        )
        waiting.set_function(queue_length)
        self.seconds_per_image = 0.0
        """Of the last forward passes, the latest weighing most."""

    def count_batch(self, size: int, seconds: float) -> None:
        """Counts a forward pass."""
        self.seconds_per_image += (seconds / size - self.seconds_per_image) * _LATEST
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """The metrics, and their content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
