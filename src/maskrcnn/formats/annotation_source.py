"""A file or folder whose format is not known yet; its content is parsed once, on first use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..annotations.json_file import read_json
from ..annotations.problems import DataError


class AnnotationSource:
    """The file or folder at a path.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.path.name or str(self.path)

    @property
    def folder(self) -> Path:
        """The folder itself, or the one that contains the file."""
        return self.path if self.path.is_dir() else self.path.parent

    def first(self, pattern: str) -> Path | None:
        """The first file of the folder that matches; None for a file, or if no file matches."""
        return next(iter(sorted(self.path.glob(pattern))), None) if self.path.is_dir() else None

    @cached_property
    def json(self) -> Any:
        """The content of a .json file; None for any other.

        Raises:
            DataError: the file is not valid JSON.
        """
        is_json = self.path.suffix.lower() == ".json" and self.path.is_file()
        return read_json(self.path) if is_json else None

    @cached_property
    def xml(self) -> ElementTree.Element | None:
        """The root of an .xml file; None for any other.

        Raises:
            DataError: the file is not valid XML.
        """
        is_xml = self.path.suffix.lower() == ".xml" and self.path.is_file()
        return read_xml(self.path) if is_xml else None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Entities that refer to other files are not followed.

    Raises:
        DataError: the file is not valid XML.
    """
    try:
        return ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise DataError(
            f"{path.name}: not valid XML: {error}; export it again from the tool"
        ) from None
    except (ValueError, LookupError) as error:
        # encodings that Python's parser does not support, such as gb2312
        raise DataError(f"{path.name}: unsupported encoding: {error}; save it as UTF-8") from None


def read_text(path: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8: {error}; save it as UTF-8") from None


def with_slashes(name: str, folders: Iterable[Path]) -> str:
    """An image's name with slashes instead of the backslashes of Windows.

    Backslashes stay where a file in one of the folders has them in its name.
    """
    if "\\" not in name or any((folder / name).is_file() for folder in folders):
        return name
    return name.replace("\\", "/")
