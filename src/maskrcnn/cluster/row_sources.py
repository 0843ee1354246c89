"""What `predict_dataset` is given, as rows: `open_source("photos/")`.

In:  a folder, a text file that lists images, a COCO file, a parquet table, each local or in an
     object store; or files, wildcard patterns and http(s) URLs.
Out: a `RowSource`, whose rows come in the same order each time, one after another.

A folder's images come in the order of `predict_files`. The other sources keep their own order.
"""

from __future__ import annotations

import io
import os
import posixpath
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..annotations.coco_types import Json
from ..annotations.image_names import first_folder, name_from_url
from ..annotations.json_file import MOST_BYTES, parse_json, read_bounded
from ..annotations.locate_images import locate_images
from ..annotations.problems import DataError
from ..images.image_files import describe_left_out, image_suffixes, is_pattern
from ..images.remote import is_url
from ..prediction.predict_inputs import find_inputs
from ..runtime.counted import counted
from .external_sort import sorted_texts
from .file_states import FileState
from .file_stores import is_store, joined, opened_store, parent_of, read_object
from .image_rows import ImageRow
from .image_table import ImageTable

_LONGEST_LINE = 32_768  # characters of a path or URL
_SHOWN = 3
_SLASH = "\0"  # instead of a slash while names are sorted
_END = "\0\0"  # between a sorted name and the state of its object
_OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".arrow", ".feather", ".tar")


class RowSource(ABC):
    """A source of images. It can be listed several times, also in another process."""

    @abstractmethod
    def rows(self) -> Iterator[ImageRow]:
        """Lists the images, always in the same order.

        Raises:
            DataError: the source cannot be read as what it seems to be.
        """

    @abstractmethod
    def notes(self) -> list[str]:
        """What is in the source and not used, as sentences; after `rows` has ended."""


@dataclass
class LeftOut:
    """Counts files left out by ending, with the first names of each, in bounded memory."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Counts a file."""
        ending = os.path.splitext(name)[1].lower() or "without ending"
        if ending not in self.counts and len(self.counts) >= 20:
            ending = "with other endings"
        self.counts[ending] += 1
        shown = self.names.setdefault(ending, [])
        if len(shown) < _SHOWN:
            shown.append(posixpath.basename(name))

    def notes(self) -> list[str]:
        """The counts as a sentence; none without files."""
        if not self.counts:
            return []
        parts = [
            f"{count:,} {ending} ({', '.join(self.names[ending])}"
            f"{', ...' if count > _SHOWN else ''})"
            for ending, count in self.counts.most_common()
        ]
        total = self.counts.total()
        return [f"left out {counted(total, 'file')} not read as images: {', '.join(parts)}"]


class FolderSource(RowSource):
    """All images below a folder, here or in a store, sorted by the parts of their paths.

    Args:
        folder: a path or URL.
        excluded: the folder of the results, whose images are not read.
    """

    def __init__(self, folder: str, excluded: str = "") -> None:
        self.folder = folder
        self.excluded = excluded
        self.left_out = LeftOut()

    def rows(self) -> Iterator[ImageRow]:
        """See `RowSource`."""
        self.left_out = LeftOut()
        # sorted as paths are: "a/b" precedes "a-b", because "a" precedes "a-b"
        for text in sorted_texts(
            f"{name.replace('/', _SLASH)}{_END}{state or ''}" for name, state in self._images()
        ):
            parts, _, state = text.rpartition(_END)
            name = parts.replace(_SLASH, "/")
            location = joined(self.folder, name)
            yield ImageRow(name, name, location, state=FileState.parse(state))

    def notes(self) -> list[str]:
        """See `RowSource`."""
        return self.left_out.notes()

    def _images(self) -> Iterator[tuple[str, FileState | None]]:
        suffixes = image_suffixes()
        files = self._store_files() if is_store(self.folder) else self._local_files()
        for name, is_file, state in files:
            if is_file and os.path.splitext(name)[1].lower() in suffixes:
                yield name, state
            else:
                self.left_out.add(name)

    def _local_files(self) -> Iterator[tuple[str, bool, None]]:
        """Names of all entries but folders, relative; each real folder once, hidden ones never.

        Their states are cheaper to read where they are used.
        """
        excluded = _identity(self.excluded) if self.excluded else None
        pending = [""]
        seen = {_identity(self.folder)}

        while pending:
            below = pending.pop()
            try:
                entries = os.scandir(os.path.join(self.folder, below))
            except OSError:
                if not below:
                    raise
                self.left_out.add(below)
                continue
            with entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{below}/{entry.name}" if below else entry.name
                    if not entry.is_dir():
                        yield name, entry.is_file(), None
                        continue
                    identity = _identity(entry.path)
                    if identity not in seen and identity != excluded:
                        seen.add(identity)
                        pending.append(name)

    def _store_files(self) -> Iterator[tuple[str, bool, FileState | None]]:
        """All objects and their states, without hidden ones; one prefix in memory at a time."""
        store, root = opened_store(self.folder)
        root = root.rstrip("/")
        excluded = f"{opened_store(self.excluded)[1].rstrip('/')}/" if self._is_excluding else None
        for parent, folders, files in store.walk(root, detail=True):
            if excluded and f"{parent}/".startswith(excluded):
                continue
            below = parent.rstrip("/")[len(root) :].strip("/")
            for hidden in [folder for folder in folders if folder.startswith(".")]:
                del folders[hidden]

            for file, entry in files.items():
                name = posixpath.basename(file)
                if name and not name.startswith("."):
                    yield posixpath.join(below, name), True, FileState.of_entry(entry)

    @property
    def _is_excluding(self) -> bool:
        """Whether results are written into the store that the images are in."""
        return is_store(self.excluded)


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class ListSource(RowSource):
    """A text file with one path or URL per line.

    Args:
        location: a path or URL; relative lines are relative to its folder.
        images: the folder that relative lines are relative to instead.
    """

    def __init__(self, location: str, images: str | None = None) -> None:
        self.location = location
        self.folder = images or parent_of(location)
        self.blank = 0

    def rows(self) -> Iterator[ImageRow]:
        """See `RowSource`."""
        self.blank = 0
        for number, line in enumerate(self._lines(), start=1):
            if len(line) >= _LONGEST_LINE or "\0" in line:
                raise DataError(
                    f"{self.location}, line {number}: expected one path or URL per line, got "
                    f"{'binary data' if chr(0) in line else 'a longer line'}"
                )
            name = line.rstrip("\r\n")
            if not name.strip():
                self.blank += 1
                continue
            is_remote = is_url(name) or is_store(name)
            yield ImageRow(name, name, name if is_remote else joined(self.folder, name))

    def notes(self) -> list[str]:
        """See `RowSource`."""
        return [f"blank lines: {self.blank:,}"] if self.blank else []

    def _lines(self) -> Iterator[str]:
        if is_store(self.location):
            store, path = opened_store(self.location)
            raw = store.open(path, "rb")
        else:
            raw = open(self.location, "rb")  # noqa: SIM115
        with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape") as file:
            while line := file.readline(_LONGEST_LINE):
                yield line


class CocoSource(RowSource):
    """The images of a COCO file, with its ids; annotations are not read, and may be absent.

    Args:
        location: a path or URL.
        images: folder of the images; by default that of the file.
    """

    def __init__(self, location: str, images: str | None = None) -> None:
        self.location = location
        self.images = images
        self._notes: list[str] = []

    def rows(self) -> Iterator[ImageRow]:
        """See `RowSource`."""
        self._notes = []
        name = posixpath.basename(self.location)
        if is_store(self.location):
            content = parse_json(read_object(self.location, MOST_BYTES), name)
        else:
            content = parse_json(read_bounded(Path(self.location), MOST_BYTES, "JSON"), name)
        entries = _image_entries(content, name)
        del content

        folder = self.images or parent_of(self.location)
        if not is_store(folder):
            entries, folder = self._located(entries, folder)
        seen: set[int] = set()
        for index, entry in enumerate(entries):
            yield _coco_row(entry, f"{name}, images[{index}]", folder, seen)

    def notes(self) -> list[str]:
        """See `RowSource`."""
        return self._notes

    def _located(self, entries: list[Json], folder: str) -> tuple[list[Json], str]:
        """Entries with the names of local files, where tools write them otherwise."""
        names = [e["file_name"] for e in entries if isinstance(e, Mapping) and "file_name" in e]
        if not self.images:
            beside = [Path(folder), Path(folder) / "images"]
            folder = str(first_folder(map(str, names), beside) or folder)
        located = locate_images(entries, Path(folder))
        if located.problems:
            first = located.problems[0]
            raise DataError(f"{self.location}, {first.where}: {first.detail}; {first.suggestion}")
        self._notes = [str(note) for note in located.notes]
        return located.images, folder


def _image_entries(content: Json, name: str) -> list[Json]:
    images = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(images, list):
        raise DataError(
            f'{name}: expected a COCO file with a list "images"; for another format, first use '
            "maskrcnn convert"
        )
    return images


def _coco_row(entry: Json, where: str, folder: str, seen: set[int]) -> ImageRow:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected an object, got {type(entry).__name__}")
    number = entry.get("id")
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**63:
        raise DataError(f"{where}: id: expected a whole number, got {str(number)[:40]!r}")
    if number in seen:
        raise DataError(f"{where}: id {number} occurs twice; give each image its own")
    seen.add(number)

    name = entry.get("file_name")
    url = entry.get("coco_url")
    if not name and isinstance(url, str):
        name = name_from_url(url)
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: file_name: expected text, got {str(name)[:40]!r}")
    location = name if is_url(name) or is_store(name) else joined(folder, name)
    return ImageRow(str(number), name, location, number)


class TableSource(RowSource):
    """The images of a parquet table.

    Args:
        files: the locations of its files.
        root: the file or folder that was given.
        image_column: see `ImageTable`.
        id_column: see `ImageTable`.
    """

    def __init__(
        self, files: Sequence[str], root: str, image_column: str | None, id_column: str | None
    ) -> None:
        self._table = ImageTable(files, root, image_column, id_column)

    def rows(self) -> Iterator[ImageRow]:
        """See `RowSource`."""
        return self._table.rows()

    def notes(self) -> list[str]:
        """See `RowSource`."""
        return self._table.notes()


class InputsSource(RowSource):
    """Files, folders, patterns and http(s) URLs, as `predict_files` takes them; all in memory.

    Args:
        inputs: see `predict_files`.
        out: the folder of the results, whose images are not read.
    """

    def __init__(self, inputs: Sequence[str], out: str) -> None:
        self._inputs = find_inputs(inputs, Path(out))

    def rows(self) -> Iterator[ImageRow]:
        """See `RowSource`."""
        for image in self._inputs.images:
            if isinstance(image.image, bytes):
                raise ValueError("-: expected images that other processes can read; name a file")
            yield ImageRow(image.name, image.name, str(image.image))

    def notes(self) -> list[str]:
        """See `RowSource`."""
        left_out = self._inputs.left_out
        return [describe_left_out(left_out)] if left_out else []


def open_source(
    source: str | Path | Sequence[str | Path],
    *,
    out: str = "",
    images: str | Path | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> RowSource:
    """Recognizes a source by what it is and by its ending.

    Args:
        source: see `predict_dataset`.
        out: the folder of the results; images in it are not read.
        images: folder of the images of a list or COCO file.
        image_column: of a table.
        id_column: of a table.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: there are several sources of which one is a list or a table, or an option does
            not fit the source.
        DataError: a table has no images.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    texts = [str(one) for one in given]
    kinds = [_kind(text) for text in texts]
    if len(texts) > 1 and (special := [t for t, k in zip(texts, kinds, strict=True) if k]):
        raise ValueError(f"{special[0]}: expected this as the only source, got {len(texts)}")
    kind = kinds[0] if len(kinds) == 1 else ""
    _check_options(kind, texts, images=images, image_column=image_column, id_column=id_column)

    text = texts[0] if is_store(texts[0]) else os.path.abspath(texts[0])
    folder = None if images is None else str(images)
    if folder is not None and not is_store(folder):
        folder = os.path.abspath(folder)
    match kind:
        case "table":
            return TableSource(_table_files(text), text, image_column, id_column)
        case "list":
            return ListSource(text, folder)
        case "coco":
            return CocoSource(text, folder)
        case "folder":
            return FolderSource(text, out)
        case _:
            return InputsSource([t if is_url(t) else os.path.abspath(t) for t in texts], out)


def _kind(text: str) -> str:
    """What a source is; "" for files, patterns and URLs of images."""
    if is_url(text):
        return ""
    is_remote = is_store(text)
    if not is_remote and not os.path.lexists(text):
        if is_pattern(text):
            return ""
        raise FileNotFoundError(f"{text}: file or folder not found")

    ending = os.path.splitext(text.rstrip("/"))[1].lower()
    is_folder = _is_store_folder(text) if is_remote else os.path.isdir(text)
    if is_folder:
        return "table" if _has_tables_only(text) else "folder"
    kinds = {".parquet": "table", ".pq": "table", ".txt": "list", ".lst": "list", ".json": "coco"}
    if ending in _OTHER_TABLES:
        raise ValueError(
            f"{text}: expected a list (.txt), a COCO file (.json) or a table (.parquet), got "
            f"{ending}; write its column of paths into a list"
        )
    if is_remote and ending not in kinds:
        raise ValueError(
            f"{text}: expected a folder, a list (.txt), a COCO file (.json) or a table (.parquet)"
            "; for single objects, write their URLs into a list"
        )
    return kinds.get(ending, "")


def _is_store_folder(url: str) -> bool:
    store, path = opened_store(url)
    if not store.exists(path):
        raise FileNotFoundError(f"{url}: file or folder not found")
    return store.isdir(path)


def _has_tables_only(folder: str) -> bool:
    """Whether a folder has parquet files, and no image beside them."""
    suffixes = image_suffixes()
    has_table = False
    for name in _top_files(folder):
        ending = os.path.splitext(name)[1].lower()
        if ending in suffixes:
            return False
        has_table = has_table or ending in (".parquet", ".pq")
    return has_table


def _top_files(folder: str) -> Iterator[str]:
    if not is_store(folder):
        with os.scandir(folder) as entries:
            yield from (e.name for e in entries if not e.name.startswith("."))
        return
    store, root = opened_store(folder)
    for _, _, files in store.walk(root, maxdepth=1):
        yield from files


def _table_files(location: str) -> list[str]:
    is_folder = _is_store_folder(location) if is_store(location) else os.path.isdir(location)
    if not is_folder:  # Spark names folders "table.parquet"
        return [location]
    names = sorted(n for n in _top_files(location) if n.lower().endswith((".parquet", ".pq")))
    return [joined(location, name) for name in names]


def _check_options(kind: str, texts: Sequence[str], **options: Any) -> None:
    """Checks that an option is one of the source's kind.

    Raises:
        ValueError: it is not.
    """
    fits = {"images": ("list", "coco"), "image_column": ("table",), "id_column": ("table",)}
    names = {"list": "a list (.txt)", "coco": "a COCO file", "table": "a parquet table"}
    for option, value in options.items():
        if value is not None and kind not in fits[option]:
            expected = " or ".join(names[k] for k in fits[option])
            raise ValueError(f"{option}: expected {expected} as the source, got {texts[0]}")
