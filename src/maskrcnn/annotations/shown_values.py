"""Values of unchecked JSON in messages: `shown(value)`.

It takes bounded time, whatever the value holds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .coco_types import Json

_LEVELS = 4  # lists and objects inside each other that are shown


def shown(value: Json, most: int = 80) -> str:
    """A value as text of at most `most` characters."""
    return _shown(value, most, _LEVELS)[:most]


def _shown(value: Json, most: int, levels: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:most])
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    if not isinstance(value, Mapping | list | tuple) or not value:
        return repr(value)
    if levels == 0:
        return "..."

    parts = []
    length = 0
    is_object = isinstance(value, Mapping)
    for part in value.items() if is_object else value:
        if length > most:
            break
        texts = [_shown(v, most, levels - 1) for v in (part if is_object else (part,))]
        parts.append(": ".join(texts))
        length += len(parts[-1]) + 2
    joined = ", ".join(parts)
    return f"{{{joined}}}" if is_object else f"[{joined}]"
