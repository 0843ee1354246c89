"""The folder in which downloads and results of slow work are kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder: `$MASKRCNN_HOME`, or ~/.cache/maskrcnn."""
    home = os.environ.get("MASKRCNN_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "maskrcnn"
