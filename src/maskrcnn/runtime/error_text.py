"""The text of another library's exception as one plain line, for a message of our own."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
MOST = 300
"""Characters of a line that are shown."""


def one_line(error: BaseException, line: int = 0) -> str:
    """Returns a line of an exception's text, without colors and control characters.

    Args:
        error: the exception; without a text, the name of its class.
        line: which of its lines; -1 for the last, where some libraries put the cause.
    """
    lines = _ANSI.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    text = " ".join(_CONTROL.sub(" ", lines[line]).split())
    return text if len(text) <= MOST else f"{text[:MOST]}..."
