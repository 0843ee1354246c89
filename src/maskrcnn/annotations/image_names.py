r"""Finds the images that file names mean: `ImageFinder("images/").find("C:\\data\\A.PNG")`.

In:  a folder, and names as tools write them: with backslashes, drives, leading folders of another
     machine, `..`, URL encoding, whole URLs, another case, another Unicode form.
Out: the names of the files below the folder that fit: one, none, or several that fit equally well.

The file of exactly that name comes first. Otherwise the more of its last parts agree, the better.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from .coco_types import Json

_SERVER = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*/")
_DRIVE = re.compile(r"^[A-Za-z]:")


class ImageFinder:
    """Finds files below a folder.

    Args:
        folder: the folder of the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[str]:
        """The names, relative to the folder, of the files that fit a name best."""
        if _is_file(self.folder / name):
            return [name]
        return next((found for s in _spellings(name) if (found := self._matching(s))), [])

    def _matching(self, parts: list[str]) -> list[str]:
        """The files whose parts equal these, apart from case and Unicode form."""
        folders = [""]
        for part in parts[:-1]:
            folders = [os.path.join(f, name) for f in folders for name in self._named(f, part)]
        files = [os.path.join(f, name) for f in folders for name in self._named(f, parts[-1])]
        return [Path(name).as_posix() for name in files if _is_file(self.folder / name)]

    def _named(self, folder: str, part: str) -> list[str]:
        """The entries of a folder with a name; exactly that name if there is one."""
        if folder not in self._listed:
            entries: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(self.folder / folder))
            except OSError:
                names = []
            for name in names:
                entries.setdefault(_key(name), []).append(name)
            self._listed[folder] = entries
        found = self._listed[folder].get(_key(part), [])
        return [part] if part in found else found


def is_found(name: str, folder: Path) -> bool:
    """Whether a folder has the image that a name means."""
    return bool(ImageFinder(folder).find(name))


def first_folder(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """The first folder with one of the images, of exactly that name if any folder has it."""
    names = list(names)
    folders = [folder for folder in folders if folder.is_dir()]
    exact = (f for f in folders if any(_is_file(f / name) for name in names))
    if (folder := next(exact, None)) is not None:
        return folder
    finders = [ImageFinder(folder) for folder in folders]
    return next((f.folder for f in finders if any(f.find(name) for name in names[:100])), None)


def file_names(entries: Iterable[Json]) -> list[str]:
    """The file names of image entries that are not checked yet, as far as they have any."""
    objects = [entry for entry in entries if isinstance(entry, Mapping)]
    names = [e.get("file_name") or name_from_url(str(e.get("coco_url", ""))) for e in objects]
    return [name for name in names if isinstance(name, str) and name]


def name_from_url(url: str) -> str:
    """The file name of an image of which only COCO's `coco_url` is given, as in LVIS.

    Source: Gupta et al. 2019, LVIS: its images lie in train2017/ and val2017/ of COCO.
    """
    return "/".join(unquote(url).split("/")[-2:])


def _spellings(name: str) -> Iterator[list[str]]:
    """The parts of a name, then its last parts, ever fewer; as written and URL-decoded."""
    for text in dict.fromkeys((name, unquote(name))):
        text = _SERVER.sub("", text.replace("\\", "/"))
        # Label Studio: /data/local-files/?d=folder/a.png
        _, asked, query = text.partition("?d=")
        path = query if asked else text
        for candidate in dict.fromkeys((path, path.partition("?")[0])):
            parts = [p for p in _DRIVE.sub("", candidate).split("/") if p not in ("", ".")]
            if ".." in parts:
                parts = parts[len(parts) - parts[::-1].index("..") :]
            yield from (parts[k:] for k in range(len(parts)))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long
        return False
