"""Atomic files: a reader gets the old file or the new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields a temporary path to write to; its file replaces `path` in one step if the block
    succeeds.

        with replacing(path) as partial:
            partial.write_text(text)

    The data are flushed to the disk before the rename. If the process is killed, the old file stays
    whole, and a `.partial-` file may remain beside it until the next write. An exception removes
    it.

    Args:
        path: the file to replace or create; its folder must exist.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial

        partial.chmod(0o666 & ~umask())  # safetensors makes files that only their owner can read
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def umask() -> int:
    """Returns the permission bits that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
