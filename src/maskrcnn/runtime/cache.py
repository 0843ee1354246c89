"""The folder that keeps downloads and the results of slow work between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the cache folder: `$MASKRCNN_HOME`, or ~/.cache/maskrcnn if that is not set."""
    home = os.environ.get("MASKRCNN_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "maskrcnn"
