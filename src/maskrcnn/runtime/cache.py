"""The folder that keeps downloads and the results of slow work between runs."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path


class CacheWarning(UserWarning):
    """The cache folder cannot be used, and a temporary one replaces it."""


def cache_folder() -> Path:
    """Returns the cache folder: `$MASKRCNN_HOME`, or ~/.cache/maskrcnn if that is not set.

    It may not exist, or not be writable.
    """
    home = os.environ.get("MASKRCNN_HOME")
    try:
        return Path(home).expanduser() if home else Path.home() / ".cache" / "maskrcnn"
    except RuntimeError:  # the user has no home folder
        return Path(os.sep) / "maskrcnn-without-home"


def writable_cache_folder() -> Path:
    """Returns the cache folder if files can be created in it; creates it if it does not exist.

    Otherwise returns a temporary folder, which is removed when the process ends, and warns once.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        return _temporary_folder(folder, error.strerror or str(error))


@cache
def _temporary_folder(folder: Path, reason: str) -> Path:
    """The replacement for a folder that cannot be used."""
    warnings.warn(
        f"{folder}: the cache folder is not writable ({reason}); using a temporary one. "
        "To keep downloads, set MASKRCNN_HOME to a writable folder",
        CacheWarning,
        stacklevel=3,
    )
    made = Path(tempfile.mkdtemp(prefix="maskrcnn-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
