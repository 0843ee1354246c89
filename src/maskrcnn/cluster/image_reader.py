"""Fetches the images of rows ahead of the network: `read_rows(rows)`.

In:  rows.
Out: for each, in order, what a `Predictor` takes: a path, or the bytes of a file; or its error.

Objects of a store and URLs are fetched by several threads, because each takes a round trip. The
bytes of a table come in its order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ..images.open_image import ImageError
from ..images.remote import download, is_url
from .file_stores import StoreError, is_store, read_object
from .image_rows import ImageRow
from .image_table import bytes_column, opened_table, read_bytes

THREADS = 8
"""How many images are fetched at a time."""
_AHEAD = 16  # images that may be fetched and not yet predicted

Fetched = Path | bytes | ImageError | StoreError
"""An image, or why there is none."""


def read_rows(
    rows: Sequence[tuple[int, ImageRow]], image_column: str | None = None
) -> Iterator[tuple[int, ImageRow, Fetched]]:
    """Yields rows with their images, in order.

    Args:
        rows: each with its number in the part.
        image_column: of tables; by default recognized.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        for group, members in groupby(rows, key=lambda pair: (pair[1].location, pair[1].group)):
            if group[1] is not None:
                yield from _from_table(list(members), image_column)

        # rows of one source are all in tables, or none is
        fetchable = (pair for pair in rows if pair[1].group is None)
        waiting: deque[tuple[int, ImageRow, Callable[[], Fetched]]] = deque()
        for number, row in fetchable:
            location = row.location
            if location is not None and (is_url(location) or is_store(location)):
                waiting.append((number, row, threads.submit(_fetched, location).result))
            else:
                waiting.append((number, row, partial(_local, location)))
            if len(waiting) > _AHEAD:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)


def read_row(row: ImageRow, image_column: str | None = None) -> Path | bytes:
    """The image of one row.

    Raises:
        ImageError: there is none.
        StoreError: a store fails.
    """
    _, _, fetched = next(read_rows([(0, row)], image_column))
    if isinstance(fetched, Exception):
        raise fetched
    return fetched


def _next(
    waiting: deque[tuple[int, ImageRow, Callable[[], Fetched]]],
) -> tuple[int, ImageRow, Fetched]:
    number, row, result = waiting.popleft()
    return number, row, result()


def _local(location: str | None) -> Fetched:
    if location is None:
        return ImageError("the table has no image in this row")
    return Path(location)


def _fetched(location: str) -> Fetched:
    """Fetches an object; every failure is returned, so that the others go on."""
    try:
        return download(location) if is_url(location) else read_object(location)
    except (ImageError, StoreError) as error:
        return error
    except (ValueError, ImportError) as error:  # a wrong URL in a list
        return ImageError(str(error))


def _from_table(
    members: list[tuple[int, ImageRow]], image_column: str | None
) -> Iterator[tuple[int, ImageRow, Fetched]]:
    """Reads rows of one row group."""
    location = members[0][1].location
    group = members[0][1].group
    assert location is not None
    assert group is not None
    by_offset = {row.offset: (number, row) for number, row in members}
    with opened_table(location) as table:
        columns = bytes_column(table, location, image_column)
        found: Iterator[tuple[int, Any]] = read_bytes(table, columns, group, sorted(by_offset))
        for offset, data in found:
            yield *by_offset[offset], data
