"""Plain data from files: objects of JSON, YAML and TOML that nobody has checked yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PlainData = Mapping[str, Any]
"""A JSON, YAML or TOML object whose keys and values are not checked yet."""
PlainDict = dict[str, Any]
"""The same, while it is put together."""


def read_json(path: str | Path) -> Any:
    """Returns the content of a JSON file; a byte order mark is allowed.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON; the message names file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file not found")
    try:
        return json.loads(path.read_bytes())  # UTF-8, 16 or 32, recognized by its first bytes
    except json.JSONDecodeError as error:
        is_cut_off = not error.doc[error.pos :].strip()
        suggestion = "; the file is empty or cut off, write it again" if is_cut_off else ""
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: "
            f"{error.msg}{suggestion}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#04x} "
            f"at position {error.start}; save the file as UTF-8"
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON: nested too deeply") from None
