"""Plain data from files: objects of JSON, YAML and TOML that nobody has checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PlainData = Mapping[str, Any]
"""A JSON, YAML or TOML object whose keys and values are not checked yet."""
PlainDict = dict[str, Any]
"""The same, while it is put together."""
