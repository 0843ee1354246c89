"""The log: one JSON object per line. It never has the content of an image."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGER = logging.getLogger("maskrcnn.service")
_SOURCES = ("maskrcnn.service", "uvicorn")


class JsonLines(logging.Formatter):
    """Formats a record as {"time", "level", "event", ...}."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def log(event: str, level: int = logging.INFO, exc_info: Any = None, **fields: Any) -> None:
    """Logs an event with fields; those that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    LOGGER.log(level, event, exc_info=exc_info, extra={"fields": known})


@contextmanager
def json_lines(stream: TextIO) -> Generator[None]:
    """While the block runs, the service and its server log to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    before = []
    for name in _SOURCES:
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
