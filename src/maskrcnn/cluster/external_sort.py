"""Sorts more text than should be in memory: `sorted_texts(names)`."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import IO

CHUNK = 50_000
"""How many texts are in memory at a time; further ones wait in temporary files."""
_MOST_FILES = 100  # open at a time


def sorted_texts(texts: Iterable[str], chunk: int = CHUNK) -> Iterator[str]:
    """Yields texts in the order of their code points, with at most about `chunk` in memory.

    Args:
        texts: in any order; may have lone surrogates, as names of files do.
        chunk: how many texts to sort at a time.
    """
    texts = iter(texts)
    held = sorted(islice(texts, chunk))
    if len(held) < chunk:
        yield from held
        return

    with ExitStack() as stack:
        files: list[IO[str]] = []
        while held:
            files.append(stack.enter_context(_spilled(held)))
            if len(files) == _MOST_FILES:
                merged = stack.enter_context(_spilled(heapq.merge(*map(_lines, files))))
                for file in files:
                    file.close()
                files = [merged]
            held = sorted(islice(texts, chunk))
        yield from heapq.merge(*map(_lines, files))


def _spilled(texts: Iterable[str]) -> IO[str]:
    """A temporary file of the texts; each is JSON, so that a line break in a name is no end."""
    file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115
    file.writelines(json.dumps(text) + "\n" for text in texts)
    file.seek(0)
    return file


def _lines(file: IO[str]) -> Iterator[str]:
    return (json.loads(line) for line in file)
