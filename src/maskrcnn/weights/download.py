"""Published weights by name: fetched once, resumed where a download broke, verified, kept in a cache folder.

In: a record of the catalog. Out: the path of a verified file. The folder is `MASKRCNN_HOME`, or `~/.cache/maskrcnn`. The file appears there
under its own name only when it is whole and right; until then it is `<name>.part`.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..runtime.cache import cache_folder
from .catalog import Weights

CHUNK = 1 << 20
ATTEMPTS = 3
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""


class DownloadError(OSError):
    """Weights that could not be fetched; the message says from where and how to put them in place by hand."""


def fetch(weights: Weights) -> Path:
    """The path of the verified file, downloaded if the cache lacks it.

    Raises:
        DownloadError: the address cannot be reached, answers with an error, breaks off, or sends a file with another SHA-256.
    """
    target = cache_folder() / weights.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_suffix(".lock")):
        if not target.exists():
            part = target.with_name(target.name + ".part")
            _download(weights.url, part, target)
            _verify(
                part, weights, f"{part} was removed; run again, or fetch the file from elsewhere"
            )
            part.replace(target)
        else:
            _verify(target, weights, f"{target} was removed; run again to fetch it")
    return target


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, weights: Weights, suggestion: str) -> None:
    found = sha256(path)
    if not found.startswith(weights.sha256):
        path.unlink()
        raise DownloadError(
            f"{weights.name}: SHA-256 is {found[:16]}.., must begin with {weights.sha256} ({weights.url}). {suggestion}."
        )


def _download(url: str, part: Path, target: Path) -> None:
    """Fetches `url` into `part`, going on where an earlier attempt stopped."""
    by_hand = f"Fetch {url} by other means and put it at {target}"
    problem: Exception | str = ""
    for _ in range(ATTEMPTS):
        try:
            if _attempt(url, part):
                return
            problem = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file, so it is of another file
                part.unlink(missing_ok=True)
                problem = "the server has less than was fetched before"
                continue
            raise DownloadError(
                f"{url}: the server answers {error.code} {error.reason}. {by_hand}."
            ) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = (
                error.reason
                if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception)
                else error
            )
    kept = (
        f" {part.stat().st_size / 1e6:.1f} MB are kept; run again to go on."
        if part.exists() and part.stat().st_size
        else ""
    )
    raise DownloadError(f"{url}: cannot be fetched ({problem}).{kept} {by_hand}.")


def _attempt(url: str, part: Path) -> bool:
    """Appends to `part` what the server sends; True when the file is whole."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "maskrcnn", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT
    ) as answer:
        if have and answer.status != 206:  # no ranges here: from the start
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file:
            done = have + _copy(answer, file, have, total, part.name.removesuffix(".part"))
    return total is None or done == total


def _copy(
    answer: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, label: str
) -> int:
    """Copies with a progress bar; the number of bytes that came."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    count = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=have)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            count += len(chunk)
            progress.advance(task, len(chunk))
    return count


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    """Only one process at a time fetches a file; the others wait and find it. Where the system has no such locks, the hash still guards."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
