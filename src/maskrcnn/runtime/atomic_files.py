"""Files as they are written: a reader gets the old file or the new one, never a part of it, and a
full disk is reported in one sentence.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from .interruption import Interrupted

_REASONS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for this disk",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk reports an input/output error",
}
_LONGEST_NAME = 255  # bytes, of one part of a path
# safetensors reports the system's number as text; 112 is Windows' number for a full disk.
_SYSTEM_NUMBER = re.compile(r"\(os error (\d+)\)")
_OF_WINDOWS = {112: errno.ENOSPC}


class WriteError(OSError):
    """A file cannot be written, because the disk is full or fails.

    The message names the path and the reason and, where work was going on, what is already safe.
    """


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turns the errors of a disk that is full or fails into a `WriteError` that names the path.

    Args:
        path: the file that the block writes.

    Raises:
        WriteError: the disk is full or fails. Other exceptions stay as they are.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number not in _REASONS:
            raise
        raise WriteError(f"{path}: {_REASONS[number]}{_free_space(path, number)}") from error


@contextmanager
def stating_what_is_safe(describe: Callable[[], str]) -> Generator[None]:
    """Adds to the message of a `WriteError`, and of an interruption, what is already safe.

    Args:
        describe: returns it, as a sentence.
    """
    try:
        yield
    except WriteError as error:
        raise WriteError(f"{error}. {describe()}") from error
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal_number", signal.SIGINT)
        raise Interrupted(describe(), signal_number=number) from None


@contextmanager
def replacing(path: Path, writer: str = "") -> Generator[Path]:
    """Yields a temporary path to write to; its file replaces `path` in one step if the block
    succeeds.

        with replacing(path) as partial:
            partial.write_text(text)

    The data are flushed to the disk before the rename. If the process is killed, the old file stays
    whole, and a `.partial-` file may remain beside it until the next write. An exception removes
    it.

    Args:
        path: the file to replace or create; its folder must exist.
        writer: begins the temporary name; for processes that may write the same file at once.

    Raises:
        WriteError: the disk is full or fails.
    """
    partial = path.with_name(_partial_name(f"{writer}{path.name}"))
    try:
        with writing(path):
            yield partial

            partial.chmod(0o666 & ~umask())  # safetensors makes files only their owner can read
            _flush(partial)
            os.replace(partial, path)
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file, or replaces it.

    Raises:
        WriteError: the disk is full or fails; an old file stays as it is.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def umask() -> int:
    """Returns the permission bits that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _partial_name(name: str) -> str:
    """The name of the temporary file; a hash, and the same suffix, where it would be too long."""
    partial = f".partial-{name}"
    encoded = os.fsencode(partial)
    if len(encoded) <= _LONGEST_NAME:
        return partial
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f".partial-{digest}{os.path.splitext(name)[1]}"


def _error_number(error: Exception) -> int | None:
    """The system's error number of an exception; None for an exception of another kind."""
    if isinstance(error, OSError):
        return error.errno
    match = _SYSTEM_NUMBER.search(str(error))
    if match is None:
        return None
    return _OF_WINDOWS.get(int(match[1]), int(match[1]))


def _free_space(path: Path, number: int) -> str:
    """How much is free on a full disk, as text."""
    if number != errno.ENOSPC:
        return ""
    try:
        free = shutil.disk_usage(path.parent).free / 1e6
        return f" ({free:,.1f} MB are free, which do not suffice)"
    except OSError:
        return ""


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
