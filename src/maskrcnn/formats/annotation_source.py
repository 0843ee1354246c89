"""A file or folder whose format is not known yet; its content is parsed once, on first use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from xml.etree.ElementTree import Element

from ..annotations.coco_types import Json
from ..annotations.json_file import read_json
from .bounded_files import read_xml


class AnnotationSource:
    """The file or folder at a path.

    Attributes:
        path: the file or folder.
        attribute: the attribute that the user says is the category; "" = the format decides.
    """

    def __init__(self, path: str | Path, attribute: str = "") -> None:
        self.path = Path(path)
        self.attribute = attribute
        self._files: dict[Path, AnnotationSource] = {}

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

    def file(self, path: Path) -> AnnotationSource:
        """A file of the folder, or the file itself; each is parsed once."""
        if path == self.path:
            return self
        return self._files.setdefault(path, AnnotationSource(path, self.attribute))

    @cached_property
    def json(self) -> Json:
        """The content of a .json file; None for any other.

        Raises:
            DataError: the file is not valid JSON.
        """
        is_json = self.path.suffix.lower() == ".json" and self.path.is_file()
        return read_json(self.path) if is_json else None

    @cached_property
    def xml(self) -> Element | None:
        """The root of an .xml file; None for any other.

        Raises:
            DataError: the file is not valid XML.
        """
        is_xml = self.path.suffix.lower() == ".xml" and self.path.is_file()
        return read_xml(self.path) if is_xml else None


def with_slashes(name: str, folders: Iterable[Path]) -> str:
    """An image's name with slashes instead of the backslashes of Windows.

    Backslashes stay where a file in one of the folders has them in its name.
    """
    if "\\" not in name or any((folder / name).is_file() for folder in folders):
        return name
    return name.replace("\\", "/")
