"""Files that are either the old one or the new one, never half of each: `with replacing(path) as partial: ...`."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields a path to write to; when the block succeeds, its file replaces `path` in one step.

    The data are on the disk before the rename, not only in the disk's cache. If the process is killed, the old file
    stays whole and a `.partial-` file may lie beside it, which the next write replaces. An exception removes it.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial

        partial.chmod(0o666 & ~umask())  # safetensors writes files that only their owner may read
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def umask() -> int:
    """The permission bits that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
