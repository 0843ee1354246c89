"""A file or folder whose format is not known yet, read once by whoever looks at it first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..annotations.problems import DataError


class Source:
    """What is at a path.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name or str(self.path)

    @property
    def folder(self) -> Path:
        """The folder itself, or the file's."""
        return self.path if self.path.is_dir() else self.path.parent

    def first(self, pattern: str) -> Path | None:
        """The first file of the folder that matches; None if this is no folder, or it has none."""
        return next(iter(sorted(self.path.glob(pattern))), None) if self.path.is_dir() else None

    @cached_property
    def json(self) -> Any:
        """The content of a .json file; None of any other.

        Raises:
            DataError: not JSON.
        """
        return (
            read_json(self.path)
            if self.path.suffix.lower() == ".json" and self.path.is_file()
            else None
        )

    @cached_property
    def xml(self) -> ElementTree.Element | None:
        """The root of an .xml file; None of any other.

        Raises:
            DataError: not XML.
        """
        return (
            read_xml(self.path)
            if self.path.suffix.lower() == ".xml" and self.path.is_file()
            else None
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such annotation file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path.name}: is not JSON: {error}; export it again from the tool"
        ) from None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Entities that refer to other files are not followed."""
    try:
        return ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path.name}: is not XML: {error}; export it again from the tool"
        ) from None
    except (
        ValueError,
        LookupError,
    ) as error:  # an encoding that Python's parser does not read, as gb2312
        raise DataError(
            f"{path.name}: is in an encoding that is not read: {error}; save it as UTF-8"
        ) from None


def read_text(path: Path) -> str:
    """A text file, without the mark that some editors put before the first letter.

    Raises:
        DataError: not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: is not UTF-8: {error}; save it as UTF-8") from None


def with_slashes(name: str, folders: Iterable[Path]) -> str:
    """An image's name with slashes for the backslashes of Windows, unless a file of one of the folders has them in its name."""
    return (
        name.replace("\\", "/")
        if "\\" in name and not any((folder / name).is_file() for folder in folders)
        else name
    )
