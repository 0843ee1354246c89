"""Tables of images: parquet files with the bytes of images, or with their paths.

In:  a parquet file or a folder of them, local or in a store.
Out: rows without bytes, for the plan; and later the bytes of some rows.

Columns are recognized by name and type; the Hugging Face form {bytes, path} is one of them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from ..annotations.problems import DataError
from ..images.open_image import MAX_BYTES, ImageError
from .file_stores import cluster_package, is_damaged, is_store, joined, opened_store, parent_of
from .image_rows import ImageRow

_BYTES = ("bytes", "image_bytes", "image", "img", "jpg", "jpeg", "png", "content", "data")
_PATHS = ("path", "image_path", "file_path", "file_name", "filename", "file", "url", "uri")
_IDS = ("id", "key", "image_id")
_ROWS = 1024  # of a column without bytes, read at a time
_ROWS_OF_BYTES = 8
_UNPACKED = 256 << 20  # bytes of values that are decoded at a time, if a table repeats one
_LARGEST_CHUNK = 1 << 30  # unpacked bytes of a column in a row group; more up to `_MOST_TIMES`
_MOST_TIMES = 100  # times its size that a column above `_LARGEST_CHUNK` may unpack to


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are used."""

    image: str
    is_bytes: bool
    field: str | None
    """Of a struct, the field with the bytes."""
    id: str | None
    name: str | None
    """Column with the file name, for bytes."""
    unused: tuple[str, ...]


class ImageTable:
    """Parquet files that list images.

    Args:
        files: their locations, in order.
        root: the folder or file that was given; names of rows are relative to it.
        image_column: the column of bytes or paths; by default recognized by its name.
        id_column: the column of stable ids; by default recognized by its name.

    Raises:
        DataError: a file is no parquet table, or has no such column.
    """

    def __init__(
        self,
        files: Sequence[str],
        root: str,
        image_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        self.files = list(files)
        self.root = root
        self.image_column = image_column
        self.id_column = id_column
        with opened_table(self.files[0]) as table:
            self._columns = _choose_columns(
                table.schema_arrow, self.files[0], image_column, id_column
            )

    def notes(self) -> list[str]:
        """Columns that are not used."""
        unused = self._columns.unused
        return [f"columns not used: {', '.join(unused)}"] if unused else []

    def rows(self) -> Iterator[ImageRow]:
        """One row per image; bytes are not read."""
        for file in self.files:
            with opened_table(file) as table:
                columns = _choose_columns(
                    table.schema_arrow, file, self.image_column, self.id_column
                )
                yield from self._rows_of(table, file, columns)

    def _rows_of(self, table: Any, file: str, columns: _Columns) -> Iterator[ImageRow]:
        base = self.root if len(self.files) > 1 or self.root != file else parent_of(file)
        short = file.removeprefix(self.root).lstrip("/") or posixpath.basename(file)
        wanted = list(dict.fromkeys(filter(None, _light(columns))))
        number = 0
        for group in range(table.num_row_groups):
            _check_sizes(table, file, group, {columns.image, *wanted})
            for offset, values in enumerate(_values(table, group, wanted)):
                number += 1
                number_key = f"{short}#{number}"
                yield _row(values, columns, file, base, number_key, group, offset)


def _values(table: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a row group, with some columns."""
    if not columns:
        yield from repeat({}, table.metadata.row_group(group).num_rows)
        return
    rows = _rows_at_a_time(table, group, columns, _ROWS)
    for batch in table.iter_batches(rows, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _chunks(table: Any, group: int, columns: Iterable[str]) -> list[Any]:
    """What the footer says about the columns of a row group, given as "image" or "image.bytes"."""
    stored = table.metadata.row_group(group)
    chunks = [stored.column(n) for n in range(stored.num_columns)]
    prefixes = tuple(f"{column}." for column in columns)
    return [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(prefixes)]


def _rows_at_a_time(table: Any, group: int, columns: Sequence[str], most: int) -> int:
    """How many rows to decode at a time: a dictionary can repeat a value in every row."""
    chunks = _chunks(table, group, columns)
    sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.has_dictionary_page]
    return max(1, min(most, _UNPACKED // max(sum(sizes), 1)))


def _check_sizes(table: Any, file: str, group: int, columns: set[str]) -> None:
    """Checks what the columns of a row group unpack to, before a page of them is in memory.

    Raises:
        DataError: it is many times what the file has.
    """
    for chunk in _chunks(table, group, columns):
        size = chunk.total_uncompressed_size
        if size > max(_LARGEST_CHUNK, _MOST_TIMES * chunk.total_compressed_size):
            raise DataError(
                f"{file}, row group {group}: column {chunk.path_in_schema}: expected at most "
                f"{_LARGEST_CHUNK >> 20:,} MiB unpacked, or {_MOST_TIMES} times its size, got "
                f"{size >> 20:,} MiB; write the table again with smaller row groups"
            )


def opened_table(location: str) -> Any:
    """A parquet file, opened for reading.

    Raises:
        DataError: it is none, or it is damaged.
    """
    parquet = cluster_package("pyarrow.parquet")
    source: Any = location
    if is_store(location):
        store, path = opened_store(location)
        source = store.open(path, "rb")
    try:
        return parquet.ParquetFile(source)
    except FileNotFoundError:
        raise DataError(f"{location}: file not found") from None
    except (OSError, ValueError) as error:
        if not is_damaged(error):
            raise
        raise DataError(f"{location}: expected a parquet table: {error}") from None


def read_bytes(
    table: Any, columns: tuple[str, str | None], group: int, offsets: Sequence[int]
) -> Iterator[tuple[int, bytes | ImageError]]:
    """The bytes of some rows of a row group, in their order.

    Args:
        table: from `opened_table`.
        columns: the column of bytes, and the field of a struct.
        group: the row group.
        offsets: rows of the group, ascending.
    """
    column, field = columns
    wanted = iter(offsets)
    offset = next(wanted, None)
    start = 0
    selected = f"{column}.{field}" if field else column
    rows = _rows_at_a_time(table, group, [selected], _ROWS_OF_BYTES)

    for batch in table.iter_batches(rows, row_groups=[group], columns=[selected]):
        values = batch.column(0)
        while offset is not None and offset < start + len(values):
            value = values[offset - start]
            data = (value[field] if field and value.is_valid else value).as_py()
            if data is None:
                yield offset, ImageError("the table has no image in this row")
            elif len(data) > MAX_BYTES:
                yield offset, ImageError(f"more than {MAX_BYTES >> 20} MB")
            else:
                yield offset, data
            offset = next(wanted, None)
        start += len(values)
        if offset is None:
            return


def bytes_column(table: Any, location: str, image_column: str | None) -> tuple[str, str | None]:
    """The column of bytes of a table, and the field of a struct."""
    columns = _choose_columns(table.schema_arrow, location, image_column, None)
    return columns.image, columns.field


def _light(columns: _Columns) -> tuple[str | None, ...]:
    """The columns that the plan needs."""
    path = f"{columns.image}.path" if columns.field and columns.name == columns.image else None
    name = None if path else columns.name
    return columns.id, path or name, None if columns.is_bytes else columns.image


def _row(
    values: dict[str, Any],
    columns: _Columns,
    file: str,
    base: str,
    number_key: str,
    group: int,
    offset: int,
) -> ImageRow:
    given = values.get(columns.id) if columns.id else None
    name = values.get(columns.name) if columns.name else None
    if isinstance(name, dict):
        name = name.get("path")
    image_id = given if isinstance(given, int) else None
    key = number_key if given is None else str(given)
    if columns.is_bytes:
        named = str(name) if name else None
        if given is None and named:
            key = named
        return ImageRow(key, named or key, file, image_id, group, offset)

    path = values[columns.image]
    if not path:
        return ImageRow(key, key, None, image_id)
    return ImageRow(key if given is not None else path, path, joined(base, path), image_id)


def _choose_columns(
    schema: Any, location: str, image_column: str | None, id_column: str | None
) -> _Columns:
    """Recognizes the columns of a table.

    Raises:
        DataError: none holds bytes or paths of images, or a given one does not.
    """
    types = cluster_package("pyarrow").types
    fields = {field.name: field.type for field in schema}

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            names = [kind.field(n).name for n in range(kind.num_fields)]
            return "bytes" in names and holds_bytes(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    for name in filter(None, (image_column, id_column)):
        if name not in fields:
            raise DataError(
                f"{Path(location).name}: no column {name}; it has {', '.join(fields) or 'none'}"
            )
    binary = [name for name, kind in fields.items() if holds_bytes(kind)]
    texts = [name for name, kind in fields.items() if is_text(kind)]
    image = image_column or next(
        (name for name in _BYTES if name in binary),
        next((name for name in _PATHS if name in texts), None),
    )
    if image is None and len(binary) == 1:
        image = binary[0]
    if image is None or image not in (*binary, *texts):
        described = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise DataError(
            f"{Path(location).name}: expected a column with bytes or paths of images, got "
            f"{described}; name it with image_column= (--image-column)"
        )

    ids = [n for n in _IDS if n in fields and (types.is_integer(fields[n]) or n in texts)]
    key = id_column or next((name for name in ids if name != image), None)
    is_bytes = image in binary
    is_struct = is_bytes and types.is_struct(fields[image])
    name = next((n for n in _PATHS if n in texts), None) if is_bytes else None
    if name is None and is_struct:
        name = image if "path" in [f.name for f in fields[image]] else None
    used = {image, key, name}
    return _Columns(
        image=image,
        is_bytes=is_bytes,
        field="bytes" if is_struct else None,
        id=key,
        name=name,
        unused=tuple(n for n in fields if n not in used),
    )
