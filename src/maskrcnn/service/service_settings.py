"""The settings of the service: limits of a request, batches, and who may send requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

LOCAL_HOSTS = ("localhost", "*.localhost")
"""Names that always reach this machine; IP addresses are accepted as well."""
HELD_BODIES = 8
"""Request bodies of the largest size that are held in memory at once."""
HELD_IMAGES = 2
"""Decoded images of the largest size that are held in memory at once."""
RESPONSE_BYTES_PER_PIXEL = 9
"""Of responses that are held at once: at most 3 of a PNG, and 6 where it is written as base64."""
LEAST_RESPONSES = 64 << 20
"""Bytes of responses that may be held at once, also with small `max_pixels`."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Settings of the service; `maskrcnn serve` has a flag of the same name for each.

    Raises:
        ValueError: a value is out of its range; the message names the flag.

    Example:
        >>> from maskrcnn.service.service_settings import ServiceSettings
        >>> ServiceSettings(max_files=4).max_files
        4
    """

    min_score: float = 0.5
    """Score below which objects are left out, where a request does not say otherwise, 0 to 1."""
    max_batch: int = 4
    """Most images per forward pass. On a CPU more gain nothing and take memory."""
    max_wait: float = 0.01
    """Most seconds that an image waits for others while the model is idle."""
    max_bytes: int = 64 << 20
    """Largest body of a request."""
    max_pixels: int = 50_000_000
    """Largest width x height of an image."""
    max_files: int = 16
    """Most images of a request."""
    max_queue: int = 64
    """Most images that are received and not yet answered."""
    timeout: float = 60.0
    """Most seconds from a received request to its response."""
    receive_timeout: float = 30.0
    """Most seconds in which a request must arrive."""
    grace: float = 20.0
    """Most seconds in which requests are answered after a signal to stop."""
    api_key: str | None = field(default=None, repr=False)
    """A secret that requests must carry; None: anyone may send requests."""
    allowed_hosts: Sequence[str] = ()
    """Host names under which the service is reached, beside the local ones; "*" allows all."""
    allow_origins: Sequence[str] = ()
    """Origins, such as "https://example.org", whose pages may send requests."""
    root_path: str = ""
    """Path prefix under which a reverse proxy publishes the service, such as "/cells"."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"--min-score: expected 0 to 1, got {self.min_score:g}")
        for name in ("max_batch", "max_bytes", "max_pixels", "max_files", "max_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag_of(name)}: expected at least 1, got {getattr(self, name)}")
        for name in ("timeout", "receive_timeout", "grace"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{flag_of(name)}: expected seconds above 0, got {value:g}")

        if not 0 <= self.max_wait < math.inf:
            raise ValueError(f"--max-wait: expected 0 or more seconds, got {self.max_wait:g}")
        if self.max_queue < self.max_files:
            raise ValueError(
                f"--max-queue: expected at least --max-files, {self.max_files}, "
                f"got {self.max_queue}"
            )
        if self.api_key is not None and (not self.api_key or not self.api_key.isprintable()):
            raise ValueError("API key: expected one line of printable characters")
        if self.root_path and not (self.root_path.startswith("/") and self.root_path[-1] != "/"):
            raise ValueError(
                f'--root-path: expected a path such as "/cells", got {self.root_path!r}'
            )


def flag_of(name: str) -> str:
    """The flag of `maskrcnn serve` that sets a setting."""
    assert name in {field.name for field in fields(ServiceSettings)}
    return f"--{name.replace('_', '-')}"
